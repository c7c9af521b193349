//! Nodes linked through Redis Pub/Sub, each listening only to the addresses that its sessions follow.
//!
//! A fabric is what a node holds against one topology: per primary one connection for commands and some for listening,
//! the addresses spread over them by hash. A topology that changed (a cluster's slots moved) makes a new fabric, which
//! listens to all that the old one did. What Redis is away for is decided here: nothing is retried once a byte of it may
//! have left, and every answer says which of the three outcomes it was.

mod backoff;
mod budget;
mod commands;
mod delivering;
mod era;
mod fabric;
mod inspection;
mod interest;
mod keys;
mod lease;
mod link;
mod log;
mod place;
mod remembered;
mod reply;
mod scripts;
mod streams;
mod topics;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::era::Era;
use self::fabric::Fabric;
use self::inspection::Runs;
use self::keys::Keys;
use self::link::Link;
use self::remembered::Remembered;
use self::scripts::Scripts;
use super::{
    Arrivals, Backplane, BackplaneClock, BackplaneConfig, Envelope, Here, Later, PublishError,
    Published, Sealer,
};
use crate::model::{Address, ConnectionId, UserId};
use crate::telemetry::BackplaneMetrics;

pub(crate) use self::backoff::Backoff;
pub(crate) use self::commands::Failure;
pub use self::log::{Log, LogConfig, LogEntry, Taken};
pub use self::place::Place;
pub use self::topics::{Event, Topics};

/// How long `listen` waits for Redis's confirmation.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the topology of a cluster may be looked at.
const TOPOLOGY_PAUSE: Duration = Duration::from_millis(500);
/// How long a start waits for Redis before the node goes on without.
const START_TIMEOUT: Duration = Duration::from_secs(2);

/// A node's part of a Redis backplane.
pub struct Redis {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// What its tasks share.
struct Shared {
    place: Arc<Place>,
    keys: Keys,
    scripts: Scripts,
    sealer: Sealer,
    links_per_primary: usize,
    min_replicas: u32,
    grace: Duration,
    incarnation: u64,
    /// Something is kept in streams.
    keeps: bool,
    remembered: Remembered,
    era: Era,
    runs: Runs,
    metrics: BackplaneMetrics,
    arrivals: Arc<dyn Arrivals>,
    fabric: watch::Sender<Option<Arc<Fabric>>>,
    /// Keys may be elsewhere.
    moved: Arc<Notify>,
    closed: AtomicBool,
    clock: BackplaneClock,
}

impl Redis {
    /// Begins to connect. `incarnation` names this run of the node; `keeps` = it will keep something, and a Redis that evicts
    /// is not to be used.
    ///
    /// # Errors
    /// The configuration is wrong; a sentence with the key.
    pub fn new(
        config: &BackplaneConfig,
        incarnation: u64,
        keeps: bool,
        metrics: BackplaneMetrics,
        arrivals: Arc<dyn Arrivals>,
    ) -> Result<Self, String> {
        let place = Place::of(config)?;
        let shared = Arc::new(Shared {
            scripts: Scripts::new(place.is_cluster()),
            place: Arc::new(place),
            keys: Keys::new(&config.prefix),
            sealer: Sealer::new(config.secret.as_ref()),
            links_per_primary: config.subscriber_links,
            min_replicas: config.min_replicas,
            grace: config.readiness_grace,
            incarnation,
            keeps,
            remembered: Remembered::new(config.remembered_addresses),
            era: Era::default(),
            runs: Runs::default(),
            metrics,
            arrivals,
            fabric: watch::Sender::new(None),
            moved: Arc::new(Notify::new()),
            closed: AtomicBool::new(false),
            clock: BackplaneClock::default(),
        });
        let supervisor = tokio::spawn(supervise(shared.clone()));
        Ok(Self {
            shared,
            supervisor: Mutex::new(Some(supervisor)),
        })
    }

    /// Waits until the node is linked, for a moment: a Redis that is not there when a node starts is no reason not to
    /// start.
    ///
    /// # Errors
    /// Redis was reached, and is not fit to keep messages; a sentence with the fix.
    pub async fn wait_until_whole(&self) -> Result<(), String> {
        let whole = async {
            let mut fabrics = self.shared.fabric.subscribe();
            loop {
                let fabric = fabrics.borrow_and_update().clone();
                if let Some(fabric) = fabric {
                    if let Some(why) = fabric.unfit() {
                        return Err(format!("Redis cannot keep messages: {why}"));
                    }
                    if fabric.is_whole() {
                        return Ok(());
                    }
                }
                let _ = tokio::time::timeout(Duration::from_millis(5), fabrics.changed()).await;
            }
        };
        let whole = tokio::time::timeout(START_TIMEOUT, whole).await;
        whole.unwrap_or(Ok(()))
    }

    /// Runs a command on the primary that has a key; `replicated` waits for `min_replicas` too.
    pub(crate) async fn command(
        &self,
        key: &str,
        command: Cmd,
        replicated: bool,
    ) -> Result<Value, Failure> {
        let fabric = self.shared.fabric()?;
        fabric.commands(key, replicated).run(command).await
    }

    fn nodes_key(&self) -> String {
        self.shared.keys.nodes()
    }

    /// Redis's clock, learnt with each renewal of the node's lease.
    pub(crate) fn clock(&self) -> &BackplaneClock {
        &self.shared.clock
    }

    /// Where the cluster's own secret is.
    pub(crate) fn secret_key(&self) -> String {
        self.shared.keys.secret()
    }

    /// Where it says that a user's resume ticket was used.
    pub(crate) fn resumed_key(&self, user: &UserId, ticket: &impl std::fmt::Display) -> String {
        self.shared.keys.resumed(user, ticket)
    }

    /// Where it says what of a user's is revoked: all, or what continues one connection. In the slot of the above.
    pub(crate) fn revoked_key(&self, user: &UserId, first: Option<ConnectionId>) -> String {
        self.shared.keys.revoked(user, first)
    }

    /// Where it says when a proof that is not stored, a resume ticket or a JWT, has its slot.
    pub(crate) fn slot_key(&self, hash: &impl std::fmt::Display) -> String {
        self.shared.keys.slot(hash)
    }

    /// Where a ticket waits.
    pub(crate) fn ticket_key(&self, hash: &impl std::fmt::Display) -> String {
        self.shared.keys.ticket(hash)
    }
}

impl Shared {
    fn fabric(&self) -> Result<Arc<Fabric>, Failure> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Failure::NotSent("this node is leaving".into()));
        }
        let fabric = self.fabric.borrow().clone();
        fabric.ok_or_else(|| Failure::NotSent("Redis was not reached yet".into()))
    }

    /// What this node can say of its own echo, from before something is published to an address.
    fn echo(&self, fabric: &Fabric, to: &Address, channel: &str) -> Echo {
        let link = fabric.link_of(channel).clone();
        let (before, losses) = link.here(to);
        Echo {
            heard: link.heard(),
            link,
            before,
            losses,
        }
    }

    /// Sends an envelope, once.
    async fn publish(
        &self,
        to: Address,
        envelope: Envelope,
        deadline: Instant,
    ) -> Result<Published, PublishError> {
        let fabric = self.fabric().map_err(refused)?;
        let channel = self.keys.channel(&to);
        let echo = self.echo(&fabric, &to, &channel);
        let bytes = self.sealer.seal(&to, &envelope);
        let name = match self.place.is_cluster() {
            true => "SPUBLISH",
            false => "PUBLISH",
        };
        let mut publish = Cmd::with_capacity(3, name.len() + channel.len() + bytes.len());
        publish.arg(name).arg(&channel).arg(&bytes);
        let commands = fabric.commands(&channel, false);
        let (name, result) = match commands.run_by(publish, deadline).await {
            Ok(Value::Int(listeners)) => ("accepted", Ok(listeners)),
            Ok(_) => (
                "unknown",
                Err(PublishError::Unknown("Redis gave no count".into())),
            ),
            Err(failure) => {
                let error = refused(failure);
                let name = match error {
                    PublishError::Unknown(_) => "unknown",
                    _ => "refused",
                };
                (name, Err(error))
            }
        };
        self.metrics.published(name);
        result.map(|listeners| echo.published(&to, listeners))
    }
}

/// Whether what is published comes back to this node.
struct Echo {
    link: Arc<Link>,
    before: Here,
    losses: u64,
    heard: u64,
}

impl Echo {
    /// It was published, and so many listened.
    fn published(&self, to: &Address, listeners: i64) -> Published {
        let (after, losses) = self.link.here(to);
        let here = match (self.before, after) {
            (Here::Silent, Here::Silent) => Here::Silent,
            (Here::Away, _) | (_, Here::Away) => Here::Away,
            // It was lost and is whole again: what was published meanwhile did not come.
            _ if losses != self.losses => Here::Away,
            (before, after) if before == after => before,
            _ => Here::Changing,
        };
        Published {
            listeners: u32::try_from(listeners).unwrap_or(0),
            here,
            heard: self.heard,
        }
    }
}

fn refused(failure: Failure) -> PublishError {
    match failure {
        Failure::NotSent(why) | Failure::Refused(_, why) => PublishError::Unavailable(why),
        Failure::Busy => PublishError::Busy,
        Failure::Unknown(why) => PublishError::Unknown(why),
    }
}

impl Backplane for Redis {
    fn publish(
        &self,
        to: Address,
        envelope: Envelope,
        deadline: Instant,
    ) -> Later<'_, Result<Published, PublishError>> {
        Box::pin(self.shared.publish(to, envelope, deadline))
    }

    fn listen(&self, address: Address) -> Later<'_, Result<(), String>> {
        Box::pin(async move {
            // Under the fabric's lock: no other one takes its place between the look and the wish.
            let confirmed = match &*self.shared.fabric.borrow() {
                Some(fabric) => fabric.link(&address).listen(address.clone())?,
                None => return Err("Redis was not reached yet".into()),
            };
            let Some(confirmed) = confirmed else {
                return Ok(());
            };
            tokio::time::timeout(LISTEN_TIMEOUT, confirmed)
                .await
                .map_err(|_| "Redis did not confirm a subscription".to_owned())?
                .map_err(|_| "the subscriber link to Redis was lost".into())
        })
    }

    fn unlisten(&self, address: &Address) {
        if let Some(fabric) = &*self.shared.fabric.borrow() {
            fabric.link(address).unlisten(address);
        }
    }

    fn is_deaf(&self, address: &Address, heard: u64) -> bool {
        let fabric = self.shared.fabric.borrow();
        let link = fabric.as_ref().map(|fabric| fabric.link(address));
        link.is_none_or(|link| link.heard() == heard)
    }

    fn ailments(&self) -> Vec<String> {
        let fabric = self.shared.fabric.borrow().clone();
        match fabric {
            None => vec!["the backplane was not reached yet".into()],
            Some(fabric) => fabric.ailments(self.shared.grace),
        }
    }

    fn close(&self) -> Later<'_, ()> {
        Box::pin(async move {
            self.shared.closed.store(true, Ordering::Release);
            if let Some(supervisor) = self.supervisor.lock().await.take() {
                supervisor.abort();
                let _ = supervisor.await;
            }
            self.shared.fabric.send_replace(None);
        })
    }
}

/// Owns the tasks of the fabric: finds the topology, builds a fabric for it, and another when it changed.
async fn supervise(shared: Arc<Shared>) {
    let (mut failures, mut changes) = (backoff::Backoff::default(), backoff::Backoff::default());
    // Those of the fabric. What is dropped is aborted.
    let mut tasks = JoinSet::new();
    // Those that deliver what has come: they end when nothing more can.
    let mut delivering = JoinSet::new();
    let mut topology = None;
    loop {
        let pause = match shared.place.topology().await {
            Ok(found) => {
                failures.reset();
                let pause = if topology.as_ref() == Some(&found) {
                    changes.reset();
                    TOPOLOGY_PAUSE
                } else {
                    // First: an address that two links have would get everything twice.
                    tasks.shutdown().await;
                    shared.fabric.send_modify(|fabric| {
                        let topology = found.clone();
                        let old = fabric.take();
                        let new = Fabric::new(&shared, topology, old, &mut tasks, &mut delivering);
                        *fabric = Some(Arc::new(new));
                    });
                    if topology.replace(found).is_some() {
                        tracing::warn!("the Redis Cluster has changed; listening anew");
                    }
                    // Slots move one by one: the more often, the longer the pause, and not all nodes at once.
                    TOPOLOGY_PAUSE + changes.next()
                };
                shared.moved.notified().await;
                pause
            }
            Err(problem) => {
                let pause = failures.next();
                tracing::warn!(%problem, "Redis cannot be reached; is it running? trying again in {pause:.1?}");
                pause
            }
        };
        tokio::time::sleep(pause).await;
        while delivering.try_join_next().is_some() {}
    }
}
