mod slots;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::slots::Marks;
use super::{Clock, Presented, Redemption, StoreError, TTL_MAX, TicketHash, TicketStore};
use crate::backplane::Later;
use crate::model::{Grant, unix_millis};

/// Expired tickets that one call removes, at most. One call adds one ticket, so the dead never pile up, and no call pays
/// for a crowd of them.
const SWEEP_MAX: usize = 32;

/// The tickets of one node alone, in memory, bounded. It needs no task and no runtime: whoever comes removes some of the
/// expired.
pub struct MemoryTickets {
    max_pending: usize,
    clock: Clock,
    /// What both clocks said when this began: slots are in Unix milliseconds.
    began: (Instant, u64),
    pending: Mutex<Pending>,
    marks: Mutex<Marks>,
}

#[derive(Default)]
struct Pending {
    by_hash: HashMap<TicketHash, Waiting>,
    /// The same tickets, soonest to expire first.
    by_expiry: BTreeSet<(Instant, TicketHash)>,
}

struct Waiting {
    grant: Grant,
    expires: Instant,
    slot: Option<u64>,
}

impl MemoryTickets {
    /// A store for at most this many waiting tickets.
    pub fn new(max_pending: usize) -> Self {
        Self::with_clock(max_pending, Arc::new(Instant::now))
    }

    pub(super) fn with_clock(max_pending: usize, clock: Clock) -> Self {
        Self {
            max_pending,
            began: (clock(), unix_millis()),
            clock,
            pending: Mutex::default(),
            marks: Mutex::default(),
        }
    }

    /// How many tickets wait, expired ones that nobody swept yet included.
    pub fn pending(&self) -> usize {
        self.lock().by_hash.len()
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nothing that holds the lock can panic half way through a change.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A moment in Unix milliseconds.
    fn unix(&self, moment: Instant) -> u64 {
        let (began, unix) = self.began;
        let passed = moment.saturating_duration_since(began);
        unix.saturating_add(super::slots::millis(passed))
    }

    fn put(&self, hash: TicketHash, grant: Grant, life: Duration) -> Result<(), StoreError> {
        let now = (self.clock)();
        let expires = now + life.min(TTL_MAX);
        let mut pending = self.lock();
        pending.sweep(now);
        if pending.by_hash.len() >= self.max_pending {
            return Err(StoreError::Full);
        }
        pending.remove(&hash);
        pending.by_expiry.insert((expires, hash));
        pending.by_hash.insert(
            hash,
            Waiting {
                grant,
                expires,
                slot: None,
            },
        );
        Ok(())
    }

    fn take(&self, hash: &TicketHash, shown: &Presented) -> Redemption {
        let now = (self.clock)();
        let mut pending = self.lock();
        pending.sweep(now);
        let refusal = match pending.by_hash.get(hash) {
            Some(waiting) if now < waiting.expires => shown.refused_by(&waiting.grant),
            _ => Some(Redemption::Unknown),
        };
        refusal.unwrap_or_else(|| match pending.remove(hash) {
            Some(grant) => Redemption::Granted(grant),
            None => Redemption::Unknown,
        })
    }
}

impl Pending {
    fn remove(&mut self, hash: &TicketHash) -> Option<Grant> {
        let Waiting { grant, expires, .. } = self.by_hash.remove(hash)?;
        self.by_expiry.remove(&(expires, *hash));
        Some(grant)
    }

    fn sweep(&mut self, now: Instant) {
        for _ in 0..SWEEP_MAX {
            match self.by_expiry.first() {
                Some(&(expires, hash)) if expires <= now => drop(self.remove(&hash)),
                _ => return,
            }
        }
    }
}

impl TicketStore for MemoryTickets {
    fn issue(
        &self,
        hash: TicketHash,
        grant: Grant,
        life: Duration,
    ) -> Later<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(self.put(hash, grant, life)))
    }

    fn redeem<'a>(
        &'a self,
        hash: TicketHash,
        shown: &'a Presented,
    ) -> Later<'a, Result<Redemption, StoreError>> {
        Box::pin(std::future::ready(Ok(self.take(&hash, shown))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ManualClock;
    use super::*;
    use crate::model::{IpPrefix, Origin, UserId};

    const LIFE: Duration = Duration::from_secs(30);

    fn grant() -> Grant {
        Grant::of(UserId::parse("42").expect("a user"))
    }

    fn from(origin: Option<&str>, ip: &str) -> Presented {
        Presented {
            origin: origin.map(|o| Origin::parse(o).expect("an origin")),
            ip: ip.parse().expect("an address"),
        }
    }

    fn anyone() -> Presented {
        from(None, "127.0.0.1")
    }

    fn hash(n: u8) -> TicketHash {
        TicketHash([n; 32])
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_two_hundred_who_race_for_a_ticket_one_gets_it() {
        let store = Arc::new(MemoryTickets::new(10));
        store.issue(hash(1), grant(), LIFE).await.expect("room");
        let start = Arc::new(tokio::sync::Barrier::new(200));
        let racers: Vec<_> = (0..200)
            .map(|_| {
                let (store, start) = (store.clone(), start.clone());
                tokio::spawn(async move {
                    start.wait().await;
                    store.redeem(hash(1), &anyone()).await
                })
            })
            .collect();
        let (mut granted, mut unknown) = (0, 0);
        for racer in racers {
            match racer.await.expect("no panic").expect("memory is there") {
                Redemption::Granted(got) => {
                    assert_eq!(got, grant());
                    granted += 1;
                }
                Redemption::Unknown => unknown += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((granted, unknown), (1, 199));
        assert_eq!(store.pending(), 0);
    }

    #[test]
    fn a_ticket_dies_with_its_life() {
        let time = ManualClock::default();
        let store = MemoryTickets::with_clock(10, time.clock());
        store.put(hash(1), grant(), LIFE).expect("room");
        store.put(hash(2), grant(), LIFE).expect("room");
        time.advance(LIFE - Duration::from_millis(1));
        assert_eq!(
            store.take(&hash(1), &anyone()),
            Redemption::Granted(grant())
        );
        time.advance(Duration::from_millis(1));
        assert_eq!(store.take(&hash(2), &anyone()), Redemption::Unknown);
        assert_eq!(store.pending(), 0);
    }

    #[test]
    fn a_full_store_refuses_until_a_ticket_is_used_or_expires() {
        let time = ManualClock::default();
        let store = MemoryTickets::with_clock(2, time.clock());
        store.put(hash(1), grant(), LIFE).expect("room");
        store.put(hash(2), grant(), LIFE).expect("room");
        assert_eq!(store.put(hash(3), grant(), LIFE), Err(StoreError::Full));
        assert!(matches!(
            store.take(&hash(1), &anyone()),
            Redemption::Granted(_)
        ));
        assert_eq!(store.put(hash(3), grant(), LIFE), Ok(()));
        assert_eq!(store.put(hash(4), grant(), LIFE), Err(StoreError::Full));
        time.advance(LIFE);
        assert_eq!(store.put(hash(4), grant(), LIFE), Ok(()));
    }

    #[test]
    fn the_expired_leave_a_few_at_a_time_and_open_nothing_until_then() {
        let time = ManualClock::default();
        let store = MemoryTickets::with_clock(1_000, time.clock());
        for n in 0..100 {
            store.put(hash(n), grant(), LIFE).expect("room");
        }
        time.advance(LIFE);
        for _ in 0..4 {
            let before = store.pending();
            // The last that is swept, so it still waits here three times.
            assert_eq!(store.take(&hash(99), &anyone()), Redemption::Unknown);
            assert!(before - store.pending() <= SWEEP_MAX);
        }
        assert_eq!(store.pending(), 0);
    }

    #[test]
    fn who_may_not_redeem_a_ticket_does_not_spend_it() {
        let store = MemoryTickets::new(10);
        let bound = Grant {
            origins: [Origin::parse("https://a.example").expect("an origin")].into(),
            ips: [IpPrefix::parse("10.0.0.0/8").expect("a prefix")].into(),
            ..grant()
        };
        store.put(hash(1), bound.clone(), LIFE).expect("room");
        let refusals = [
            (
                Some("https://b.example"),
                "10.1.1.1",
                Redemption::WrongOrigin,
            ),
            (
                Some("http://a.example"),
                "10.1.1.1",
                Redemption::WrongOrigin,
            ),
            (Some("https://a.example"), "11.1.1.1", Redemption::WrongIp),
            (None, "11.1.1.1", Redemption::WrongIp),
        ];
        for (origin, ip, refusal) in refusals {
            assert_eq!(store.take(&hash(1), &from(origin, ip)), refusal);
        }
        let owner = from(Some("https://a.example"), "::ffff:10.1.1.1");
        assert_eq!(
            store.take(&hash(1), &owner),
            Redemption::Granted(bound.clone())
        );
        assert_eq!(store.take(&hash(1), &owner), Redemption::Unknown);

        store.put(hash(1), bound, LIFE).expect("room");
        let no_browser = from(None, "10.1.1.1");
        assert!(matches!(
            store.take(&hash(1), &no_browser),
            Redemption::Granted(_)
        ));
    }
}
