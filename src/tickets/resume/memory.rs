use std::collections::{BTreeMap, HashMap};
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::StoreError;
use super::store::{ResumeId, ResumeRefusal, ResumeStore, Revoked, Shown, Taken};
use super::{MARGIN, RESUME_LIFE_MAX, millis};
use crate::backplane::{BackplaneClock, Later};
use crate::model::{ConnectionId, Secret, UserId};

/// Forgotten entries that one call removes, at most. One call adds one entry, so they never pile up.
const SWEEP_MAX: usize = 32;

/// The resume tickets of one node alone: what is kept of them is in memory, bounded, and goes with the process, as does
/// the secret.
pub struct MemoryResume {
    most: usize,
    now: Arc<dyn Fn() -> u64 + Send + Sync>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    /// The same, soonest to be forgotten first; the number tells those of one moment apart.
    by_end: BTreeMap<(u64, u64), Key>,
    counter: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Used(ResumeId),
    User(UserId),
    Line(ConnectionId),
}

struct Entry {
    end: (u64, u64),
    value: Value,
}

#[derive(Clone, Copy)]
enum Value {
    /// The connection that was opened.
    By(ConnectionId),
    /// When it was revoked.
    At(u64),
}

impl MemoryResume {
    /// A store for at most this many used tickets and revocations.
    pub fn new(most: usize) -> Self {
        let clock = BackplaneClock::default();
        Self::with_clock(most, Arc::new(move || clock.now()))
    }

    pub(super) fn with_clock(most: usize, now: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        Self {
            most,
            now,
            kept: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing that holds the lock can panic half way through a change.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_one(&self, shown: &Shown) -> Result<Taken, StoreError> {
        let now = (self.now)();
        let mut kept = self.lock();
        kept.sweep(now);
        if shown.expires <= now {
            return Ok(Taken::Refused(ResumeRefusal::Expired));
        }
        if let Some(Value::At(at)) = kept.get(&Key::User(shown.user.clone()), now)
            && at >= shown.lineage.since
        {
            return Ok(Taken::Refused(ResumeRefusal::UserRevoked));
        }
        if kept.get(&Key::Line(shown.lineage.first), now).is_some() {
            return Ok(Taken::Refused(ResumeRefusal::ConnectionRevoked));
        }
        let used = Key::Used(shown.id);
        let before = match kept.get(&used, now) {
            Some(_) if !shown.opening.again => {
                return Ok(Taken::Refused(ResumeRefusal::Used));
            }
            Some(Value::By(before)) => Some(before),
            _ => None,
        };
        let until = shown.expires.saturating_add(millis(MARGIN));
        kept.put(self.most, used, until, Value::By(shown.opening.connection))?;
        Ok(before.map_or(Taken::First, Taken::Again))
    }

    fn revoke_it(&self, user: UserId, what: Revoked) -> Result<(), StoreError> {
        let now = (self.now)();
        let until = now.saturating_add(millis(RESUME_LIFE_MAX + MARGIN));
        let key = match what {
            Revoked::All => Key::User(user),
            Revoked::Line(first) => Key::Line(first),
        };
        let mut kept = self.lock();
        kept.sweep(now);
        kept.put(self.most, key, until, Value::At(now))
    }
}

impl Kept {
    fn get(&self, key: &Key, now: u64) -> Option<Value> {
        let entry = self.entries.get(key)?;
        (entry.end.0 > now).then_some(entry.value)
    }

    fn put(&mut self, most: usize, key: Key, until: u64, value: Value) -> Result<(), StoreError> {
        match self.entries.get(&key) {
            Some(old) => drop(self.by_end.remove(&old.end)),
            None if self.entries.len() >= most => return Err(StoreError::Full),
            None => {}
        }
        self.counter += 1;
        let end = (until, self.counter);
        self.by_end.insert(end, key.clone());
        self.entries.insert(key, Entry { end, value });
        Ok(())
    }

    fn sweep(&mut self, now: u64) {
        for _ in 0..SWEEP_MAX {
            match self.by_end.first_entry() {
                Some(first) if first.key().0 <= now => drop(self.entries.remove(&first.remove())),
                _ => return,
            }
        }
    }
}

impl ResumeStore for MemoryResume {
    fn now(&self) -> u64 {
        (self.now)()
    }

    fn secret(&self, offered: Secret) -> Later<'_, Result<Secret, StoreError>> {
        Box::pin(ready(Ok(offered)))
    }

    fn take(&self, shown: Shown) -> Later<'_, Result<Taken, StoreError>> {
        Box::pin(ready(self.take_one(&shown)))
    }

    fn revoke(&self, user: UserId, what: Revoked) -> Later<'_, Result<(), StoreError>> {
        Box::pin(ready(self.revoke_it(user, what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Lineage;
    use crate::tickets::Opening;
    use crate::tickets::slots::SLOT_LIFE_MAX;
    use crate::tickets::tests::ManualClock;

    const BEGAN: u64 = 1_764_000_000_000;

    fn store(most: usize, time: &ManualClock) -> MemoryResume {
        let clock = time.clock();
        let began = clock();
        MemoryResume::with_clock(
            most,
            Arc::new(move || BEGAN + millis(clock().saturating_duration_since(began))),
        )
    }

    fn shown(n: u8) -> Shown {
        let connection = ConnectionId::from_bytes([n; 16]);
        Shown {
            id: ResumeId([n; ResumeId::BYTES]),
            user: UserId::parse("42").expect("a user"),
            lineage: Lineage {
                first: connection,
                since: BEGAN,
                ends: None,
            },
            expires: BEGAN + 60_000,
            opening: Opening {
                connection,
                again: false,
            },
        }
    }

    #[test]
    fn a_full_store_takes_no_ticket_until_another_one_is_forgotten() {
        let time = ManualClock::default();
        let store = store(1, &time);
        assert_eq!(store.take_one(&shown(1)), Ok(Taken::First));
        assert_eq!(store.take_one(&shown(2)), Err(StoreError::Full));
        time.advance(std::time::Duration::from_secs(60) + MARGIN);
        let later = Shown {
            expires: BEGAN + millis(MARGIN) + 300_000,
            ..shown(2)
        };
        assert_eq!(store.take_one(&later), Ok(Taken::First));
        assert_eq!(store.lock().entries.len(), 1);
        assert_eq!(store.lock().by_end.len(), 1);
    }

    #[test]
    fn a_ticket_stays_used_for_as_long_as_a_slot_may_lengthen_its_life() {
        let time = ManualClock::default();
        let store = store(10, &time);
        assert_eq!(store.take_one(&shown(1)), Ok(Taken::First));
        let slot = SLOT_LIFE_MAX - std::time::Duration::from_secs(1);
        time.advance(std::time::Duration::from_secs(59) + slot);
        let with_slot = Shown {
            expires: BEGAN + 60_000 + millis(slot),
            ..shown(1)
        };
        let used = Taken::Refused(ResumeRefusal::Used);
        assert_eq!(store.take_one(&with_slot), Ok(used));
    }

    #[test]
    fn what_is_revoked_outlives_every_ticket_that_it_ends() {
        let time = ManualClock::default();
        let store = store(10, &time);
        let user = UserId::parse("42").expect("a user");
        store.revoke_it(user, Revoked::All).expect("room");
        time.advance(RESUME_LIFE_MAX);
        let late = Shown {
            expires: BEGAN + millis(RESUME_LIFE_MAX) + 1,
            ..shown(1)
        };
        let revoked = Taken::Refused(ResumeRefusal::UserRevoked);
        assert_eq!(store.take_one(&late), Ok(revoked));
        time.advance(MARGIN);
        let _ = store.take_one(&shown(2));
        assert!(store.lock().entries.is_empty());
    }
}
