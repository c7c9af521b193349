//! One run of a node: a real hub with its shards, whose tasks all end with it.

use std::future::pending;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, LocalSet, spawn_local};

use super::backplane::Side;
use super::world::{Link, Run, World};
use crate::hub::session::SessionKey;
use crate::hub::{
    Asked, EventStream, HeartbeatConfig, Hub, HubConfig, HubParts, InboxConfig, Intake, Limits,
    LiveLimits, Namespace, Namespaces, PublishRule, Shard, SubscribeRule,
};
use crate::model::{ChannelName, Grant, NodeId, Secret};
use crate::telemetry::Metrics;
use crate::tickets::{MemoryResume, ResumeTickets};

/// Bytes that may wait for one session: a stalled client is soon a slow one.
const OUTBOX: usize = 6 << 10;

pub(super) struct Node {
    pub(super) run: Run,
    pub(super) hub: Arc<Hub>,
    pub(super) shards: Vec<Rc<Shard>>,
    /// All that runs in it.
    tasks: Option<Rc<LocalSet>>,
    driver: AbortHandle,
}

/// A session that was admitted.
pub(super) struct Admitted {
    pub(super) shard: Rc<Shard>,
    pub(super) key: SessionKey,
    pub(super) stream: EventStream,
}

impl Node {
    pub(super) fn start(world: &Arc<World>, shards: usize, keeps: u32) -> Self {
        let run = {
            let mut inner = world.lock();
            inner.links.push(Link::default());
            inner.links.last_mut().expect("pushed").alive = true;
            inner.links.len() - 1
        };
        let metrics = Metrics::new();
        let parts = parts(shards, keeps, &metrics);
        let intake = Intake::new(&parts.config, &metrics);
        let arrivals = intake.delivery.clone();
        let side = Arc::new(Side {
            world: world.clone(),
            run,
        });
        let (hub, seats, answering) = Hub::new(parts, intake, side.clone(), side);
        let tasks = Rc::new(LocalSet::new());
        tasks.spawn_local(answering);
        tasks.spawn_local(world.clone().carry(run, arrivals));
        let mut shards = Vec::new();
        for seat in seats {
            let (shard, commands) = seat.take();
            tasks.spawn_local(shard.clone().run(commands));
            tasks.spawn_local(shard.clone().keep_cursors(Rc::default()));
            shards.push(shard);
        }
        let driven = tasks.clone();
        let driver = spawn_local(async move { driven.run_until(pending::<()>()).await });
        Self {
            run,
            hub,
            shards,
            tasks: Some(tasks),
            driver: driver.abort_handle(),
        }
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let tasks = self.tasks.as_ref().expect("it lives");
        tasks.spawn_local(task).abort_handle()
    }

    pub(super) fn lives(&self) -> bool {
        self.tasks.is_some()
    }

    /// All of it stops where it is.
    pub(super) async fn kill(&mut self, world: &World) {
        world.lock().links[self.run].alive = false;
        self.driver.abort();
        self.tasks = None;
        // The driver lets go of the tasks when it ends.
        tokio::task::yield_now().await;
    }

    /// Admits a session as a door does, without a socket.
    pub(super) fn admit(
        &self,
        shard: usize,
        grant: Grant,
        asked: Asked,
        done: impl FnOnce(Option<Admitted>) + 'static,
    ) -> AbortHandle {
        let shard = self.shards[shard % self.shards.len()].clone();
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let Ok(place) = shard.hub.admission.take(ip) else {
            panic!("there is room");
        };
        self.spawn(async move {
            let reservation = shard.reserve();
            let key = reservation.key;
            let prepared = shard.prepare(grant, asked, (place, reservation)).await;
            let stream = match prepared {
                Ok(prepared) => shard.admit_events(prepared).expect("there is a secret"),
                Err(_) => None,
            };
            done(stream.map(|stream| Admitted { shard, key, stream }));
        })
    }
}

fn parts(shards: usize, keeps: u32, metrics: &Metrics) -> HubParts {
    let resume = ResumeTickets::new(
        Some(&Secret::new("a secret of the model test, long enough")),
        Arc::new(MemoryResume::new(10)),
        metrics.clone(),
    );
    let namespace = Namespace {
        name: ChannelName::parse("c").expect("a name"),
        subscribe: SubscribeRule::Any,
        publish: PublishRule::Nobody,
        max_messages: keeps,
        max_age: Duration::from_secs(3600),
        max_bytes: 1 << 20,
    };
    HubParts {
        node: NodeId("model".into()),
        config: HubConfig {
            shards,
            coalesce: Duration::ZERO,
            queue: 64,
        },
        limits: LiveLimits::new(Limits {
            connections: 1000,
            connections_per_user: 0,
            outbox_bytes: OUTBOX,
            node_outbox_bytes: 64 << 20,
            handshakes_per_second: 0,
            ..Limits::default()
        }),
        heartbeat: HeartbeatConfig {
            interval: Duration::ZERO,
            ..HeartbeatConfig::default()
        },
        inbox: InboxConfig {
            max_messages: keeps,
            max_age: Duration::from_secs(3600),
            max_bytes: 1 << 20,
        },
        namespaces: Arc::new(Namespaces::new(&[namespace], false)),
        metrics: metrics.clone(),
        resume: Arc::new(resume),
    }
}
