use std::sync::Arc;

use super::{Arrivals, Backplane, Later, PublishError};
use crate::model::{Address, Message};

/// The backplane of one node alone: what is published arrives by a function call.
pub struct Memory {
    arrivals: Arc<dyn Arrivals>,
}

impl Memory {
    /// A backplane whose only node is the one behind `arrivals`.
    pub fn new(arrivals: Arc<dyn Arrivals>) -> Self {
        Self { arrivals }
    }
}

impl Backplane for Memory {
    fn publish(&self, message: Message) -> Later<'_, Result<u32, PublishError>> {
        Box::pin(async move {
            self.arrivals.arrive(message).await;
            Ok(0)
        })
    }

    fn listen(&self, _: Address) -> Later<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn unlisten(&self, _: &Address) {}
}
