//! What links nodes. A node publishes envelopes to addresses and listens to the addresses that its sessions follow;
//! every envelope, a node's own included, comes back through [`Arrivals`] before it is delivered, so that each address
//! has one order. This room knows messages and addresses, never a session.

mod memory;

use std::future::Future;
use std::pin::Pin;

use serde::{Deserialize, Serialize};

use crate::model::{Address, Message};

pub use memory::Memory;

/// A boxed future, so that a backplane can be chosen at start.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// `[backplane]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackplaneConfig {
    /// What links the nodes.
    pub kind: BackplaneKind,
}

/// The kinds of backplane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackplaneKind {
    /// Within this process: one node alone.
    #[default]
    Memory,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishError {
    /// It is certain that nobody got it.
    Unavailable(String),
    /// It may or may not have got through.
    Unknown(String),
}

/// What links nodes: what a router asks of it.
pub trait Backplane: Send + Sync + 'static {
    /// Publishes one message to its target, once. Answers how many *other* nodes listen: a hint.
    ///
    /// # Errors
    /// Whether it certainly did not leave, or may have.
    fn publish(&self, message: Message) -> Later<'_, Result<u32, PublishError>>;

    /// Makes this node listen to an address. Resolves when whatever is published from then on arrives here; idempotent.
    ///
    /// # Errors
    /// The backplane cannot be reached; a sentence for the operator.
    fn listen(&self, address: Address) -> Later<'_, Result<(), String>>;

    /// Ends that. Messages may go on arriving for a while.
    fn unlisten(&self, address: &Address);
}

/// Where what comes out of a backplane goes: the node's own delivery.
pub trait Arrivals: Send + Sync + 'static {
    /// Takes one message for the sessions of this node; waits while their queues are full.
    fn arrive(&self, message: Message) -> Later<'_, ()>;
}
