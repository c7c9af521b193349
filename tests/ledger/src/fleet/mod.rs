//! The servers of a run: real processes on loopback, each in a folder of its own, that end when they are dropped.

mod haproxy;
mod node;
mod pipe;
mod process;
mod redis;

use std::net::SocketAddr;

use rand::RngExt as _;

pub(crate) use haproxy::HaProxy;
pub(crate) use node::{Kept, Node, Setup};
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
    /// `/readyz`, for a balancer.
    pub(crate) probe: SocketAddr,
}

/// Ports that are looked through. Below those that Linux gives to outgoing connections: of these there are thousands, and
/// one of them might sit on the port of a node that is to come back.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A free port on loopback. Another process may take it before it is used; then the run ends with that error.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let mut last = None;
    for _ in 0..100 {
        let port = rand::rng().random_range(PORTS);
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return Ok(listener.local_addr()?),
            Err(error) => last = Some(error),
        }
    }
    Err(format!("no port of {PORTS:?} is free on loopback: {last:?}").into())
}
