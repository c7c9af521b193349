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
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user:{user}"),
            Self::Channel(channel) => write!(f, "channel:{channel}"),
            Self::Everyone => f.write_str("everyone"),
        }
    }
}
