//! The kinds of disturbance.

/// Something that befalls the servers, or the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// A node is killed and comes back.
    KillNode,
    /// Redis stands still, with its connections open.
    FreezeRedis,
    /// The connections on which nodes listen are cut.
    CutSubscriptions,
    /// All the others are.
    CutCommands,
    /// Redis is killed and comes back with all that it answered.
    KillRedis,
    /// It comes back as it was some time ago.
    OlderSnapshot,
    /// It comes back empty.
    EmptyRedis,
    /// A replica that has fallen behind takes its place.
    LaggingReplica,
    /// Clients vanish without a word and return.
    Vanish,
}

impl Blow {
    pub(super) const ALL: [Self; 9] = [
        Self::KillNode,
        Self::FreezeRedis,
        Self::CutSubscriptions,
        Self::CutCommands,
        Self::KillRedis,
        Self::OlderSnapshot,
        Self::EmptyRedis,
        Self::LaggingReplica,
        Self::Vanish,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KillNode => "a node is killed",
            Self::FreezeRedis => "Redis stands still",
            Self::CutSubscriptions => "subscriber links are cut",
            Self::CutCommands => "command links are cut",
            Self::KillRedis => "Redis is killed",
            Self::OlderSnapshot => "Redis from a snapshot",
            Self::EmptyRedis => "Redis comes back empty",
            Self::LaggingReplica => "a lagging replica takes over",
            Self::Vanish => "clients vanish",
        }
    }

    /// Whether all that was accepted is still there afterwards.
    pub(super) fn keeps(self) -> bool {
        !matches!(
            self,
            Self::OlderSnapshot | Self::EmptyRedis | Self::LaggingReplica
        )
    }
}
