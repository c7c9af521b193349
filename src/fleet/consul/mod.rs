//! Registers the node's doors at the machine's Consul agent, and takes them out when the node leaves. The agent is never
//! waited for: a node starts, serves and drains without it. Knows of the rest of the node only its health and its weight.

mod agent;
mod config;
mod registrar;
mod registration;

pub use config::ConsulConfig;
pub use registrar::{Doors, Registrar};
