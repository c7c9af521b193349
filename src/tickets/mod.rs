//! Tickets: one-time proofs that open a connection. Issued for a [`Grant`](crate::model::Grant), redeemed once; at rest
//! only their SHA-256 is stored. Resume tickets, which continue a session, are sealed and not stored. A JWT is verified
//! here too. This room knows no socket and no request: a door translates
//! what it got into a [`GrantFields`], a ticket's text or a JWT, and what comes back into an answer.

mod fields;
mod issuer;
pub mod jwt;
mod memory;
mod redis;
mod resume;
mod slots;
mod store;
mod ticket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::units;

pub use fields::{GrantFields, SESSION_SECONDS_MAX, parse_device, parse_since};
pub use issuer::{IssueError, IssueRequest, Issued, Tickets};
pub use jwt::{JwtConfig, JwtError, JwtRefusal, JwtVerifier};
pub use memory::MemoryTickets;
pub use redis::RedisTickets;
pub use resume::{
    Checked, MemoryResume, Opening, Pass, RESUME_LIFE_MAX, RESUME_MAX_BYTES, RedisResume, ResumeId,
    ResumeRefusal, ResumeStore, ResumeTickets, Revoked, SealError, Shown, Taken,
};
pub use slots::{SLOT_GRACE, Seen, SlotStore, TicketSlot, Turn, ends};
pub use store::{Presented, Redemption, StoreError, TicketStore};
pub use ticket::{Ticket, TicketHash};

/// The shortest life of a ticket.
pub const TTL_MIN: Duration = Duration::from_secs(5);
/// The longest life of a ticket.
pub const TTL_MAX: Duration = Duration::from_secs(300);

/// What tells the time that passes, so that a test can move it.
type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// `[tickets]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct TicketConfig {
    /// A ticket's life unless the caller names one: 5–300 s.
    #[serde(with = "units::duration")]
    pub ttl: Duration,
    /// Tickets that may wait to be redeemed, at most (memory backplane).
    pub max_pending: usize,
}

impl Default for TicketConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            max_pending: 1_000_000,
        }
    }
}

impl TicketConfig {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// A sentence with the key and the fix.
    pub fn check(&self) -> Result<(), String> {
        if !(TTL_MIN..=TTL_MAX).contains(&self.ttl) {
            return Err("[tickets] ttl must be from \"5s\" to \"300s\"".into());
        }
        if self.max_pending == 0 {
            return Err("[tickets] max_pending must be at least 1".into());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Time that passes only when the test says so.
    #[derive(Clone, Default)]
    pub(crate) struct ManualClock(Arc<AtomicU64>);

    impl ManualClock {
        pub(crate) fn advance(&self, by: Duration) {
            let millis = u64::try_from(by.as_millis()).expect("a short time");
            self.0.fetch_add(millis, Ordering::SeqCst);
        }

        pub(crate) fn clock(&self) -> Clock {
            let (start, passed) = (Instant::now(), self.0.clone());
            Arc::new(move || start + Duration::from_millis(passed.load(Ordering::SeqCst)))
        }
    }

    #[test]
    fn the_configured_life_keeps_to_the_limits() {
        let with = |ttl| TicketConfig {
            ttl: Duration::from_millis(ttl),
            ..TicketConfig::default()
        };
        assert_eq!(TicketConfig::default().check(), Ok(()));
        for good in [5_000, 300_000] {
            assert_eq!(with(good).check(), Ok(()));
        }
        for bad in [0, 4_999, 300_001] {
            assert!(with(bad).check().is_err_and(|e| e.contains("ttl")), "{bad}");
        }
        let none = TicketConfig {
            max_pending: 0,
            ..TicketConfig::default()
        };
        assert!(none.check().is_err_and(|e| e.contains("max_pending")));
    }
}
