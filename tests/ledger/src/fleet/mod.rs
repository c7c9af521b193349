//! The servers of a run: real processes on loopback, each in a folder of its own, that end when they are dropped.

mod node;
mod pipe;
mod process;
mod redis;

use std::net::SocketAddr;

pub(crate) use node::{Kept, Node};
pub(crate) use pipe::Pipe;
pub(crate) use redis::{Load, Redis};

/// An error for whoever runs the tool.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What producers and clients show at the service door. It opens nothing but the nodes of a run.
pub(crate) const API_KEY: &str = "tk_ledger-and-nothing-else-000000000000000000";
/// Its SHA-256.
pub(crate) const API_KEY_SHA256: &str =
    "96919cdc4e3c92bd0fc723a271efbbdbefcca7dda71435bd364b60e6ab587e67";

/// Where a node is reached. A restart does not change it.
#[derive(Debug, Clone)]
pub(crate) struct Doors {
    pub(crate) public: SocketAddr,
    pub(crate) service: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A free port on loopback. Another process may take it before it is used; then the run ends with that error.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
