//! The doors: where requests come in. A door translates, the hub decides.

pub mod admin;
pub mod config;
mod listener;
pub mod public;
mod secure;
pub mod service;

pub use listener::serve;
