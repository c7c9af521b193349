use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::delivery::Tally;
use super::encoded::Encoded;
use super::router::{ConnectionInfo, Sessions};
use crate::model::{ChannelName, Target, UserId};

/// What the router asks of a shard, in order.
pub(super) enum Command {
    /// Put a message into the outboxes of its sessions.
    Deliver(Delivered),
    /// Who of this user is here?
    WhereIs {
        user: UserId,
        answer: oneshot::Sender<Vec<ConnectionInfo>>,
    },
    /// Close sessions; answers how many.
    Disconnect {
        sessions: Sessions,
        reason: Arc<str>,
        answer: oneshot::Sender<u32>,
    },
    /// Close one session because its user opened newer ones than the limit allows.
    Replace {
        connection: crate::model::ConnectionId,
    },
    /// Grant a channel to sessions and subscribe them; answers how many once the backplane confirmed.
    Subscribe {
        sessions: Sessions,
        channel: ChannelName,
        answer: oneshot::Sender<u32>,
    },
    /// End that; answers how many.
    Unsubscribe {
        sessions: Sessions,
        channel: ChannelName,
        answer: oneshot::Sender<u32>,
    },
    /// Accept nobody any more.
    StopAccepting,
    /// Close every session with 1012, each at a random moment within the time.
    Drain { spread: Duration },
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
