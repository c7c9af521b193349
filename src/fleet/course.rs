//! What a node that leaves does next, decided from what it knows: without clock, sockets or other nodes.

use std::time::{Duration, Instant};

use super::DrainConfig;
use crate::hub::Leave;

/// What a session that is told has before its `grace` begins.
pub(super) const AFTER: Duration = Leave::AFTER_MAX;
/// What is left of the platform's patience when the sessions are gone.
pub(super) const MARGIN: Duration = Duration::from_secs(5);

/// Which other nodes there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Others {
    /// None, and there was none since the drain began.
    Nobody,
    /// There are some, or were, and none would take a client now.
    NoneReady,
    /// So many would.
    Ready(usize),
    /// The backplane does not say. Without it nobody could redeem a ticket either.
    Unknown(String),
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Nothing,
    /// Tell the sessions to leave, over the time.
    Move(Duration),
    /// Tell nobody more for now.
    Hold,
    /// Go on.
    Release,
    /// Close the sessions, over the time.
    Close(Duration),
    /// Time is over.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Waiting { since: Instant },
    Moving { ends: Instant },
    Held { since: Instant, left: Duration },
    Closing { ends: Instant },
}

/// A drain's way from its closed listeners to the last session.
#[derive(Debug)]
pub(super) struct Course {
    config: DrainConfig,
    /// When the platform's patience is over, but for [`MARGIN`]; none if it is not known.
    cutoff: Option<Instant>,
    waited: Duration,
    pub(super) place: Place,
}

impl Course {
    /// From `now` on, in a drain that began at `began`.
    pub(super) fn new(config: DrainConfig, began: Instant, now: Instant) -> Self {
        let patience = config.termination_grace.saturating_sub(MARGIN);
        Self {
            config,
            cutoff: (!config.termination_grace.is_zero()).then(|| began + patience),
            waited: Duration::ZERO,
            place: Place::Waiting { since: now },
        }
    }

    /// How long it has waited for others.
    pub(super) fn waited(&self, now: Instant) -> Duration {
        match self.place {
            Place::Waiting { since } | Place::Held { since, .. } => self.waited + (now - since),
            Place::Moving { .. } | Place::Closing { .. } => self.waited,
        }
    }

    /// What to do, with so many sessions here, which the others together take at `rate` a second (none = at any).
    pub(super) fn next(
        &mut self,
        now: Instant,
        others: &Others,
        sessions: usize,
        rate: Option<u32>,
    ) -> Act {
        match (self.place, others) {
            (Place::Closing { ends } | Place::Moving { ends }, _) if ends <= now => Act::End,
            (Place::Closing { .. }, _) | (Place::Moving { .. }, Others::Ready(_)) => Act::Nothing,
            (Place::Waiting { .. }, Others::Ready(_)) => {
                self.waited = self.waited(now);
                let most = self.left(now).map(|left| left.saturating_sub(AFTER));
                let spread = stretched(self.config.spread, sessions, rate, most);
                let ends = now + spread + AFTER + self.config.grace;
                self.place = Place::Moving { ends };
                Act::Move(spread)
            }
            (Place::Held { left, .. }, Others::Ready(_)) => {
                self.waited = self.waited(now);
                self.place = Place::Moving { ends: now + left };
                Act::Release
            }
            (Place::Waiting { .. }, Others::Nobody) => self.close(now),
            (Place::Moving { ends }, _) => {
                let left = ends - now;
                self.place = Place::Held { since: now, left };
                Act::Hold
            }
            (Place::Waiting { .. } | Place::Held { .. }, _) => {
                let hurry = self
                    .left(now)
                    .is_some_and(|left| left <= self.config.spread);
                match hurry || self.waited(now) >= self.config.wait {
                    true => self.close(now),
                    false => Act::Nothing,
                }
            }
        }
    }

    fn close(&mut self, now: Instant) -> Act {
        self.waited = self.waited(now);
        let spread = self.config.spread;
        let spread = self.left(now).map_or(spread, |left| spread.min(left));
        let ends = now + spread + self.config.grace;
        self.place = Place::Closing { ends };
        Act::Close(spread)
    }

    /// How long sessions may be told, so that the last of them has its grace before the platform kills.
    fn left(&self, now: Instant) -> Option<Duration> {
        let cutoff = self.cutoff?;
        let left = cutoff.saturating_duration_since(now);
        Some(left.saturating_sub(self.config.grace))
    }
}

/// `spread`, made longer where more sessions a second would come than half of `rate`: the other half is for those who come
/// anyway. Not beyond `most`, if that is known, and never shorter than configured.
pub(super) fn stretched(
    spread: Duration,
    sessions: usize,
    rate: Option<u32>,
    most: Option<Duration>,
) -> Duration {
    let needed = match rate {
        Some(rate) if rate > 0 => Duration::from_secs_f64(sessions as f64 * 2.0 / f64::from(rate)),
        _ => Duration::ZERO,
    };
    let most = most.unwrap_or(Duration::MAX).max(spread);
    spread.max(needed).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn course(change: impl FnOnce(&mut DrainConfig)) -> (Course, Instant) {
        let mut config = DrainConfig::default();
        change(&mut config);
        let now = Instant::now();
        (Course::new(config, now, now), now)
    }

    #[test]
    fn with_another_node_ready_sessions_are_told_and_then_time_is_over() {
        let (mut course, now) = course(|_| {});
        let ready = Others::Ready(1);
        assert_eq!(course.next(now, &ready, 10, None), Act::Move(30 * SECOND));
        let later = now + 35 * SECOND;
        assert_eq!(course.next(later, &ready, 10, None), Act::Nothing);
        assert_eq!(course.next(later + SECOND, &ready, 10, None), Act::End);
    }

    #[test]
    fn alone_sessions_are_closed_at_once() {
        let (mut course, now) = course(|_| {});
        let act = course.next(now, &Others::Nobody, 10, None);
        assert_eq!(act, Act::Close(30 * SECOND));
        let ready = Others::Ready(1);
        assert_eq!(course.next(now + 35 * SECOND, &ready, 1, None), Act::End);
    }

    #[test]
    fn it_waits_while_there_is_hope_and_what_was_told_has_the_time_back() {
        let (mut course, mut now) = course(|_| {});
        let away = Others::Unknown("away".into());
        assert_eq!(course.next(now, &Others::NoneReady, 1, None), Act::Nothing);
        now += 10 * SECOND;
        let ready = Others::Ready(2);
        assert_eq!(course.next(now, &ready, 1, None), Act::Move(30 * SECOND));
        now += 16 * SECOND;
        assert_eq!(course.next(now, &away, 1, None), Act::Hold);
        now += 10 * SECOND;
        assert_eq!(course.waited(now), 20 * SECOND);
        assert_eq!(course.next(now, &ready, 1, None), Act::Release);
        let ends = now + 20 * SECOND;
        assert_eq!(course.place, Place::Moving { ends });
        // A node that was there and is not any more may come back.
        assert_eq!(course.next(now, &Others::Nobody, 1, None), Act::Hold);
        now += 10 * SECOND;
        assert_eq!(
            course.next(now, &Others::NoneReady, 1, None),
            Act::Close(30 * SECOND)
        );
    }

    #[test]
    fn it_does_not_wait_or_stretch_beyond_what_the_platform_gives() {
        let (mut course, now) = course(|c| c.termination_grace = 50 * SECOND);
        // 50 s, less 5 s for the end and 5 s of grace: 30 s of spread must begin 10 s from now.
        let act = course.next(now + 9 * SECOND, &Others::NoneReady, 1, None);
        assert_eq!(act, Act::Nothing);
        let act = course.next(now + 10 * SECOND, &Others::NoneReady, 1, None);
        assert_eq!(act, Act::Close(30 * SECOND));
        let (mut course, now) = self::course(|c| c.termination_grace = 60 * SECOND);
        let act = course.next(now, &Others::Ready(1), 1_000_000, Some(1000));
        assert_eq!(act, Act::Move(49 * SECOND));
    }

    #[test]
    fn half_of_what_the_others_take_is_left_to_those_who_come_anyway() {
        let of = |sessions, rate| stretched(30 * SECOND, sessions, rate, None);
        assert_eq!(of(150_000, Some(10_000)), 30 * SECOND);
        assert_eq!(of(300_000, Some(10_000)), 60 * SECOND);
        assert_eq!(of(300_000, None), 30 * SECOND);
        assert_eq!(of(300_000, Some(0)), 30 * SECOND);
    }
}
