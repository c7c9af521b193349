use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Reason;

/// What became of an event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamEvent {
    /// The stream, as the configuration names it.
    pub topic: String,
    /// Which of the documented outcomes.
    pub outcome: &'static str,
}

/// Topics as a way in, in numbers.
#[derive(Clone, Default)]
pub struct SourceMetrics {
    /// Connections on which topics are heard, or streams read.
    pub links: Gauge,
    /// Events that came.
    pub events: Counter,
    /// Events that could not be read, by reason.
    pub malformed: Family<Reason, Counter>,
    /// Events that were lost here, by reason.
    pub losses: Family<Reason, Counter>,
    /// Events of streams, by stream and outcome.
    pub stream_events: Family<StreamEvent, Counter>,
}

impl SourceMetrics {
    /// Counts what became of some events of a stream.
    pub fn of_stream(&self, topic: &str, outcome: &'static str, count: usize) {
        if count > 0 {
            let topic = topic.to_owned();
            let event = StreamEvent { topic, outcome };
            self.stream_events
                .get_or_create(&event)
                .inc_by(count as u64);
        }
    }

    /// Counts an event that could not be read.
    pub fn malformed(&self, reason: &'static str) {
        self.malformed.get_or_create(&Reason { reason }).inc();
    }

    /// Counts an event that found no room.
    pub fn lost(&self, reason: &'static str) {
        self.losses.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "source_links",
            "Connections on which sources are heard or read",
            self.links.clone(),
        );
        registry.register("source_events", "Events that came", self.events.clone());
        registry.register(
            "source_malformed",
            "Events that could not be read",
            self.malformed.clone(),
        );
        registry.register("source_losses", "Events lost here", self.losses.clone());
        registry.register(
            "source_stream_events",
            "Events of streams by outcome",
            self.stream_events.clone(),
        );
    }
}
