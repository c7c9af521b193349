use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::backplane::Here;
use crate::model::Address;

/// How long a node goes on listening to an address that nobody follows: a page that reloads comes back sooner.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// What one link listens to: a small state machine per address, free of sockets and clocks.
///
/// ```text
/// (nothing) ──listen──▶ listening ──confirmed──▶ listened ──unlisten──▶ lingering ──LINGER──▶ unlistening ──▶ (nothing)
///                          ▲                        ▲───────listen──────────┘                       │
///                          └────────────────────────────listen, once that is confirmed──────────────┘
/// ```
///
/// A link sends one batch at a time, so a confirmation is always that of the batch that asked for it: whoever listens
/// while an address is given up waits for the next one.
#[derive(Default)]
pub(super) struct Interest {
    entries: HashMap<Address, Entry>,
    /// To be listened to by the next batch.
    wanted: Vec<Address>,
    /// Oldest first. An entry counts only while its address has lingered since that moment.
    lingering: VecDeque<(Instant, Address)>,
    whole: bool,
}

enum Entry {
    Listening {
        waiting: Vec<oneshot::Sender<()>>,
        /// Nobody wants it any more.
        abandoned: bool,
    },
    Listened,
    Lingering {
        since: Instant,
    },
    Unlistening {
        /// Who wants it again.
        waiting: Vec<oneshot::Sender<()>>,
    },
}

/// How a wish to listen is answered.
pub(super) enum Heard {
    /// It is listened to.
    Already,
    /// It will be when this resolves; an error means that the link was lost.
    Soon(oneshot::Receiver<()>),
    /// The link is not whole.
    Down,
}

/// What a link is to tell Redis next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) listen: Vec<Address>,
    pub(super) unlisten: Vec<Address>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.listen.is_empty() && self.unlisten.is_empty()
    }
}

impl Interest {
    /// An address that is listened to as long as the link lives.
    pub(super) fn pin(&mut self, address: Address) {
        self.entries.insert(address, Entry::Listened);
    }

    pub(super) fn listen(&mut self, address: Address) -> Heard {
        if !self.whole {
            return Heard::Down;
        }
        let (sender, receiver) = oneshot::channel();
        match self.entries.get_mut(&address) {
            Some(Entry::Listened) => return Heard::Already,
            Some(entry @ Entry::Lingering { .. }) => {
                *entry = Entry::Listened;
                return Heard::Already;
            }
            Some(Entry::Listening { waiting, abandoned }) => {
                *abandoned = false;
                waiting.push(sender);
            }
            Some(Entry::Unlistening { waiting }) => waiting.push(sender),
            None => {
                self.wanted.push(address.clone());
                let waiting = vec![sender];
                let abandoned = false;
                self.entries
                    .insert(address, Entry::Listening { waiting, abandoned });
            }
        }
        Heard::Soon(receiver)
    }

    pub(super) fn unlisten(&mut self, address: &Address, now: Instant) {
        match self.entries.get_mut(address) {
            Some(entry @ Entry::Listened) => {
                *entry = Entry::Lingering { since: now };
                self.lingering.push_back((now, address.clone()));
            }
            Some(Entry::Listening { abandoned, .. }) => *abandoned = true,
            Some(Entry::Unlistening { waiting }) => waiting.clear(),
            Some(Entry::Lingering { .. }) | None => {}
        }
    }

    /// Whether an envelope for the address comes back to this node.
    pub(super) fn here(&self, address: &Address) -> Here {
        match self.entries.get(address) {
            None => Here::Silent,
            Some(_) if !self.whole => Here::Away,
            Some(Entry::Listened | Entry::Lingering { .. }) => Here::Listens,
            Some(Entry::Listening { .. } | Entry::Unlistening { .. }) => Here::Changing,
        }
    }

    /// Whether the address is being given up, so that the end of a subscription is no surprise.
    pub(super) fn gives_up(&self, address: &Address) -> bool {
        matches!(self.entries.get(address), Some(Entry::Unlistening { .. }))
    }

    /// When the next address has lingered long enough.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lingering.front().map(|(since, _)| *since + LINGER)
    }

    /// What to tell Redis now, at most `most` addresses. The next batch may be taken once this one is confirmed.
    pub(super) fn batch(&mut self, now: Instant, most: usize) -> Batch {
        let mut batch = Batch::default();
        while let Some((since, _)) = self.lingering.front()
            && *since + LINGER <= now
            && batch.unlisten.len() < most
        {
            let Some((since, address)) = self.lingering.pop_front() else {
                break;
            };
            let entry = self.entries.get_mut(&address);
            if let Some(entry @ Entry::Lingering { .. }) = entry
                && matches!(entry, Entry::Lingering { since: s } if *s == since)
            {
                *entry = Entry::Unlistening {
                    waiting: Vec::new(),
                };
                batch.unlisten.push(address);
            }
        }
        let room = most - batch.unlisten.len();
        let rest = self.wanted.split_off(self.wanted.len().min(room));
        batch.listen = std::mem::replace(&mut self.wanted, rest);
        batch
    }

    /// Redis confirmed a batch.
    pub(super) fn confirmed(&mut self, batch: Batch, now: Instant) {
        for address in batch.unlisten {
            match self.entries.remove(&address) {
                Some(Entry::Unlistening { waiting }) if !waiting.is_empty() => {
                    self.wanted.push(address.clone());
                    let abandoned = false;
                    self.entries
                        .insert(address, Entry::Listening { waiting, abandoned });
                }
                Some(Entry::Unlistening { .. }) | None => {}
                Some(other) => {
                    self.entries.insert(address, other);
                }
            }
        }
        for address in batch.listen {
            let Some(entry @ Entry::Listening { .. }) = self.entries.get_mut(&address) else {
                continue;
            };
            let Entry::Listening { waiting, abandoned } = std::mem::replace(entry, Entry::Listened)
            else {
                continue;
            };
            for waiting in waiting {
                // Whoever waited may have gone; its hold then unlistens.
                let _ = waiting.send(());
            }
            if abandoned {
                self.unlisten(&address, now);
            }
        }
    }

    /// The link is lost: who waits is told, who was confirmed stays and is listened to again by the next connection.
    /// Answers how many those are.
    pub(super) fn lost(&mut self) -> usize {
        self.whole = false;
        self.wanted.clear();
        self.lingering.clear();
        self.entries
            .retain(|_, entry| matches!(entry, Entry::Listened));
        self.entries.len()
    }

    /// Whether everything in it is listened to, or about to be.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// What a new connection must listen to before the link is whole.
    pub(super) fn all(&self) -> Vec<Address> {
        self.entries.keys().cloned().collect()
    }

    /// All of it is listened to.
    pub(super) fn made_whole(&mut self) {
        self.whole = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::UserId;

    fn user(n: u8) -> Address {
        Address::User(UserId::parse(&n.to_string()).expect("a user"))
    }

    fn whole() -> Interest {
        let mut interest = Interest::default();
        interest.made_whole();
        interest
    }

    fn soon(heard: Heard) -> oneshot::Receiver<()> {
        match heard {
            Heard::Soon(receiver) => receiver,
            _ => panic!("it must wait for a confirmation"),
        }
    }

    #[test]
    fn who_listens_waits_for_the_confirmation() {
        let (mut interest, now) = (whole(), Instant::now());
        let mut first = soon(interest.listen(user(1)));
        let mut second = soon(interest.listen(user(1)));
        assert_eq!(interest.here(&user(1)), Here::Changing);
        let batch = interest.batch(now, 10);
        assert_eq!(batch.listen, [user(1)]);
        assert!(first.try_recv().is_err());
        interest.confirmed(batch, now);
        assert!(first.try_recv().is_ok() && second.try_recv().is_ok());
        assert_eq!(interest.here(&user(1)), Here::Listens);
        assert!(matches!(interest.listen(user(1)), Heard::Already));
    }

    #[test]
    fn an_address_lingers_and_comes_back_without_a_word_to_redis() {
        let (mut interest, now) = (whole(), Instant::now());
        drop(soon(interest.listen(user(1))));
        let batch = interest.batch(now, 10);
        interest.confirmed(batch, now);
        interest.unlisten(&user(1), now);
        assert_eq!(interest.here(&user(1)), Here::Listens);
        assert!(interest.batch(now + LINGER / 2, 10).is_empty());
        assert!(matches!(interest.listen(user(1)), Heard::Already));
        assert!(interest.batch(now + LINGER * 2, 10).is_empty());
        interest.unlisten(&user(1), now + LINGER * 2);
        assert_eq!(interest.next_due(), Some(now + LINGER * 3));
        assert!(interest.batch(now + LINGER * 2, 10).is_empty());
        let batch = interest.batch(now + LINGER * 3, 10);
        assert_eq!(batch.unlisten, [user(1)]);
        // Whoever comes now is not served by the subscription that ends.
        let mut again = soon(interest.listen(user(1)));
        interest.confirmed(batch, now);
        assert!(again.try_recv().is_err());
        let batch = interest.batch(now, 10);
        assert_eq!(batch.listen, [user(1)]);
        interest.confirmed(batch, now);
        assert!(again.try_recv().is_ok());
    }

    #[test]
    fn a_lost_link_keeps_what_was_confirmed_and_fails_who_waits() {
        let (mut interest, now) = (whole(), Instant::now());
        interest.pin(Address::Everyone);
        drop(soon(interest.listen(user(1))));
        let batch = interest.batch(now, 10);
        interest.confirmed(batch, now);
        let mut waits = soon(interest.listen(user(2)));
        assert_eq!(interest.lost(), 2);
        assert!(waits.try_recv().is_err());
        assert_eq!(interest.here(&user(1)), Here::Away);
        assert_eq!(interest.here(&user(2)), Here::Silent);
        assert!(matches!(interest.listen(user(3)), Heard::Down));
        let mut all = interest.all();
        all.sort_by_key(ToString::to_string);
        assert_eq!(all, [Address::Everyone, user(1)]);
        interest.made_whole();
        assert_eq!(interest.here(&user(1)), Here::Listens);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Listen(u8),
        Unlisten(u8),
        Send,
        Confirm,
        Pass,
        Lose,
        Mend,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..4u8).prop_map(Step::Listen),
            3 => (0..4u8).prop_map(Step::Unlisten),
            3 => Just(Step::Send),
            3 => Just(Step::Confirm),
            1 => Just(Step::Pass),
            1 => Just(Step::Lose),
            1 => Just(Step::Mend),
        ]
    }

    proptest! {
        /// Redis is modelled as the set that batches make of it. Whoever was told that an address is listened to, and has
        /// not unlistened, finds it in that set while the link is whole; what nobody follows leaves it in the end.
        #[test]
        fn what_was_confirmed_is_subscribed(steps in prop::collection::vec(step(), 0..80)) {
            let (mut interest, mut now) = (whole(), Instant::now());
            let mut redis = std::collections::HashSet::new();
            let mut sent: Option<Batch> = None;
            let mut followed: HashMap<u8, Vec<oneshot::Receiver<()>>> = HashMap::new();
            let mut confirmed = std::collections::HashSet::new();
            let mut is_whole = true;
            for step in steps {
                match step {
                    Step::Listen(n) => match interest.listen(user(n)) {
                        Heard::Already => { confirmed.insert(n); }
                        Heard::Soon(receiver) => followed.entry(n).or_default().push(receiver),
                        Heard::Down => {}
                    },
                    // The hub unlistens only once all of its shards are done.
                    Step::Unlisten(n) => {
                        followed.remove(&n);
                        confirmed.remove(&n);
                        interest.unlisten(&user(n), now);
                    }
                    Step::Send if sent.is_none() && is_whole => {
                        let batch = interest.batch(now, 3);
                        for address in &batch.unlisten { redis.remove(address); }
                        redis.extend(batch.listen.iter().cloned());
                        sent = Some(batch);
                    }
                    Step::Confirm => if let Some(batch) = sent.take() {
                        interest.confirmed(batch, now);
                    },
                    Step::Pass => now += LINGER,
                    Step::Lose => {
                        interest.lost();
                        (sent, is_whole) = (None, false);
                        redis.clear();
                    }
                    Step::Mend if !is_whole => {
                        redis = interest.all().into_iter().collect();
                        interest.made_whole();
                        is_whole = true;
                    }
                    Step::Send | Step::Mend => {}
                }
                for (n, waiting) in &mut followed {
                    waiting.retain_mut(|receiver| match receiver.try_recv() {
                        Ok(()) => { confirmed.insert(*n); false }
                        Err(oneshot::error::TryRecvError::Empty) => true,
                        Err(oneshot::error::TryRecvError::Closed) => false,
                    });
                }
                if is_whole {
                    for n in &confirmed {
                        prop_assert!(redis.contains(&user(*n)), "{n} is confirmed and not subscribed");
                        prop_assert_eq!(interest.here(&user(*n)), Here::Listens);
                    }
                }
            }
            if !is_whole {
                redis = interest.all().into_iter().collect();
                interest.made_whole();
            }
            for n in 0..4 { interest.unlisten(&user(n), now); }
            for _ in 0..20 {
                if let Some(batch) = sent.take() { interest.confirmed(batch, now); }
                now += LINGER;
                let batch = interest.batch(now, 3);
                for address in &batch.unlisten { redis.remove(address); }
                redis.extend(batch.listen.iter().cloned());
                sent = Some(batch);
            }
            prop_assert!(redis.is_empty() && interest.entries.is_empty(), "{redis:?}");
        }
    }
}
