use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Later, Memory};

/// What a node says of itself, for as long as it lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeLease {
    /// Its name.
    pub node: String,
    /// This run of it, as in its connections' ids, in hex.
    pub incarnation: String,
    /// Its version.
    pub version: String,
    /// Open connections.
    pub connections: u64,
    /// How busy its busiest shard is: 0 to 1.
    pub load: f64,
    /// When it started, Unix milliseconds.
    pub since: u64,
    /// It was told to leave.
    pub draining: bool,
    /// A client that comes to it is served. Nodes of before did not say so, and count as ready.
    #[serde(default = "ready")]
    pub ready: bool,
}

fn ready() -> bool {
    true
}

impl NodeLease {
    /// How long a lease lives.
    pub const LIFE: Duration = Duration::from_secs(10);
    /// How often it is renewed.
    pub const RENEWAL: Duration = Duration::from_secs(3);
}

/// Which nodes there are: each renews a lease, and who is silent is gone when it lapses.
pub trait Leases: Send + Sync + 'static {
    /// Writes this node's lease.
    ///
    /// # Errors
    /// A sentence for the operator.
    fn renew(&self, lease: NodeLease) -> Later<'_, Result<(), String>>;

    /// Ends a lease.
    ///
    /// # Errors
    /// As above.
    fn release(&self, incarnation: String) -> Later<'_, Result<(), String>>;

    /// The leases that have not lapsed, in no order.
    ///
    /// # Errors
    /// As above.
    fn nodes(&self) -> Later<'_, Result<Vec<NodeLease>, String>>;
}

/// The lease of a node alone.
#[derive(Default)]
pub(super) struct OneLease(Mutex<Option<NodeLease>>);

impl Leases for Memory {
    fn renew(&self, lease: NodeLease) -> Later<'_, Result<(), String>> {
        *self.lease.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
        Box::pin(std::future::ready(Ok(())))
    }

    fn release(&self, _: String) -> Later<'_, Result<(), String>> {
        *self.lease.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Box::pin(std::future::ready(Ok(())))
    }

    fn nodes(&self) -> Later<'_, Result<Vec<NodeLease>, String>> {
        let lease = self.lease.0.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(std::future::ready(Ok(lease.iter().cloned().collect())))
    }
}
