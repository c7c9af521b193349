use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::course::{AFTER, Act, Course, MARGIN, Others, Place, stretched};
use super::{Health, Phase};
use crate::backplane::{Leases, NodeLease};
use crate::hub::{Hub, Leave};
use crate::model::units;

/// How long those who are on the way in when the listeners close have to say what they want.
const LAST_ARRIVALS: Duration = Duration::from_secs(1);
/// How often a node that leaves looks which others there are.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it says again what it waits for.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long a resume ticket outlives the moment at which its session is closed.
const TICKET_OUTLIVES: Duration = Duration::from_secs(30);

/// `[drain]`: how a node leaves.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainConfig {
    /// How long all doors go on accepting after readiness went red, since balancers learn slowly.
    #[serde(with = "units::duration")]
    pub deregister_delay: Duration,
    /// Over how long the sessions are told to leave.
    #[serde(with = "units::duration")]
    pub spread: Duration,
    /// How long a session has to leave after it was told.
    #[serde(with = "units::duration")]
    pub grace: Duration,
    /// How long nobody is told while no other node is ready; then all are closed.
    #[serde(with = "units::duration")]
    pub wait: Duration,
    /// How long the platform waits before it kills the process, if it is known: the node warns at start if that is less
    /// than the drain takes, and waits no longer than it allows.
    #[serde(with = "units::duration")]
    pub termination_grace: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            deregister_delay: Duration::from_secs(5),
            spread: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            wait: Duration::from_secs(30),
            termination_grace: Duration::ZERO,
        }
    }
}

impl DrainConfig {
    /// The longest time from the signal to the end of the process where other nodes are ready, unless `spread` has to be
    /// stretched.
    pub fn takes(&self) -> Duration {
        self.deregister_delay + self.spread + AFTER + self.grace + MARGIN
    }

    /// Warns where the platform kills before that, or before the node has waited as long as it would.
    pub fn warn_if_killed_early(&self) {
        let (takes, patience) = (self.takes(), self.termination_grace);
        if patience.is_zero() {
            return;
        }
        if patience < takes {
            tracing::warn!(
                "a drain takes up to {takes:?}, and the platform kills after {patience:?}: raise its grace period, or shorten [drain]"
            );
        } else if patience < takes + self.wait {
            tracing::info!(
                "a drain waits at most {:?} for another node, and not [drain] wait, since the platform kills after {patience:?}",
                patience - takes
            );
        }
    }
}

/// What is said of a drain, before it and while it is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outlook {
    /// `starting`, `serving`, `deregistering`, `waiting` (no other node is ready), `moving`, `closing`.
    pub phase: String,
    /// Open connections, handshakes under way included.
    pub connections: u64,
    /// WebSockets among them.
    pub websocket: u64,
    /// Streams of server-sent events.
    pub events: u64,
    /// How many were told to leave.
    pub told: u64,
    /// How long a drain that begins now takes at most, until the last connection is closed.
    pub seconds: f64,
    /// Other nodes that would take clients now; none = the backplane does not say.
    pub others_ready: Option<u64>,
}

/// A node's own leaving: asked for, looked at, and done.
pub struct Drain {
    config: DrainConfig,
    hub: Arc<Hub>,
    health: Arc<Health>,
    leases: Arc<dyn Leases>,
    asked: watch::Sender<bool>,
    began: OnceLock<Instant>,
    /// There was another node since the drain began.
    seen: AtomicBool,
    place: Mutex<Option<Place>>,
}

impl Drain {
    /// Of a node that runs.
    pub fn new(
        config: DrainConfig,
        hub: Arc<Hub>,
        health: Arc<Health>,
        leases: Arc<dyn Leases>,
    ) -> Self {
        Self {
            config,
            hub,
            health,
            leases,
            asked: watch::Sender::new(false),
            began: OnceLock::new(),
            seen: AtomicBool::new(false),
            place: Mutex::new(None),
        }
    }

    /// Asks the process to drain, as SIGTERM does. Asked again, nothing more happens.
    pub fn ask(&self) {
        self.asked.send_replace(true);
    }

    /// Resolves once somebody has asked for it.
    pub fn asked(&self) -> impl Future<Output = ()> + use<> {
        let mut asked = self.asked.subscribe();
        async move {
            if asked.wait_for(|asked| *asked).await.is_err() {
                // The node is gone; nobody asks any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The drain begins: readiness goes red.
    pub fn begin(&self) {
        let _ = self.began.set(Instant::now());
        self.hub.leaving.store(true, Ordering::Relaxed);
        self.health.enter(Phase::Draining);
        tracing::info!(connections = self.connections(), "draining");
    }

    /// Doors accept on until `deregister_delay` is over or nobody is connected.
    pub async fn deregister(&self) {
        // Who was there when it began is remembered: such a fleet is worth waiting for.
        let empty = self.until_empty(self.config.deregister_delay);
        tokio::join!(empty, self.others());
    }

    /// Makes all sessions leave. Listeners are closed by now.
    pub async fn empty(&self) {
        // Who is on the way in is answered, and is then one of the sessions, or none.
        let arriving = || self.hub.admission.arriving();
        until_none(arriving, LAST_ARRIVALS).await;
        let now = Instant::now();
        let began = *self.began.get_or_init(|| now);
        let mut course = Course::new(self.config, began, now);
        let mut said: Option<Instant> = None;
        while self.connections() > 0 {
            let (others, now) = (self.others().await, Instant::now());
            let act = course.next(now, &others, self.connections(), self.rate(&others));
            *self.lock() = Some(course.place);
            if !self.act(act).await {
                return;
            }
            let waits = matches!(course.place, Place::Waiting { .. } | Place::Held { .. });
            if waits && said.is_none_or(|said| now - said >= SAY_EVERY) {
                said = Some(now);
                let (waited, most) = (course.waited(now), self.config.wait);
                tracing::warn!(
                    ?others,
                    ?waited,
                    ?most,
                    "waiting for another node to take the sessions"
                );
            }
            if !waits {
                said = None;
            }
            self.until_empty(LOOK_EVERY).await;
        }
    }

    /// Whether there is anything left to do.
    async fn act(&self, act: Act) -> bool {
        let router = &self.hub.router;
        match act {
            Act::Nothing => {}
            Act::End => return false,
            Act::Move(spread) => {
                tracing::info!(
                    connections = self.connections(),
                    ?spread,
                    "telling sessions to leave"
                );
                let DrainConfig { grace, wait, .. } = self.config;
                // Where they are held later, those who were told have more time; their tickets must last.
                let life = grace + wait + TICKET_OUTLIVES;
                router.drain(Leave::GoAway { grace, life }, spread).await;
            }
            Act::Hold => router.hold(true).await,
            Act::Release => router.hold(false).await,
            Act::Close(spread) => {
                tracing::info!(
                    connections = self.connections(),
                    ?spread,
                    "closing sessions"
                );
                router.drain(Leave::Close, spread).await;
            }
        }
        true
    }

    /// Waits until nobody is connected, at most so long.
    pub async fn until_empty(&self, most: Duration) {
        until_none(|| self.connections(), most).await;
    }

    /// What a drain is, or would be.
    pub async fn outlook(&self) -> Outlook {
        let others = self.others().await;
        let connections = self.connections();
        let metrics = &self.hub.metrics;
        let events = u64::try_from(metrics.event_streams.get()).unwrap_or(0);
        let sessions = u64::try_from(metrics.connections.get()).unwrap_or(0);
        Outlook {
            phase: self.phase().into(),
            connections: connections as u64,
            websocket: sessions.saturating_sub(events),
            events,
            told: metrics.goaways.get(),
            seconds: self.would_take(connections, &others).as_secs_f64(),
            others_ready: match others {
                Others::Ready(ready) => Some(ready as u64),
                Others::Nobody | Others::NoneReady => Some(0),
                Others::Unknown(_) => None,
            },
        }
    }

    fn phase(&self) -> &'static str {
        match self.health.phase() {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Draining => "deregistering",
            Phase::Closing => match *self.lock() {
                Some(Place::Waiting { .. } | Place::Held { .. }) => "waiting",
                Some(Place::Moving { .. }) => "moving",
                Some(Place::Closing { .. }) | None => "closing",
            },
        }
    }

    fn would_take(&self, sessions: usize, others: &Others) -> Duration {
        let DrainConfig {
            deregister_delay,
            spread,
            grace,
            wait,
            termination_grace,
        } = self.config;
        if sessions == 0 {
            return Duration::ZERO;
        }
        let fixed = deregister_delay + grace + MARGIN;
        let most = (!termination_grace.is_zero()).then(|| {
            let left = termination_grace.saturating_sub(fixed);
            left.saturating_sub(AFTER)
        });
        let spread = match others {
            Others::Ready(_) => stretched(spread, sessions, self.rate(others), most) + AFTER,
            Others::Nobody => spread,
            Others::NoneReady | Others::Unknown(_) => spread + wait,
        };
        deregister_delay + spread + grace
    }

    /// The handshakes a second that the others take, if they are like this one; none = any.
    fn rate(&self, others: &Others) -> Option<u32> {
        let limits = self.hub.limits.now();
        let ready = match others {
            Others::Ready(ready) => u32::try_from(*ready).unwrap_or(u32::MAX),
            _ => 0,
        };
        let each = limits.handshakes_per_second.saturating_mul(ready);
        let rates = [each, limits.fleet_handshakes_per_second];
        rates.into_iter().filter(|rate| *rate > 0).min()
    }

    fn connections(&self) -> usize {
        self.hub.admission.connections()
    }

    async fn others(&self) -> Others {
        let looking = tokio::time::timeout(LOOK_EVERY, self.leases.nodes()).await;
        let nodes = match looking {
            Ok(Ok(nodes)) => nodes,
            Ok(Err(problem)) => return Others::Unknown(problem),
            Err(_) => return Others::Unknown("the backplane does not answer".into()),
        };
        let own = self.hub.lease_name();
        let others = || nodes.iter().filter(|node| node.incarnation != own);
        let leaving = self.began.get().is_some();
        if leaving && others().next().is_some() {
            self.seen.store(true, Ordering::Relaxed);
        }
        match others().filter(|node| node.takes_clients()).count() {
            0 if others().next().is_none() && !self.seen.load(Ordering::Relaxed) => Others::Nobody,
            0 => Others::NoneReady,
            ready => Others::Ready(ready),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until there are none, at most so long.
async fn until_none(count: impl Fn() -> usize, most: Duration) {
    let deadline = Instant::now() + most;
    while count() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl NodeLease {
    /// Whether a client that comes to it now is served.
    fn takes_clients(&self) -> bool {
        self.ready && !self.draining
    }
}
