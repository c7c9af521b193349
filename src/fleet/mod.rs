//! Life among other nodes: health, lease, drain, discovery, and the part in the handshake budget.

mod budget;
mod consul;
mod course;
mod drain;
mod health;
mod lease;

pub use budget::{Asks, Entry, Gate, Offer, Token};
pub use consul::{ConsulConfig, Doors, Registrar};
pub use course::Others;
pub use drain::{Drain, DrainConfig, Outlook};
pub use health::{Health, Phase, Phases};
pub use lease::hold_lease;
