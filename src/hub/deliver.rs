//! Into the outboxes of a shard's sessions.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::command::Delivered;
use super::encoded::{Encoded, Format};
use super::mend::Missing;
use super::session::{SessionKey, Transport};
use super::state::{State, live};
use crate::model::{Address, Target, unix_millis};
use crate::wire::codec::{self, Opcode};
use crate::wire::frames::ServerFrame;

#[derive(PartialEq, Eq)]
enum Pushed {
    Taken,
    Full,
    Closed,
}

impl State {
    /// Puts a message into the outboxes of its sessions, unless something is missing before it.
    pub(super) fn deliver(&mut self, delivered: Delivered) -> Missing {
        match &delivered.target {
            Target::One(Address::Everyone) => {
                let mut took = 0;
                for key in self.keys() {
                    took += u32::from(self.offer(key, &delivered.encoded));
                }
                self.took(&delivered, took);
            }
            Target::One(address) => {
                let address = address.clone();
                return self.deliver_in_order(&address, delivered);
            }
            Target::Users(users) => {
                let mut took = 0;
                for user in users.iter() {
                    took += self.deliver_volatile(&Address::User(user.clone()), &delivered.encoded);
                }
                self.took(&delivered, took);
            }
        }
        Missing::Nothing
    }

    /// So many outboxes took a message.
    pub(super) fn took(&mut self, delivered: &Delivered, outboxes: u32) {
        if let Some(tally) = &delivered.tally {
            tally.add(outboxes);
        }
        self.hub.metrics.messages_delivered.inc_by(outboxes.into());
        self.settle();
    }

    /// To the members of an address, and to who is behind once it has caught up.
    pub(super) fn deliver_volatile(&mut self, address: &Address, encoded: &Arc<Encoded>) -> u32 {
        if let Some(stream) = self.stream(address) {
            let dropped = stream.keep_waiting(encoded);
            self.hub.metrics.streams.waiting_dropped.inc_by(dropped);
        }
        self.deliver_to(address, encoded)
    }

    /// To the members of an address; answers how many outboxes took it.
    pub(super) fn deliver_to(&mut self, address: &Address, encoded: &Arc<Encoded>) -> u32 {
        if encoded.message().is_expired(unix_millis()) {
            return 0;
        }
        // Taken out for the loop, so that sessions can be changed meanwhile; a session that closes in it only leaves
        // its phase, it is detached later.
        let Some(followers) = self.followers.get_mut(address) else {
            return 0;
        };
        let members = std::mem::take(&mut followers.members);
        let mut slow = Vec::new();
        let mut took = 0;
        for key in &members {
            match self.push(*key, encoded) {
                Pushed::Taken => took += 1,
                Pushed::Full => slow.push(*key),
                Pushed::Closed => {}
            }
        }
        if let Some(followers) = self.followers.get_mut(address) {
            followers.members = members;
        }
        for key in slow {
            took += u32::from(self.offer(key, encoded));
        }
        took
    }

    /// Puts a message into one outbox, after a try to make room; a session without room is a slow consumer.
    pub(super) fn offer(&mut self, key: SessionKey, encoded: &Arc<Encoded>) -> bool {
        if self.push(key, encoded) == Pushed::Full {
            self.flush(key);
            if self.push(key, encoded) == Pushed::Full {
                self.close_slow(key);
                return false;
            }
        }
        self.get(key).is_some_and(|s| s.is_open())
    }

    /// Puts a message of the past into an outbox, if that leaves half of it to what comes now. True if there is nothing
    /// more to do.
    pub(super) fn replay(&mut self, key: SessionKey, encoded: &Arc<Encoded>) -> bool {
        if !self.has_room(key, encoded) {
            self.flush(key);
            if !self.has_room(key, encoded) {
                return false;
            }
        }
        self.push(key, encoded) != Pushed::Full
    }

    fn has_room(&mut self, key: SessionKey, encoded: &Encoded) -> bool {
        let most = self.limits.outbox_bytes / 2;
        let waits = self.get(key).map_or(0, |session| session.outbox.bytes());
        waits == 0 || waits + encoded.frame(Format::Json).len() <= most
    }

    /// Told when a session's outbox has room again.
    pub(super) fn room_of(&mut self, key: SessionKey) -> Rc<Notify> {
        let session = self.get(key);
        session.map_or_else(Rc::default, |s| s.room.get_or_insert_default().clone())
    }

    fn push(&mut self, key: SessionKey, encoded: &Arc<Encoded>) -> Pushed {
        let Some(session) = live(&mut self.slots, key) else {
            return Pushed::Closed;
        };
        if !session.is_open() {
            return Pushed::Closed;
        }
        let frame = encoded.frame(session.format);
        self.unsettled.outbox_bytes -= session.outbox.supersede(encoded) as i64;
        let node_full = !session.outbox.is_empty()
            && self.unsettled.node_outbox_bytes(&self.hub) + frame.len()
                > self.node_outbox_bytes_max;
        let waits = session.outbox.bytes();
        if node_full || (waits > 0 && waits + frame.len() > self.limits.outbox_bytes) {
            return Pushed::Full;
        }
        if let Some(position) = encoded.inbox_position() {
            session.reached = Some(position);
        }
        if let Transport::Events(events) = &mut session.transport
            && let Some(id) = events.moved(encoded.message(), session.reached)
        {
            // A buffer of its own, so that the frame stays shared. Should the frame go before it is written, the next id
            // is the one that counts.
            self.unsettled.outbox_bytes += id.len() as i64;
            session.outbox.push(id, &mut self.pool);
        }
        self.unsettled.outbox_bytes += frame.len() as i64;
        session
            .outbox
            .push_message(frame.clone(), encoded, &mut self.pool);
        if !session.queued {
            session.queued = true;
            self.dirty.push(key);
        }
        Pushed::Taken
    }

    /// Puts a frame of our own into the outbox of an open session.
    pub(super) fn reply(&mut self, key: SessionKey, frame: &ServerFrame<'_>) {
        let Some(session) = self.get(key) else { return };
        match session.format {
            _ if !session.is_open() => {}
            Format::Json => {
                self.push_frame(key, codec::frame(Opcode::Text, frame.to_json().as_bytes()));
            }
            Format::Events => self.reply_event(key, frame),
            Format::Raw => {}
        }
    }

    /// Puts an encoded frame into an outbox, whatever the phase. One that does not fit makes a slow consumer.
    pub(super) fn push_frame(&mut self, key: SessionKey, frame: Bytes) {
        let limit = self.limits.outbox_bytes;
        let Some(session) = live(&mut self.slots, key) else {
            return;
        };
        if session.is_open() && session.outbox.bytes() > limit {
            self.close_slow(key);
            return;
        }
        self.unsettled.outbox_bytes += frame.len() as i64;
        session.outbox.push(frame, &mut self.pool);
        if !session.queued {
            session.queued = true;
            self.dirty.push(key);
        }
    }
}
