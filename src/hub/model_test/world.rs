//! What links the nodes of the model test: one store, and for each node two links, one that brings what is published and
//! one by which it asks. Both can be cut, are slow at random, and the store can go back to what it was.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::store::{Epochs, Store};
use crate::backplane::{Arrivals, Envelope, Here, Published};
use crate::model::{Address, MessageId, Position, Tag};

/// One run of a node; never used again.
pub(super) type Run = usize;

/// Random numbers of the case's seed.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, most: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }

    /// How long something takes: mostly hardly anything, seldom longer than a link takes to be cut and whole again.
    fn delay(&mut self, calm: bool) -> Duration {
        let most = match calm {
            true => 3,
            false => [3, 3, 3, 3, 30, 30, 400][self.below(7) as usize],
        };
        Duration::from_micros(self.below(most * 1000))
    }
}

/// A message that was appended once.
pub(super) struct Past {
    pub(super) address: Address,
    pub(super) id: MessageId,
    pub(super) offset: u64,
    pub(super) previous: Tag,
}

/// One run's links.
#[derive(Default)]
pub(super) struct Link {
    pub(super) alive: bool,
    /// What is published does not arrive.
    pub(super) deaf: bool,
    /// What it asks is not answered.
    pub(super) mute: bool,
    /// So many answers to appends are lost.
    pub(super) lose: u32,
    /// The store went back, and it has not compared yet: its appends wait.
    pub(super) held: bool,
    /// What it listens to; for how long yet, if it lingers.
    listening: HashMap<Address, Option<Instant>>,
    /// How often it ceased to.
    unlistened: HashMap<Address, u64>,
    queue: HashMap<Option<Address>, VecDeque<Arriving>>,
    arrived: Arc<Notify>,
    remembered: HashMap<Address, Position>,
}

enum Arriving {
    Envelope(Envelope),
    Missed(Vec<Address>),
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) store: Store,
    pub(super) epochs: Epochs,
    pub(super) snapshots: Vec<Store>,
    pub(super) chance: Option<Chance>,
    /// Nothing takes long any more.
    pub(super) calm: bool,
    pub(super) links: Vec<Link>,
    /// Every append, by the number in its body.
    pub(super) past: HashMap<u64, Vec<Past>>,
    /// Of which run of the store each message was tried first.
    pub(super) tried: HashMap<MessageId, u64>,
    /// Which run of a node was answered that it is kept.
    pub(super) answered: HashMap<MessageId, Run>,
    /// Addresses whose log has lost messages that it had.
    pub(super) disturbed: HashSet<Address>,
    /// How often the store went back.
    pub(super) rolled: u64,
}

/// What a rollback took.
pub(super) struct Lost {
    pub(super) address: Address,
    pub(super) offset: u64,
    /// Who was answered that it is kept, and still knows.
    pub(super) knower: Option<Run>,
}

#[derive(Default)]
pub(super) struct World(Mutex<Inner>);

impl World {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn delay(&self) {
        let delay = self.lock().delay();
        sleep(delay).await;
    }

    /// Lets what was published to a run arrive, one address after another at random.
    pub(super) async fn carry(self: Arc<Self>, run: Run, to: Arc<dyn Arrivals>) {
        let arrived = self.lock().links[run].arrived.clone();
        loop {
            self.delay().await;
            let next = self.lock().next_arrival(run);
            match next {
                None => arrived.notified().await,
                Some(Arriving::Envelope(envelope)) => to.arrive(envelope).await,
                Some(Arriving::Missed(addresses)) => to.missed(addresses).await,
            }
        }
    }

    /// After the store went back: compares what the run was answered, and then takes appends again.
    pub(super) async fn recover(self: Arc<Self>, run: Run) {
        loop {
            self.delay().await;
            let mut inner = self.lock();
            if inner.links[run].mute {
                continue;
            }
            let known: Vec<_> = inner.links[run].remembered.drain().collect();
            for (address, known) in known {
                let top = inner.compare(&address, known);
                inner.links[run].remembered.insert(address, top.position);
            }
            inner.links[run].held = false;
            if !inner.links[run].deaf {
                inner.heal(run);
            }
            return;
        }
    }
}

impl Inner {
    pub(super) fn below(&mut self, most: u64) -> u64 {
        self.chance.as_mut().map_or(0, |chance| chance.below(most))
    }

    pub(super) fn delay(&mut self) -> Duration {
        let calm = self.calm;
        let chance = self.chance.as_mut();
        chance.map_or(Duration::ZERO, |chance| chance.delay(calm))
    }

    fn next_arrival(&mut self, run: Run) -> Option<Arriving> {
        let chance = self.chance.as_mut()?;
        let queue = &mut self.links[run].queue;
        queue.retain(|_, waiting| !waiting.is_empty());
        let mut names: Vec<_> = queue.keys().cloned().collect();
        names.sort_by_key(|name| format!("{name:?}"));
        let name = names.get(chance.below(names.len().max(1) as u64) as usize)?;
        queue.get_mut(name)?.pop_front()
    }

    pub(super) fn compare(&mut self, address: &Address, known: Position) -> crate::backplane::Top {
        let (top, renewed) = self.store.compare(address, known, &mut self.epochs);
        if renewed {
            // Should the store lose an epoch once more that began because of a loss, positions of the one before are good
            // again: nobody can tell.
            self.snapshots.clear();
        }
        top
    }

    /// To every run that listens, as its link is.
    pub(super) fn publish(
        &mut self,
        from: Run,
        address: &Address,
        envelope: &Envelope,
    ) -> Published {
        let now = Instant::now();
        let (mut listeners, mut here) = (0, Here::Silent);
        for (run, link) in self.links.iter_mut().enumerate().filter(|(_, l)| l.alive) {
            let until = link.listening.get(address);
            if !until.is_some_and(|until| until.is_none_or(|until| until > now)) {
                continue;
            }
            if run == from {
                here = if link.deaf { Here::Away } else { Here::Listens };
            }
            if !link.deaf {
                listeners += 1;
                let queue = link.queue.entry(Some(address.clone())).or_default();
                queue.push_back(Arriving::Envelope(envelope.clone()));
                link.arrived.notify_one();
            }
        }
        Published {
            listeners,
            here,
            heard: 0,
        }
    }

    pub(super) fn unlistens(&self, run: Run, address: &Address) -> u64 {
        let unlistened = &self.links[run].unlistened;
        unlistened.get(address).copied().unwrap_or(0)
    }

    pub(super) fn listened(&mut self, run: Run, address: &Address) {
        self.links[run].listening.insert(address.clone(), None);
    }

    pub(super) fn unlisten(&mut self, run: Run, address: &Address) {
        let lingers = Duration::from_millis(self.below(3) * 20);
        let link = &mut self.links[run];
        *link.unlistened.entry(address.clone()).or_default() += 1;
        if let Some(until) = link.listening.get_mut(address) {
            *until = Some(Instant::now() + lingers);
        }
    }

    /// Nothing arrives any more; what is on its way does, or does not.
    pub(super) fn cut(&mut self, run: Run, drop: bool) {
        self.links[run].deaf = true;
        if drop {
            self.links[run].queue.clear();
        }
    }

    /// What is published from now on arrives, and the node is told.
    pub(super) fn heal(&mut self, run: Run) {
        let link = &mut self.links[run];
        link.deaf = false;
        let mut addresses: Vec<_> = link.listening.keys().cloned().collect();
        addresses.sort_by_key(|name| format!("{name:?}"));
        let queue = link.queue.entry(None).or_default();
        queue.push_back(Arriving::Missed(addresses));
        link.arrived.notify_one();
    }

    pub(super) fn remember(&mut self, run: Run, address: &Address, position: Position) {
        let remembered = &mut self.links[run].remembered;
        let known = remembered.entry(address.clone()).or_insert(position);
        if known.epoch != position.epoch || known.offset < position.offset {
            *known = position;
        }
    }

    /// The store is what it was at a snapshot; every link breaks, and each run that lives is to compare.
    pub(super) fn roll_back(&mut self, to: usize, drop: bool) -> Vec<Lost> {
        let before = std::mem::replace(&mut self.store, self.snapshots[to].clone());
        self.snapshots.truncate(to + 1);
        self.rolled += 1;
        let mut lost = Vec::new();
        for (address, log) in before.logs {
            let now = self.store.logs.get(&address);
            let still = now.map_or(0, |now| {
                let same = now
                    .all
                    .iter()
                    .zip(&log.all)
                    .take_while(|(a, b)| a.id == b.id);
                same.count()
            });
            if now.is_none() || still < log.all.len() {
                self.disturbed.insert(address.clone());
            }
            for (index, message) in log.all.iter().enumerate().skip(still) {
                let knower = self.answered.get(&message.id).copied();
                lost.push(Lost {
                    address: address.clone(),
                    offset: index as u64 + 1,
                    knower: knower.filter(|run| self.links[*run].alive),
                });
            }
        }
        for link in self.links.iter_mut().filter(|link| link.alive) {
            link.held = true;
            if drop {
                link.queue.clear();
            }
        }
        lost
    }
}
