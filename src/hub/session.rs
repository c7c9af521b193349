use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::admission::{Bucket, PlaceGuard};
use super::delivery::UserPlaceGuard;
use super::encoded::Format;
use super::events::Events;
use super::outbox::Outbox;
use super::socket::{Link, Tls};
use super::wheel::Tick;
use crate::model::{
    Address, ChannelName, ConnectionId, DeviceName, Lineage, Origin, Position, UserId,
};
use crate::tickets::Pass;

/// Where a session is in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SessionKey {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl SessionKey {
    /// Where the session of a connection of this shard is.
    pub(super) fn of(connection: ConnectionId) -> Self {
        Self {
            slot: connection.slot,
            generation: connection.generation,
        }
    }
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It takes messages.
    Open,
    /// Our close frame is out (or in the outbox); the client's is awaited until the tick. `reset` = a client that does
    /// not read is not waited for: the socket is reset.
    Closing { until: Tick, reset: bool },
    /// Both close frames are there (or none will come); the client's end of the stream is awaited until the tick.
    Lingering { until: Tick },
}

/// An admitted connection, as the hub sees it.
pub(super) struct Session {
    pub(super) id: ConnectionId,
    pub(super) user: UserId,
    pub(super) device: Option<DeviceName>,
    /// Those of the ticket, for services that ask.
    pub(super) claims: Option<Arc<str>>,
    pub(super) connected_at: SystemTime,
    pub(super) transport: Transport,
    pub(super) phase: Phase,
    pub(super) format: Format,
    /// Pings are frames of the wire, for clients that cannot see the protocol's.
    pub(super) ping_frame: bool,
    #[cfg(feature = "echo")]
    pub(super) echo: bool,
    pub(super) outbox: Outbox,
    /// Where it is in its inbox once its outbox is written; none without an inbox.
    pub(super) reached: Option<Position>,
    /// Who moves its cursor.
    pub(super) acks: Acks,
    /// The offset to which the node has moved it.
    pub(super) told: u64,
    /// Told when the outbox has room again: somebody waits who reads the past for this session.
    pub(super) room: Option<Rc<Notify>>,
    /// Among the shard's dirty sessions, or in its window.
    pub(super) queued: bool,
    /// The socket took less than was there; someone waits until it takes more.
    pub(super) blocked: Option<AbortHandle>,
    pub(super) reader: Option<AbortHandle>,
    /// Milliseconds of the shard's clock.
    pub(super) last_write: u32,
    pub(super) heard: Tick,
    pub(super) sent: Tick,
    /// When a ping went out that was not answered yet; 0 = none.
    pub(super) pinged: Tick,
    /// When the client began a message that is not finished; 0 = none.
    pub(super) unfinished: Tick,
    /// This session's share of the jitter, in ticks between heartbeats; 0 = off.
    pub(super) interval: Tick,
    /// When the wheel comes for it next.
    pub(super) armed: Tick,
    /// When the session ends by its ticket; 0 = never.
    pub(super) ends: Tick,
    /// When it is told to leave, in a drain, and then when it must have left; 0 = not draining.
    pub(super) slot: Tick,
    /// It was told.
    pub(super) told_to_leave: bool,
    /// Another connection goes on in its place. It gets nothing any more, and is closed at its slot.
    pub(super) resumed: bool,
    pub(super) errors: u32,
    pub(super) frames: Option<Box<Bucket>>,
    pub(super) subscriptions: Vec<Subscription>,
    /// The page that it is of.
    pub(super) origin: Option<Origin>,
    /// What it continues, and what continues it.
    pub(super) lineage: Lineage,
    /// Channels that the ticket or a service named.
    pub(super) granted: Vec<ChannelName>,
    /// Gives its places on the node and under the user's limit back; the first knows the client's address.
    pub(super) places: (PlaceGuard, Option<UserPlaceGuard>),
}

/// How a session's frames leave the node.
pub(super) enum Transport {
    /// They are written to its socket.
    Socket(Rc<TcpStream>),
    /// They are encrypted and written to its socket.
    Tls(Box<Tls>),
    /// The body of a response takes them.
    Events(Box<Events>),
}

impl From<Link> for Transport {
    fn from(link: Link) -> Self {
        match link {
            Link::Plain(stream) => Self::Socket(Rc::new(stream)),
            Link::Tls(stream) => Self::Tls(Box::new(Tls::new(*stream))),
        }
    }
}

impl Transport {
    /// The socket, if it is the shard's.
    pub(super) fn socket(&self) -> Option<&Rc<TcpStream>> {
        match self {
            Self::Socket(stream) => Some(stream),
            Self::Tls(tls) => Some(tls.socket()),
            Self::Events(_) => None,
        }
    }

    /// Whether something has left the outbox that the socket has to take yet.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.wants_write())
    }

    /// Bytes of frames that have left the outbox and that the socket has to take yet.
    pub(super) fn waiting(&self) -> usize {
        match self {
            Self::Tls(tls) => tls.waiting(),
            Self::Socket(_) | Self::Events(_) => 0,
        }
    }

    /// Writes as much as is taken now.
    pub(super) fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Socket(stream) => stream.try_write_vectored(slices),
            Self::Tls(tls) => tls.try_write_vectored(slices),
            Self::Events(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Reads what is there now, if the client's frames come over TLS.
    pub(super) fn try_read_tls(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tls(tls) => tls.try_read(buffer),
            Self::Socket(_) | Self::Events(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Ends our side of the stream; `false` = the socket has to take something before that.
    pub(super) fn end(&mut self) -> bool {
        if let Self::Tls(tls) = self
            && !tls.end()
        {
            return false;
        }
        if let Some(socket) = self.socket() {
            let _ = SockRef::from(&**socket).shutdown(Shutdown::Write);
        }
        true
    }
}

/// One address that a session follows, and where the session stands in the address's list of members.
pub(super) struct Subscription {
    pub(super) address: Address,
    pub(super) place: u32,
}

impl Subscription {
    /// The place of a session that is behind in the address's stream: none.
    pub(super) const BEHIND: u32 = u32::MAX;
}

/// Who moves a session's cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acks {
    /// The client, by its acks.
    #[default]
    Client,
    /// The node, once a message was written.
    Auto,
}

impl Session {
    pub(super) fn subscribes_to(&self, address: &Address) -> bool {
        self.subscriptions.iter().any(|s| s.address == *address)
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.subscriptions.iter().filter_map(|s| match &s.address {
            Address::Channel(channel) => Some(channel),
            Address::User(_) | Address::Everyone | Address::Node(_) => None,
        })
    }

    /// What a resume ticket tells of it.
    pub(super) fn pass(&self) -> Pass {
        Pass {
            user: self.user.clone(),
            device: self.device.clone(),
            claims: self.claims.clone(),
            origin: self.origin.clone(),
            granted: self.granted.clone(),
            subscribed: self.channels().cloned().collect(),
            connection: self.id,
            lineage: self.lineage,
        }
    }

    /// Whether it may follow anything: it is open, and nothing goes on in its place.
    pub(super) fn may_follow(&self) -> bool {
        self.is_open() && !self.resumed
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether every message goes back (test builds).
    pub(super) fn is_echo(&self) -> bool {
        #[cfg(feature = "echo")]
        return self.echo;
        #[cfg(not(feature = "echo"))]
        return false;
    }

    /// When it must be looked at next; `None` = never, while nothing happens. `held` = its slot does not come.
    pub(super) fn next_due(
        &self,
        pong_timeout: Tick,
        message_timeout: Tick,
        held: bool,
    ) -> Option<Tick> {
        match self.phase {
            Phase::Closing { until, .. } | Phase::Lingering { until } => Some(until),
            Phase::Open => {
                let (heard, renewal) = match &self.transport {
                    Transport::Socket(_) | Transport::Tls(_) => (self.heard, 0),
                    // Nothing comes from the client, so only what is written counts.
                    Transport::Events(events) => (self.sent, events.renewal),
                };
                let heartbeat = match (self.interval, self.pinged) {
                    (0, _) => 0,
                    (interval, 0) => heard.min(self.sent).saturating_add(interval),
                    (_, pinged) => pinged.saturating_add(pong_timeout),
                };
                let message = match self.unfinished {
                    0 => 0,
                    began => began.saturating_add(message_timeout),
                };
                let slot = if held && !self.resumed { 0 } else { self.slot };
                [heartbeat, message, renewal, self.ends, slot]
                    .into_iter()
                    .filter(|at| *at > 0)
                    .min()
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in [self.reader.take(), self.blocked.take()]
            .into_iter()
            .flatten()
        {
            task.abort();
        }
    }
}
