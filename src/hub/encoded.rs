use std::sync::OnceLock;

use bytes::Bytes;

use crate::model::{Address, Body, Message, Position, Target};
use crate::wire::codec::{self, Opcode};
use crate::wire::{events, frames};

/// How a session wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The frames of `tidings.v1`.
    #[default]
    Json,
    /// Bodies alone.
    Raw,
    /// Those frames as server-sent events.
    Events,
}

/// A message with its frames: encoded and framed once for each format, by the first session that needs it.
pub(super) struct Encoded {
    message: Message,
    json: OnceLock<Bytes>,
    raw: OnceLock<Bytes>,
    event: OnceLock<Bytes>,
}

impl Encoded {
    pub(super) fn new(message: Message) -> Self {
        Self {
            message,
            json: OnceLock::new(),
            raw: OnceLock::new(),
            event: OnceLock::new(),
        }
    }

    /// What it is the frames of.
    pub(super) fn message(&self) -> &Message {
        &self.message
    }

    /// Where its receivers are in their inbox once they have it; none if it is not of an inbox.
    pub(super) fn inbox_position(&self) -> Option<Position> {
        match self.message.target {
            Target::One(Address::User(_)) => self.message.position(),
            _ => None,
        }
    }

    /// The frame, shared.
    pub(super) fn frame(&self, format: Format) -> &Bytes {
        match format {
            Format::Json => self.json.get_or_init(|| {
                codec::frame(Opcode::Text, frames::message(&self.message).as_bytes())
            }),
            Format::Events => self
                .event
                .get_or_init(|| events::event(&frames::message(&self.message))),
            Format::Raw => self.raw.get_or_init(|| match &self.message.body {
                Body::Text(text) | Body::Json(text) => codec::frame(Opcode::Text, text.as_bytes()),
                Body::Binary(bytes) => codec::frame(Opcode::Binary, bytes),
            }),
        }
    }
}
