use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Reason;

/// Consul, in numbers.
#[derive(Clone, Default)]
pub struct ConsulMetrics {
    /// Doors that are registered.
    pub registered: Gauge,
    /// Registrations: the first, and those after the agent had forgotten.
    pub registrations: Counter,
    /// Requests to the agent that failed, by reason.
    pub failures: Family<Reason, Counter>,
}

impl ConsulMetrics {
    /// Counts a request that failed.
    pub fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "consul_registered",
            "Doors registered at Consul",
            self.registered.clone(),
        );
        registry.register(
            "consul_registrations",
            "Registrations at Consul",
            self.registrations.clone(),
        );
        registry.register(
            "consul_failures",
            "Requests to the Consul agent that failed",
            self.failures.clone(),
        );
    }
}
