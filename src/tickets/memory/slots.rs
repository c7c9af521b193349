use std::collections::{BTreeSet, HashMap};
use std::future::ready;

use super::{MemoryTickets, SWEEP_MAX};
use crate::backplane::Later;
use crate::tickets::slots::ends;
use crate::tickets::{Presented, Redemption, Seen, SlotStore, StoreError, TicketHash, TicketSlot};

/// The slots of proofs that are not stored.
#[derive(Default)]
pub(super) struct Marks {
    by_proof: HashMap<TicketHash, u64>,
    /// The same, soonest first.
    by_slot: BTreeSet<(u64, TicketHash)>,
}

impl Marks {
    /// Forgets some whose room is over. Each call of a door adds one at most, so they never pile up.
    fn sweep(&mut self, now: u64) {
        for _ in 0..SWEEP_MAX {
            match self.by_slot.first() {
                Some(&(slot, proof)) if ends(slot) < now => drop(self.remove(&proof)),
                _ => return,
            }
        }
    }

    fn get(&self, proof: &TicketHash, now: u64) -> Option<u64> {
        let slot = self.by_proof.get(proof).copied();
        slot.filter(|slot| now <= ends(*slot))
    }

    fn remove(&mut self, proof: &TicketHash) -> Option<u64> {
        let slot = self.by_proof.remove(proof)?;
        self.by_slot.remove(&(slot, *proof));
        Some(slot)
    }
}

impl MemoryTickets {
    fn look(&self, hash: &TicketHash, shown: &Presented) -> TicketSlot {
        let now = (self.clock)();
        let mut pending = self.lock();
        pending.sweep(now);
        let Some(waiting) = pending.by_hash.get(hash).filter(|w| now < w.expires) else {
            return TicketSlot::Unknown;
        };
        match shown.refused_by(&waiting.grant) {
            Some(Redemption::WrongOrigin) => TicketSlot::WrongOrigin,
            Some(_) => TicketSlot::WrongIp,
            None => TicketSlot::Waits(waiting.slot, Seen(Vec::new())),
        }
    }

    fn give(&self, hash: &TicketHash, slot: u64) -> Option<u64> {
        let now = (self.clock)();
        let unix = self.unix(now);
        let mut pending = self.lock();
        let waiting = pending.by_hash.get_mut(hash).filter(|w| now < w.expires)?;
        if let Some(has) = waiting.slot.filter(|has| unix <= ends(*has)) {
            return Some(has);
        }
        waiting.slot = Some(slot);
        let left = std::time::Duration::from_millis(ends(slot).saturating_sub(unix));
        let (before, expires) = (waiting.expires, waiting.expires.max(now + left));
        waiting.expires = expires;
        pending.by_expiry.remove(&(before, *hash));
        pending.by_expiry.insert((expires, *hash));
        Some(slot)
    }

    fn give_proof(&self, proof: TicketHash, slot: u64) -> Result<u64, StoreError> {
        let now = self.unix((self.clock)());
        let mut marks = self.marks();
        marks.sweep(now);
        if let Some(has) = marks.get(&proof, now) {
            return Ok(has);
        }
        if marks.by_proof.len() >= self.max_pending {
            return Err(StoreError::Full);
        }
        marks.remove(&proof);
        marks.by_proof.insert(proof, slot);
        marks.by_slot.insert((slot, proof));
        Ok(slot)
    }
}

impl SlotStore for MemoryTickets {
    fn ticket_slot<'a>(
        &'a self,
        hash: TicketHash,
        shown: &'a Presented,
    ) -> Later<'a, Result<TicketSlot, StoreError>> {
        Box::pin(ready(Ok(self.look(&hash, shown))))
    }

    fn give_slot(
        &self,
        hash: TicketHash,
        _: Seen,
        slot: u64,
    ) -> Later<'_, Result<Option<u64>, StoreError>> {
        Box::pin(ready(Ok(self.give(&hash, slot))))
    }

    fn mark(&self, proof: TicketHash) -> Later<'_, Result<Option<u64>, StoreError>> {
        let now = self.unix((self.clock)());
        Box::pin(ready(Ok(self.marks().get(&proof, now))))
    }

    fn give_mark(&self, proof: TicketHash, slot: u64) -> Later<'_, Result<u64, StoreError>> {
        Box::pin(ready(self.give_proof(proof, slot)))
    }

    fn take_mark(&self, proof: TicketHash) -> Later<'_, Result<bool, StoreError>> {
        let now = self.unix((self.clock)());
        let mut marks = self.marks();
        let good = marks.get(&proof, now).is_some();
        marks.remove(&proof);
        Box::pin(ready(Ok(good)))
    }
}
