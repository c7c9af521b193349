//! The doors: where requests come in. A door translates, the hub decides.

pub mod config;
