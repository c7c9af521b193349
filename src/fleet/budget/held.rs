use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::{BELIEF, Entry, HOLD, Token};
use crate::backplane::Leased;
use crate::telemetry::BudgetMetrics;

/// Over how long a node looks back to see how many handshakes come.
const WINDOW: Duration = Duration::from_millis(100);
/// Slots that wait for the next who needs one.
const SLOTS_MAX: usize = 1_024;
/// A slot that is nearer than this is not given any more: its client could not be back in time.
const NEAR: u64 = 10;

/// What a node has of the budget.
#[derive(Default)]
pub(super) struct Held {
    /// Until when each token may be used, soonest first.
    tokens: VecDeque<Instant>,
    /// Slots without an owner.
    slots: BinaryHeap<Reverse<u64>>,
    /// Until when there is no token in the fleet.
    none_until: Option<Instant>,
    /// The window that runs: since when, and how many came; how many came in the one before.
    window: Option<(Instant, u32)>,
    before: u32,
}

impl Held {
    /// What a handshake gets at once; none = it has to be asked for.
    pub(super) fn enter(&mut self, now: Instant, metrics: &BudgetMetrics) -> Option<Entry> {
        self.count(now);
        self.expire(now, metrics);
        if let Some(expires) = self.tokens.pop_front() {
            return Some(Entry::Token(Token { expires }));
        }
        self.none_until
            .filter(|until| now < *until)
            .map(|_| Entry::Over)
    }

    /// What a handshake that waited for a lease gets of it.
    pub(super) fn take(&mut self, now: Instant, metrics: &BudgetMetrics) -> Entry {
        self.expire(now, metrics);
        match self.tokens.pop_front() {
            Some(expires) => Entry::Token(Token { expires }),
            None => Entry::Over,
        }
    }

    /// What was leased by an asking at that time.
    pub(super) fn lease(&mut self, leased: &Leased, asked: Instant) {
        let expires = asked + HOLD;
        self.tokens.extend((0..leased.tokens).map(|_| expires));
        let wait = Duration::from_millis(leased.free.saturating_sub(leased.now));
        self.none_until = Some(asked + wait.min(BELIEF));
    }

    /// One that was not used.
    pub(super) fn keep(&mut self, token: Token) {
        // Older than all that were leased since.
        self.tokens.push_front(token.expires);
    }

    /// A slot without an owner, if there is one that is still to come.
    pub(super) fn slot(&mut self, now: u64, metrics: &BudgetMetrics) -> Option<u64> {
        while let Some(Reverse(slot)) = self.slots.pop() {
            if slot >= now + NEAR {
                return Some(slot);
            }
            metrics.slot("unused");
        }
        None
    }

    /// Keeps a slot for the next who needs one, if there is room.
    pub(super) fn keep_slot(&mut self, slot: u64) -> bool {
        let room = self.slots.len() < SLOTS_MAX;
        if room {
            self.slots.push(Reverse(slot));
        }
        room
    }

    /// How many handshakes came within the last window.
    pub(super) fn demand(&mut self, now: Instant) -> u32 {
        self.turn(now);
        self.before
    }

    fn count(&mut self, now: Instant) {
        self.turn(now);
        let (_, count) = self.window.get_or_insert((now, 0));
        *count = count.saturating_add(1);
    }

    fn turn(&mut self, now: Instant) {
        let Some((since, count)) = self.window else {
            return;
        };
        let passed = now.saturating_duration_since(since);
        if passed >= WINDOW {
            self.before = if passed < 2 * WINDOW { count } else { 0 };
            self.window = None;
        }
    }

    fn expire(&mut self, now: Instant, metrics: &BudgetMetrics) {
        while self.tokens.front().is_some_and(|expires| *expires <= now) {
            self.tokens.pop_front();
            metrics.expired.inc();
        }
    }
}
