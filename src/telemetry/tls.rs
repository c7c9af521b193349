use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// A door.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Door {
    door: &'static str,
}

/// What became of a door's new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reload {
    door: &'static str,
    outcome: &'static str,
}

/// Why a TLS handshake at a door failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    door: &'static str,
    reason: &'static str,
}

/// Certificates and TLS handshakes, in numbers.
#[derive(Clone, Default)]
pub struct TlsMetrics {
    expiry: Family<Door, Gauge>,
    reloads: Family<Reload, Counter>,
    failures: Family<Failure, Counter>,
}

impl TlsMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "certificate_expiry",
            "When the certificate that a door shows expires, as Unix time",
            Unit::Seconds,
            self.expiry.clone(),
        );
        registry.register(
            "certificate_reloads",
            "Certificates that were taken up or refused while the node ran",
            self.reloads.clone(),
        );
        registry.register(
            "tls_failures",
            "TLS handshakes that failed",
            self.failures.clone(),
        );
    }

    /// Says until when a door's certificate is good, in Unix seconds.
    pub fn expires(&self, door: &'static str, until: i64) {
        self.expiry.get_or_create(&Door { door }).set(until);
    }

    /// Counts a new certificate.
    pub fn reloaded(&self, door: &'static str, outcome: &'static str) {
        self.reloads.get_or_create(&Reload { door, outcome }).inc();
    }

    /// Counts a handshake that failed.
    pub fn failed(&self, door: &'static str, reason: &'static str) {
        self.failures.get_or_create(&Failure { door, reason }).inc();
    }
}
