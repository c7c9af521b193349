//! Life among other nodes: health, drain, discovery, and the part in the handshake budget.

mod budget;
mod consul;
mod health;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units;

pub use budget::{Asks, Entry, Gate, Offer, Token};
pub use consul::{ConsulConfig, Doors, Registrar};
pub use health::{Health, Phase, Phases};

/// `[drain]`: how a node leaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainConfig {
    /// How long all doors go on accepting after readiness went red, since balancers learn slowly.
    #[serde(with = "units::duration")]
    pub deregister_delay: Duration,
    /// Over how long the sessions are told to leave.
    #[serde(with = "units::duration")]
    pub spread: Duration,
    /// How long a session has to leave after it was told.
    #[serde(with = "units::duration")]
    pub grace: Duration,
    /// How long the platform waits before it kills the process, if it is known: the node warns at start if that is less
    /// than the drain takes.
    #[serde(with = "units::duration")]
    pub termination_grace: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            deregister_delay: Duration::from_secs(5),
            spread: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            termination_grace: Duration::ZERO,
        }
    }
}
