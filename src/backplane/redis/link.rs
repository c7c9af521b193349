use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt as _;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, PushInfo, PushKind, Value};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use super::backoff::Backoff;
use super::delivering::{Delivering, Pushed};
use super::interest::{Batch, Heard, Interest};
use super::keys::{self, Keys};
use super::place::{Endpoint, Place};
use crate::backplane::{Arrivals, Here, Later, Sealer};
use crate::model::Address;
use crate::telemetry::{BackplaneMetrics, Reason};

/// Envelopes that may wait to be delivered. One that finds no room is lost, and counted.
const RECEIVE_QUEUE: usize = 16_384;
/// Their bytes, all together.
const RECEIVE_BYTES: usize = 64 << 20;
/// Addresses in one SUBSCRIBE batch.
const BATCH: usize = 1024;

/// What a link is made of.
#[derive(Clone)]
pub(super) struct LinkParts {
    pub(super) place: Arc<Place>,
    pub(super) endpoint: Endpoint,
    pub(super) keys: Keys,
    pub(super) sealer: Sealer,
    pub(super) metrics: BackplaneMetrics,
    /// Its probes come to this Pub/Sub channel.
    pub(super) probe: String,
    /// Told when the commands to the same primary go through again: then a link need not wait any longer.
    pub(super) up: Arc<Notify>,
}

/// One subscriber connection to one primary: the addresses that it has are on no other link of this node.
///
/// Three parts, each with one owner: the connection's driver puts what comes into a bounded queue; a task takes it from
/// there to the node, in order; the link's own task connects, tells Redis what is listened to, and begins anew when the
/// connection is lost or a probe does not come back.
pub(super) struct Link {
    parts: LinkParts,
    interest: Mutex<Interest>,
    /// There is something to tell Redis.
    changed: Notify,
    /// The connection is of no use.
    rebuild: Notify,
    /// The latest probe that came back.
    probed: AtomicU64,
    /// How many publications it has brought.
    heard: Arc<AtomicU64>,
    queue: mpsc::Sender<Pushed>,
    room: Arc<Semaphore>,
    /// Something that was received found no room.
    dropped: Arc<Notify>,
    arrivals: Arc<dyn Arrivals>,
    /// Told when a slot moves away in a cluster.
    moved: Arc<dyn Fn() + Send + Sync>,
}

impl Link {
    /// The link with the addresses that it begins with, its task, and the one that delivers, which ends by itself once
    /// nothing more can come.
    pub(super) fn new(
        parts: LinkParts,
        addresses: impl IntoIterator<Item = Address>,
        arrivals: Arc<dyn Arrivals>,
        moved: Arc<dyn Fn() + Send + Sync>,
    ) -> (Arc<Self>, Later<'static, ()>, Later<'static, ()>) {
        let (queue, received) = mpsc::channel(RECEIVE_QUEUE);
        let mut interest = Interest::default();
        for address in addresses {
            interest.pin(address);
        }
        let link = Arc::new(Self {
            parts,
            interest: Mutex::new(interest),
            changed: Notify::new(),
            rebuild: Notify::new(),
            probed: AtomicU64::new(0),
            heard: Arc::default(),
            queue,
            room: Arc::new(Semaphore::new(RECEIVE_BYTES)),
            dropped: Arc::default(),
            arrivals: arrivals.clone(),
            moved,
        });
        let delivering = Delivering {
            link: Arc::downgrade(&link),
            parts: link.parts.clone(),
            arrivals,
            dropped: link.dropped.clone(),
        }
        .run(received);
        let running = link.clone().run();
        (link, Box::pin(running), Box::pin(delivering))
    }

    fn interest(&self) -> MutexGuard<'_, Interest> {
        // Each change of the map is whole before anything in it can panic.
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants to listen to an address. Nothing to wait for = it does; an error of the receiver = the link was lost.
    ///
    /// # Errors
    /// The link is not whole.
    pub(super) fn listen(&self, address: Address) -> Result<Option<oneshot::Receiver<()>>, String> {
        let heard = self.interest().listen(address);
        match heard {
            Heard::Already => Ok(None),
            Heard::Down => Err("the subscriber link to Redis is down".into()),
            Heard::Soon(confirmed) => {
                self.changed.notify_one();
                Ok(Some(confirmed))
            }
        }
    }

    pub(super) fn unlisten(&self, address: &Address) {
        self.interest().unlisten(address, Instant::now());
        self.changed.notify_one();
    }

    /// Whether an envelope for the address comes back, and how often the link was lost before.
    pub(super) fn here(&self, address: &Address) -> (Here, u64) {
        let interest = self.interest();
        (interest.here(address), interest.losses())
    }

    pub(super) fn is_whole(&self) -> bool {
        self.interest().is_whole()
    }

    /// Ends it: what it listened to for sessions, to be taken to another link.
    pub(super) fn give_up(&self) -> Vec<Address> {
        let mut interest = self.interest();
        interest.lost();
        interest.all()
    }

    /// What it listens to of what sessions follow.
    pub(super) fn followed(&self) -> Vec<Address> {
        let mut all = self.interest().all();
        all.retain(|address| matches!(address, Address::User(_) | Address::Channel(_)));
        all
    }

    /// Where its probes come in.
    pub(super) fn probe_channel(&self) -> &str {
        &self.parts.probe
    }

    /// A probe came back.
    pub(super) fn probe_came(&self, number: u64) {
        self.probed.store(number, Ordering::Release);
    }

    /// The latest probe that came back.
    pub(super) fn probed(&self) -> u64 {
        self.probed.load(Ordering::Acquire)
    }

    /// How many publications it has brought.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Gives the connection up for a new one.
    pub(super) fn rebuild(&self) {
        self.rebuild.notify_one();
    }

    async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let lost = Arc::new(Notify::new());
            let why = match self.connect(lost.clone()).await {
                Ok(mut connection) => {
                    backoff.reset();
                    // A wish that was about the connection before.
                    let _ = self.rebuild.notified().now_or_never();
                    tracing::info!(endpoint = ?self.parts.endpoint, "a subscriber link to Redis is whole");
                    let whole = WholeGuard::new(&self.parts.metrics);
                    let (reason, why) = self.serve_whole(&mut connection, &lost).await;
                    drop(whole);
                    let rebuilds = &self.parts.metrics.rebuilds;
                    rebuilds.get_or_create(&Reason { reason }).inc();
                    why
                }
                Err(why) => why,
            };
            let affected = self.interest().lost();
            let delay = backoff.next();
            tracing::warn!(
                endpoint = ?self.parts.endpoint,
                affected,
                problem = %why,
                "a subscriber link to Redis is down; trying again in {delay:.1?}"
            );
            (self.moved)();
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.parts.up.notified() => {}
            }
        }
    }

    /// A connection on which everything is listened to again: the link is whole.
    async fn connect(self: &Arc<Self>, lost: Arc<Notify>) -> Result<MultiplexedConnection, String> {
        let pushed = self.on_push(lost);
        let place = &self.parts.place;
        let mut connection = place.connect(&self.parts.endpoint, Some(pushed)).await?;
        let probe = [self.parts.probe.clone()];
        self.tell(&mut connection, &[], &probe).await?;
        // Whatever comes meanwhile is not accepted: the link is down. So this is all there is.
        let all = self.interest().all();
        for some in all.chunks(BATCH) {
            let channels: Vec<_> = some.iter().map(|a| self.parts.keys.channel(a)).collect();
            self.tell(&mut connection, &[], &channels).await?;
        }
        self.interest().made_whole();
        Ok(connection)
    }

    /// What the connection's driver calls with each push. It must not wait.
    fn on_push(self: &Arc<Self>, lost: Arc<Notify>) -> Box<dyn Fn(PushInfo) + Send + Sync> {
        let (queue, room) = (self.queue.clone(), self.room.clone());
        let (metrics, heard) = (self.parts.metrics.clone(), self.heard.clone());
        let (link, dropped) = (Arc::downgrade(self), self.dropped.clone());
        let drop_one = move || {
            metrics.lost("receive_queue");
            dropped.notify_one();
        };
        Box::new(move |push| match push.kind {
            PushKind::Message | PushKind::SMessage => {
                heard.fetch_add(1, Ordering::AcqRel);
                let Some((channel, bytes)) = keys::message(push.data) else {
                    return;
                };
                let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let Ok(room) = room.clone().try_acquire_many_owned(size) else {
                    return drop_one();
                };
                if queue.try_send(Pushed::new(channel, bytes, room)).is_err() {
                    drop_one();
                }
            }
            PushKind::Disconnection => lost.notify_one(),
            // In a cluster the slot went to another node, unless this one asked for it, which it still knows here: the
            // answer to the batch comes behind this.
            PushKind::SUnsubscribe => {
                if let (Some(Value::BulkString(channel)), Some(link)) =
                    (push.data.into_iter().next(), link.upgrade())
                    && !link.gives_up(&channel)
                {
                    (link.moved)();
                    lost.notify_one();
                }
            }
            _ => {}
        })
    }

    /// Serves, and tells meanwhile of all that it may have missed. What is not told before the link is lost again is told
    /// when the next one is whole.
    async fn serve_whole(
        &self,
        connection: &mut MultiplexedConnection,
        lost: &Notify,
    ) -> (&'static str, String) {
        let followed = self.followed();
        let serving = self.serve(connection, lost);
        tokio::pin!(serving);
        if !followed.is_empty() {
            let told = self.arrivals.missed(followed);
            tokio::select! {
                ended = &mut serving => return ended,
                () = told => {}
            }
        }
        serving.await
    }

    /// Until the connection is of no more use; why, for metrics and for people.
    async fn serve(
        &self,
        connection: &mut MultiplexedConnection,
        lost: &Notify,
    ) -> (&'static str, String) {
        loop {
            let due = self.interest().next_due();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = lost.notified() => return ("lost", "the connection ended".into()),
                () = self.rebuild.notified() => return ("probe", "a probe did not come back".into()),
                () = self.changed.notified() => {}
                () = due => {}
            }
            loop {
                let batch = self.interest().batch(Instant::now(), BATCH);
                if batch.is_empty() {
                    break;
                }
                if let Err(why) = self.tell_batch(connection, batch).await {
                    return ("refused", why);
                }
            }
        }
    }

    async fn tell_batch(
        &self,
        connection: &mut MultiplexedConnection,
        batch: Batch,
    ) -> Result<(), String> {
        let names = |addresses: &[Address]| -> Vec<String> {
            let name = |address| self.parts.keys.channel(address);
            addresses.iter().map(name).collect()
        };
        let (less, more) = (names(&batch.unlisten), names(&batch.listen));
        self.tell(connection, &less, &more).await?;
        let metrics = &self.parts.metrics;
        metrics.listens.inc_by(batch.listen.len() as u64);
        metrics.unlistens.inc_by(batch.unlisten.len() as u64);
        self.interest().confirmed(batch, Instant::now());
        Ok(())
    }

    /// Unsubscribes and subscribes in one pipeline, a command for each channel, and waits for every confirmation.
    async fn tell(
        &self,
        connection: &mut MultiplexedConnection,
        less: &[String],
        more: &[String],
    ) -> Result<(), String> {
        let (subscribe, unsubscribe) = match self.parts.place.is_cluster() {
            true => ("SSUBSCRIBE", "SUNSUBSCRIBE"),
            false => ("SUBSCRIBE", "UNSUBSCRIBE"),
        };
        let mut pipeline = Pipeline::with_capacity(less.len() + more.len());
        for channel in less {
            pipeline.cmd(unsubscribe).arg(channel);
        }
        for channel in more {
            pipeline.cmd(subscribe).arg(channel);
        }
        let count = pipeline.len();
        let answers = connection
            .send_packed_commands(&pipeline, 0, count)
            .await
            .map_err(|e| match e.is_timeout() {
                true => "Redis does not answer".to_owned(),
                false => e.to_string(),
            })?;
        match answers.into_iter().find_map(|answer| match answer {
            Value::ServerError(error) => Some(error),
            _ => None,
        }) {
            Some(error) => Err(format!(
                "Redis said {} {}",
                error.code(),
                error.details().unwrap_or_default()
            )),
            None => Ok(()),
        }
    }

    fn gives_up(&self, channel: &[u8]) -> bool {
        let address = self.parts.keys.address(channel);
        address.is_some_and(|address| self.interest().gives_up(&address))
    }
}

/// Counts a whole link, also where its task is ended from without.
struct WholeGuard(BackplaneMetrics);

impl WholeGuard {
    fn new(metrics: &BackplaneMetrics) -> Self {
        metrics.links.inc();
        Self(metrics.clone())
    }
}

impl Drop for WholeGuard {
    fn drop(&mut self) {
        self.0.links.dec();
    }
}
