use std::time::Duration;

use tokio::time::Instant;

use super::Later;

/// How fast the fleet takes handshakes: the generic cell rate algorithm (ITU-T I.371, annex A), with one schedule for all
/// nodes. What is kept of it is one time, when the next token is free; a token's time may be now or, as a *slot*, later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Handshakes a second; at least 1.
    pub per_second: u32,
}

/// What a node asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Tokens for handshakes of now.
    pub tokens: u32,
    /// Slots for those that come back.
    pub slots: u32,
}

/// What it gets. Nothing is ever returned: what is not used is lost, and so never used too late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// Tokens, no more than were asked for.
    pub tokens: u32,
    /// Slots, in Unix milliseconds, soonest first; fewer than were asked for where the rest would be beyond
    /// [`Pace::HORIZON`].
    pub slots: Vec<u64>,
    /// The backplane's clock, in Unix milliseconds.
    pub now: u64,
    /// When the next token is free, by that clock.
    pub free: u64,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseError {
    /// The backplane is away: nothing was taken. A sentence for the operator.
    Away(String),
    /// It did not answer in time; something may have been taken.
    Late(String),
}

/// Where the fleet's handshake budget is.
pub trait Budget: Send + Sync + 'static {
    /// The clock that slots go by, in Unix milliseconds; never ahead.
    fn now(&self) -> u64;

    /// Takes tokens of now and slots of the time to come, in one atomic step, and answers by the deadline.
    ///
    /// # Errors
    /// See [`LeaseError`].
    fn lease(
        &self,
        pace: Pace,
        wanted: Wanted,
        deadline: Instant,
    ) -> Later<'_, Result<Leased, LeaseError>>;
}

impl Pace {
    /// What was not used for so long may still be used, all at once.
    pub const BURST: Duration = Duration::from_millis(100);
    /// No slot is further away; tickets have to live that long.
    pub const HORIZON: Duration = Duration::from_secs(300);

    /// From one token to the next, in microseconds.
    pub(super) fn interval(self) -> f64 {
        1_000_000.0 / f64::from(self.per_second.max(1))
    }

    /// The times of some slots, from the first of them in microseconds.
    pub(super) fn slots(self, first: f64, count: u32) -> Vec<u64> {
        let micros = (0..count).map(|n| first + f64::from(n) * self.interval());
        micros.map(|at| millis(at.ceil())).collect()
    }
}

/// Rounded up: nobody is told to come before its time.
pub(super) fn millis(micros: f64) -> u64 {
    (micros as u64).div_ceil(1_000)
}

/// The schedule itself, for a node alone; `scripts/lease.lua` is the same for a fleet.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// When the next token is free, in Unix microseconds.
    free: f64,
}

impl Schedule {
    /// Takes what there is. `now` is in Unix microseconds.
    pub(super) fn lease(&mut self, pace: Pace, wanted: Wanted, now: u64) -> Leased {
        let (now, interval) = (now as f64, pace.interval());
        let (burst, horizon) = (micros(Pace::BURST), micros(Pace::HORIZON));
        if self.free > now + horizon + 2.0 * interval {
            // The clock was turned back. Nobody waits for that.
            self.free = 0.0;
        }
        self.free = self.free.max(now - burst);
        let most = |room: f64, wanted: u32| match room < 0.0 {
            true => 0,
            false => ((room / interval) as u32).saturating_add(1).min(wanted),
        };
        let tokens = most(now - self.free, wanted.tokens);
        self.free += f64::from(tokens) * interval;
        let first = self.free.max(now);
        let slots = most(now + horizon - first, wanted.slots);
        if slots > 0 {
            self.free = first + f64::from(slots) * interval;
        }
        Leased {
            tokens,
            slots: pace.slots(first, slots),
            now: (now / 1_000.0) as u64,
            free: millis(self.free),
        }
    }
}

fn micros(span: Duration) -> f64 {
    span.as_secs_f64() * 1_000_000.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;
    /// Some moment.
    const START: u64 = 1_764_000_000 * SECOND;

    fn tokens(count: u32) -> Wanted {
        Wanted {
            tokens: count,
            slots: 0,
        }
    }

    fn slots(count: u32) -> Wanted {
        Wanted {
            tokens: 0,
            slots: count,
        }
    }

    #[test]
    fn a_crowd_gets_the_burst_and_then_the_rate() {
        let (mut schedule, pace) = (Schedule::default(), Pace { per_second: 100 });
        assert_eq!(schedule.lease(pace, tokens(1_000), START).tokens, 11);
        assert_eq!(schedule.lease(pace, tokens(1_000), START).tokens, 0);
        let later = schedule.lease(pace, tokens(1_000), START + SECOND);
        assert_eq!(later.tokens, 11);
        let mut granted = 0;
        for n in 0..1_000 {
            let at = START + SECOND + n * 1_000;
            granted += schedule.lease(pace, tokens(3), at).tokens;
        }
        assert_eq!(granted, 99);
    }

    #[test]
    fn slots_are_in_order_one_interval_apart_and_taken_from_the_tokens() {
        let (mut schedule, pace) = (Schedule::default(), Pace { per_second: 100 });
        schedule.lease(pace, tokens(11), START);
        let first = schedule.lease(pace, slots(50), START).slots;
        let second = schedule.lease(pace, slots(50), START).slots;
        let all: Vec<u64> = first.into_iter().chain(second).collect();
        let expected: Vec<u64> = (1..=100).map(|n| START / 1_000 + n * 10).collect();
        assert_eq!(all, expected);
        let leased = schedule.lease(pace, tokens(1), START + SECOND);
        assert_eq!((leased.tokens, leased.free), (0, START / 1_000 + 1_010));
        assert_eq!(
            schedule.lease(pace, tokens(9), START + 2 * SECOND).tokens,
            9
        );
    }

    #[test]
    fn no_slot_is_beyond_the_horizon() {
        let (mut schedule, pace) = (Schedule::default(), Pace { per_second: 2 });
        let got = schedule.lease(pace, slots(10_000), START).slots;
        assert_eq!(got.len(), 601);
        let horizon = START / 1_000 + 300_000;
        assert_eq!(got.last(), Some(&horizon));
        assert!(schedule.lease(pace, slots(1), START).slots.is_empty());
        let later = schedule.lease(pace, slots(1), START + SECOND).slots;
        assert_eq!(later, [horizon + 500]);
    }

    #[test]
    fn a_clock_that_was_turned_back_begins_anew() {
        let (mut schedule, pace) = (Schedule::default(), Pace { per_second: 10 });
        schedule.lease(pace, slots(100), START);
        let before = START - 3_600 * SECOND;
        assert_eq!(schedule.lease(pace, tokens(5), before).tokens, 2);
    }

    proptest! {
        /// However it is asked: within no second are there more tokens and slots than the rate and the burst.
        #[test]
        fn no_second_has_more_than_the_rate_and_the_burst(
            rate in 1_u32..2_000,
            asked in prop::collection::vec((0_u64..200_000, 0_u32..50, 0_u32..50), 1..100),
        ) {
            let (mut schedule, pace, mut now) = (Schedule::default(), Pace { per_second: rate }, START);
            let mut times = Vec::new();
            for (pause, tokens, slots) in asked {
                now += pause;
                let leased = schedule.lease(pace, Wanted { tokens, slots }, now);
                prop_assert!(leased.tokens <= tokens && leased.slots.len() <= slots as usize);
                times.extend((0..leased.tokens).map(|_| now / 1_000));
                times.extend(leased.slots);
            }
            times.sort_unstable();
            let most = f64::from(rate) * 1.1 + 2.0;
            for (n, from) in times.iter().enumerate() {
                let within = times[n..].iter().take_while(|at| **at < from + 1_000).count();
                prop_assert!(within as f64 <= most, "{within} of {most}");
            }
        }
    }
}
