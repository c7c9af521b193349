//! A node alone: what is published arrives by a function call, and what is kept is kept in this process.

mod budget;
mod stream;
mod streams;

use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;
use tokio::time::Instant;

use self::streams::Kept;
use super::budget::Schedule;
use super::lease::OneLease;
use super::{Arrivals, Backplane, BackplaneClock, Envelope, Here, Later, PublishError, Published};
use crate::model::Address;

/// The backplane of one node alone: what is published arrives by a function call.
pub struct Memory {
    arrivals: Arc<dyn Arrivals>,
    pub(super) lease: OneLease,
    schedule: Mutex<Schedule>,
    clock: BackplaneClock,
    kept: Mutex<Kept>,
    /// What is kept and waits for room in the shards' queues; no more than there are callers.
    late: Mutex<JoinSet<()>>,
}

impl Memory {
    /// A backplane whose only node is the one behind `arrivals`.
    pub fn new(arrivals: Arc<dyn Arrivals>) -> Self {
        Self {
            arrivals,
            lease: OneLease::default(),
            schedule: Mutex::default(),
            clock: BackplaneClock::default(),
            kept: Mutex::default(),
            late: Mutex::default(),
        }
    }
}

impl Backplane for Memory {
    fn publish(
        &self,
        _: Address,
        envelope: Envelope,
        deadline: Instant,
    ) -> Later<'_, Result<Published, PublishError>> {
        Box::pin(async move {
            // Cut off while it waits for room, which comes before it enters any queue.
            tokio::time::timeout_at(deadline, self.arrivals.arrive(envelope))
                .await
                .map_err(|_| PublishError::Busy)?;
            Ok(published())
        })
    }

    fn listen(&self, _: Address) -> Later<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn unlisten(&self, _: &Address) {}

    fn is_deaf(&self, _: &Address, _: u64) -> bool {
        false
    }

    fn ailments(&self) -> Vec<String> {
        Vec::new()
    }

    fn close(&self) -> Later<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What is published here always comes here.
fn published() -> Published {
    Published {
        listeners: 1,
        here: Here::Listens,
        heard: 0,
    }
}
