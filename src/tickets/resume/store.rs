use std::fmt;

use super::super::StoreError;
use crate::backplane::Later;
use crate::model::{ConnectionId, Lineage, Secret, UserId};

/// By what a resume ticket is known: the random bytes in it. Its `Display` is lower-case hex. It opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResumeId(pub(super) [u8; ResumeId::BYTES]);

impl ResumeId {
    pub(super) const BYTES: usize = 24;
}

impl fmt::Display for ResumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a resume ticket is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The connection that it is to open.
    pub connection: ConnectionId,
    /// Whether one that was used already opens another, which takes the place of the one that it opened before. A browser's
    /// `EventSource` shows the same ticket until it got a newer one.
    pub again: bool,
}

/// A resume ticket that is genuine, with what the store has to decide by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Which one.
    pub id: ResumeId,
    /// Whose.
    pub user: UserId,
    /// What it continues.
    pub lineage: Lineage,
    /// When it dies, in Unix milliseconds.
    pub expires: u64,
    /// What for.
    pub opening: Opening,
}

/// What the store says to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is used now, for the first time.
    First,
    /// It was used before, by this connection, whose place is taken now.
    Again(ConnectionId),
    /// It is good for nothing; nothing was changed.
    Refused(ResumeRefusal),
}

/// Why a resume ticket is not good. To who shows it they look alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeRefusal {
    /// It cannot be one: too long, or not base64url.
    Malformed,
    /// It was not sealed by the cluster's secret, or was tampered with.
    Seal,
    /// Its own life, or that of the session, is over.
    Expired,
    /// It has opened its connection.
    Used,
    /// The user was disconnected since.
    UserRevoked,
    /// A connection of this line was disconnected.
    ConnectionRevoked,
}

impl ResumeRefusal {
    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Seal => "seal",
            Self::Expired => "expired",
            Self::Used => "used",
            Self::UserRevoked => "user_revoked",
            Self::ConnectionRevoked => "connection_revoked",
        }
    }
}

/// What of a user's is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// Every session that began before now, and all that continues them.
    All,
    /// One line of sessions, by the first of them.
    Line(ConnectionId),
}

/// Where it is kept which resume tickets were used, and what was revoked. All its times are by one clock, the backplane's.
pub trait ResumeStore: Send + Sync + 'static {
    /// That clock, in Unix milliseconds; never ahead.
    fn now(&self) -> u64;

    /// The cluster's own secret, for nodes whose configuration names none: what is kept, else what is offered, which is
    /// kept then.
    ///
    /// # Errors
    /// The store is away.
    fn secret(&self, offered: Secret) -> Later<'_, Result<Secret, StoreError>>;

    /// Marks a ticket as used, in one atomic step with the look at its life, at what was revoked, and at who used it.
    ///
    /// # Errors
    /// The store is full or away; then it may be marked all the same.
    fn take(&self, shown: Shown) -> Later<'_, Result<Taken, StoreError>>;

    /// Revokes for as long as any resume ticket may live.
    ///
    /// # Errors
    /// The store is full or away; then it is not known whether it is revoked.
    fn revoke(&self, user: UserId, what: Revoked) -> Later<'_, Result<(), StoreError>>;
}
