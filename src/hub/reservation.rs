use std::rc::Rc;

use super::session::SessionKey;
use super::shard::Shard;
use crate::model::{ConnectionId, Grant, Lineage};

/// The place of a session that is still to come, and so its id: what a ticket is redeemed for must be named before it is
/// there. Given back when dropped.
pub struct Reservation {
    shard: Rc<Shard>,
    pub(super) key: SessionKey,
    /// When it was made, by the backplane's clock: the session counts from then.
    pub(super) since: u64,
    kept: bool,
}

impl Shard {
    /// Makes the id of a session.
    pub fn reserve(self: &Rc<Self>) -> Reservation {
        Reservation {
            shard: self.clone(),
            key: self.state.borrow_mut().next_key(),
            since: self.hub.resume.now(),
            kept: false,
        }
    }

    pub(super) fn id(&self, key: SessionKey) -> ConnectionId {
        ConnectionId {
            incarnation: self.hub.incarnation,
            shard: self.index as u16,
            slot: key.slot,
            generation: key.generation,
        }
    }
}

impl Reservation {
    /// The id of the connection.
    pub fn connection(&self) -> ConnectionId {
        self.shard.id(self.key)
    }

    /// Of whose line the session is.
    pub(super) fn lineage(&self, grant: &Grant) -> Lineage {
        if let Some(resumes) = &grant.resumes {
            return resumes.lineage;
        }
        let seconds = grant.session_seconds;
        Lineage {
            first: self.connection(),
            since: self.since,
            ends: seconds.map(|s| self.since.saturating_add(s.saturating_mul(1000))),
        }
    }

    /// Its session is there now.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.shard.state.borrow_mut().give_back(self.key);
        }
    }
}
