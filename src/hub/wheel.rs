use std::time::{Duration, Instant};

/// One tick of the wheel: how exact the timers of sessions are.
pub(super) const TICK: Duration = Duration::from_millis(50);
const SLOTS: usize = 1024;

/// A moment in ticks since the shard began.
pub(super) type Tick = u32;

/// The one timer wheel of a shard (hashed, after Varghese and Lauck, SOSP 1987). A session has one entry of 12 bytes here
/// and none anywhere else; whoever reads an entry asks the session what is due, so an entry that came too early does no
/// harm and traffic need not move it.
pub(super) struct Wheel<K> {
    began: Instant,
    slots: Box<[Vec<(K, Tick)>]>,
    turned: Tick,
}

impl<K: Copy> Wheel<K> {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            began,
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            turned: 0,
        }
    }

    /// The tick of a moment.
    pub(super) fn tick(&self, now: Instant) -> Tick {
        ticks(now.saturating_duration_since(self.began))
    }

    /// Calls for a session at a tick; one that has passed comes at the next turn. Answers at which it will.
    pub(super) fn arm(&mut self, key: K, at: Tick) -> Tick {
        let at = at.max(self.turned + 1);
        self.slots[at as usize % SLOTS].push((key, at));
        at
    }

    /// Takes out what is due.
    pub(super) fn turn(&mut self, now: Instant, due: &mut Vec<(K, Tick)>) {
        let now = self.tick(now);
        while self.turned < now {
            self.turned += 1;
            let turned = self.turned;
            let slot = &mut self.slots[turned as usize % SLOTS];
            due.extend(slot.extract_if(.., |(_, at)| *at <= turned));
            if slot.is_empty() {
                *slot = Vec::new();
            }
        }
    }
}

/// A span in ticks, rounded up, so that nothing comes early.
pub(super) fn ticks(span: Duration) -> Tick {
    let ticks = span.as_nanos().div_ceil(TICK.as_nanos());
    Tick::try_from(ticks)
        .unwrap_or(Tick::MAX / 2)
        .min(Tick::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_once_and_not_early() {
        let began = Instant::now();
        let mut wheel = Wheel::new(began);
        let at: Vec<Tick> = vec![1, 2, 3, 1023, 1024, 1025, 5000];
        for (key, tick) in at.iter().enumerate() {
            wheel.arm(key, *tick);
        }
        let mut seen = Vec::new();
        for tick in 0..6000u32 {
            let mut due = Vec::new();
            wheel.turn(began + TICK * tick, &mut due);
            for (key, armed) in due {
                assert_eq!(armed, tick);
                seen.push(key);
            }
        }
        assert_eq!(seen, (0..at.len()).collect::<Vec<_>>());
    }

    #[test]
    fn a_turn_that_was_missed_is_made_up_for() {
        let began = Instant::now();
        let mut wheel = Wheel::new(began);
        wheel.arm('a', 3);
        wheel.arm('b', 2000);
        let mut due = Vec::new();
        wheel.turn(began + TICK * 3000, &mut due);
        assert_eq!(due.len(), 2);
    }
}
