use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Limits;
use super::delivery::Tally;
use super::encoded::Encoded;
use super::leave::Leave;
use crate::model::{Address, Ask, Said, Target};

/// What the router asks of a shard, in order.
pub(super) enum Command {
    /// Put a message into the outboxes of its sessions.
    Deliver(Delivered),
    /// Say or do something about some sessions.
    Ask {
        ask: Ask,
        answer: oneshot::Sender<Said>,
    },
    /// What was published to these addresses may not have come: look what is missing.
    Missed(Arc<[Address]>),
    /// Close one session because its user opened newer ones than the limit allows.
    Replace {
        connection: crate::model::ConnectionId,
    },
    /// Keep to these limits from now on.
    Limits(Arc<Limits>),
    /// Accept nobody any more.
    StopAccepting,
    /// Make every session leave, each at a random moment within the time.
    Drain { how: Leave, spread: Duration },
    /// Nobody is to leave for now, or again.
    Hold(bool),
    /// Close every session now.
    CloseAll,
    /// End the shard: whoever is still here is dropped.
    End,
}

/// One message for the sessions of a shard.
pub(super) struct Delivered {
    pub(super) target: Target,
    pub(super) encoded: Arc<Encoded>,
    /// Counts the outboxes that took it.
    pub(super) tally: Option<Tally>,
}
