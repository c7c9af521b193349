use std::net::IpAddr;
use std::rc::Rc;

use tokio::time::{Instant, timeout_at};

use super::refusal::{Kind, Refusal};
use crate::hub::Shard;

/// A request's circumstances.
pub(super) struct Arrival {
    /// Whose thread serves it.
    pub(super) shard: Rc<Shard>,
    /// The client's address: the connection's, or what a trusted proxy says.
    pub(super) client: IpAddr,
    /// Until when it must be answered: the handshake's time, which runs from the accepted connection.
    pub(super) deadline: Instant,
}

impl Arrival {
    /// Work that waits for others, up to the deadline. Dropped there, it gives back what it holds.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        timeout_at(self.deadline, work).await.unwrap_or_else(|_| {
            Err(Refusal::later(
                Kind::Timeout,
                "what this needs did not answer in time; come back later",
            ))
        })
    }
}
