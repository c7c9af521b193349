//! A node: builds, binds, runs, reloads and drains. The one place that knows all rooms.

mod bind;
mod leave;
mod links;
mod reload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use self::bind::{bind, bind_public};
use self::links::Links;
use crate::config::{Config, Mode};
use crate::doors::config::DEVELOPMENT_KEY;
use crate::doors::public::{Pacing, Playground, Public};
use crate::doors::service::{Api, LiveKeys};
use crate::doors::{self, admin, service};
use crate::fleet::{Doors, Drain, Gate, Health, Phase, Registrar, hold_lease};
use crate::hub::{Hub, HubParts, Intake, LiveLimits, Namespaces, ShardThreads};
use crate::model::{NodeId, Secret};
use crate::sources;
use crate::telemetry::Metrics;
use crate::tickets::{JwtVerifier, ResumeTickets, Tickets};
use crate::tls::Certificates;

/// How long a start waits for the cluster's own secret.
const START_TIMEOUT: Duration = Duration::from_secs(2);

/// What a node bound.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Clients.
    pub public: SocketAddr,
    /// Services.
    pub service: SocketAddr,
    /// People and probes.
    pub admin: SocketAddr,
    /// Probes alone.
    pub probe: Option<SocketAddr>,
}

/// A running node.
pub struct Node {
    /// What it bound.
    pub addresses: Addresses,
    /// Its name.
    pub id: NodeId,
    hub: Arc<Hub>,
    health: Arc<Health>,
    drain: Arc<Drain>,
    stop_admin: watch::Sender<bool>,
    /// Those who take events from streams, until they are told to stop.
    streams: JoinSet<()>,
    stop_sources: watch::Sender<bool>,
    service: JoinHandle<()>,
    admins: Vec<JoinHandle<()>>,
    shards: ShardThreads,
    links: Links,
    live: reload::Live,
    tasks: JoinSet<()>,
    /// Keeps the node registered, and ends once it is taken out.
    discovery: JoinSet<()>,
}

impl Node {
    /// Starts a node. It serves when this returns.
    ///
    /// # Errors
    /// A sentence with the fix: a wrong configuration, a port that is taken.
    pub async fn start(config: Config, mode: Mode) -> Result<Self, String> {
        config.check(mode)?;
        let id = node_id(config.node.id.as_deref());
        let namespaces = Arc::new(Namespaces::new(&config.namespaces, mode == Mode::Dev));
        let limits = LiveLimits::new(config.limits.clone());
        let keys = Arc::new(LiveKeys::new(config.callers()?));
        let metrics = Metrics::new();
        let certificates = Arc::new(Certificates::load(config.certificates(), &metrics.tls)?);
        let intake = Intake::new(&config.hub, &metrics);
        let links = Links::new(&config, &intake, &metrics)?;
        let secret = config.backplane.secret.as_ref();
        let resume = ResumeTickets::new(secret, links.resume.clone(), metrics.clone());
        let resume = Arc::new(resume);
        let parts = HubParts {
            node: id.clone(),
            config: config.hub.clone(),
            limits: limits.clone(),
            heartbeat: config.heartbeat.clone(),
            inbox: config.inbox.clone(),
            namespaces: namespaces.clone(),
            metrics: metrics.clone(),
            resume: resume.clone(),
        };
        let (backplane, streams) = (links.backplane.clone(), links.streams.clone());
        let (hub, seats, answering) = Hub::new(parts, intake, backplane, streams);
        let (public, listeners) = bind_public(config.public.listen, seats.len())?;
        let service_socket = bind("service", config.service.listen).await?;
        let admin_socket = bind("admin", config.admin.listen).await?;
        let probe_socket = match &config.probe {
            Some(probe) => Some(bind("probe", probe.listen).await?),
            None => None,
        };
        let address = |socket: &TcpListener| socket.local_addr().map_err(|e| e.to_string());
        let addresses = Addresses {
            public,
            service: address(&service_socket)?,
            admin: address(&admin_socket)?,
            probe: probe_socket.as_ref().map(address).transpose()?,
        };
        let tickets = Arc::new(Tickets::new(&config.tickets, links.store.clone())?);
        let jwt = config.jwt.as_ref().map(JwtVerifier::new).transpose()?;
        let jwt = jwt.map(Arc::new);
        let dev_url = || (mode == Mode::Dev).then(|| format!("ws://{public}/ws"));
        let url = config.public.url.clone().or_else(dev_url);
        let api = Arc::new(Api {
            router: hub.router.clone(),
            tickets: tickets.clone(),
            leases: links.leases.clone(),
            keys: keys.clone(),
            limits: limits.clone(),
            url: url.clone(),
            metrics: metrics.clone(),
        });
        let health = {
            let (backplane, hub) = (links.backplane.clone(), hub.clone());
            Arc::new(Health::new(move || {
                let mut ailments = backplane.ailments();
                if hub.is_catching_up() {
                    ailments.push("catching up with what was published meanwhile".into());
                }
                ailments
            }))
        };
        let routes = service::routes(
            api,
            health.phases(),
            config.service.stream_window,
            config.service.reflection,
        )
        .await?;
        let (pacing, leasing) = pacing(limits.clone(), &links, &metrics);
        let playground = (mode == Mode::Dev).then(|| playground(&routes, &addresses, &id));
        let door = Public::new(
            &config.public,
            mode == Mode::Dev,
            tickets,
            jwt,
            url,
            playground,
            pacing,
        );
        let door = Arc::new(door.with_tls(certificates.door("public")));
        let live = reload::Live {
            kept: config.keeps(),
            config: config.clone(),
            mode,
            namespaces,
            keys: keys.clone(),
            door: door.clone(),
            certificates: certificates.clone(),
        };
        let shards = ShardThreads::start(seats, listeners, move |shard, stream, peer| {
            door.connection(shard, stream, peer);
        })
        .map_err(|e| format!("a shard's thread could not be started: {e}"))?;
        if let Some(redis) = &links.redis {
            redis.wait_until_whole().await?;
        }
        // Where it is not there now, it is looked for again.
        let _ = tokio::time::timeout(START_TIMEOUT, resume.refresh()).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(resume.keep_fresh());
        tasks.spawn(leasing);
        tasks.spawn(answering);
        tasks.spawn(hold_lease(
            links.leases.clone(),
            hub.clone(),
            health.clone(),
        ));
        let stop_sources = watch::Sender::new(false);
        let bound = sources::Bound {
            delivery: hub.delivery.clone(),
            router: hub.router.clone(),
            limits,
            metrics: metrics.sources.clone(),
            stop: stop_sources.subscribe(),
        };
        let readers = sources::readers(&config.sources, &config.backplane, &bound)?;
        let streams = JoinSet::from_iter(readers.streams);
        readers.topics.into_iter().for_each(|topic| {
            tasks.spawn(topic);
        });
        let mut phases = health.phases();
        let closing = async move { phases.reached(Phase::Closing).await };
        let tls = certificates.door("service");
        let service = tokio::spawn(doors::serve(
            "service",
            service_socket,
            routes,
            tls,
            closing,
        ));
        let stop_admin = watch::Sender::new(false);
        let guards = !addresses.admin.ip().is_loopback();
        let admin_keys = guards.then(|| keys.clone());
        let mut discovery = JoinSet::new();
        if let Some(registrar) = registrar(&config, &addresses, &hub, &health)? {
            discovery.spawn(registrar.run());
        }
        let leases = links.leases.clone();
        let drain = Drain::new(config.drain, hub.clone(), health.clone(), leases);
        let drain = Arc::new(drain);
        let routes = admin::routes(health.clone(), metrics, drain.clone(), admin_keys);
        let mut admins = vec![tokio::spawn(doors::serve(
            "admin",
            admin_socket,
            routes,
            certificates.door("admin"),
            told(&stop_admin),
        ))];
        if let Some(socket) = probe_socket {
            let routes = admin::probe_routes(health.clone());
            admins.push(tokio::spawn(doors::serve(
                "probe",
                socket,
                routes,
                certificates.door("probe"),
                told(&stop_admin),
            )));
        }
        tasks.spawn(certificates.watch(config.tls.watch_interval));
        health.enter(Phase::Serving);
        config.drain.warn_if_killed_early();
        tracing::info!(node = %id, %public, service = %addresses.service, admin = %addresses.admin, "serving");
        Ok(Self {
            addresses,
            id,
            hub,
            health,
            drain,
            stop_admin,
            streams,
            stop_sources,
            service,
            admins,
            shards,
            links,
            live,
            tasks,
            discovery,
        })
    }

    /// The hub's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.hub.metrics
    }

    /// Bytes that wait in all outboxes.
    pub fn outbox_bytes(&self) -> usize {
        self.hub.outbox_bytes()
    }

    /// Connections, handshakes under way included.
    pub fn connections(&self) -> usize {
        self.hub.admission.connections()
    }

    /// Resolves once somebody asks the node to drain at the admin door.
    pub fn asked_to_leave(&self) -> impl Future<Output = ()> + use<> {
        self.drain.asked()
    }
}

/// The door's part in the fleet's handshake budget, and the task that leases for it.
fn pacing(
    limits: LiveLimits,
    links: &Links,
    metrics: &Metrics,
) -> (Pacing, impl Future<Output = ()> + Send + use<>) {
    let (gate, asks) = Gate::new(limits, links.budget.clone(), metrics.budget.clone());
    let gate = Arc::new(gate);
    let pacing = Pacing {
        gate: gate.clone(),
        slots: links.slots.clone(),
        metrics: metrics.budget.clone(),
    };
    (pacing, gate.serve(asks))
}

/// Resolves when the node tells a door to stop.
fn told(stop: &watch::Sender<bool>) -> impl Future<Output = ()> + use<> {
    let mut stop = stop.subscribe();
    async move {
        // An error means that the node is gone: stop too.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// Who keeps the node registered, if it is to be.
fn registrar(
    config: &Config,
    addresses: &Addresses,
    hub: &Arc<Hub>,
    health: &Arc<Health>,
) -> Result<Option<Registrar>, String> {
    let Some(consul) = &config.consul else {
        return Ok(None);
    };
    let doors = Doors {
        public: addresses.public,
        service: addresses.service,
        probe: addresses.probe.unwrap_or(addresses.admin),
        probe_tls: match &config.probe {
            Some(probe) => probe.tls.is_some(),
            None => config.admin.tls.is_some(),
        },
    };
    let free = {
        let hub = hub.clone();
        move || {
            let taken = hub.admission.connections() as f64 / hub.admission.connections_max() as f64;
            1.0 - taken.max(hub.load())
        }
    };
    let (health, metrics) = (health.clone(), hub.metrics.consul.clone());
    let registrar = Registrar::new(consul, doors, &hub.node.to_string(), health, free, metrics);
    registrar.map(Some)
}

fn playground(routes: &axum::Router, addresses: &Addresses, id: &NodeId) -> Playground {
    let info = serde_json::json!({
        "node": id.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "public": addresses.public.to_string(),
        "service": addresses.service.to_string(),
        "admin": addresses.admin.to_string(),
        "key": DEVELOPMENT_KEY,
    });
    Playground::new(routes.clone(), &Secret::new(DEVELOPMENT_KEY), &info)
}

/// `[node] id`, else the host's name and four random characters.
fn node_id(configured: Option<&str>) -> NodeId {
    NodeId(match configured {
        Some(id) => id.into(),
        None => {
            let uname = rustix::system::uname();
            let host = uname.nodename().to_string_lossy();
            format!("{host}-{:04x}", rand::random::<u16>()).into()
        }
    })
}
