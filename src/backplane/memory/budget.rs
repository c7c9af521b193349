use std::future::ready;
use std::sync::PoisonError;

use tokio::time::Instant;

use super::Memory;
use crate::backplane::{Budget, Later, LeaseError, Leased, Pace, Wanted};

impl Budget for Memory {
    fn now(&self) -> u64 {
        self.clock.now()
    }

    fn lease(
        &self,
        pace: Pace,
        wanted: Wanted,
        _: Instant,
    ) -> Later<'_, Result<Leased, LeaseError>> {
        let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        let leased = schedule.lease(pace, wanted, self.clock.now() * 1_000);
        Box::pin(ready(Ok(leased)))
    }
}
