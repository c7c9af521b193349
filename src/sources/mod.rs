//! Topics as a way in: a service publishes an event and never calls us. Each node hears it and delivers it to its own
//! sessions, so what happens here is past the backplane, live only, and without an answer. This room reads events; who
//! brings them is the backplane's business, and who gets them the hub's.

mod complaint;
mod config;
mod event;
mod pointer;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use self::complaint::Complaints;
use self::event::Reading;
use crate::backplane::redis::{Event, Place, Topics};
use crate::backplane::{BackplaneConfig, Later};
use crate::hub::Delivery;
use crate::telemetry::SourceMetrics;

pub use config::{SourceConfig, SourceKind};
pub use pointer::Pointer;

/// The tasks of all sources: for each Redis one that listens and one that reads. They never end.
///
/// # Errors
/// The configuration is wrong; a sentence with the key.
pub fn readers(
    sources: &[SourceConfig],
    backplane: &BackplaneConfig,
    delivery: Arc<Delivery>,
    message_bytes: usize,
    metrics: &SourceMetrics,
) -> Result<Vec<Later<'static, ()>>, String> {
    // Sources at one place share a connection.
    let mut places: BTreeMap<Option<&str>, (Place, Readings)> = BTreeMap::new();
    for source in sources {
        let url = source.url.as_ref().or(backplane.url.as_ref());
        let (_, readings) = match places.entry(url.map(|url| url.expose())) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert((source.place(backplane)?, Readings::new()))
            }
        };
        let of_topic = readings.entry(source.topic.clone()).or_default();
        of_topic.push(Reading::of(source, message_bytes));
    }
    let complaints = Arc::new(Complaints::default());
    let mut tasks: Vec<Later<'static, ()>> = Vec::new();
    for (place, readings) in places.into_values() {
        let names = readings.keys().cloned().collect();
        let (topics, events) = Topics::new(place, names, metrics.clone());
        tasks.push(Box::pin(topics.run()));
        let reader = Reader {
            readings,
            delivery: delivery.clone(),
            complaints: complaints.clone(),
            metrics: metrics.clone(),
        };
        tasks.push(Box::pin(reader.run(events)));
    }
    Ok(tasks)
}

/// By topic, the sources that read it.
type Readings = BTreeMap<String, Vec<Reading>>;

/// Takes events to the node's own sessions, one after the other.
struct Reader {
    readings: Readings,
    delivery: Arc<Delivery>,
    complaints: Arc<Complaints>,
    metrics: SourceMetrics,
}

impl Reader {
    async fn run(self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            self.metrics.events.inc();
            let topic = std::str::from_utf8(&event.topic).unwrap_or_default();
            for reading in self.readings.get(topic).into_iter().flatten() {
                match reading.read(&event.bytes) {
                    Ok(message) => self.delivery.deliver_here(message).await,
                    Err(malformed) => {
                        self.metrics.malformed(malformed.name());
                        self.complaints.of(topic, malformed.name(), &event.bytes);
                    }
                }
            }
        }
    }
}
