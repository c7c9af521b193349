//! The checker: from the logs of a run alone, says whether what was accepted is what was seen. A pure function, so that
//! it can be tried on logs that were made up.

mod audit;
mod follow;
mod order;
mod report;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use crate::body::Key;
use crate::clock::Stamp;
use crate::ledger::{Answer, ClientLog, Push};

pub(crate) use audit::check;
pub(crate) use report::{Fault, Report};

/// Something that was done to the system. It lasts until the next one begins, and what happens meanwhile is its doing.
#[derive(Debug, Clone)]
pub(crate) struct Disturbance {
    pub(crate) name: &'static str,
    /// Whether what was accepted was still kept afterwards: nobody may be told of a loss then.
    pub(crate) keeps: bool,
    pub(crate) began: Stamp,
    /// When everything ran again, and whoever was sent away might return.
    pub(crate) ended: Stamp,
    /// When everyone was connected and had everything; none if that did not come in time.
    pub(crate) settled: Option<Stamp>,
}

/// All that is known of a run.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) pushes: Vec<Push>,
    pub(crate) clients: Vec<ClientLog>,
    /// In order.
    pub(crate) disturbances: Vec<Disturbance>,
    /// By when what was accepted must be seen, from its beginning or from the end of a disturbance.
    pub(crate) bound: Duration,
    /// Whether streams are trimmed while clients are away, so that being told of a loss is no fault.
    pub(crate) trimmed: bool,
}

impl Evidence {
    /// What was the last to be done by then.
    fn disturbance(&self, at: Stamp) -> Option<usize> {
        self.disturbances
            .partition_point(|d| d.began <= at)
            .checked_sub(1)
    }

    /// Whether what was accepted may have been lost, told or not yet told, in some of that time.
    fn may_lose(&self, from: Stamp, to: Stamp) -> bool {
        let first = self.disturbance(from).unwrap_or(0);
        let within = self.disturbances.iter().skip(first);
        let mut within = within.take_while(|d| d.began <= to);
        self.trimmed || within.any(|d| !d.keeps)
    }
}

/// Finds the push that a message comes from.
struct Index<'a> {
    pushes: &'a [Push],
    by_id: HashMap<&'a str, usize>,
    by_key: HashMap<&'a Key, usize>,
}

impl<'a> Index<'a> {
    fn new(pushes: &'a [Push]) -> Self {
        let mut by_id = HashMap::new();
        let mut by_key = HashMap::new();
        for (at, push) in pushes.iter().enumerate() {
            by_key.insert(&push.key, at);
            if let Answer::Accepted { id, .. } = &push.answer {
                by_id.insert(&**id, at);
            }
        }
        Self {
            pushes,
            by_id,
            by_key,
        }
    }

    /// By its id if that was ever answered, else by what its body says.
    fn find(&self, id: &str, key: Option<&Key>) -> Option<usize> {
        let by_id = self.by_id.get(id);
        by_id.or_else(|| self.by_key.get(key?)).copied()
    }

    /// Whether this is the message that was pushed, unchanged, under the id that was answered.
    fn is_whole(&self, at: usize, id: &str, key: Option<&Key>, hash: u64) -> bool {
        let push = &self.pushes[at];
        let right_id = match &push.answer {
            Answer::Accepted { id: answered, .. } => **answered == *id || push.attempts > 1,
            _ => true,
        };
        right_id && key == Some(&push.key) && hash == push.hash
    }
}
