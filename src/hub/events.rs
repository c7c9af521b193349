//! Sessions whose frames are server-sent events: the body of an HTTP response takes them out of the outbox.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;

use super::close::CloseReason;
use super::session::{SessionKey, Transport};
use super::shard::{Prepared, Shard};
use super::state::State;
use super::wheel::{Tick, ticks};
use super::{Format, Reservation};
use crate::model::{
    Address, ChannelName, Grant, Message, Position, Secret, Since, Target, unix_millis,
};
use crate::tickets::{Pass, RESUME_LIFE_MAX, SealError};
use crate::wire::events::{self, EventId};
use crate::wire::frames::ServerFrame;

/// Bytes that a body takes at once.
const TAKEN_MAX: usize = 64 << 10;
/// How long a client waits before it comes back, in milliseconds: a crowd that lost its node at once is spread over it.
const RETRY: std::ops::Range<u64> = 1_000..5_000;

/// What a session has beside its outbox, if its frames are events.
pub(super) struct Events {
    /// Who waits for frames.
    waker: Option<Waker>,
    /// What the client comes back with.
    ticket: Secret,
    /// The ticket does not say any more what the session subscribes to.
    stale: bool,
    /// Where it is in kept channels, once its outbox is written.
    channels: Vec<(ChannelName, Position)>,
    /// When the ticket is renewed.
    pub(super) renewal: Tick,
}

impl Events {
    fn new(ticket: Secret, channels: Vec<(ChannelName, Position)>, renewal: Tick) -> Self {
        Self {
            waker: None,
            ticket,
            stale: false,
            channels,
            renewal,
        }
    }

    /// Wakes who waits for frames, or for the end.
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The line with the id of what is queued next.
    fn id_line(&self, inbox: Option<Position>) -> Bytes {
        let id = events::positions(self.ticket.expose(), inbox, &self.channels);
        events::id_line(&id).into()
    }

    fn reached(&mut self, channel: &ChannelName, position: Position) {
        match self.channels.iter_mut().find(|(name, _)| name == channel) {
            Some((_, at)) => *at = position,
            None => self.channels.push((channel.clone(), position)),
        }
    }

    /// A frame of our own says where the session is.
    fn note(&mut self, frame: &ServerFrame<'_>) {
        match frame {
            ServerFrame::Gap {
                channel: Some(channel),
                position,
            }
            | ServerFrame::Subscribed {
                channel,
                position: Some(position),
                ..
            } => self.reached(channel, *position),
            ServerFrame::Unsubscribed { channel, .. } => {
                self.channels.retain(|(name, _)| name != *channel);
            }
            _ => {}
        }
    }

    /// A message is queued next: the line with its id, if it moves the client on in a stream.
    pub(super) fn moved(&mut self, message: &Message, inbox: Option<Position>) -> Option<Bytes> {
        let position = message.position()?;
        if let Target::One(Address::Channel(channel)) = &message.target {
            self.reached(channel, position);
        }
        Some(self.id_line(inbox))
    }
}

/// A session's frames as events, for the body of a response. When it is dropped, the session ends.
pub struct EventStream {
    shard: Rc<Shard>,
    key: SessionKey,
}

impl EventStream {
    /// The next bytes; the end, once the session is closed.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Bytes>> {
        self.shard.state.borrow_mut().poll_events(self.key, context)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.shard.state.borrow_mut().remove(self.key, false);
    }
}

impl Shard {
    /// Makes a session whose frames are events.
    ///
    /// # Errors
    /// There is no resume ticket for it, without which an `EventSource` could not come back.
    pub fn admit_events(
        self: &Rc<Self>,
        prepared: Prepared,
    ) -> Result<Option<EventStream>, SealError> {
        let pass = prepared.pass();
        let ticket = self.hub.resume.seal(&pass, RESUME_LIFE_MAX)?;
        let now = self.state.borrow().wheel.tick(Instant::now());
        let renewal = now + ticks(self.hub.heartbeat.renewal);
        let events = Events::new(ticket, prepared.positions(), renewal);
        let acked = prepared.acknowledged();
        if let Some((user, device, position)) = acked {
            let mut state = self.state.borrow_mut();
            state.cursors.acked(user, Some(device), position);
        }
        let key = self.begin(prepared, Transport::Events(Box::new(events)));
        Ok(key.map(|key| EventStream {
            shard: self.clone(),
            key,
        }))
    }

    /// What a client comes back with that was let in and cannot be taken now.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn come_back(&self, pass: &Pass, since: Option<Since>) -> Result<String, SealError> {
        let id = EventId {
            ticket: self.hub.resume.seal(pass, RESUME_LIFE_MAX)?,
            inbox: since,
            channels: Vec::new(),
        };
        Ok(events::id_line(&id.text()))
    }

    /// What a resume ticket tells of a session that is still to come.
    pub fn pass(grant: &Grant, reservation: &Reservation, asked: &super::Asked) -> Pass {
        Pass {
            user: grant.user.clone(),
            device: grant.device.clone(),
            claims: grant.claims.clone(),
            origin: asked.origin.clone(),
            granted: grant.channels.to_vec(),
            subscribed: match &grant.resumes {
                Some(resumes) => resumes.subscribed.clone(),
                None => grant.channels.to_vec(),
            },
            connection: reservation.connection(),
            lineage: reservation.lineage(grant),
        }
    }
}

impl State {
    /// What the client is told before anything else: when to come back once it loses the connection.
    pub(super) fn push_retry(&mut self, key: SessionKey) {
        let retry = events::retry(rand::random_range(RETRY));
        self.push_frame(key, retry.into());
    }

    /// Puts a frame of our own into the outbox as an event, with the id of where the session is then.
    pub(super) fn reply_event(&mut self, key: SessionKey, frame: &ServerFrame<'_>) {
        self.renew_if(key, |events| events.stale);
        let Some(session) = self.get(key) else { return };
        let inbox = session.reached;
        let Transport::Events(events) = &mut session.transport else {
            return;
        };
        events.note(frame);
        let id = events.id_line(inbox);
        let event = events::event(&frame.to_json());
        self.push_frame(key, [id, event].concat().into());
    }

    /// A session subscribes to other channels than its resume ticket says.
    pub(super) fn resubscribed(&mut self, key: SessionKey) {
        if let Some(session) = self.get(key)
            && let Transport::Events(events) = &mut session.transport
        {
            events.stale = true;
        }
    }

    /// A heartbeat is due, or the renewal of the resume ticket.
    pub(super) fn beat_events(&mut self, key: SessionKey, now: Tick) {
        let renewed = self.renew_if(key, |events| events.renewal <= now);
        let Some(session) = self.get(key) else { return };
        // Where something waits, the client reads slowly: it needs no more of it.
        session.sent = now;
        let idle = session.outbox.is_empty();
        let inbox = session.reached;
        let Transport::Events(events) = &mut session.transport else {
            return;
        };
        if renewed {
            let mut id = events.id_line(inbox).to_vec();
            id.push(b'\n');
            self.push_frame(key, id.into());
        } else if idle {
            self.push_frame(key, Bytes::from_static(events::HEARTBEAT));
        }
    }

    fn renew_if(&mut self, key: SessionKey, due: impl Fn(&Events) -> bool) -> bool {
        let now = self.wheel.tick(Instant::now());
        let hub = self.hub.clone();
        let Some(session) = self.get(key) else {
            return false;
        };
        let is_due = matches!(&session.transport, Transport::Events(events) if due(events));
        if !is_due || !session.is_open() {
            return false;
        }
        let sealed = hub.resume.seal(&session.pass(), RESUME_LIFE_MAX);
        let Transport::Events(events) = &mut session.transport else {
            return false;
        };
        // Also where there is none: the old one is good for hours yet, and this is asked again.
        events.renewal = now + ticks(hub.heartbeat.renewal);
        match sealed {
            Ok(ticket) => {
                events.ticket = ticket;
                events.stale = false;
                true
            }
            Err(problem) => {
                tracing::debug!(%problem, "a resume ticket was not renewed");
                false
            }
        }
    }

    /// Puts the last event into the outbox of a session that is closed.
    pub(super) fn push_farewell(&mut self, key: SessionKey, reason: CloseReason, text: &str) {
        let farewell = events::farewell(reason.code().get(), text);
        self.push_frame(key, farewell);
    }

    fn poll_events(&mut self, key: SessionKey, context: &Context<'_>) -> Poll<Option<Bytes>> {
        let now = Instant::now();
        let expired = self.drop_expired(key);
        let Some(session) = self.get(key) else {
            return Poll::Ready(None);
        };
        if session.outbox.is_empty() {
            let open = session.is_open();
            let Transport::Events(events) = &mut session.transport else {
                return Poll::Ready(None);
            };
            events.waker = Some(context.waker().clone());
            if expired > 0 {
                self.settle();
            }
            return match open {
                true => Poll::Pending,
                false => Poll::Ready(None),
            };
        }
        let bytes = self.take_frames(key, TAKEN_MAX);
        self.wrote(key, now);
        self.settle();
        Poll::Ready(Some(bytes))
    }

    fn drop_expired(&mut self, key: SessionKey) -> usize {
        let Some(session) = self.get(key) else {
            return 0;
        };
        let bytes = session.outbox.drop_expired(unix_millis);
        self.unsettled.outbox_bytes -= bytes as i64;
        bytes
    }
}

impl Format {
    /// Whether frames are events.
    pub(super) fn is_events(self) -> bool {
        self == Self::Events
    }
}
