//! Life among other nodes: health, lease and drain.

mod course;
mod drain;
mod health;
mod lease;

pub use course::Others;
pub use drain::{Drain, DrainConfig, Outlook};
pub use health::{Health, Phase, Phases};
pub use lease::hold_lease;
