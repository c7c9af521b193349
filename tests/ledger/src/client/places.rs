//! Where a client is in each of its streams.

use std::collections::HashMap;

use super::{Client, Resume};
use crate::body::Stream;
use crate::ledger::Asked;

/// The last position that a client saw of each of its streams.
#[derive(Debug)]
pub(super) struct Places {
    inbox: Stream,
    resume: Resume,
    positions: HashMap<Stream, Box<str>>,
    /// What the connection under way was asked with.
    asked: HashMap<Stream, Asked>,
    /// Whether the client was ever welcome.
    welcomed: bool,
}

impl Places {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            inbox: client.inbox(),
            resume: client.resume,
            positions: HashMap::new(),
            asked: HashMap::new(),
            welcomed: false,
        }
    }

    /// The query of a new connection.
    pub(super) fn query(&mut self, client: &Client, ticket: &str, device: bool) -> String {
        self.asked.clear();
        let mut query = format!("ticket={ticket}");
        if client.resume == Resume::Cursor {
            query.push_str("&ack=client");
        }
        if device && let Some(device) = &client.device {
            query.push_str("&device=");
            query.push_str(device);
        }
        if self.resume == Resume::Since {
            let inbox = self.inbox.clone();
            if let Some(since) = self.ask(&inbox) {
                query.push_str("&since=");
                query.push_str(&since);
            }
        }
        let mut separator = "&channels=";
        for channel in &client.channels {
            query.push_str(separator);
            query.push_str(channel);
            if let Some(since) = self.ask(&format!("channel:{channel}").into()) {
                query.push('@');
                query.push_str(&since);
            }
            separator = ",";
        }
        query
    }

    /// The position from which a stream is asked for, if one was seen.
    pub(super) fn ask(&mut self, stream: &Stream) -> Option<Box<str>> {
        let position = self.positions.get(stream).cloned();
        if position.is_some() {
            self.asked.insert(stream.clone(), Asked::Position);
        }
        position
    }

    /// How the stream that opens now was asked for.
    pub(super) fn asked(&mut self, stream: &Stream) -> Asked {
        if *stream == self.inbox && self.resume == Resume::Cursor {
            return match std::mem::replace(&mut self.welcomed, true) {
                true => Asked::Cursor,
                false => Asked::Nothing,
            };
        }
        self.asked.get(stream).cloned().unwrap_or(Asked::Nothing)
    }

    /// A stream opened. One that is whole goes on where the client was.
    pub(super) fn open(
        &mut self,
        stream: &Stream,
        position: Option<&str>,
        recovered: Option<bool>,
    ) {
        if recovered != Some(true) || !self.positions.contains_key(stream) {
            self.moved(stream, position);
        }
    }

    /// The client has seen everything up to there.
    pub(super) fn moved(&mut self, stream: &Stream, position: Option<&str>) {
        if let Some(position) = position {
            self.positions.insert(stream.clone(), position.into());
        }
    }
}
