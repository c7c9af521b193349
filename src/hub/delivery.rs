use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::command::{Command, Delivered};
use super::encoded::Encoded;
use super::questions::Pending;
use crate::backplane::{Answer, Arrivals, Envelope, Later};
use crate::model::{Address, Message, MessageId, Target, UserId};
use crate::telemetry::BackplaneMetrics;

/// Stripes of the interest map: enough that publishers on many cores seldom meet.
const STRIPES: usize = 64;
/// Questions of nodes that may wait for this node's shards.
const PENDING_MAX: usize = 4096;
/// Messages delivered past the backplane that are remembered.
const DIRECT_MAX: usize = 4096;

/// From the backplane to this node's shards: knows which shards follow an address, and gives every shard the messages of
/// an address in the same order.
///
/// Order: a message enters the queues of all its shards while the address's stripe is locked, with room reserved in each
/// beforehand, so it enters all of them or none and no other message of the address comes in between. No lock is held
/// while room is awaited.
pub struct Delivery {
    stripes: Box<[Mutex<HashMap<Address, Interest>>]>,
    hasher: RandomState,
    pub(super) incarnation: u64,
    pub(super) shards: Box<[mpsc::Sender<Command>]>,
    /// Who waits for the echo of a message of ours.
    echoes: Mutex<HashMap<MessageId, oneshot::Sender<u32>>>,
    /// Who waits for answers to a question of ours.
    pub(super) questions: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
    /// Questions that the shards were asked.
    pub(super) pending: mpsc::Sender<Pending>,
    /// Messages that were delivered past the backplane.
    direct: Mutex<Recent>,
    any_direct: AtomicBool,
    pub(super) metrics: BackplaneMetrics,
}

/// The latest of some ids.
#[derive(Default)]
struct Recent {
    order: VecDeque<MessageId>,
    ids: HashSet<MessageId>,
}

impl Recent {
    fn add(&mut self, id: MessageId) {
        if self.order.len() == DIRECT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.order.push_back(id);
        self.ids.insert(id);
    }
}

/// Which shards follow an address, one bit each, and how many sessions of a user there are.
#[derive(Default)]
struct Interest {
    shards: u128,
    sessions: u32,
}

/// Counts the outboxes that took one message; the last shard to be done answers.
pub(super) struct Tally(Arc<TallyInner>);

struct TallyInner {
    delivered: AtomicU32,
    answer: Mutex<Option<oneshot::Sender<u32>>>,
}

impl Tally {
    fn new(answer: oneshot::Sender<u32>) -> Self {
        Self(Arc::new(TallyInner {
            delivered: AtomicU32::new(0),
            answer: Mutex::new(Some(answer)),
        }))
    }

    fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Adds a shard's count.
    pub(super) fn add(&self, outboxes: u32) {
        self.0.delivered.fetch_add(outboxes, Ordering::Relaxed);
    }
}

impl Drop for TallyInner {
    fn drop(&mut self) {
        let answer = self
            .answer
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(answer) = answer {
            // Nobody may be waiting any more: the caller's deadline passed.
            let _ = answer.send(*self.delivered.get_mut());
        }
    }
}

/// Undoes a session's place under `connections_per_user`.
pub struct UserPlaceGuard {
    delivery: Arc<Delivery>,
    user: UserId,
}

impl Drop for UserPlaceGuard {
    fn drop(&mut self) {
        let address = Address::User(self.user.clone());
        let mut stripe = self.delivery.stripe(&address);
        if let Entry::Occupied(mut entry) = stripe.entry(address) {
            entry.get_mut().sessions = entry.get().sessions.saturating_sub(1);
            if entry.get().shards == 0 && entry.get().sessions == 0 {
                entry.remove();
            }
        }
    }
}

impl Delivery {
    /// For the shards behind these queues; at most 128.
    pub(super) fn new(
        shards: Vec<mpsc::Sender<Command>>,
        incarnation: u64,
        metrics: BackplaneMetrics,
    ) -> (Self, mpsc::Receiver<Pending>) {
        let (pending, asked) = mpsc::channel(PENDING_MAX);
        let delivery = Self {
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            shards: shards.into(),
            echoes: Mutex::default(),
            questions: Mutex::default(),
            pending,
            direct: Mutex::default(),
            any_direct: AtomicBool::new(false),
            metrics,
            incarnation,
        };
        (delivery, asked)
    }

    /// The queues of all shards.
    pub(super) fn shards(&self) -> &[mpsc::Sender<Command>] {
        &self.shards
    }

    fn stripe(&self, address: &Address) -> MutexGuard<'_, HashMap<Address, Interest>> {
        let index = usize::try_from(self.hasher.hash_one(address) % STRIPES as u64).unwrap_or(0);
        lock(&self.stripes[index])
    }

    /// A shard begins to follow an address.
    pub(super) fn follow(&self, address: &Address, shard: usize) {
        self.stripe(address)
            .entry(address.clone())
            .or_default()
            .shards |= 1 << shard;
    }

    /// A shard follows an address no more. If it was the last, `last` runs before any shard can follow it again.
    pub(super) fn unfollow(&self, address: &Address, shard: usize, last: impl FnOnce()) {
        let mut stripe = self.stripe(address);
        let Entry::Occupied(mut entry) = stripe.entry(address.clone()) else {
            return;
        };
        entry.get_mut().shards &= !(1 << shard);
        if entry.get().shards == 0 {
            if entry.get().sessions == 0 {
                entry.remove();
            }
            last();
        }
    }

    /// Takes a place for one more session of a user; the guard gives it back. The number is how many there are now.
    pub fn take_user_place(self: &Arc<Self>, user: &UserId) -> (UserPlaceGuard, u32) {
        let address = Address::User(user.clone());
        let mut stripe = self.stripe(&address);
        let interest = stripe.entry(address).or_default();
        interest.sessions += 1;
        let guard = UserPlaceGuard {
            delivery: self.clone(),
            user: user.clone(),
        };
        (guard, interest.sessions)
    }

    /// How many places of a user are taken here.
    pub(super) fn user_places(&self, user: &UserId) -> u32 {
        let address = Address::User(user.clone());
        self.stripe(&address)
            .get(&address)
            .map_or(0, |i| i.sessions)
    }

    /// The shards that follow an address.
    pub(super) fn followers(&self, address: &Address) -> Vec<usize> {
        let shards = self.stripe(address).get(address).map_or(0, |i| i.shards);
        bits(shards).collect()
    }

    /// Waits for the echo of a message: how many outboxes of this node took it.
    pub(super) fn await_echo(&self, id: MessageId) -> EchoGuard<'_> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.echoes).insert(id, sender);
        EchoGuard {
            delivery: self,
            id,
            receiver,
        }
    }

    /// Delivers a message of ours past the backplane, unless it has come through it, and not again should it still come:
    /// whichever of the two takes the wait for its echo delivers it.
    pub(super) async fn deliver_directly(&self, message: Message) {
        let waiting = {
            let mut echoes = lock(&self.echoes);
            let Some(waiting) = echoes.remove(&message.id) else {
                return;
            };
            lock(&self.direct).add(message.id);
            self.any_direct.store(true, Ordering::Release);
            waiting
        };
        self.enqueue(message, Some(waiting)).await;
    }

    /// Delivers a message that each node gets by itself, from a topic: to this node's own sessions, past the backplane.
    /// Messages of one caller arrive in its order.
    pub async fn deliver_here(&self, message: Message) {
        self.enqueue(message, None).await;
    }

    /// Delivers a message that came through the backplane.
    async fn arrived(&self, message: Message) {
        let waiting = {
            let mut echoes = lock(&self.echoes);
            let waiting = echoes.remove(&message.id);
            let any_direct = self.any_direct.load(Ordering::Acquire);
            if waiting.is_none() && any_direct && lock(&self.direct).ids.contains(&message.id) {
                return;
            }
            waiting
        };
        let target = message.target.clone();
        let followed = self.enqueue(message, waiting).await;
        if let Target::One(address) = target
            && followed
        {
            self.metrics.wanted(&address);
        }
    }

    /// Puts a message into the queues of its shards, in the order of its address. Waits while one of them is full. Answers
    /// whether a session here follows its one address.
    async fn enqueue(&self, message: Message, waiting: Option<oneshot::Sender<u32>>) -> bool {
        let tally = waiting.map(Tally::new);
        let target = message.target.clone();
        let encoded = Arc::new(Encoded::new(message));
        loop {
            let mut followed = false;
            let full = match &target {
                Target::One(Address::Everyone) | Target::Users(_) => {
                    let _order: Vec<_> = self.stripes.iter().map(lock).collect();
                    self.try_enqueue(0..self.shards.len(), &target, &encoded, &tally)
                }
                Target::One(address) => {
                    let stripe = self.stripe(address);
                    let shards = stripe.get(address).map_or(0, |i| i.shards);
                    followed = shards != 0;
                    self.try_enqueue(bits(shards), &target, &encoded, &tally)
                }
            };
            let Some(full) = full else { return followed };
            // A shard that is gone has no sessions to deliver to; its queue then reports closed, not full.
            let _ = self.shards[full].reserve().await;
        }
    }

    /// Into all queues or none; answers which one is full.
    fn try_enqueue(
        &self,
        shards: impl Iterator<Item = usize>,
        target: &Target,
        encoded: &Arc<Encoded>,
        tally: &Option<Tally>,
    ) -> Option<usize> {
        let mut permits = Vec::new();
        for shard in shards {
            match self.shards[shard].try_reserve() {
                Ok(permit) => permits.push(permit),
                Err(mpsc::error::TrySendError::Full(())) => return Some(shard),
                Err(mpsc::error::TrySendError::Closed(())) => {}
            }
        }
        for permit in permits {
            permit.send(Command::Deliver(Delivered {
                target: target.clone(),
                encoded: encoded.clone(),
                tally: tally.as_ref().map(Tally::share),
            }));
        }
        None
    }
}

impl Arrivals for Delivery {
    fn arrive(&self, envelope: Envelope) -> Later<'_, ()> {
        match envelope {
            Envelope::Message(message) => Box::pin(self.arrived(message)),
            Envelope::Question(question) => Box::pin(self.asked(question)),
            Envelope::Answer(answer) => {
                self.answered(answer);
                Box::pin(std::future::ready(()))
            }
        }
    }

    fn missed(&self, addresses: Vec<Address>) -> Later<'_, ()> {
        Box::pin(async move {
            let addresses: Arc<[Address]> = addresses.into();
            for shard in &self.shards {
                // A shard that is gone follows nothing.
                let _ = shard.send(Command::Missed(addresses.clone())).await;
            }
        })
    }
}

/// The wait for one echo; forgets it when dropped.
pub(super) struct EchoGuard<'a> {
    delivery: &'a Delivery,
    id: MessageId,
    receiver: oneshot::Receiver<u32>,
}

impl EchoGuard<'_> {
    /// The count, or `None` if the message never came to the shards.
    pub(super) async fn count(&mut self) -> Option<u32> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for EchoGuard<'_> {
    fn drop(&mut self) {
        lock(&self.delivery.echoes).remove(&self.id);
    }
}

fn bits(set: u128) -> impl Iterator<Item = usize> {
    (0..128).filter(move |bit| set >> bit & 1 == 1)
}

/// A panic while a map was locked leaves at worst one entry too many.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
