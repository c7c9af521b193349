use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{BudgetMetrics, ConsulMetrics, ReloadMetrics, SourceMetrics};
use crate::model::Address;

/// One label with a fixed set of values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// Which of the documented reasons.
    pub reason: &'static str,
}

/// A close code and who closed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Closed {
    /// The close code of RFC 6455, or of ours; 1006 = no close frame at all.
    pub code: u16,
    /// The documented reason.
    pub reason: &'static str,
}

/// A call at the service door.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// The method's name in the service API.
    pub method: &'static str,
    /// `OK` or the code of the refusal.
    pub code: &'static str,
}

/// What links nodes, in numbers.
#[derive(Clone)]
pub struct BackplaneMetrics {
    /// Subscriber links that are whole.
    pub links: Gauge,
    /// Links that were given up, by reason.
    pub rebuilds: Family<Reason, Counter>,
    /// Addresses that this node began to listen to.
    pub listens: Counter,
    /// Addresses that it ceased to listen to.
    pub unlistens: Counter,
    /// Envelopes published, by outcome.
    pub publishes: Family<Reason, Counter>,
    /// Envelopes received, by the kind of their address.
    pub received: Family<Reason, Counter>,
    /// Messages received that some session here follows, by the kind of their address: received / wanted is the
    /// amplification.
    pub wanted: Family<Reason, Counter>,
    /// Received bytes that are no envelope of ours, by reason.
    pub dropped: Family<Reason, Counter>,
    /// Envelopes that were lost here, by reason.
    pub losses: Family<Reason, Counter>,
    /// Probes that did not come back.
    pub lost_probes: Counter,
    /// From a probe's departure to its return.
    pub echo_seconds: Histogram,
}

impl BackplaneMetrics {
    /// Counts an envelope that was published.
    pub fn published(&self, reason: &'static str) {
        self.publishes.get_or_create(&Reason { reason }).inc();
    }

    /// Counts bytes that are no envelope.
    pub fn dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&Reason { reason }).inc();
    }

    /// Counts an envelope that found no room.
    pub fn lost(&self, reason: &'static str) {
        self.losses.get_or_create(&Reason { reason }).inc();
    }

    /// Counts an envelope that came.
    pub fn received(&self, address: &Address) {
        let reason = address.kind();
        self.received.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a message that somebody here follows.
    pub fn wanted(&self, address: &Address) {
        let reason = address.kind();
        self.wanted.get_or_create(&Reason { reason }).inc();
    }
}

/// What is kept, in numbers.
#[derive(Clone, Default)]
pub struct StreamMetrics {
    /// Appends that were tried again because their answer was lost.
    pub append_retries: Counter,
    /// Times that something was missing before a message, or may have been.
    pub mended: Counter,
    /// Messages that were found missing and delivered.
    pub messages_mended: Counter,
    /// Sessions that were told of a gap.
    pub gaps: Counter,
    /// Messages that were live only and found no room beside a session that was behind.
    pub waiting_dropped: Counter,
}

impl StreamMetrics {
    fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            (
                "append_retries",
                "Appends tried again because their answer was lost",
                &self.append_retries,
            ),
            (
                "streams_mended",
                "Times that something may have been missing in a stream",
                &self.mended,
            ),
            (
                "messages_mended",
                "Messages that were found missing and delivered",
                &self.messages_mended,
            ),
            ("gaps", "Sessions that were told of a gap", &self.gaps),
            (
                "waiting_dropped",
                "VOLATILE messages that found no room beside a session that was behind",
                &self.waiting_dropped,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}

/// A node's metrics: typed handles on plain atomics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: std::sync::Arc<Registry>,
    /// Open sessions.
    pub connections: Gauge,
    /// Upgraded handshakes.
    pub handshakes: Counter,
    /// What the public door refused, by reason.
    pub refusals: Family<Reason, Counter>,
    /// JWTs that were not good, by reason.
    pub jwt_refusals: Family<Reason, Counter>,
    /// Ended sessions, by close code and reason.
    pub closes: Family<Closed, Counter>,
    /// Client frames, control frames included.
    pub frames_in: Counter,
    /// Bytes read from clients after the handshake.
    pub bytes_in: Counter,
    /// Frames written to clients.
    pub frames_out: Counter,
    /// Bytes written to clients after the handshake.
    pub bytes_out: Counter,
    /// Write calls: frames_out divided by this is how well writes coalesce.
    pub writes: Counter,
    /// Messages accepted from services and clients.
    pub messages_accepted: Counter,
    /// Messages put into outboxes, once per session.
    pub messages_delivered: Counter,
    /// Bytes that wait in outboxes.
    pub outbox_bytes: Gauge,
    /// Sessions closed because they did not read.
    pub slow_consumers: Counter,
    /// Sessions that asked for no heartbeats.
    pub silent: Counter,
    /// From the acceptance of a message to the answer: every outbox of this node has it.
    pub push_seconds: Histogram,
    /// Calls at the service door.
    pub calls: Family<Call, Counter>,
    /// Tickets issued.
    pub tickets_issued: Counter,
    /// Resume tickets sealed.
    pub resume_tickets: Counter,
    /// Resume tickets redeemed.
    pub resumed: Counter,
    /// Resume tickets that were not good, by reason.
    pub resume_refusals: Family<Reason, Counter>,
    /// Connections that could not be accepted, by reason (descriptors, aborted).
    pub accept_errors: Family<Reason, Counter>,
    /// Bad client frames, by the code of the error frame.
    pub client_errors: Family<Reason, Counter>,
    /// Tickets in Redis that were refused, by reason.
    pub bad_tickets: Family<Reason, Counter>,
    /// What links nodes.
    pub backplane: BackplaneMetrics,
    /// What is kept.
    pub streams: StreamMetrics,
    /// The fleet's handshake budget.
    pub budget: BudgetMetrics,
    /// Topics as a way in.
    pub sources: SourceMetrics,
    /// Consul.
    pub consul: ConsulMetrics,
    /// Reloads of the configuration.
    pub reloads: ReloadMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All of them at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tidings");
        macro_rules! metric {
            ($name:literal, $help:literal, $make:expr) => {{
                let metric = $make;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let streams = StreamMetrics::default();
        streams.register(&mut registry);
        let budget = BudgetMetrics::default();
        budget.register(&mut registry);
        let sources = SourceMetrics::default();
        sources.register(&mut registry);
        let consul = ConsulMetrics::default();
        consul.register(&mut registry);
        let reloads = ReloadMetrics::default();
        reloads.register(&mut registry);
        Self {
            streams,
            connections: metric!("connections", "Open sessions", Gauge::default()),
            handshakes: metric!("handshakes", "Upgraded handshakes", Counter::default()),
            refusals: metric!("refusals", "Refused at the public door", Family::default()),
            jwt_refusals: metric!("jwt_refusals", "JWTs that were not good", Family::default()),
            closes: metric!("closes", "Ended sessions by close code", Family::default()),
            frames_in: metric!("frames_in", "Client frames", Counter::default()),
            bytes_in: metric!("bytes_in", "Bytes read from clients", Counter::default()),
            frames_out: metric!(
                "frames_out",
                "Frames written to clients",
                Counter::default()
            ),
            bytes_out: metric!("bytes_out", "Bytes written to clients", Counter::default()),
            writes: metric!("writes", "Write calls to clients", Counter::default()),
            messages_accepted: metric!(
                "messages_accepted",
                "Messages accepted",
                Counter::default()
            ),
            messages_delivered: metric!(
                "messages_delivered",
                "Messages put into outboxes",
                Counter::default()
            ),
            outbox_bytes: metric!(
                "outbox_bytes",
                "Bytes that wait in outboxes",
                Gauge::default()
            ),
            slow_consumers: metric!(
                "slow_consumers",
                "Sessions closed because they did not read",
                Counter::default()
            ),
            silent: metric!(
                "silent_connections",
                "Sessions that asked for no heartbeats",
                Counter::default()
            ),
            push_seconds: metric!(
                "push_seconds",
                "From acceptance to the answer",
                Histogram::new(exponential_buckets(0.000_05, 2.0, 16))
            ),
            calls: metric!("calls", "Calls at the service door", Family::default()),
            tickets_issued: metric!("tickets_issued", "Tickets issued", Counter::default()),
            resume_tickets: metric!(
                "resume_tickets",
                "Resume tickets sealed",
                Counter::default()
            ),
            resumed: metric!("resumed", "Resume tickets redeemed", Counter::default()),
            resume_refusals: metric!(
                "resume_refusals",
                "Resume tickets that were not good",
                Family::default()
            ),
            accept_errors: metric!(
                "accept_errors",
                "Connections that could not be accepted",
                Family::default()
            ),
            bad_tickets: metric!(
                "bad_tickets",
                "Tickets in Redis that were refused",
                Family::default()
            ),
            backplane: BackplaneMetrics {
                links: metric!(
                    "backplane_links",
                    "Whole subscriber links",
                    Gauge::default()
                ),
                rebuilds: metric!("backplane_rebuilds", "Links given up", Family::default()),
                listens: metric!(
                    "backplane_listens",
                    "Addresses listened to",
                    Counter::default()
                ),
                unlistens: metric!(
                    "backplane_unlistens",
                    "Addresses given up",
                    Counter::default()
                ),
                publishes: metric!(
                    "backplane_publishes",
                    "Envelopes published",
                    Family::default()
                ),
                received: metric!(
                    "backplane_received",
                    "Envelopes received",
                    Family::default()
                ),
                wanted: metric!(
                    "backplane_wanted",
                    "Received messages that sessions here follow",
                    Family::default()
                ),
                dropped: metric!(
                    "backplane_dropped",
                    "Received bytes that are no envelope",
                    Family::default()
                ),
                losses: metric!("backplane_losses", "Envelopes lost here", Family::default()),
                lost_probes: metric!(
                    "backplane_lost_probes",
                    "Probes that did not come back",
                    Counter::default()
                ),
                echo_seconds: metric!(
                    "backplane_echo_seconds",
                    "From a probe's departure to its return",
                    Histogram::new(exponential_buckets(0.000_05, 2.0, 16))
                ),
            },
            budget,
            sources,
            consul,
            reloads,
            client_errors: metric!("client_errors", "Bad client frames", Family::default()),
            registry: std::sync::Arc::new(registry),
        }
    }

    /// All of them in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            // A String takes everything; only a metric's own encoder could fail.
            let _ = writeln!(text, "# a metric could not be encoded");
        }
        text
    }

    /// Counts one refusal of the public door.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    /// Counts one JWT that is not good.
    pub fn refused_jwt(&self, reason: &'static str) {
        self.jwt_refusals.get_or_create(&Reason { reason }).inc();
    }

    /// Counts one resume ticket that is not good.
    pub fn refused_resume(&self, reason: &'static str) {
        self.resume_refusals.get_or_create(&Reason { reason }).inc();
    }

    /// Counts one error frame.
    pub fn client_error(&self, reason: &'static str) {
        self.client_errors.get_or_create(&Reason { reason }).inc();
    }

    /// Counts one ended session.
    pub fn closed(&self, code: u16, reason: &'static str) {
        self.closes.get_or_create(&Closed { code, reason }).inc();
    }
}
