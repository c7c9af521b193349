//! What links nodes. A node publishes envelopes to addresses and listens to the addresses that its sessions follow;
//! every envelope, a node's own included, comes back through [`Arrivals`] before it is delivered, so that each address
//! has one order. This room knows messages and addresses, never a session.

mod budget;
mod clock;
mod config;
mod envelope;
mod lease;
mod memory;
pub mod redis;
mod streams;

use std::future::Future;
use std::pin::Pin;

use tokio::time::Instant;

use crate::model::Address;

pub use budget::{Budget, LeaseError, Leased, Pace, Wanted};
pub use clock::BackplaneClock;
pub use config::{BackplaneConfig, BackplaneKind, BackplaneUrl};
pub use envelope::{Answer, Envelope, EnvelopeError, Question, Sealer};
pub use lease::{Leases, NodeLease};
pub use memory::Memory;
pub use streams::{
    Append, AppendError, Appended, CursorMove, Durability, From, Keep, Once, Opened, Page, Streams,
    Top,
};

/// A boxed future, so that a backplane can be chosen at start.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What became of a published envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// How many nodes listened, this one included if it did. A hint: it counts who lingers, who is frozen, and who only
    /// looks on.
    pub listeners: u32,
    /// Whether this node was one of them.
    pub here: Here,
    /// How much the link of the address had brought before; for [`Backplane::is_deaf`].
    pub heard: u64,
}

impl Published {
    /// Whether the envelope comes back to this node, or may.
    pub fn may_echo(&self) -> bool {
        match self.here {
            Here::Listens => true,
            // It was counted, or another one was.
            Here::Changing => self.listeners > 0,
            Here::Silent | Here::Away => false,
        }
    }
}

/// Whether a node gets its own envelope back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// It listened: the envelope comes.
    Listens,
    /// It did not listen.
    Silent,
    /// It began or ceased to listen meanwhile: it may come.
    Changing,
    /// It follows the address, but its link is not whole: it does not come, or much later.
    Away,
}

/// Why an envelope was not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishError {
    /// It is certain that nobody got it.
    Unavailable(String),
    /// This node is too busy: there was no room within the deadline, and nobody got it.
    Busy,
    /// It may or may not have got through.
    Unknown(String),
}

/// What links nodes: what a router asks of it.
pub trait Backplane: Send + Sync + 'static {
    /// Publishes one envelope to an address, once, and answers by the deadline.
    ///
    /// # Errors
    /// Whether it certainly did not leave, or may have.
    fn publish(
        &self,
        to: Address,
        envelope: Envelope,
        deadline: Instant,
    ) -> Later<'_, Result<Published, PublishError>>;

    /// Makes this node listen to an address. Resolves when whatever is published from then on arrives here; idempotent.
    ///
    /// # Errors
    /// The backplane cannot be reached; a sentence for the operator.
    fn listen(&self, address: Address) -> Later<'_, Result<(), String>>;

    /// Ends that. Messages may go on arriving for a while.
    fn unlisten(&self, address: &Address);

    /// How many nodes listen to an address. A hint, as in [`Published::listeners`].
    ///
    /// # Errors
    /// The backplane cannot be reached; a sentence for the operator.
    fn listeners(&self, address: Address) -> Later<'_, Result<u32, String>>;

    /// Whether the link of an address has brought nothing at all since this much: where an echo was due, it hangs.
    fn is_deaf(&self, address: &Address, heard: u64) -> bool;

    /// Why this node should get no new connections, as far as the backplane is the reason.
    fn ailments(&self) -> Vec<String>;

    /// Ends its tasks. What is published from then on is refused.
    fn close(&self) -> Later<'_, ()>;
}

/// Where what comes out of a backplane goes: the node's own delivery.
pub trait Arrivals: Send + Sync + 'static {
    /// Takes one envelope for this node; waits while its queues are full.
    fn arrive(&self, envelope: Envelope) -> Later<'_, ()>;

    /// What was published to these addresses lately may not have come, and will not; from now on it comes again.
    fn missed(&self, addresses: Vec<Address>) -> Later<'_, ()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_echo_is_awaited_of_what_nobody_was_counted_for() {
        let published = |here, listeners| Published {
            listeners,
            here,
            heard: 0,
        };
        let may = [Here::Listens, Here::Changing, Here::Silent, Here::Away]
            .map(|here| [0, 1].map(|listeners| published(here, listeners).may_echo()));
        // Redis's count is a hint: who listens waits whatever it says.
        let expected = [[true; 2], [false, true], [false; 2], [false; 2]];
        assert_eq!(may, expected);
    }
}
