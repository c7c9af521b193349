use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Address, MessageId, Place, Position, UserId};

/// What a message carries: the *data* of the client wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Text: a JSON string on the wire, as it is in `format=raw`.
    Text(Arc<str>),
    /// JSON text, checked: byte for byte on the wire.
    Json(Arc<str>),
    /// Bytes: base64 on the wire, a binary frame in `format=raw`.
    Binary(Bytes),
}

/// Why a text is not a JSON body.
#[derive(Debug)]
pub struct BodyError(serde_json::Error);

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "is not valid JSON: {}", self.0)
    }
}

impl std::error::Error for BodyError {}

impl Body {
    /// A JSON body.
    ///
    /// # Errors
    /// The text is not one JSON value.
    pub fn json(text: &str) -> Result<Self, BodyError> {
        serde_json::from_str::<&serde_json::value::RawValue>(text)
            .map(|raw| Self::Json(raw.get().into()))
            .map_err(BodyError)
    }

    /// Its size in bytes, before any encoding.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) | Self::Json(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// KEPT where the address keeps, else live only.
    #[default]
    Unset,
    /// Stored in the stream of its address.
    Kept,
    /// Live only.
    Volatile,
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One address.
    One(Address),
    /// Many users, with one body.
    Users(Arc<[UserId]>),
}

impl Target {
    /// Where the backplane takes it.
    pub fn address(&self) -> Address {
        match self {
            Self::One(address) => address.clone(),
            // One envelope for each node; each finds its own users in it.
            Self::Users(_) => Address::Everyone,
        }
    }
}

/// One thing to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Whom it is for.
    pub target: Target,
    /// What it carries.
    pub body: Body,
    /// When it was accepted, Unix milliseconds.
    pub time: u64,
    /// From when on it is not to be sent any more, Unix milliseconds.
    pub expires: Option<u64>,
    /// It supersedes an unsent one of its address with the same key.
    pub collapse_key: Option<Arc<str>>,
    /// Where it is in the stream of its address; none = live only.
    pub place: Option<Place>,
}

impl Message {
    /// A message that is live only and never expires.
    pub fn new(id: MessageId, target: Target, body: Body, time: u64) -> Self {
        Self {
            id,
            target,
            body,
            time,
            expires: None,
            collapse_key: None,
            place: None,
        }
    }

    /// Just behind it in the stream of its address.
    pub fn position(&self) -> Option<Position> {
        self.place.map(|place| place.behind(self.id))
    }

    /// Whether it must not be sent any more.
    pub fn is_expired(&self, unix_millis: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= unix_millis)
    }
}
