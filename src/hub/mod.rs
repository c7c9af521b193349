//! The hub: the node's shards and the router in front of them. It decides; doors translate.
//!
//! A shard is one thread with its own single-threaded runtime, its own listening socket and its own sessions. What it owns
//! is touched by its thread alone, so nothing on the way out of a node is locked. The router accepts messages into the
//! backplane, [`Delivery`] takes what comes out of it to the shards, through one bounded queue each.

mod accept;
mod admission;
mod answer;
mod close;
mod command;
mod config;
mod control;
mod cursors;
mod deliver;
mod delivery;
mod encoded;
mod events;
mod followers;
mod history;
mod leave;
mod mend;
#[cfg(test)]
mod model_test;
mod obey;
mod outbox;
mod questions;
mod reader;
mod reservation;
mod resume;
mod router;
mod session;
mod shard;
mod socket;
mod state;
mod stream;
mod threads;
mod turn;
mod user_limit;
mod wheel;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use self::command::Command;
use self::questions::Pending;
use crate::backplane::{Backplane, Keep, Later, Streams};
use crate::model::{Address, NodeId};
use crate::telemetry::Metrics;
use crate::tickets::ResumeTickets;

pub use admission::{Admission, ArrivalGuard, Bucket, NoPlace, PlaceGuard, raise_descriptor_limit};
pub use answer::{Accepted, Applied, BroadcastAccepted, Draft, Refusal, Status};
pub use close::CloseReason;
pub use config::{
    HeartbeatConfig, HubConfig, InboxConfig, Limits, LiveLimits, Namespace, Namespaces,
    PublishRule, Rules, SubscribeRule, UserLimit,
};
pub use delivery::Delivery;
pub use encoded::Format;
pub use events::EventStream;
pub use history::History;
pub use leave::Leave;
pub use reservation::Reservation;
pub use router::{ACCEPT_TIMEOUT, Router};
pub use session::Acks;
pub use shard::{Asked, NotAdmitted, Prepared, SILENT_MAX, Shard};
pub use socket::Link;
pub use threads::{ShardSeat, ShardThreads};

/// What the shards of a node share; read only, but for counters.
pub struct Hub {
    /// The node's name.
    pub node: NodeId,
    /// 48 random bits of this run of the node.
    pub incarnation: u64,
    /// How often the hub writes.
    pub config: HubConfig,
    /// Every limit, as it is now.
    pub limits: LiveLimits,
    /// How dead peers are found.
    pub heartbeat: HeartbeatConfig,
    /// The rules of channels.
    pub namespaces: Arc<Namespaces>,
    /// Counters.
    pub metrics: Metrics,
    /// The limits on connections.
    pub admission: Arc<Admission>,
    /// From the backplane to the shards.
    pub delivery: Arc<Delivery>,
    /// What links nodes.
    pub backplane: Arc<dyn Backplane>,
    /// What they keep.
    pub streams: Arc<dyn Streams>,
    /// Who looks whether messages are missing.
    pub(super) catching_up: Arc<AtomicUsize>,
    /// What lets sessions be continued.
    pub resume: Arc<ResumeTickets>,
    /// Where clients' publishes go.
    pub router: Arc<Router>,
    /// What `node_outbox_bytes` is, unless set.
    outbox_bytes_derived: usize,
    /// How busy each shard is, in thousandths.
    pub(super) loads: Box<[AtomicU16]>,
    /// The node was told to leave: clients should not count on its connections.
    pub leaving: AtomicBool,
}

/// What a hub is made of.
pub struct HubParts {
    /// See [`Hub`].
    pub node: NodeId,
    /// `[hub]`.
    pub config: HubConfig,
    /// `[limits]`.
    pub limits: LiveLimits,
    /// `[heartbeat]`.
    pub heartbeat: HeartbeatConfig,
    /// `[inbox]`.
    pub inbox: InboxConfig,
    /// `[[namespaces]]`.
    pub namespaces: Arc<Namespaces>,
    /// Counters.
    pub metrics: Metrics,
    /// See [`Hub`].
    pub resume: Arc<ResumeTickets>,
}

/// Where a backplane's envelopes come in: the queues of shards that are still to be started.
pub struct Intake {
    /// What arrives, arrives here.
    pub delivery: Arc<Delivery>,
    /// 48 random bits of this run of the node.
    pub incarnation: u64,
    commands: Vec<mpsc::Receiver<Command>>,
    asked: mpsc::Receiver<Pending>,
}

impl Intake {
    /// For as many shards as the configuration asks for, at most 128.
    pub fn new(config: &HubConfig, metrics: &Metrics) -> Self {
        let count = match config.shards {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            set => set,
        }
        .min(128);
        let (senders, commands) = (0..count)
            .map(|_| mpsc::channel(config.queue.max(1)))
            .unzip();
        let incarnation = rand::random::<u64>() >> 16;
        let (delivery, asked) = Delivery::new(senders, incarnation, metrics.backplane.clone());
        Self {
            delivery: Arc::new(delivery),
            incarnation,
            commands,
            asked,
        }
    }
}

impl Hub {
    /// Builds the hub behind its intake, a seat for each of its shards, and the task that answers nodes' questions.
    pub fn new(
        parts: HubParts,
        intake: Intake,
        backplane: Arc<dyn Backplane>,
        streams: Arc<dyn Streams>,
    ) -> (Arc<Self>, Vec<ShardSeat>, Later<'static, ()>) {
        let Intake {
            delivery,
            incarnation,
            commands,
            asked,
        } = intake;
        let router = Arc::new(Router::new(
            parts.node.clone(),
            incarnation,
            delivery.clone(),
            (backplane.clone(), streams.clone()),
            parts.namespaces.clone(),
            parts.inbox.keep(),
            (parts.metrics.clone(), parts.resume.clone()),
        ));
        let hub = Arc::new(Self {
            node: parts.node,
            incarnation,
            admission: Arc::new(Admission::new(parts.limits.clone())),
            config: parts.config,
            limits: parts.limits,
            heartbeat: parts.heartbeat,
            namespaces: parts.namespaces,
            metrics: parts.metrics,
            delivery,
            backplane,
            streams,
            catching_up: Arc::default(),
            resume: parts.resume,
            router,
            outbox_bytes_derived: memory_bytes() / 4,
            loads: commands.iter().map(|_| AtomicU16::new(0)).collect(),
            leaving: AtomicBool::new(false),
        });
        let seats = commands
            .into_iter()
            .enumerate()
            .map(|(index, commands)| ShardSeat::new(hub.clone(), index, commands))
            .collect();
        let answering = Box::pin(hub.router.clone().answer(asked));
        (hub, seats, answering)
    }

    /// Bytes that wait in all outboxes.
    pub fn outbox_bytes(&self) -> usize {
        // A counter of additions and subtractions in any order: it may dip below zero for a moment.
        usize::try_from(self.metrics.outbox_bytes.get()).unwrap_or(0)
    }

    /// The most of them.
    pub(super) fn outbox_bytes_max(&self, limits: &Limits) -> usize {
        match limits.node_outbox_bytes {
            0 => self.outbox_bytes_derived,
            set => set,
        }
    }

    /// Takes up other limits: what is admitted, accepted, read and queued from then on keeps to them.
    pub async fn take_up(&self, limits: Limits) {
        let limits = Arc::new(limits);
        self.limits.replace(limits.clone());
        self.router.take_up(&limits).await;
    }

    /// What this run of the node is called among leases.
    pub fn lease_name(&self) -> String {
        format!("{:012x}", self.incarnation)
    }

    /// How busy the busiest shard is: 0 to 1.
    pub fn load(&self) -> f64 {
        let loads = self.loads.iter().map(|load| load.load(Ordering::Relaxed));
        f64::from(loads.max().unwrap_or(0)) / 1000.0
    }

    /// What is kept of an address's messages.
    pub(super) fn keep(&self, address: &Address) -> Option<Keep> {
        self.router.keep(address)
    }

    /// Whether it looks what its sessions missed.
    pub fn is_catching_up(&self) -> bool {
        self.catching_up.load(Ordering::Relaxed) > 0
    }

    /// A shard follows an address no more; if it was the last, the node unlistens.
    pub(super) fn unfollow(&self, address: &Address, shard: usize) {
        self.delivery
            .unfollow(address, shard, || self.backplane.unlisten(address));
    }
}

/// The memory that this process may use: the control group's limit or the machine's.
fn memory_bytes() -> usize {
    let machine = {
        let info = rustix::system::sysinfo();
        usize::try_from(info.totalram)
            .unwrap_or(usize::MAX)
            .saturating_mul(info.mem_unit as usize)
    };
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok());
    group.map_or(machine, |group| group.min(machine))
}
