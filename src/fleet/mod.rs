//! Life among other nodes: health, lease, drain, discovery.

mod consul;
mod course;
mod drain;
mod health;
mod lease;

pub use consul::{ConsulConfig, Doors, Registrar};
pub use course::Others;
pub use drain::{Drain, DrainConfig, Outlook};
pub use health::{Health, Phase, Phases};
pub use lease::hold_lease;
