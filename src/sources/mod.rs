//! Topics as a way in: a service publishes an event and never calls us. On Pub/Sub each node hears it and delivers it to its
//! own sessions, past the backplane and live only. On a stream one node takes it, pushes it as any push, and confirms it
//! once it was accepted. This room reads events; who brings them is the backplane's business, and who gets them the hub's.

mod complaint;
mod config;
mod event;
mod pointer;
mod stream;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use self::complaint::Complaints;
use self::event::Reading;
use self::stream::{StreamReader, StreamReading};
use crate::backplane::redis::{Event, Log, LogConfig, Place, Topics};
use crate::backplane::{BackplaneConfig, Later};
use crate::hub::{Delivery, LiveLimits, Router};
use crate::telemetry::SourceMetrics;

pub use config::{Patience, SourceConfig, SourceKind};
pub use pointer::Pointer;

/// What sources bring events to.
pub struct Bound {
    /// What is live only goes to this node's own sessions.
    pub delivery: Arc<Delivery>,
    /// What must not be lost is pushed.
    pub router: Arc<Router>,
    /// What is too much.
    pub limits: LiveLimits,
    /// Counters.
    pub metrics: SourceMetrics,
    /// Turns true when nothing more is to be taken from streams.
    pub stop: watch::Receiver<bool>,
}

/// The tasks of all sources.
pub struct Readers {
    /// For each Redis with topics one that listens and one that reads. They never end.
    pub topics: Vec<Later<'static, ()>>,
    /// One for each stream and group. They end once they are told to stop and what they have taken is confirmed, or cannot
    /// be now.
    pub streams: Vec<Later<'static, ()>>,
}

/// Makes the tasks of all sources.
///
/// # Errors
/// The configuration is wrong; a sentence with the key.
pub fn readers(
    sources: &[SourceConfig],
    backplane: &BackplaneConfig,
    bound: &Bound,
) -> Result<Readers, String> {
    let complaints = Arc::new(Complaints::default());
    Ok(Readers {
        topics: topic_readers(sources, backplane, bound, &complaints)?,
        streams: stream_readers(sources, backplane, bound, &complaints)?,
    })
}

fn of_kind(sources: &[SourceConfig], kind: SourceKind) -> impl Iterator<Item = &SourceConfig> {
    sources.iter().filter(move |source| source.kind == kind)
}

/// Where a source is, by which sources at one place are found.
fn url<'a>(source: &'a SourceConfig, backplane: &'a BackplaneConfig) -> Option<&'a str> {
    let url = source.url.as_ref().or(backplane.url.as_ref());
    url.map(|url| url.expose())
}

fn topic_readers(
    sources: &[SourceConfig],
    backplane: &BackplaneConfig,
    bound: &Bound,
    complaints: &Arc<Complaints>,
) -> Result<Vec<Later<'static, ()>>, String> {
    // Sources at one place share a connection.
    let mut places: BTreeMap<Option<&str>, (Place, Readings)> = BTreeMap::new();
    for source in of_kind(sources, SourceKind::RedisPubsub) {
        let (_, readings) = match places.entry(url(source, backplane)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert((source.place(backplane)?, Readings::new())),
        };
        let of_topic = readings.entry(source.topic.clone()).or_default();
        of_topic.push(Reading::of(source, bound.limits.clone()));
    }
    let mut tasks: Vec<Later<'static, ()>> = Vec::new();
    for (place, readings) in places.into_values() {
        let names = readings.keys().cloned().collect();
        let (topics, events) = Topics::new(place, names, bound.metrics.clone());
        tasks.push(Box::pin(topics.run()));
        let reader = Reader {
            readings,
            delivery: bound.delivery.clone(),
            complaints: complaints.clone(),
            metrics: bound.metrics.clone(),
        };
        tasks.push(Box::pin(reader.run(events)));
    }
    Ok(tasks)
}

fn stream_readers(
    sources: &[SourceConfig],
    backplane: &BackplaneConfig,
    bound: &Bound,
    complaints: &Arc<Complaints>,
) -> Result<Vec<Later<'static, ()>>, String> {
    // Sources that are one consumer of a stream take an entry together.
    let mut streams: BTreeMap<(Option<&str>, &str, String), Vec<&SourceConfig>> = BTreeMap::new();
    for source in of_kind(sources, SourceKind::RedisStream) {
        let group = source.group(backplane);
        let of_stream = streams.entry((url(source, backplane), &source.topic, group));
        of_stream.or_default().push(source);
    }
    let mut tasks: Vec<Later<'static, ()>> = Vec::new();
    for ((_, topic, group), sources) in streams {
        let config = LogConfig {
            topic: topic.to_owned(),
            group,
            consumer: bound.router.node().to_string(),
            claim_after: sources
                .iter()
                .map(|source| source.claim_after())
                .min()
                .unwrap_or_default(),
        };
        let reading = |source: &&SourceConfig| StreamReading {
            field: source.field().to_owned(),
            reading: Reading::of(source, bound.limits.clone()),
        };
        let reader = StreamReader {
            topic: topic.to_owned(),
            log: Log::new(
                sources[0].place(backplane)?,
                config,
                bound.metrics.links.clone(),
            ),
            readings: sources.iter().map(reading).collect(),
            router: bound.router.clone(),
            complaints: complaints.clone(),
            metrics: bound.metrics.clone(),
            stop: bound.stop.clone(),
        };
        tasks.push(Box::pin(reader.run()));
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
