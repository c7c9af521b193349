//! Stamps for everything that is logged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A moment of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Stamp(pub(crate) u64);

impl Stamp {
    /// How much later this is than another; nothing if it is earlier.
    pub(crate) fn after(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment that is so much later.
    pub(crate) fn plus(self, time: Duration) -> Self {
        Self(self.0 + u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2))
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} s", self.0 as f64 / 1e6)
    }
}

/// Gives stamps in microseconds since the run began. No two are the same, so that they order what happened.
#[derive(Debug)]
pub(crate) struct Clock {
    began: Instant,
    last: AtomicU64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    pub(crate) fn now(&self) -> Stamp {
        let real = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut last = self.last.load(Ordering::SeqCst);
        loop {
            let next = real.max(last + 1);
            match self
                .last
                .compare_exchange_weak(last, next, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return Stamp(next),
                Err(newer) => last = newer,
            }
        }
    }
}
