use std::fmt;
use std::net::IpAddr;
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
    /// The client's address, as its node sees it; none = a node of an earlier version does not say.
    pub ip: Option<IpAddr>,
    /// What it subscribes to.
    pub channels: Vec<ChannelName>,
}

/// One session that subscribes to a channel, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Whose.
    pub user: UserId,
    /// Its connection.
    pub connection: ConnectionId,
    /// The device that it named.
    pub device: Option<DeviceName>,
    /// The node that holds it.
    pub node: NodeId,
}

/// Who subscribes to a channel: some, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// At most [`Self::MAX`].
    pub some: Vec<Member>,
    /// How many there are, those that found no place in the list included.
    pub total: u32,
}

impl Members {
    /// How many are listed: with the longest names that is 3 MB, and a gRPC client takes 4.
    pub const MAX: usize = 10_000;

    /// Adds one, which is counted even where the list is full.
    pub fn add(&mut self, member: impl FnOnce() -> Member) {
        if self.some.len() < Self::MAX {
            self.some.push(member());
        }
        self.total = self.total.saturating_add(1);
    }

    /// Adds those of another shard or node.
    pub fn join(&mut self, other: Self) {
        let room = Self::MAX.saturating_sub(self.some.len());
        self.some.extend(other.some.into_iter().take(room));
        self.total = self.total.saturating_add(other.total);
    }
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
    /// Who here subscribes to it?
    Presence(ChannelName),
    /// How many places of this user are taken here, handshakes under way included?
    Places(UserId),
    /// It is beyond its user's limit: close it with 4502; answers how many.
    Evict(ConnectionId),
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The connections that are here.
    Connections(Vec<ConnectionInfo>),
    /// How many sessions it was applied to.
    Applied(u32),
    /// The members of a channel that are here.
    Members(Members),
}
