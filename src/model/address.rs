use std::fmt;

use super::{ChannelName, NameError, UserId};

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

/// Why a text is no address of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressError {
    /// It begins with neither kind.
    Kind,
    /// The name of the user or channel is none.
    Name(NameError),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind => f.write_str("must be user:<id> or channel:<name>"),
            Self::Name(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for AddressError {}

impl Address {
    /// Parses the address of a user or a channel: what may have a stream.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let name = AddressError::Name;
        match text.split_once(':') {
            Some(("user", id)) => UserId::parse(id).map(Self::User).map_err(name),
            Some(("channel", channel)) => {
                ChannelName::parse(channel).map(Self::Channel).map_err(name)
            }
            _ => Err(AddressError::Kind),
        }
    }

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
