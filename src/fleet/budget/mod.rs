//! The node's part in the fleet's handshake budget: a [`Gate`] leases tokens for the handshakes that wait here, a batch at
//! a time, and slots for those that are over the budget.

mod held;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use self::held::Held;
use crate::backplane::{Budget, LeaseError, Leased, Pace, Wanted};
use crate::hub::LiveLimits;
use crate::telemetry::BudgetMetrics;

/// How long a handshake waits for a lease, once for a token and once for a slot: for the one that is under way when it
/// comes, and for its own.
const PATIENCE: Duration = Duration::from_millis(2_200);
/// How long the backplane has to answer to one. A slow one makes handshakes slow; told to come later, clients that were
/// asked to move would be without a connection.
const LEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a token may be used, from before it was asked for: who is frozen longer has none saved up. Longer than a
/// lease may take; a node has no more at a time than who waits, and a little ahead.
const HOLD: Duration = Duration::from_millis(1_500);
/// How long it is believed that there are no tokens: a backplane that lost the schedule has some again.
const BELIEF: Duration = Duration::from_millis(100);
/// Handshakes that may wait for a lease. Beyond, they are told to come later.
const QUEUE: usize = 16_384;
/// Handshakes of one lease.
const BATCH: usize = 4_096;
/// The part of a second's tokens that a node leases beyond those that wait: what is not used is lost.
const AHEAD: u32 = 50;

/// What a handshake is told at the gate.
#[derive(Debug)]
pub enum Entry {
    /// There is no budget for the fleet, or nobody can be asked: the node's own limit is all there is.
    Free,
    /// There is a token for it.
    Token(Token),
    /// There is none now.
    Over,
    /// It was not known in time, or too many wait to know.
    Late,
}

/// A handshake's token.
#[derive(Debug)]
pub struct Token {
    expires: Instant,
}

/// What one that is over the budget gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// This slot, in Unix milliseconds; to be given back if there is nobody for it.
    Slot(u64),
    /// All slots up to [`Pace::HORIZON`] are given.
    Full,
    /// It was not known in time, or nobody can be asked.
    Late,
}

enum Ask {
    Token(oneshot::Sender<Entry>),
    Slot(oneshot::Sender<Offer>),
}

/// The node's door to the budget; one for all shards.
pub struct Gate {
    limits: LiveLimits,
    budget: Arc<dyn Budget>,
    asks: mpsc::Sender<Ask>,
    held: Mutex<Held>,
    /// There is no budget for now, and it was said.
    without: AtomicBool,
    metrics: BudgetMetrics,
}

/// Handshakes that wait for [`Gate::serve`].
pub struct Asks(mpsc::Receiver<Ask>);

impl Gate {
    /// For as many handshakes a second in the fleet as the limits say at the time; 0 = no budget.
    pub fn new(
        limits: LiveLimits,
        budget: Arc<dyn Budget>,
        metrics: BudgetMetrics,
    ) -> (Self, Asks) {
        let (asks, queue) = mpsc::channel(QUEUE);
        let gate = Self {
            limits,
            budget,
            asks,
            held: Mutex::default(),
            without: AtomicBool::new(false),
            metrics,
        };
        (gate, Asks(queue))
    }

    /// Whether there is a budget.
    pub fn is_on(&self) -> bool {
        self.pace().is_some()
    }

    /// The clock that slots go by.
    pub fn now(&self) -> u64 {
        self.budget.now()
    }

    /// A token for one handshake, if there is one within a moment.
    pub async fn enter(&self) -> Entry {
        if !self.is_on() {
            return Entry::Free;
        }
        let at_once = self.held().enter(Instant::now(), &self.metrics);
        match at_once {
            Some(entry) => entry,
            None => self.ask(Ask::Token).await.unwrap_or(Entry::Late),
        }
    }

    /// A slot for a handshake that got no token.
    pub async fn slot(&self) -> Offer {
        let kept = self.held().slot(self.now(), &self.metrics);
        match kept {
            Some(slot) => Offer::Slot(slot),
            None => self.ask(Ask::Slot).await.unwrap_or(Offer::Late),
        }
    }

    /// Gives a token back: the handshake's ticket was not known.
    pub fn give_back(&self, token: Token) {
        self.held().keep(token);
    }

    /// Gives a slot back: there is nobody for it.
    pub fn give_slot_back(&self, slot: u64) {
        if !self.held().keep_slot(slot) {
            self.metrics.slot("unused");
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.asks.try_send(ask(answer)).ok()?;
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
    }

    /// Leases for those who wait, one lease at a time, as long as the node runs.
    pub async fn serve(self: Arc<Self>, mut asks: Asks) {
        let mut batch = Vec::new();
        while asks.0.recv_many(&mut batch, BATCH).await > 0 {
            let (mut tokens, mut slots) = (Vec::new(), Vec::new());
            for ask in batch.drain(..) {
                match ask {
                    // Who does not wait any more is told nothing, and gets nothing.
                    Ask::Token(answer) if !answer.is_closed() => tokens.push(answer),
                    Ask::Slot(answer) if !answer.is_closed() => slots.push(answer),
                    _ => {}
                }
            }
            self.lease_for(tokens, slots).await;
        }
    }

    async fn lease_for(
        &self,
        tokens: Vec<oneshot::Sender<Entry>>,
        slots: Vec<oneshot::Sender<Offer>>,
    ) {
        let Some(pace) = self.pace() else {
            tokens
                .into_iter()
                .for_each(|answer| tell(answer, Entry::Free));
            return slots
                .into_iter()
                .for_each(|answer| tell(answer, Offer::Late));
        };
        if tokens.is_empty() && slots.is_empty() {
            return;
        }
        let asked = Instant::now();
        let wait = count(tokens.len());
        let ahead = self.held().demand(asked).min(pace.per_second / AHEAD);
        let wanted = Wanted {
            // Nobody takes tokens ahead while others wait for slots.
            tokens: if wait > 0 { wait + ahead } else { 0 },
            slots: count(slots.len()),
        };
        let deadline = tokio::time::Instant::now() + LEASE_TIMEOUT;
        match self.budget.lease(pace, wanted, deadline).await {
            Ok(leased) => self.share(leased, asked, tokens, slots),
            Err(error) => self.without(error, tokens, slots),
        }
    }

    fn share(
        &self,
        leased: Leased,
        asked: Instant,
        tokens: Vec<oneshot::Sender<Entry>>,
        slots: Vec<oneshot::Sender<Offer>>,
    ) {
        if self.without.swap(false, Ordering::Relaxed) {
            tracing::info!("the budget for the fleet's handshakes is there again");
        }
        self.metrics.leased.inc_by(u64::from(leased.tokens));
        let reach = i64::try_from(leased.free / 1_000).unwrap_or(i64::MAX);
        self.metrics.reach.set(reach);
        let mut held = self.held();
        held.lease(&leased, asked);
        for answer in tokens {
            let entry = held.take(Instant::now(), &self.metrics);
            // One that went away meanwhile leaves its token to the next.
            if let Err(Entry::Token(token)) = answer.send(entry) {
                held.keep(token);
            }
        }
        let mut slots = slots.into_iter();
        for slot in leased.slots {
            let given = slots.by_ref().find_map(|answer| match answer.is_closed() {
                true => None,
                false => answer.send(Offer::Slot(slot)).ok(),
            });
            if given.is_none() && !held.keep_slot(slot) {
                self.metrics.slot("unused");
            }
        }
        slots.for_each(|answer| tell(answer, Offer::Full));
    }

    /// What is told where there is no lease.
    fn without(
        &self,
        error: LeaseError,
        tokens: Vec<oneshot::Sender<Entry>>,
        slots: Vec<oneshot::Sender<Offer>>,
    ) {
        let (reason, problem, away) = match error {
            LeaseError::Away(problem) => ("away", problem, true),
            LeaseError::Late(problem) => ("late", problem, false),
        };
        self.metrics.failed(reason);
        if away && !self.without.swap(true, Ordering::Relaxed) {
            tracing::warn!(%problem, "there is no budget for the fleet's handshakes, so each node's own handshakes_per_second is all that holds; if Redis is there, may this login use the key?");
        }
        tracing::debug!(%problem, reason, "no part of the fleet's handshake budget");
        for answer in tokens {
            tell(answer, if away { Entry::Free } else { Entry::Late });
        }
        slots
            .into_iter()
            .for_each(|answer| tell(answer, Offer::Late));
    }

    fn pace(&self) -> Option<Pace> {
        let per_second = self.limits.now().fleet_handshakes_per_second;
        (per_second > 0).then_some(Pace { per_second })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing that holds the lock can panic half way through a change.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever asked may have gone: its time is over.
fn tell<T>(answer: oneshot::Sender<T>, what: T) {
    let _ = answer.send(what);
}

fn count(waiting: usize) -> u32 {
    u32::try_from(waiting).unwrap_or(u32::MAX)
}
