use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant as Deadline;

use crate::backplane::{Durability, Once};
use crate::model::{Body, Class, MessageId, Position, UserId};

/// What became of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Connections on this node took it; no other node listens.
    DeliveredLocally,
    /// At least one other node listens and was sent it.
    DispatchedToCluster,
    /// Nobody is connected; it waits in the stream of its address.
    Stored,
    /// Nobody is connected, and it was not kept.
    NobodyConnected,
}

/// The answer to an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// What became of it.
    pub status: Status,
    /// Its id.
    pub id: MessageId,
    /// Outboxes on this node that took it.
    pub local_connections: u32,
    /// Other nodes that listen: a hint.
    pub other_nodes: u32,
    /// The cluster could not be asked in full.
    pub degraded: bool,
    /// Just behind it in the stream of its address; none = it is not kept.
    pub position: Option<Position>,
    /// Where it is kept.
    pub durability: Option<Durability>,
    /// It was accepted before, by its idempotency key: these are the first answer's id and position.
    pub duplicate: bool,
}

/// A broadcast that was accepted, in full or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BroadcastAccepted {
    /// Its sums; the position is of no one stream.
    pub whole: Accepted,
    /// For how many users it was accepted.
    pub users: u32,
    /// For whom it was not, or nobody knows.
    pub failures: Vec<(UserId, Refusal)>,
}

/// What is to be pushed or published.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What it carries.
    pub body: Body,
    /// Whether it is stored.
    pub class: Class,
    /// After how long it is not to be sent any more.
    pub ttl: Option<Duration>,
    /// It supersedes an unsent one of its address with the same key; live only.
    pub collapse_key: Option<Arc<str>>,
    /// What makes a retry safe.
    pub once: Option<Once>,
    /// When the answer must leave.
    pub deadline: Deadline,
}

impl Draft {
    /// A body with no wishes.
    pub fn new(body: Body, deadline: Deadline) -> Self {
        Self {
            body,
            class: Class::Unset,
            ttl: None,
            collapse_key: None,
            once: None,
            deadline,
        }
    }
}

/// Why a message, or a control call, was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request is wrong: which field, and the rule.
    Invalid {
        /// The field, by its name in the service API.
        field: &'static str,
        /// The rule that it breaks, to be read after the field's name.
        problem: String,
    },
    /// The node is too busy; nothing was accepted.
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The backplane cannot be reached; nothing was accepted.
    Unavailable(String),
    /// The idempotency key was used for something else within its life.
    Conflict,
    /// It is not known whether the message was accepted.
    Unknown {
        /// The message's id.
        id: MessageId,
        /// What happened.
        problem: String,
    },
}

/// What a control call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Connections that it was applied to.
    pub applied: u32,
    /// Nodes that did not confirm in time.
    pub unknown: u32,
}

impl Accepted {
    /// A message that nobody was there for, and that is not kept.
    pub(super) fn nowhere(id: MessageId) -> Self {
        Self {
            status: Status::NobodyConnected,
            id,
            local_connections: 0,
            other_nodes: 0,
            degraded: false,
            position: None,
            durability: None,
            duplicate: false,
        }
    }

    /// Adds one user's push to a broadcast's sums.
    pub(super) fn add(&mut self, one: &Self) {
        self.local_connections += one.local_connections;
        self.other_nodes = self.other_nodes.max(one.other_nodes);
        self.degraded |= one.degraded;
        self.duplicate &= one.duplicate;
        self.durability = self.durability.or(one.durability);
    }
}

/// What became of a message by who is there.
pub(super) fn status(others: u32, local: u32) -> Status {
    match (others, local) {
        (1.., _) => Status::DispatchedToCluster,
        (0, 1..) => Status::DeliveredLocally,
        (0, 0) => Status::NobodyConnected,
    }
}
