use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::{Body, ChannelName, Class, ConnectionId, DeviceName, MessageId, NodeId, UserId};

/// What became of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Connections on this node took it; no other node listens.
    DeliveredLocally,
    /// At least one other node listens and was sent it.
    DispatchedToCluster,
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
    /// It is not known whether the message was accepted.
    Unknown {
        /// The message's id.
        id: MessageId,
        /// What happened.
        problem: String,
    },
}

/// One of a user's connections, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The node that holds it.
    pub node: NodeId,
    /// Its id.
    pub connection: ConnectionId,
    /// The device that it named.
    pub device: Option<DeviceName>,
    /// When it was admitted.
    pub connected_at: SystemTime,
    /// What it subscribes to.
    pub channels: Vec<ChannelName>,
}

/// Whom a control call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sessions {
    /// All of a user's.
    OfUser(UserId),
    /// One.
    Connection(ConnectionId),
}

/// What a control call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Connections that it was applied to.
    pub applied: u32,
    /// Nodes that did not confirm in time.
    pub unknown: u32,
}

/// Where services' and clients' wishes enter: accepts messages into the backplane and asks the shards.
pub struct Router {}

impl Router {
    /// Pushes to one user: all connections, on all nodes.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn push(&self, user: UserId, body: Body, class: Class) -> Result<Accepted, Refusal> {
        unimplemented!("{user} {body:?} {class:?}")
    }

    /// Publishes to a channel.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn publish(
        &self,
        channel: ChannelName,
        body: Body,
        class: Class,
    ) -> Result<Accepted, Refusal> {
        unimplemented!("{channel} {body:?} {class:?}")
    }

    /// Pushes one body to many users.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn broadcast(
        &self,
        users: Arc<[UserId]>,
        body: Body,
        class: Class,
    ) -> Result<Accepted, Refusal> {
        unimplemented!("{users:?} {body:?} {class:?}")
    }

    /// Pushes one body to every session.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn broadcast_everyone(&self, body: Body, class: Class) -> Result<Accepted, Refusal> {
        unimplemented!("{body:?} {class:?}")
    }

    /// A user's connections, and how many nodes did not answer.
    pub async fn where_is(&self, user: UserId) -> (Vec<ConnectionInfo>, u32) {
        unimplemented!("{user}")
    }

    /// Closes sessions with 4501.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn disconnect(&self, sessions: Sessions, reason: String) -> Result<Applied, Refusal> {
        unimplemented!("{sessions:?} {reason}")
    }

    /// Subscribes sessions to a channel and grants it to them.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn subscribe(
        &self,
        sessions: Sessions,
        channel: ChannelName,
    ) -> Result<Applied, Refusal> {
        unimplemented!("{sessions:?} {channel}")
    }

    /// Ends sessions' subscriptions to a channel and takes the grant back.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn unsubscribe(
        &self,
        sessions: Sessions,
        channel: ChannelName,
    ) -> Result<Applied, Refusal> {
        unimplemented!("{sessions:?} {channel}")
    }

    /// Checks that a ticket or a service may name a channel for a session (its namespace is not `nobody`).
    ///
    /// # Errors
    /// `Invalid` with the field given.
    pub fn check_grantable(
        &self,
        field: &'static str,
        channel: &ChannelName,
    ) -> Result<(), Refusal> {
        unimplemented!("{field} {channel}")
    }
}
