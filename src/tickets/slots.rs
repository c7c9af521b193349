use std::time::Duration;

use super::{Presented, StoreError, TicketHash};
use crate::backplane::{Later, Pace};

/// How long after its slot a handshake still has its room, and a ticket with a slot lives.
pub const SLOT_GRACE: Duration = Duration::from_secs(30);
/// How much before its slot a handshake already has it: a client's timers are not exact.
const SLOT_EARLY: Duration = Duration::from_millis(50);
/// The longest life of a ticket that has a slot. One second is for clocks that differ.
pub(super) const SLOT_LIFE_MAX: Duration = Pace::HORIZON
    .saturating_add(SLOT_GRACE)
    .saturating_add(Duration::from_secs(1));

/// What a slot, in Unix milliseconds, means now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is still to come, in that long.
    Early(Duration),
    /// It is now: there is room.
    Due,
    /// It is over, and so is its room.
    Missed,
}

impl Turn {
    /// By the backplane's clock.
    pub fn of(slot: u64, now: u64) -> Self {
        if slot > now.saturating_add(millis(SLOT_EARLY)) {
            Self::Early(Duration::from_millis(slot - now))
        } else if now <= ends(slot) {
            Self::Due
        } else {
            Self::Missed
        }
    }
}

/// Until when there is room, in Unix milliseconds.
pub fn ends(slot: u64) -> u64 {
    slot.saturating_add(millis(SLOT_GRACE))
}

/// What a ticket says of its slot. Nothing is spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TicketSlot {
    /// No such ticket waits.
    Unknown,
    /// The ticket is for other origins.
    WrongOrigin,
    /// The ticket is for other addresses.
    WrongIp,
    /// It waits, and has a slot or none yet.
    Waits(Option<u64>, Seen),
}

/// A ticket as a store saw it, by which it knows whether it is still the same.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen(pub(super) Vec<u8>);

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seen(***)")
    }
}

/// Where it is kept who, over the handshake budget, was given which slot: in the ticket itself, or, for a proof that is
/// not stored (a resume ticket, a JWT), in a mark of its own. A proof has one slot at a time, however often it is shown.
pub trait SlotStore: Send + Sync + 'static {
    /// Looks whether a ticket waits, is for who shows it, and has a slot.
    ///
    /// # Errors
    /// The store is away.
    fn ticket_slot<'a>(
        &'a self,
        hash: TicketHash,
        shown: &'a Presented,
    ) -> Later<'a, Result<TicketSlot, StoreError>>;

    /// Gives a slot to a ticket as it was seen, and life to the end of the slot's room if it has less. Answers which slot
    /// it has now, which may be one that another handshake gave it meanwhile; none = it does not wait any more.
    ///
    /// # Errors
    /// The store is away.
    fn give_slot(
        &self,
        hash: TicketHash,
        seen: Seen,
        slot: u64,
    ) -> Later<'_, Result<Option<u64>, StoreError>>;

    /// The slot of a proof that is not stored.
    ///
    /// # Errors
    /// The store is away.
    fn mark(&self, proof: TicketHash) -> Later<'_, Result<Option<u64>, StoreError>>;

    /// Gives such a proof a slot, unless it has one. Answers which it has.
    ///
    /// # Errors
    /// The store is full or away.
    fn give_mark(&self, proof: TicketHash, slot: u64) -> Later<'_, Result<u64, StoreError>>;

    /// Takes the slot of such a proof, since a JWT may be shown more than once and its room is for one. Whether there was
    /// one.
    ///
    /// # Errors
    /// The store is away; then it may be taken all the same.
    fn take_mark(&self, proof: TicketHash) -> Later<'_, Result<bool, StoreError>>;
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_from_the_slot_to_the_end_of_its_grace() {
        let slot = 1_000_000;
        let early = |millis| Turn::Early(Duration::from_millis(millis));
        for (now, turn) in [
            (slot - 5_000, early(5_000)),
            (slot - 51, early(51)),
            (slot - 50, Turn::Due),
            (slot, Turn::Due),
            (slot + 30_000, Turn::Due),
            (slot + 30_001, Turn::Missed),
        ] {
            assert_eq!(Turn::of(slot, now), turn, "{now}");
        }
    }
}
