use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::{Address, Position};

/// The newest position that this node was answered for each address that it appended to, of at least so many of the latest
/// addresses. By it a stream that nobody listens to is found out when Redis comes back with older data.
pub(super) struct Remembered {
    /// Addresses of one generation; there are two.
    most: usize,
    generations: Mutex<Generations>,
}

/// What is remembered of an address.
pub(super) struct Known {
    pub(super) address: Address,
    pub(super) position: Position,
    /// It is of the generation that is forgotten next: nothing was appended to it for long.
    pub(super) old: bool,
}

/// The young one becomes the old one when it is full, and what was old is forgotten.
#[derive(Default)]
struct Generations {
    young: HashMap<Address, Position>,
    old: HashMap<Address, Position>,
    /// There were more.
    forgotten: bool,
}

impl Remembered {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            generations: Mutex::default(),
        }
    }

    /// Whether there were more addresses than are remembered.
    pub(super) fn has_forgotten(&self) -> bool {
        self.lock().forgotten
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        // Each change is whole before anything in it can panic.
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// An append was answered. Answers may come out of order.
    pub(super) fn note(&self, address: &Address, position: Position) {
        self.lock().note(address, position, self.most);
    }

    /// What is known of an address turned out to be another stream's; unless a later append was answered meanwhile.
    pub(super) fn correct(&self, address: &Address, known: Position, found: Position) {
        let mut generations = self.lock();
        let Generations { young, old, .. } = &mut *generations;
        for position in [young.get_mut(address), old.get_mut(address)]
            .into_iter()
            .flatten()
            .filter(|position| **position == known)
        {
            *position = found;
        }
    }

    /// What is known of the addresses that `wanted` says.
    pub(super) fn of(&self, wanted: impl Fn(&Address) -> bool) -> Vec<Known> {
        let generations = self.lock();
        let Generations { young, old, .. } = &*generations;
        let only_old = old
            .iter()
            .filter(|(address, _)| !young.contains_key(*address));
        let all = young.iter().map(|known| (known, false));
        all.chain(only_old.map(|known| (known, true)))
            .filter(|((address, _), _)| wanted(address))
            .map(|((address, position), old)| Known {
                address: address.clone(),
                position: *position,
                old,
            })
            .collect()
    }
}

impl Generations {
    fn note(&mut self, address: &Address, position: Position, most: usize) {
        let older =
            |known: &Position| known.epoch != position.epoch || known.offset < position.offset;
        if let Some(known) = self.young.get_mut(address) {
            if older(known) {
                *known = position;
            }
            return;
        }
        let position = match self.old.get(address) {
            Some(known) if !older(known) => *known,
            _ => position,
        };
        if self.young.len() >= most {
            self.forgotten |= !self.old.is_empty();
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(address.clone(), position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Tag, UserId};

    fn user(n: u64) -> Address {
        Address::User(UserId::parse(&n.to_string()).expect("a user"))
    }

    fn at(epoch: u64, offset: u64) -> Position {
        let tag = Tag(1);
        Position { epoch, offset, tag }
    }

    #[test]
    fn the_latest_addresses_are_remembered_with_their_newest_positions() {
        let mut generations = Generations::default();
        for n in 0..25 {
            generations.note(&user(n), at(1, 2), 10);
            generations.note(&user(n), at(1, 1), 10);
            // One that is appended to now and then stays.
            generations.note(&user(0), at(1, n), 10);
        }
        assert!(generations.forgotten);
        let remembered = Remembered {
            most: 10,
            generations: Mutex::new(generations),
        };
        let of = |n| {
            let known = remembered.of(|address| *address == user(n));
            let pairs = known.into_iter().map(|k| (k.address, k.position));
            pairs.collect::<Vec<_>>()
        };
        assert_eq!(of(0), [(user(0), at(1, 24))]);
        assert_eq!(of(1), []);
        for n in 15..25 {
            assert_eq!(of(n), [(user(n), at(1, 2))]);
        }
        // Another epoch is newer, whatever its offset.
        remembered.note(&user(20), at(2, 1));
        assert_eq!(of(20), [(user(20), at(2, 1))]);
        remembered.correct(&user(20), at(1, 2), at(3, 0));
        assert_eq!(of(20), [(user(20), at(2, 1))]);
        remembered.correct(&user(20), at(2, 1), at(3, 0));
        assert_eq!(of(20), [(user(20), at(3, 0))]);
        assert!(remembered.of(|_| true).len() <= 20);
    }
}
