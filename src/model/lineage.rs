use super::{ChannelName, ConnectionId};

/// A session, and those that continue it by resume tickets: what they have in common. Times are by the backplane's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// The first of them: the one that an ordinary ticket (or a JWT) opened.
    pub first: ConnectionId,
    /// When that one was opened, or a moment before, in Unix milliseconds: whoever is disconnected after that, is
    /// disconnected with all that continues it.
    pub since: u64,
    /// When the last of them ends, in Unix milliseconds; none = there is no end. Never extended.
    pub ends: Option<u64>,
}

/// What a session that continues another takes over from it, besides its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumes {
    /// Of whose line it is.
    pub lineage: Lineage,
    /// Whose place it takes: the session for which the ticket was sealed, and one that the same ticket opened since.
    pub replaces: Vec<ConnectionId>,
    /// What the session for which the ticket was sealed subscribed to.
    pub subscribed: Vec<ChannelName>,
}
