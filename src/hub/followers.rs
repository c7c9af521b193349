use super::session::{Acks, SessionKey, Subscription};
use super::state::{State, live};
use super::stream::{Stream, TaskGuard};
use crate::model::Address;

/// Who follows an address in this shard.
#[derive(Default)]
pub(super) struct Followers {
    pub(super) members: Vec<SessionKey>,
    /// Handshakes and subscribes that wait for the backplane.
    pub(super) holds: u32,
    /// Where the members are in the address's stream, if it is kept, and who is behind; none until it was looked up.
    pub(super) stream: Option<Box<Stream>>,
    /// A kept message came before that, or one may have been missed.
    pub(super) early: bool,
}

impl Followers {
    /// Every session that follows the address.
    pub(super) fn sessions(&self) -> Vec<SessionKey> {
        let behind = self.stream.iter().flat_map(|stream| stream.behind());
        self.members.iter().copied().chain(behind).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        let level = self.stream.as_ref().is_none_or(|stream| stream.is_level());
        self.members.is_empty() && self.holds == 0 && level
    }
}

impl State {
    /// Makes a session follow an address.
    pub(super) fn attach(&mut self, key: SessionKey, address: Address) {
        let members = &mut self.followers.entry(address.clone()).or_default().members;
        let place = members.len() as u32;
        members.push(key);
        if let Some(session) = self.get(key) {
            session.subscriptions.push(Subscription { address, place });
        }
    }

    /// Makes a session follow an address in whose stream it is behind; this task reads for it.
    pub(super) fn attach_behind(&mut self, key: SessionKey, address: Address, task: TaskGuard) {
        if let Some(stream) = self.stream(&address) {
            stream.falls_behind(key, task);
        }
        if let Some(session) = self.get(key) {
            let place = Subscription::BEHIND;
            session.subscriptions.push(Subscription { address, place });
        }
    }

    /// Makes a session that was behind a member, which then gets what waited for it.
    pub(super) fn join_members(&mut self, key: SessionKey, address: &Address) {
        let Some(followers) = self.followers.get_mut(address) else {
            return;
        };
        let waiting = followers.stream.as_mut().and_then(|s| s.catches_up(key));
        let place = followers.members.len() as u32;
        followers.members.push(key);
        let Some(session) = self.get(key) else { return };
        let mut theirs = session.subscriptions.iter_mut();
        if let Some(theirs) = theirs.find(|s| s.address == *address) {
            theirs.place = place;
        }
        for encoded in waiting.into_iter().flatten() {
            self.offer(key, &encoded);
        }
    }

    /// Ends that. False if it did not follow it.
    pub(super) fn detach(&mut self, key: SessionKey, address: &Address) -> bool {
        let Some(session) = self.get(key) else {
            return false;
        };
        let Some(at) = session
            .subscriptions
            .iter()
            .position(|s| s.address == *address)
        else {
            return false;
        };
        let place = session.subscriptions.swap_remove(at).place;
        if session.subscriptions.is_empty() {
            session.subscriptions = Vec::new();
        }
        let Some(followers) = self.followers.get_mut(address) else {
            return false;
        };
        if place == Subscription::BEHIND {
            followers.stream.as_mut().and_then(|s| s.catches_up(key));
            self.leave_if_unfollowed(address);
            return true;
        }
        followers.members.swap_remove(place as usize);
        let moved = followers.members.get(place as usize).copied();
        if let Some(moved) = moved.and_then(|key| self.get(key))
            && let Some(theirs) = moved
                .subscriptions
                .iter_mut()
                .find(|s| s.address == *address)
        {
            theirs.place = place;
        }
        self.leave_if_unfollowed(address);
        true
    }

    /// Tells the router once nobody here follows an address.
    pub(super) fn leave_if_unfollowed(&mut self, address: &Address) {
        let unfollowed = self.followers.get(address).is_some_and(Followers::is_empty);
        if unfollowed {
            self.followers.remove(address);
            self.hub.unfollow(address, self.index);
        }
    }

    pub(super) fn detach_all(&mut self, key: SessionKey) {
        if let Some(session) = live(&mut self.slots, key)
            && session.acks == Acks::Auto
        {
            self.cursors.hurry(&session.user, session.device.as_ref());
        }
        while let Some(address) = self
            .get(key)
            .and_then(|s| s.subscriptions.last())
            .map(|s| s.address.clone())
        {
            self.detach(key, &address);
        }
    }
}
