//! What a mover remembers from one connection to the next, and while it has two.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Mover;
use crate::body::Stream;
use crate::client::Pen;
use crate::ledger::{Asked, What};

/// How each stream of a connection was asked for.
pub(super) type Asks = HashMap<Stream, Asked>;

/// Where it is in its streams, and what it has.
#[derive(Debug)]
pub(super) struct Mind {
    follows: Vec<Stream>,
    positions: HashMap<Stream, Box<str>>,
    /// Of all messages that it has.
    ids: HashSet<Box<str>>,
    /// By connection, how many streams are open on it.
    open: HashMap<u32, usize>,
}

impl Mind {
    pub(super) fn new(follows: Vec<Stream>) -> Self {
        Self {
            follows,
            positions: HashMap::new(),
            ids: HashSet::new(),
            open: HashMap::new(),
        }
    }

    pub(super) fn inbox(&self) -> Stream {
        self.follows[0].clone()
    }

    /// The query of a new connection.
    pub(super) fn query(&self, mover: &Mover, ticket: &str) -> (String, Asks) {
        let mut asks = Asks::new();
        let mut query = format!("ticket={ticket}");
        let mut separator = "&channels=";
        for stream in &self.follows {
            let position = self.positions.get(stream);
            if position.is_some() {
                asks.insert(stream.clone(), Asked::Position);
            }
            let at = position.map_or("", |position| position);
            match stream.strip_prefix("channel:") {
                None if at.is_empty() => {}
                None => query.push_str(&format!("&since={at}")),
                Some(channel) => {
                    let at = position.map(|at| format!("@{at}")).unwrap_or_default();
                    query.push_str(&format!("{separator}{channel}{at}"));
                    separator = ",";
                }
            }
        }
        if mover.obeys {
            query.push_str("&refuse=close");
        }
        (query, asks)
    }

    /// A `welcome` or `subscribed`. A stream that is whole goes on where the client was.
    pub(super) fn opened(
        &mut self,
        connection: u32,
        stream: &Stream,
        position: Option<&str>,
        recovered: Option<bool>,
        pen: &Pen,
    ) {
        if recovered != Some(true) || !self.positions.contains_key(stream) {
            self.at(stream, position);
        }
        *self.open.entry(connection).or_default() += 1;
        pen.whole(self.is_whole());
    }

    pub(super) fn ended(&mut self, connection: u32, pen: &Pen) {
        self.open.remove(&connection);
        pen.whole(self.is_whole());
    }

    fn is_whole(&self) -> bool {
        self.open.values().any(|open| *open == self.follows.len())
    }

    /// A message; false if it is there already. Only what is new moves the place: on the other connection, which is a
    /// little behind, the same comes once more.
    pub(super) fn take(&mut self, stream: &Stream, id: &str, position: Option<&str>) -> bool {
        let new = self.ids.insert(id.into());
        if new {
            self.at(stream, position);
        }
        new
    }

    /// It has everything up to there.
    pub(super) fn at(&mut self, stream: &Stream, position: Option<&str>) {
        if let Some(position) = position {
            self.positions.insert(stream.clone(), position.into());
        }
    }

    /// Logs while nothing else of the same client can be: the log has the order in which it took things in.
    pub(super) fn log(&self, pen: &Pen, what: What) {
        pen.write(what);
    }
}

/// A panic elsewhere does not unmake what is known.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
