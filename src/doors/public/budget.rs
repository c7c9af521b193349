use std::sync::Arc;
use std::time::Duration;

use super::Public;
use super::arrival::Arrival;
use super::handshake::Proof;
use super::proof::{self, NOT_GOOD};
use super::refusal::{Kind, Refusal};
use crate::fleet::{Entry, Gate, Offer};
use crate::model::{Grant, Origin, Secret, sha256};
use crate::telemetry::BudgetMetrics;
use crate::tickets::{
    Checked, Opening, Presented, ResumeTickets, SlotStore, StoreError, Ticket, TicketHash,
    TicketSlot, Turn, ends,
};

/// The fleet's handshake budget, as the door asks for it.
pub struct Pacing {
    /// Where tokens and slots are had.
    pub gate: Arc<Gate>,
    /// Where it is kept who has which slot.
    pub slots: Arc<dyn SlotStore>,
    /// Counters.
    pub metrics: BudgetMetrics,
}

/// What a handshake shows, and for what.
pub(super) struct Claim<'a> {
    pub(super) proof: &'a Proof,
    pub(super) origin: Option<Origin>,
    pub(super) opening: Opening,
}

impl Claim<'_> {
    fn presented(&self, arrival: &Arrival) -> Presented {
        Presented {
            origin: self.origin.clone(),
            ip: arrival.client,
        }
    }
}

/// The fleet's budget, and then the proof: a token and whatever the proof grants, or a slot. An unknown ticket gives its
/// token back, and never gets a slot. (Whether a resume ticket was used is only known when it is redeemed, at its slot.)
///
/// # Errors
/// Why not, and when to come back.
pub(super) async fn admit(
    door: &Public,
    arrival: &Arrival,
    claim: Claim<'_>,
) -> Result<Grant, Refusal> {
    let gate = &door.pacing.gate;
    match gate.enter().await {
        Entry::Free => redeem(door, arrival, &claim, 0).await,
        Entry::Token(token) => match redeem(door, arrival, &claim, 0).await {
            Err(refusal) if refusal.kind == Kind::Ticket => {
                gate.give_back(token);
                Err(refusal)
            }
            redeemed => redeemed,
        },
        Entry::Over => over_budget(door, arrival, &claim).await,
        Entry::Late => Err(unknown()),
    }
}

async fn redeem(
    door: &Public,
    arrival: &Arrival,
    claim: &Claim<'_>,
    until: u64,
) -> Result<Grant, Refusal> {
    let redeeming = proof::redeem(
        door,
        arrival,
        claim.proof,
        claim.origin.clone(),
        claim.opening,
        until,
    );
    let redeemed = redeeming.await;
    // A resume ticket whose life was over before its slot has the slot's.
    match (redeemed, claim.proof) {
        (Err(refusal), Proof::Ticket(text))
            if refusal.kind == Kind::Ticket
                && until == 0
                && door.pacing.gate.is_on()
                && ResumeTickets::is_one(text.expose()) =>
        {
            let slot = door.pacing.slot_of(hash(text)).await?;
            match slot {
                Some(slot) if Turn::of(slot, door.pacing.gate.now()) != Turn::Missed => {
                    Box::pin(redeem(door, arrival, claim, ends(slot))).await
                }
                _ => Err(refusal),
            }
        }
        (redeemed, _) => redeemed,
    }
}

/// There is no token. Whoever has a slot that is due has room all the same; the others are told theirs.
async fn over_budget(
    door: &Public,
    arrival: &Arrival,
    claim: &Claim<'_>,
) -> Result<Grant, Refusal> {
    let pacing = &door.pacing;
    match claim.proof {
        Proof::Nothing => Err(proof::not_good()),
        Proof::Jwt(token) => {
            let grant = proof::verify(door, arrival, token, NOT_GOOD).await?;
            pacing.take(hash(token)).await?;
            Ok(grant)
        }
        Proof::Ticket(text) if ResumeTickets::is_one(text.expose()) => {
            let shown = claim.presented(arrival);
            let resume = &arrival.shard.hub.resume;
            let expired = match resume.check(text.expose(), &shown).await.map_err(away)? {
                Checked::Good => false,
                Checked::Expired => true,
                Checked::Unknown => return Err(proof::not_good()),
                Checked::WrongOrigin => return Err(proof::wrong_origin()),
                Checked::WrongIp => return Err(proof::wrong_ip()),
            };
            let has = pacing.slot_of(hash(text)).await?;
            let over = |slot| Turn::of(slot, pacing.gate.now()) == Turn::Missed;
            // The door of a slot is open to a ticket that has one, however old it is; but it gets none.
            if expired && has.is_none_or(over) {
                return Err(proof::not_good());
            }
            let slot = pacing.mark(hash(text), has).await?;
            if claim.opening.again {
                // It may be redeemed more than once, so its slot is what only one has.
                pacing.use_up(hash(text)).await?;
                return redeem(door, arrival, claim, ends(slot)).await;
            }
            // It keeps its slot until it is used, which it can be once: a redemption that fails may be tried again.
            let grant = redeem(door, arrival, claim, ends(slot)).await?;
            if let Err(problem) = pacing.slots.take_mark(hash(text)).await {
                tracing::debug!(%problem, "a slot that was used stays until its time is over");
            }
            Ok(grant)
        }
        Proof::Ticket(text) => {
            let ticket = Ticket::parse(text.expose()).ok_or_else(proof::not_good)?;
            let shown = claim.presented(arrival);
            let found = pacing.slots.ticket_slot(ticket.hash(), &shown).await;
            match found.map_err(away)? {
                TicketSlot::Unknown => return Err(proof::not_good()),
                TicketSlot::WrongOrigin => return Err(proof::wrong_origin()),
                TicketSlot::WrongIp => return Err(proof::wrong_ip()),
                TicketSlot::Waits(slot, seen) => {
                    let give = pacing.slots.clone();
                    let give = async move |slot| give.give_slot(ticket.hash(), seen, slot).await;
                    pacing.turn(slot, give).await?;
                }
            }
            redeem(door, arrival, claim, 0).await
        }
    }
}

impl Pacing {
    /// The slot of a proof that is not stored, by the one that it has.
    async fn mark(&self, proof: TicketHash, has: Option<u64>) -> Result<u64, Refusal> {
        let give = async |slot| self.slots.give_mark(proof, slot).await.map(Some);
        self.turn(has, give).await
    }

    /// The room of a proof that may be shown any number of times: its slot, which is taken.
    async fn take(&self, proof: TicketHash) -> Result<(), Refusal> {
        let has = self.slot_of(proof).await?;
        self.mark(proof, has).await?;
        self.use_up(proof).await
    }

    /// Takes a slot that is due.
    async fn use_up(&self, proof: TicketHash) -> Result<(), Refusal> {
        match self.slots.take_mark(proof).await.map_err(away)? {
            true => Ok(()),
            // Another handshake with the same proof has it.
            false => Err(overloaded()),
        }
    }

    async fn slot_of(&self, proof: TicketHash) -> Result<Option<u64>, Refusal> {
        self.slots.mark(proof).await.map_err(away)
    }

    /// Resolves with the slot that is due; else the refusal tells when it is. One that has none is given one.
    async fn turn(
        &self,
        slot: Option<u64>,
        give: impl AsyncFnOnce(u64) -> Result<Option<u64>, StoreError>,
    ) -> Result<u64, Refusal> {
        match slot.map(|slot| (slot, Turn::of(slot, self.gate.now()))) {
            Some((slot, Turn::Due)) => {
                self.metrics.slot("kept");
                return Ok(slot);
            }
            Some((_, Turn::Early(after))) => return Err(told(after)),
            Some((_, Turn::Missed)) => self.metrics.slot("missed"),
            None => {}
        }
        let offered = match self.gate.slot().await {
            Offer::Slot(slot) => slot,
            Offer::Full => return Err(overloaded()),
            Offer::Late => return Err(unknown()),
        };
        // An error leaves it open whether it was given; then nobody else has it.
        let given = give(offered).await.map_err(away)?;
        match given == Some(offered) {
            true => self.metrics.slot("given"),
            false => self.gate.give_slot_back(offered),
        }
        let given = given.ok_or_else(proof::not_good)?;
        match Turn::of(given, self.gate.now()) {
            Turn::Due => Ok(given),
            Turn::Early(after) => Err(told(after)),
            Turn::Missed => Err(overloaded()),
        }
    }
}

fn hash(proof: &Secret) -> TicketHash {
    TicketHash(sha256(proof.expose().as_bytes()))
}

fn told(after: Duration) -> Refusal {
    Refusal {
        after: Some(after),
        ..overloaded()
    }
}

/// Too many, and no slot can be told: a random pause has to do.
fn overloaded() -> Refusal {
    let why = "too many connections are being opened; come back then, with the same ticket";
    Refusal::later(Kind::Overloaded, why)
}

fn unknown() -> Refusal {
    Refusal::later(
        Kind::Unavailable,
        "the handshake budget could not be asked in time; come back later",
    )
}

fn away(error: StoreError) -> Refusal {
    tracing::warn!(problem = %error, "a slot could not be looked at");
    proof::unchecked()
}
