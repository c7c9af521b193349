use std::fmt;

use super::{ChannelName, UserId};

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Every connection of a user.
    User(UserId),
    /// Every session that subscribes to a channel.
    Channel(ChannelName),
    /// Every session.
    Everyone,
    /// A node, by the incarnation in its connections' ids: what nodes ask each other. Internal.
    Node(u64),
}

impl Address {
    /// Its kind, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Channel(_) => "channel",
            Self::Everyone => "everyone",
            Self::Node(_) => "node",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user:{user}"),
            Self::Channel(channel) => write!(f, "channel:{channel}"),
            Self::Everyone => f.write_str("everyone"),
            Self::Node(incarnation) => write!(f, "node:{incarnation:012x}"),
        }
    }
}
