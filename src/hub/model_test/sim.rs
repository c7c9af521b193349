//! The cluster, its clients and its services, and how a step changes them.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::{Begin, Client, Shared};
use super::node::Node;
use super::world::{Chance, Inner, World};
use super::{CLIENTS, NODES, Shape, Step};
use crate::hub::{Draft, Refusal, Router};
use crate::model::{Body, ChannelName, Class, Position, UserId};

/// How long everything may take once nothing is broken any more.
const SETTLED: Duration = Duration::from_secs(3);
/// How many times that who is behind has besides.
const CATCHES_UP: usize = 5;

/// What services were told of their pushes.
#[derive(Default)]
struct Answers {
    accepted: Vec<u64>,
    refused: HashSet<u64>,
    /// Everyone must have the last one.
    problem: Option<String>,
}

pub(super) struct Sim {
    shape: Shape,
    world: Arc<World>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    shared: Shared,
    answers: Rc<RefCell<Answers>>,
    pushed: u64,
}

impl Sim {
    pub(super) fn new(shape: Shape) -> Self {
        let world = Arc::new(World::default());
        world.lock().chance = Some(Chance(shape.seed));
        let nodes = (0..NODES).map(|_| Node::start(&world, shape.shards, shape.keeps));
        let clients = (0..CLIENTS).map(|name| {
            let channel = name.is_multiple_of(3).then(channel);
            Client::new(name, user(name % 2), name >= CLIENTS / 2, channel)
        });
        Self {
            nodes: nodes.collect(),
            clients: clients.collect(),
            world,
            shape,
            shared: HashMap::new(),
            answers: Rc::default(),
            pushed: 0,
        }
    }

    pub(super) async fn take(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Push {
                node,
                to,
                live_only,
            } => self.push(node, to, live_only, 1),
            Step::Burst { node, to, count } => self.push(node, to, false, count),
            Step::Open {
                client,
                node,
                shard,
                begin,
            } => self.open(client, node, shard, begin),
            Step::Leave { client } => self.clients[client].leave(),
            Step::Ack { client } => self.clients[client].ack()?,
            Step::Stall { client, stalled } => self.clients[client].stalled = stalled,
            Step::Kill { node } => self.kill(node).await,
            Step::Start { node } => self.start(node),
            Step::Cut { node, drop } => self.world.lock().cut(self.nodes[node].run, drop),
            Step::Heal { node } => {
                let run = self.nodes[node].run;
                let mut world = self.world.lock();
                if world.links[run].deaf {
                    world.heal(run);
                }
            }
            Step::Mute { node, mute } => self.world.lock().links[self.nodes[node].run].mute = mute,
            Step::Lose { node, answers } => {
                self.world.lock().links[self.nodes[node].run].lose = answers;
            }
            Step::Snapshot => {
                let mut world = self.world.lock();
                let snapshot = world.store.clone();
                world.snapshots.push(snapshot);
            }
            Step::RollBack { to, drop } if self.shape.rollbacks => self.roll_back(to, drop),
            Step::RollBack { .. } => {}
            Step::Pause { millis } => sleep(Duration::from_millis(millis)).await,
        }
        tokio::task::yield_now().await;
        self.look()
    }

    fn look(&mut self) -> Result<(), String> {
        for client in &mut self.clients {
            client.take(&self.world, &mut self.shared)?;
        }
        Ok(())
    }

    fn push(&mut self, node: usize, to: usize, live_only: bool, count: u64) {
        let node = &self.nodes[node];
        if !node.lives() {
            return;
        }
        let first = self.pushed + 1;
        self.pushed += count;
        let numbers = first..=self.pushed;
        let (router, answers) = (node.hub.router.clone(), self.answers.clone());
        node.spawn(async move {
            for number in numbers {
                push_one(&router, to, live_only, number, &answers).await;
            }
        });
    }

    fn open(&mut self, client: usize, node: usize, shard: usize, begin: Begin) {
        let (client, node) = (&mut self.clients[client], &self.nodes[node]);
        if !client.is_away() || !node.lives() {
            return;
        }
        let (grant, asked) = client.wish(begin);
        client.opens(node.run, asked.clone(), |opening| {
            node.admit(shard, grant, asked, move |admitted| {
                *opening.borrow_mut() = Some(admitted);
            })
        });
    }

    async fn kill(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if !node.lives() {
            return;
        }
        let run = node.run;
        let forgot = self.world.lock().links[run].held;
        node.kill(&self.world).await;
        for client in &mut self.clients {
            client.lose(run);
            if forgot {
                // Nobody else knows what it was answered.
                client
                    .owed
                    .values_mut()
                    .for_each(|owed| _ = owed.remove(&run));
            }
        }
    }

    fn start(&mut self, node: usize) {
        if !self.nodes[node].lives() {
            self.nodes[node] = Node::start(&self.world, self.shape.shards, self.shape.keeps);
        }
    }

    fn roll_back(&mut self, to: usize, drop: bool) {
        let mut world = self.world.lock();
        let Some(last) = world.snapshots.len().checked_sub(1) else {
            return;
        };
        let before = world.store.clone();
        for lost in world.roll_back(to.min(last), drop) {
            let (Some(knower), Some(log)) = (lost.knower, before.logs.get(&lost.address)) else {
                continue;
            };
            for client in &mut self.clients {
                let at = client.at.get(&lost.address);
                let misses = at.is_some_and(|at| {
                    at.epoch == log.top.position.epoch
                        && at.offset < lost.offset
                        && log.has(at.offset, at.tag)
                });
                if misses {
                    let owed = client.owed.entry(lost.address.clone()).or_default();
                    owed.insert(knower);
                }
            }
        }
        let runs = self.nodes.iter().filter(|node| node.lives());
        for node in runs {
            node.spawn(self.world.clone().recover(node.run));
        }
    }

    /// Nothing is broken any more, and everyone comes back: who has what in the end?
    pub(super) async fn settle(mut self) -> Result<(), String> {
        self.world.lock().calm = true;
        for node in 0..NODES {
            self.start(node);
            let mut world = self.world.lock();
            let run = self.nodes[node].run;
            (world.links[run].mute, world.links[run].lose) = (false, 0);
            if world.links[run].deaf {
                world.heal(run);
            }
        }
        for client in &mut self.clients {
            client.stalled = false;
        }
        self.pause(SETTLED).await?;
        for client in 0..CLIENTS {
            self.open(client, client % NODES, client / NODES, Begin::Seen);
        }
        self.catch_up("in the end").await?;
        for to in 0..3 {
            self.push(to, to, false, 1);
        }
        self.catch_up("after one more message").await?;
        for client in &self.clients {
            if client.owed.values().any(|owed| !owed.is_empty()) {
                return Err(format!("{} is not told of {:?}", client.name, client.owed));
            }
        }
        self.answers_are_true()
    }

    /// A client that missed hundreds gets them as its outbox, which holds few, has room.
    async fn catch_up(&mut self, when: &str) -> Result<(), String> {
        self.pause(SETTLED).await?;
        for _ in 0..CATCHES_UP {
            if self.everyone_has_everything(when).is_ok() {
                break;
            }
            self.pause(SETTLED).await?;
        }
        self.everyone_has_everything(when)
    }

    /// So that nobody's outbox runs over.
    async fn pause(&mut self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            sleep(Duration::from_millis(50)).await;
            self.look()?;
        }
        Ok(())
    }

    fn everyone_has_everything(&self, when: &str) -> Result<(), String> {
        let world = self.world.lock();
        for client in &self.clients {
            if client.open.is_none() {
                return Err(format!("{when} {} has no connection", client.name));
            }
            for address in client.streams() {
                let top = world.store.logs.get(&address).map(|log| log.top.position);
                let at = client.at.get(&address).copied();
                let place = |at: Position| (at.offset, at.tag);
                if at.map(place) != top.map(place) {
                    let name = &client.name;
                    return Err(format!(
                        "{when} {name} is at {at:?} of {address}, not {top:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What was accepted is there unless it was rolled back, and what was refused is not.
    fn answers_are_true(&self) -> Result<(), String> {
        let (world, answers) = (self.world.lock(), self.answers.borrow());
        if let Some(problem) = &answers.problem {
            return Err(problem.clone());
        }
        if let Some(number) = answers.refused.iter().find(|n| world.past.contains_key(n)) {
            return Err(format!("{number} was refused, and is there"));
        }
        let missing = answers
            .accepted
            .iter()
            .find(|number| !is_there(&world, **number));
        missing.map_or(Ok(()), |number| {
            Err(format!("{number} was accepted, and is not there"))
        })
    }
}

fn is_there(world: &Inner, number: u64) -> bool {
    let mut past = world.past.get(&number).into_iter().flatten();
    past.any(|past| {
        let there = world.store.find(&past.address, past.id).is_some();
        there || world.disturbed.contains(&past.address)
    })
}

async fn push_one(
    router: &Router,
    to: usize,
    live_only: bool,
    number: u64,
    answers: &RefCell<Answers>,
) {
    let body = Body::Json(number.to_string().into());
    let mut draft = Draft::new(body, Instant::now() + Duration::from_secs(2));
    if live_only {
        draft.class = Class::Volatile;
    }
    let pushed = match to {
        2 => router.publish(channel(), draft).await,
        user_number => router.push(user(user_number), draft).await,
    };
    let mut answers = answers.borrow_mut();
    match pushed {
        Ok(accepted) => {
            if accepted.position.is_some() == live_only {
                answers.problem = Some(format!("{number} is kept, or not: {accepted:?}"));
            }
            if !live_only {
                answers.accepted.push(number);
            }
        }
        Err(Refusal::Unknown { .. }) => {}
        Err(_) => _ = answers.refused.insert(number),
    }
}

fn user(number: usize) -> UserId {
    UserId::parse(&format!("u{number}")).expect("an id")
}

fn channel() -> ChannelName {
    ChannelName::parse("c:1").expect("a name")
}
