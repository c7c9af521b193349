use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::{ChannelName, ConnectionId, DeviceName, NodeId, UserId};

/// One of a user's connections, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The node that holds it.
    pub node: NodeId,
    /// Its id.
    pub connection: ConnectionId,
    /// The device that it named.
    pub device: Option<DeviceName>,
    /// The claims of its ticket: a JSON object as text.
    pub claims: Option<Arc<str>>,
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

impl fmt::Display for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfUser(user) => write!(f, "user:{user}"),
            Self::Connection(id) => write!(f, "connection:{id}"),
        }
    }
}

/// What a node is asked about its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Who of this user is here?
    WhereIs(UserId),
    /// Close them with 4501 and a reason; answers how many.
    Disconnect(Sessions, Box<str>),
    /// Grant a channel to them and subscribe them; answers how many once the backplane confirmed.
    Subscribe(Sessions, ChannelName),
    /// End that; answers how many.
    Unsubscribe(Sessions, ChannelName),
    /// Another session continues this one: close it with 1000; answers how many.
    Replace(ConnectionId),
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The connections that are here.
    Connections(Vec<ConnectionInfo>),
    /// How many sessions it was applied to.
    Applied(u32),
}
