use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a reload ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Reloads of the configuration, in numbers.
#[derive(Clone, Default)]
pub struct ReloadMetrics {
    outcomes: Family<Outcome, Counter>,
    last: Gauge,
}

impl ReloadMetrics {
    /// Counts one that was applied, and notes when.
    pub fn applied(&self) {
        self.count("applied");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = now.map_or(0, |now| now.as_secs());
        self.last.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Counts one that was refused: the configuration before it stays.
    pub fn refused(&self) {
        self.count("refused");
    }

    fn count(&self, outcome: &'static str) {
        self.outcomes.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "reloads",
            "Reloads of the configuration by outcome",
            self.outcomes.clone(),
        );
        registry.register(
            "last_reload_timestamp_seconds",
            "When a reload was last applied; 0 = never",
            self.last.clone(),
        );
    }
}
