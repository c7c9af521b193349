//! The ledger: what producers were answered and what clients saw, each in its own words and with its own stamps. It
//! judges nothing; the checker does.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::body::{Key, Stream};
use crate::clock::{Clock, Stamp};

/// What became of a push, as its producer was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is accepted.
    Accepted {
        /// The message's id.
        id: Box<str>,
        /// Its position; a kept one has one.
        position: Option<Box<str>>,
        /// `MEMORY`, `STORED` or `REPLICATED`.
        durability: Option<Box<str>>,
    },
    /// Nothing was accepted, for certain.
    Refused {
        /// The HTTP status; 0 = it was never sent.
        status: u16,
    },
    /// It may have been accepted: a 504, or no answer at all.
    Unknown,
}

/// One message that a producer wanted to send.
#[derive(Debug, Clone)]
pub(crate) struct Push {
    pub(crate) key: Key,
    /// Of the body's text.
    pub(crate) hash: u64,
    /// Before the first byte of it left.
    pub(crate) begun: Stamp,
    /// When the answer was there.
    pub(crate) answered: Stamp,
    /// Requests that it took: more than one after an unknown outcome, with the same idempotency key.
    pub(crate) attempts: u32,
    pub(crate) answer: Answer,
}

/// How a connection asked where to start in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// By nothing: the first connection.
    Nothing,
    /// After the last position that the client saw.
    Position,
    /// At the cursor of its device.
    Cursor,
}

/// What a client saw.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// `welcome`, for the inbox, or `subscribed`.
    Opened {
        stream: Stream,
        asked: Asked,
        position: Option<Box<str>>,
        recovered: Option<bool>,
    },
    /// A message, on the stream on which it came.
    Message {
        stream: Stream,
        id: Box<str>,
        position: Option<Box<str>>,
        /// As the body says.
        key: Option<Key>,
        /// Of the body's text as it came.
        hash: u64,
    },
    /// `gap`.
    Gap {
        stream: Stream,
        position: Option<Box<str>>,
    },
    /// A message that it had already, on another connection, and dropped by its id.
    Again,
    /// `goaway`.
    GoAway,
    /// The connection ended; a close code, or none.
    Closed { code: Option<u16>, why: String },
    /// A connection could not be had.
    Refused { why: String },
    /// It is to come again in so long, since there is no room for it before.
    Later { after: Duration },
    /// Something that the contract does not know.
    Odd { why: String },
}

/// Something that a client saw, and when.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) at: Stamp,
    /// The client's connections are counted from 0.
    pub(crate) connection: u32,
    pub(crate) what: What,
}

/// Everything that one client saw, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientLog {
    pub(crate) name: String,
    /// The streams that it follows in each of its connections.
    pub(crate) follows: Vec<Stream>,
    pub(crate) events: Vec<Event>,
    /// Whether it has a connection on which all of its streams are open.
    pub(crate) whole: bool,
    /// What [`ClientLog::awaits`] looks up: ids that it saw, and when it was last told of a loss.
    ids: HashSet<Box<str>>,
    told: HashMap<Stream, Stamp>,
    /// When each stream was first open.
    opened: HashMap<Stream, Stamp>,
}

impl ClientLog {
    pub(crate) fn new(name: String, follows: Vec<Stream>) -> Self {
        Self {
            name,
            follows,
            ..Self::default()
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if let What::Opened { stream, .. } = &event.what {
            self.opened.entry(stream.clone()).or_insert(event.at);
        }
        match &event.what {
            What::Message { id, .. } => {
                self.ids.insert(id.clone());
            }
            What::Gap { stream, .. }
            | What::Opened {
                stream,
                recovered: Some(false),
                ..
            }
            | What::Opened {
                stream,
                asked: Asked::Cursor,
                recovered: None,
                ..
            } => {
                self.told.insert(stream.clone(), event.at);
            }
            _ => {}
        }
        self.events.push(event);
    }

    /// Whether a message that is due to it has neither come nor been covered by a loss that was told.
    pub(crate) fn awaits(&self, push: &Push, id: &str) -> bool {
        let told = self.told.get(&push.key.stream);
        let opened = self.opened.get(&push.key.stream);
        opened.is_some_and(|opened| *opened < push.begun)
            && !self.ids.contains(id)
            && told.is_none_or(|told| *told < push.begun)
    }
}

/// The logs of a run that is under way.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) clock: Clock,
    pushes: Mutex<Vec<Push>>,
    clients: Vec<Arc<Mutex<ClientLog>>>,
}

impl Ledger {
    pub(crate) fn new(clients: Vec<ClientLog>) -> Self {
        Self {
            clock: Clock::start(),
            pushes: Mutex::default(),
            clients: clients
                .into_iter()
                .map(|log| Arc::new(Mutex::new(log)))
                .collect(),
        }
    }

    pub(crate) fn pushed(&self, push: Push) {
        lock(&self.pushes).push(push);
    }

    pub(crate) fn pushes(&self) -> MutexGuard<'_, Vec<Push>> {
        lock(&self.pushes)
    }

    pub(crate) fn client(&self, at: usize) -> MutexGuard<'_, ClientLog> {
        lock(&self.clients[at])
    }

    /// A copy of all that is logged so far.
    pub(crate) fn copy(&self) -> (Vec<Push>, Vec<ClientLog>) {
        let clients = (0..self.clients.len()).map(|at| self.client(at).clone());
        (self.pushes().clone(), clients.collect())
    }
}

/// A panic elsewhere does not unmake what is logged.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
