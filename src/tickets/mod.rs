//! Tickets: one-time proofs that open a connection. Issued for a [`Grant`](crate::model::Grant), redeemed once; at rest
//! only their SHA-256 is stored. A JWT is verified here too. This room knows no socket and no request.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units;

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
