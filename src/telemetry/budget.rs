use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Reason;

/// The fleet's handshake budget, as this node has part in it, in numbers.
#[derive(Clone, Default)]
pub struct BudgetMetrics {
    /// Tokens that were leased.
    pub leased: Counter,
    /// Tokens that were leased and not used in time.
    pub expired: Counter,
    /// Slots, by what became of them.
    pub slots: Family<Reason, Counter>,
    /// Leases that failed, by reason.
    pub failures: Family<Reason, Counter>,
    /// Until when all slots are given, in Unix seconds.
    pub reach: Gauge,
}

impl BudgetMetrics {
    /// Counts what became of a slot: `given`, `kept` or `missed`, or `unused`.
    pub fn slot(&self, reason: &'static str) {
        self.slots.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a lease that failed.
    pub fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "budget_leased",
            "Tokens of the fleet's handshake budget leased",
            self.leased.clone(),
        );
        registry.register(
            "budget_expired",
            "Leased tokens that were not used in time",
            self.expired.clone(),
        );
        registry.register(
            "budget_slots",
            "Slots of the fleet's handshake budget by what became of them",
            self.slots.clone(),
        );
        registry.register(
            "budget_lease_failures",
            "Leases of the fleet's handshake budget that failed",
            self.failures.clone(),
        );
        registry.register(
            "budget_reach_timestamp_seconds",
            "Until when all slots are given",
            self.reach.clone(),
        );
    }
}
