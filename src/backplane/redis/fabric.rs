use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::cmd;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Shared;
use super::commands::{Commands, Failure};
use super::inspection::Inspection;
use super::keys::{Keys, slot};
use super::link::{Link, LinkParts};
use super::place::{Endpoint, Topology};
use crate::model::Address;
use crate::telemetry::BackplaneMetrics;

/// How often each link is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a probe that Redis took may be on its way back.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long links may take to follow commands that go through again.
const SETTLE: Duration = Duration::from_secs(1);

/// What a node holds against one topology: the connections, and which of them an address is on.
pub(super) struct Fabric {
    topology: Topology,
    keys: Keys,
    /// One per primary.
    commands: Vec<Commands>,
    /// One per primary, for what waits for replicas, which blocks all behind it; none without `min_replicas`.
    replicated: Vec<Commands>,
    /// `per_primary` for each primary in turn.
    links: Vec<Arc<Link>>,
    per_primary: usize,
    /// Since when Redis refuses what is published, and what it says.
    refused: Arc<Refused>,
}

type Refused = Mutex<Option<(Instant, String)>>;

impl Fabric {
    /// The fabric of a topology, which listens to all that `old` did, whose tasks have ended. Its own go into `tasks`, but
    /// for those that deliver what has come.
    pub(super) fn new(
        shared: &Arc<Shared>,
        topology: Topology,
        old: Option<Arc<Self>>,
        tasks: &mut JoinSet<()>,
        delivering: &mut JoinSet<()>,
    ) -> Self {
        let moved = {
            let moved = shared.moved.clone();
            Arc::new(move || moved.notify_one())
        };
        // A Redis that was reached before is one that may be away for the grace.
        let ever = old
            .as_ref()
            .is_some_and(|old| old.commands.iter().any(Commands::ever));
        let endpoints = &topology.endpoints;
        shared.runs.retain(endpoints);
        let up: Vec<_> = endpoints.iter().map(|_| Arc::new(Notify::new())).collect();
        let mut lines = |replicas| -> Vec<Commands> {
            let line = |index: usize| {
                let moved = moved.clone();
                let (topology, replicated) = (topology.clone(), replicas > 0);
                let (handle, task) = Commands::new(
                    shared.place.clone(),
                    endpoints[index].clone(),
                    replicas,
                    ever,
                    up[index].clone(),
                    Inspection::new(shared.clone(), topology, index, replicated),
                    move || moved(),
                );
                tasks.spawn(task);
                handle
            };
            (0..endpoints.len()).map(line).collect()
        };
        let commands = lines(0);
        let replicated = match shared.min_replicas {
            0 => Vec::new(),
            replicas => lines(replicas),
        };
        let links = spread(shared, &topology, old)
            .into_iter()
            .enumerate()
            .map(|(index, addresses)| {
                let endpoint = index / shared.links_per_primary;
                let parts = LinkParts {
                    place: shared.place.clone(),
                    endpoint: topology.endpoints[endpoint].clone(),
                    keys: shared.keys.clone(),
                    sealer: shared.sealer.clone(),
                    metrics: shared.metrics.clone(),
                    probe: probe_channel(shared, &topology, endpoint, index),
                    up: up[endpoint].clone(),
                };
                let (link, running, deliver) =
                    Link::new(parts, addresses, shared.arrivals.clone(), moved.clone());
                tasks.spawn(running);
                delivering.spawn(deliver);
                link
            })
            .collect();
        let fabric = Self {
            topology,
            keys: shared.keys.clone(),
            commands,
            replicated,
            links,
            per_primary: shared.links_per_primary,
            refused: Arc::default(),
        };
        for (index, link) in fabric.links.iter().enumerate() {
            let commands = fabric.commands[index / fabric.per_primary].clone();
            tasks.spawn(probe(
                link.clone(),
                commands,
                shared.place.is_cluster(),
                shared.metrics.clone(),
                fabric.refused.clone(),
            ));
        }
        fabric
    }

    /// The commands of the primary that has a key.
    pub(super) fn commands(&self, key: &str, replicated: bool) -> &Commands {
        let index = self.topology.endpoint_of(key);
        match self.replicated.get(index) {
            Some(commands) if replicated => commands,
            _ => &self.commands[index],
        }
    }

    /// Which primary has a key.
    pub(super) fn endpoint(&self, key: &str) -> &Endpoint {
        &self.topology.endpoints[self.topology.endpoint_of(key)]
    }

    /// The one link that an address is on.
    pub(super) fn link(&self, address: &Address) -> &Arc<Link> {
        self.link_of(&self.keys.channel(address))
    }

    /// The same, by the address's Pub/Sub channel.
    pub(super) fn link_of(&self, channel: &str) -> &Arc<Link> {
        &self.links[place_of(&self.topology, self.per_primary, channel)]
    }

    /// Why Redis refuses what is published, if it does.
    pub(super) fn refuses(&self) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_ref().map(|(_, why)| why.clone())
    }

    /// Whether everything is connected and listened to.
    pub(super) fn is_whole(&self) -> bool {
        let mut commands = self.commands.iter().chain(&self.replicated);
        commands.all(|c| c.down().is_none()) && self.links.iter().all(|l| l.is_whole())
    }

    /// Why a Redis that was reached is not to be used.
    pub(super) fn unfit(&self) -> Option<String> {
        let mut commands = self.commands.iter().chain(&self.replicated);
        commands.find_map(Commands::unfit)
    }

    /// Why this node should get no new connections. A backplane that cannot be reached at all is a reason after the
    /// grace, since it is so for the whole fleet; a link that is not whole while commands go through is one at once.
    pub(super) fn ailments(&self, grace: Duration) -> Vec<String> {
        let now = Instant::now();
        let mut ailments: Vec<String> = Vec::new();
        if let Some(why) = self.unfit() {
            ailments.push(format!("the backplane cannot keep messages: {why}"));
        }
        for (index, commands) in self.commands.iter().enumerate() {
            match commands.down() {
                Some(_) if commands.unfit().is_some() => {}
                Some(_) if !commands.ever() => {
                    ailments.push("the backplane was not reached yet".into());
                }
                Some((since, why)) if now.saturating_duration_since(since) >= grace => {
                    ailments.push(format!("the backplane cannot be reached: {why}"));
                }
                Some(_) => {}
                // Links lost in the same outage have a moment to come back.
                None if commands.up().is_some_and(|up| now - up < SETTLE) => {}
                None => {
                    let first = index * self.per_primary;
                    let links = &self.links[first..first + self.per_primary];
                    let down = links.iter().filter(|link| !link.is_whole()).count();
                    if down > 0 {
                        ailments.push(format!(
                            "{down} of {} links to the backplane are not whole",
                            self.per_primary
                        ));
                    }
                }
            }
        }
        for commands in &self.replicated {
            if let Some((since, why)) = commands.down()
                && now.saturating_duration_since(since) >= grace
            {
                ailments.push(format!("the backplane's replicas cannot be asked: {why}"));
            }
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, why)) = &*refused
            && now.saturating_duration_since(*since) >= grace
        {
            ailments.push(format!("the backplane refuses what is published: {why}"));
        }
        ailments.dedup();
        ailments
    }
}

/// What each link begins with: what the node always listens to, and all that the old links had, which they give up.
fn spread(shared: &Shared, topology: &Topology, old: Option<Arc<Fabric>>) -> Vec<Vec<Address>> {
    let per_primary = shared.links_per_primary;
    let mut addresses = vec![Vec::new(); topology.endpoints.len() * per_primary];
    let always = [Address::Everyone, Address::Node(shared.incarnation)];
    let old = old.iter().flat_map(|old| &old.links);
    let taken = old.flat_map(|link| link.give_up());
    for address in always.into_iter().chain(taken) {
        let channel = shared.keys.channel(&address);
        addresses[place_of(topology, per_primary, &channel)].push(address);
    }
    addresses
}

fn place_of(topology: &Topology, per_primary: usize, channel: &str) -> usize {
    topology.endpoint_of(channel) * per_primary + usize::from(slot(channel)) % per_primary
}

/// A channel of the primary that the link is to; in a cluster, numbers are tried until the slot is one of its own.
fn probe_channel(shared: &Shared, topology: &Topology, endpoint: usize, link: usize) -> String {
    (0..=u32::MAX)
        .map(|salt| shared.keys.probe(shared.incarnation, link, salt))
        .find(|channel| topology.endpoint_of(channel) == endpoint)
        .expect("each primary of a topology has a slot, and names reach every slot")
}

/// Sends probes through the commands and looks whether they come back through the link. A link that is connected and
/// brings nothing is the worst there is: everything looks well and nobody gets anything.
async fn probe(
    link: Arc<Link>,
    commands: Commands,
    cluster: bool,
    metrics: BackplaneMetrics,
    refused: Arc<Refused>,
) {
    let publish = if cluster { "SPUBLISH" } else { "PUBLISH" };
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !link.is_whole() {
            continue;
        }
        // Not to be guessed: whoever else can publish must not make a deaf link look well.
        let number = rand::random::<u64>();
        let sent = Instant::now();
        let mut command = cmd(publish);
        command.arg(link.probe_channel()).arg(number.to_string());
        // What the commands' own connection does not take says nothing about the link.
        match commands.run(command).await {
            // What was kept meanwhile was told to nobody: the link is made whole anew, which finds it.
            Ok(_) => {
                if note(&refused, None) {
                    link.rebuild();
                    continue;
                }
            }
            Err(Failure::Refused(_, why)) => {
                note(&refused, Some(why));
                continue;
            }
            Err(_) => continue,
        }
        let back = async {
            while link.probed() != number && link.is_whole() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        match tokio::time::timeout(PROBE_TIMEOUT, back).await {
            Ok(()) => metrics.echo_seconds.observe(sent.elapsed().as_secs_f64()),
            Err(_) => {
                metrics.lost_probes.inc();
                link.rebuild();
            }
        }
    }
}

/// Remembers since when Redis refuses what is published; true if it does so no more.
fn note(refused: &Refused, why: Option<String>) -> bool {
    let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
    match (why, &mut *refused) {
        (None, refused) => return refused.take().is_some(),
        (Some(why), Some((_, said))) => *said = why,
        (Some(why), refused) => {
            tracing::warn!(problem = %why, "Redis refuses what this node publishes");
            *refused = Some((Instant::now(), why));
        }
    }
    false
}
