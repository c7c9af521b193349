use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;

use super::close::CloseReason;
use super::cursors::Cursors;
use super::followers::Followers;
use super::leave::Leaving;
use super::outbox::{OutboxPool, Unsettled, no_slices};
use super::session::{Acks, Phase, Session, SessionKey, Transport};
use super::wheel::{Tick, Wheel, ticks};
use super::{Hub, Limits};
use crate::model::{Address, unix_millis};
use crate::wire::codec::{self, CloseCode, Opcode};
use crate::wire::frames::ServerFrame;

/// How long a client has to answer our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a slow consumer's socket has to take the close frame before it is reset.
const SLOW_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the end of the stream is awaited after the close frames.
const LINGER: Duration = Duration::from_secs(1);

pub(super) struct Slot {
    generation: u32,
    session: Option<Box<Session>>,
}

/// All that a shard owns. Touched only by the shard's thread, and never across an await.
pub(super) struct State {
    pub(super) hub: Arc<Hub>,
    pub(super) index: usize,
    began: Instant,
    pub(super) slots: Vec<Slot>,
    free: Vec<u32>,
    pub(super) followers: HashMap<Address, Followers>,
    pub(super) wheel: Wheel<SessionKey>,
    pub(super) dirty: Vec<SessionKey>,
    pub(super) cursors: Cursors,
    pub(super) pool: OutboxPool,
    pub(super) pong_timeout: Tick,
    message_timeout: Tick,
    /// The drain, while there is one.
    pub(super) leaving: Option<Leaving>,
    /// The node's, at hand: they are looked at for each message of each session.
    pub(super) limits: Arc<Limits>,
    pub(super) node_outbox_bytes_max: usize,
    /// Sessions that the shard's loop must wait for: their sockets are full.
    pub(super) stalled: Vec<SessionKey>,
    /// What was written and queued since it was last settled.
    pub(super) unsettled: Unsettled,
}

impl State {
    pub(super) fn new(hub: Arc<Hub>, index: usize) -> Self {
        let began = Instant::now();
        let limits = hub.limits.now();
        Self {
            pong_timeout: ticks(hub.heartbeat.pong_timeout).max(1),
            message_timeout: ticks(limits.message_timeout).max(1),
            node_outbox_bytes_max: hub.outbox_bytes_max(&limits),
            limits,
            hub,
            index,
            began,
            leaving: None,
            slots: Vec::new(),
            free: Vec::new(),
            followers: HashMap::new(),
            wheel: Wheel::new(began),
            dirty: Vec::new(),
            cursors: Cursors::default(),
            pool: OutboxPool::default(),
            stalled: Vec::new(),
            unsettled: Unsettled::default(),
        }
    }

    /// Keeps to other limits from now on.
    pub(super) fn take_up(&mut self, limits: Arc<Limits>) {
        self.message_timeout = ticks(limits.message_timeout).max(1);
        self.node_outbox_bytes_max = self.hub.outbox_bytes_max(&limits);
        self.limits = limits;
    }

    /// Milliseconds of the shard's clock.
    pub(super) fn millis(&self, now: Instant) -> u32 {
        // Wraps after 49 days; only differences are used.
        now.saturating_duration_since(self.began).as_millis() as u32
    }

    /// The key that the next session will get.
    pub(super) fn next_key(&mut self) -> SessionKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                session: None,
            });
            u32::try_from(self.slots.len() - 1).expect("descriptors are fewer than 2^32")
        });
        SessionKey {
            slot,
            generation: self.slots[slot as usize].generation,
        }
    }

    /// Whether nobody took the place of a session that is still to come.
    pub(super) fn is_reserved(&self, key: SessionKey) -> bool {
        let slot = self.slots.get(key.slot as usize);
        slot.is_some_and(|slot| slot.generation == key.generation && slot.session.is_none())
    }

    /// A session that is still to come is not to come any more; whether there was one.
    pub(super) fn cancel(&mut self, key: SessionKey) -> bool {
        let reserved = self.is_reserved(key);
        if reserved && let Some(slot) = self.slots.get_mut(key.slot as usize) {
            slot.generation = slot.generation.wrapping_add(1);
        }
        reserved
    }

    /// A session that was to come does not.
    pub(super) fn give_back(&mut self, key: SessionKey) {
        self.cancel(key);
        self.free.push(key.slot);
    }

    pub(super) fn insert(&mut self, key: SessionKey, session: Session) {
        if session.format.is_events() {
            self.hub.metrics.event_streams.inc();
        }
        self.slots[key.slot as usize].session = Some(Box::new(session));
        self.hub.metrics.connections.inc();
    }

    pub(super) fn get(&mut self, key: SessionKey) -> Option<&mut Session> {
        live(&mut self.slots, key)
    }

    /// All sessions' keys.
    pub(super) fn keys(&self) -> Vec<SessionKey> {
        let keys = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.session.is_some());
        keys.map(|(index, slot)| SessionKey {
            slot: index as u32,
            generation: slot.generation,
        })
        .collect()
    }

    pub(super) fn close_slow(&mut self, key: SessionKey) {
        self.hub.metrics.slow_consumers.inc();
        self.close(key, CloseReason::SlowConsumer, None);
    }

    /// Begins to close a session: it takes no more messages, and its close frame is the next that it gets, but for a
    /// frame that is partly written.
    pub(super) fn close(&mut self, key: SessionKey, reason: CloseReason, text: Option<&str>) {
        let now = self.wheel.tick(Instant::now());
        let Some(session) = self.get(key) else { return };
        if !session.is_open() {
            return;
        }
        session.phase = match reason {
            CloseReason::SlowConsumer | CloseReason::NoPong => Phase::Closing {
                until: now + ticks(SLOW_TIMEOUT),
                reset: true,
            },
            CloseReason::Protocol { .. } => Phase::Lingering {
                until: now + ticks(LINGER),
            },
            _ => Phase::Closing {
                until: now + ticks(CLOSE_TIMEOUT),
                reset: false,
            },
        };
        let (code, events) = (reason.code(), session.format.is_events());
        if matches!(reason, CloseReason::SlowConsumer) {
            let before = session.outbox.bytes();
            session.outbox.clear_unwritten();
            let dropped = before - session.outbox.bytes();
            self.unsettled.outbox_bytes -= dropped as i64;
        }
        self.hub.metrics.closed(code.get(), reason.name());
        let text = text.unwrap_or(reason.name());
        match events {
            true => self.push_farewell(key, reason, text),
            false => self.push_frame(key, codec::close_frame(code, text)),
        }
        self.detach_all(key);
        if matches!(reason, CloseReason::SlowConsumer)
            && let Some(session) = self.get(key)
        {
            // What was dropped is not written: it comes again.
            session.acks = Acks::Client;
        }
        self.flush(key);
        self.rearm(key);
    }

    /// The client's close frame came: answer it, if it is the first, and end the stream.
    pub(super) fn closed_by_client(&mut self, key: SessionKey, code: Option<CloseCode>) {
        let now = self.wheel.tick(Instant::now());
        let Some(session) = self.get(key) else { return };
        let first = session.is_open();
        session.phase = Phase::Lingering {
            until: now + ticks(LINGER),
        };
        if first {
            let reason = match session.resumed {
                true => CloseReason::Resumed,
                false => CloseReason::Client,
            };
            self.hub
                .metrics
                .closed(code.map_or(1005, CloseCode::get), reason.name());
            let answer = match code {
                Some(code) => codec::close_frame(code, ""),
                None => codec::frame(Opcode::Close, &[]),
            };
            self.push_frame(key, answer);
            self.detach_all(key);
        }
        self.flush(key);
        self.end_if_written(key);
        self.rearm(key);
    }

    /// Ends our side of the stream, if both close frames are there and nothing is left to be written.
    fn end_if_written(&mut self, key: SessionKey) {
        if let Some(session) = live(&mut self.slots, key)
            && session.blocked.is_none()
            && session.outbox.is_empty()
            && !session.transport.is_waiting()
            && matches!(session.phase, Phase::Lingering { .. })
            && !session.transport.end()
        {
            self.stalled.push(key);
        }
    }

    /// Ends a session at once: its socket is closed, or reset.
    pub(super) fn remove(&mut self, key: SessionKey, reset: bool) {
        if self.get(key).is_none() {
            return;
        }
        self.detach_all(key);
        let slot = &mut self.slots[key.slot as usize];
        let Some(mut session) = slot.session.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.slot);
        let waits = session.outbox.bytes() + session.transport.waiting();
        if session.is_open() {
            self.hub.metrics.closed(1006, CloseReason::Lost.name());
        }
        match &mut session.transport {
            Transport::Events(events) => {
                self.hub.metrics.event_streams.dec();
                events.wake();
            }
            // The kernel would go on offering what the client does not take.
            transport if reset => {
                if let Some(socket) = transport.socket() {
                    let _ = SockRef::from(&**socket).set_linger(Some(Duration::ZERO));
                }
            }
            Transport::Socket(_) => {}
            // Without it the client cannot tell our end from that of somebody in between.
            Transport::Tls(tls) => {
                tls.end();
            }
        }
        self.unsettled.outbox_bytes -= waits as i64;
        self.settle();
        self.hub.metrics.connections.dec();
    }

    /// Writes what a session's socket takes of its outbox.
    pub(super) fn flush(&mut self, key: SessionKey) {
        let now = Instant::now();
        let Some(session) = live(&mut self.slots, key) else {
            return;
        };
        if session.blocked.is_some()
            || (session.outbox.is_empty() && !session.transport.is_waiting())
        {
            return;
        }
        if let Transport::Events(events) = &mut session.transport {
            return events.wake();
        }
        let unsettled = &mut self.unsettled;
        unsettled.outbox_bytes -= session.outbox.drop_expired(unix_millis) as i64;
        let waited = session.outbox.bytes() + session.transport.waiting();
        let failed = loop {
            let mut slices = no_slices();
            let count = session.outbox.slices(&mut slices);
            if count == 0 && !session.transport.is_waiting() {
                break false;
            }
            match session.transport.try_write_vectored(&slices[..count]) {
                // Nothing was left but what had been encrypted before, and it is out.
                Ok(0) if count == 0 => {}
                Ok(0) => break true,
                Ok(written) => {
                    unsettled.writes += 1;
                    unsettled.bytes_out += written as u64;
                    unsettled.frames_out += session.outbox.advance(written, &mut self.pool);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stalled.push(key);
                    break false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        let waits = session.outbox.bytes() + session.transport.waiting();
        unsettled.outbox_bytes -= waited as i64 - waits as i64;
        if failed {
            return self.remove(key, false);
        }
        self.wrote(key, now);
        self.end_if_written(key);
    }

    /// Takes frames out of an outbox for who writes them.
    pub(super) fn take_frames(&mut self, key: SessionKey, most: usize) -> Bytes {
        let Some(session) = live(&mut self.slots, key) else {
            return Bytes::new();
        };
        let (bytes, frames) = session.outbox.take(most, &mut self.pool);
        let unsettled = &mut self.unsettled;
        unsettled.outbox_bytes -= bytes.len() as i64;
        unsettled.writes += 1;
        unsettled.bytes_out += bytes.len() as u64;
        unsettled.frames_out += frames;
        bytes
    }

    /// Something of a session was written: who waits for room, and its cursor, follow.
    pub(super) fn wrote(&mut self, key: SessionKey, now: Instant) {
        let (millis, tick) = (self.millis(now), self.wheel.tick(now));
        let Some(session) = live(&mut self.slots, key) else {
            return;
        };
        session.last_write = millis;
        session.sent = tick;
        if session.outbox.bytes() <= self.limits.outbox_bytes / 4
            && let Some(room) = session.room.take()
        {
            room.notify_one();
        }
        if session.acks == Acks::Auto
            && session.outbox.is_empty()
            && !session.transport.is_waiting()
            && let Some(reached) = session.reached
            && session.told != reached.offset
        {
            session.told = reached.offset;
            let (user, device) = (session.user.clone(), session.device.clone());
            self.cursors.written(user, device, reached);
        }
    }

    /// Adds to the node's counters what this shard wrote and queued: once for each message and each turn of the loop.
    pub(super) fn settle(&mut self) {
        self.unsettled.settle(&self.hub.metrics);
    }

    /// Something came from the client.
    pub(super) fn heard(&mut self, key: SessionKey) {
        let now = self.wheel.tick(Instant::now());
        if let Some(session) = self.get(key) {
            session.heard = now;
            // The next ping may be due before the answer to this one would have been late.
            if std::mem::take(&mut session.pinged) > 0 {
                self.rearm(key);
            }
        }
    }

    /// The client has, or has not, begun a message that is not finished.
    pub(super) fn set_unfinished(&mut self, key: SessionKey, unfinished: bool) {
        let now = self.wheel.tick(Instant::now()).max(1);
        let Some(session) = self.get(key) else { return };
        match (unfinished, session.unfinished) {
            (false, _) => session.unfinished = 0,
            (true, 0) => {
                session.unfinished = now;
                self.rearm(key);
            }
            (true, _) => {}
        }
    }

    /// Sees to it that the wheel comes when the session is due next.
    pub(super) fn rearm(&mut self, key: SessionKey) {
        let (pong_timeout, message_timeout) = (self.pong_timeout, self.message_timeout);
        let held = self.is_held();
        let Some(session) = self.get(key) else { return };
        if let Some(due) = session.next_due(pong_timeout, message_timeout, held)
            && (session.armed == 0 || due < session.armed)
        {
            let armed = self.wheel.arm(key, due);
            if let Some(session) = self.get(key) {
                session.armed = armed;
            }
        }
    }

    /// The wheel came for a session: do what is due.
    pub(super) fn due(&mut self, key: SessionKey, armed: Tick, now: Tick) {
        let (pong_timeout, message_timeout) = (self.pong_timeout, self.message_timeout);
        let held = self.is_held();
        let Some(session) = self.get(key) else { return };
        if session.armed != armed {
            // It was armed anew for an earlier moment since.
            return;
        }
        session.armed = 0;
        match session.phase {
            Phase::Closing { until, reset } if until <= now => return self.remove(key, reset),
            Phase::Lingering { until } if until <= now => return self.remove(key, false),
            Phase::Closing { .. } | Phase::Lingering { .. } => {}
            Phase::Open if session.ends > 0 && session.ends <= now => {
                return self.close(key, CloseReason::SessionEnded, None);
            }
            Phase::Open
                if session.unfinished > 0 && session.unfinished + message_timeout <= now =>
            {
                return self.close(key, CloseReason::TooSlow, None);
            }
            Phase::Open
                if session.slot > 0 && session.slot <= now && (!held || session.resumed) =>
            {
                return self.make_leave(key);
            }
            Phase::Open
                if session
                    .next_due(pong_timeout, message_timeout, held)
                    .is_some_and(|due| due <= now) =>
            {
                if session.format.is_events() {
                    self.beat_events(key, now);
                    return self.rearm(key);
                }
                if session.pinged > 0 {
                    return self.close(key, CloseReason::NoPong, None);
                }
                session.pinged = now.max(1);
                let frame = if session.ping_frame {
                    codec::frame(Opcode::Text, ServerFrame::Ping.to_json().as_bytes())
                } else {
                    codec::frame(Opcode::Ping, &[])
                };
                self.push_frame(key, frame);
            }
            Phase::Open => {}
        }
        self.rearm(key);
    }
}

pub(super) fn live(slots: &mut [Slot], key: SessionKey) -> Option<&mut Session> {
    let slot = slots.get_mut(key.slot as usize)?;
    (slot.generation == key.generation)
        .then_some(slot.session.as_deref_mut())
        .flatten()
}
