use std::time::Duration;

/// The longest pause.
const MOST: Duration = Duration::from_secs(3);
const FIRST: Duration = Duration::from_millis(50);

/// Pauses between attempts: doubling up to 3 s, each drawn at random from its upper half, so that a fleet does not come
/// back as one.
#[derive(Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let most = FIRST.saturating_mul(1 << self.attempts.min(10)).min(MOST);
        self.attempts = self.attempts.saturating_add(1);
        most.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_within_three_seconds() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= FIRST && pauses.iter().all(|p| *p <= MOST && *p >= FIRST / 2));
        assert!(pauses[20..].iter().all(|p| *p >= MOST / 2));
        assert!(
            pauses[20..].windows(2).any(|pair| pair[0] != pair[1]),
            "no jitter"
        );
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
