use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::unix_millis;

/// An answer that came within this is told apart from one that was late.
const PROMPT: Duration = Duration::from_millis(100);

/// The backplane's clock, as far as this node knows it: never ahead of it, and behind by no more than the answer took by
/// which it was learnt. Between two answers the node's monotonic clock counts on, so that a step of the system's clock
/// changes nothing. Before the first answer it is the system's.
///
/// A backplane that moves to another machine moves to another clock; until the next answer, this may be ahead by as much
/// as those two differ.
#[derive(Debug)]
pub struct BackplaneClock(Mutex<(u64, Instant)>);

impl Default for BackplaneClock {
    fn default() -> Self {
        Self(Mutex::new((unix_millis(), Instant::now())))
    }
}

impl BackplaneClock {
    /// Unix milliseconds.
    pub fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, moment: Instant) -> u64 {
        let (millis, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = moment.saturating_duration_since(since).as_millis();
        millis.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// The backplane said what time it is, to who asked then.
    pub fn learn(&self, millis: u64, asked: Instant) {
        let now = Instant::now();
        // What was said was true when it was said, so by now it is later. A late answer that would turn the clock back
        // says more of the way than of the clock.
        if now.saturating_duration_since(asked) <= PROMPT || millis > self.at(now) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (millis, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_answer_sets_it_and_a_late_one_does_not_turn_it_back() {
        let clock = BackplaneClock::default();
        clock.learn(1_000, Instant::now());
        assert!((1_000..2_000).contains(&clock.now()));
        let long_ago = Instant::now() - Duration::from_secs(5);
        clock.learn(500, long_ago);
        assert!(clock.now() >= 1_000);
        clock.learn(9_000, long_ago);
        assert!((9_000..10_000).contains(&clock.now()));
        clock.learn(500, Instant::now());
        assert!(clock.now() < 1_500);
    }

    #[test]
    fn it_goes_on_by_itself() {
        let clock = BackplaneClock::default();
        clock.learn(1_000, Instant::now());
        let later = Instant::now() + Duration::from_secs(60);
        assert!((61_000..62_000).contains(&clock.at(later)));
    }
}
