use std::borrow::Cow;

use super::header::Opcode;
use super::{Close, ProtocolError};

/// One thing that the other side said, whole.
///
/// It is borrowed from the read buffer if it lay there in one piece, and owns its bytes if it was put together from
/// several; dropping it gives them back. It never borrows from the decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A text message.
    Text(Cow<'a, str>),
    /// A binary message.
    Binary(Cow<'a, [u8]>),
    /// Answer it with a [`Opcode::Pong`] that carries the same bytes (at most 125).
    Ping(Cow<'a, [u8]>),
    /// The answer to a ping, or unasked for (at most 125 bytes).
    Pong(Cow<'a, [u8]>),
    /// The other side closes, with or without saying why. Answer with a close frame, unless one was sent, and close.
    Close(Option<Close<'a>>),
}

impl<'a> Event<'a> {
    /// The event of a control frame.
    pub(super) fn control(opcode: Opcode, payload: Cow<'a, [u8]>) -> Result<Self, ProtocolError> {
        Ok(match (opcode, payload) {
            (Opcode::Ping, payload) => Self::Ping(payload),
            (Opcode::Pong, payload) => Self::Pong(payload),
            (_, Cow::Borrowed(payload)) => Self::Close(Close::parse(payload)?),
            (_, Cow::Owned(payload)) => Self::Close(Close::parse(&payload)?.map(Close::into_owned)),
        })
    }

    /// The event of a message that came in one frame and in one piece.
    pub(super) fn message(opcode: Opcode, payload: &'a [u8]) -> Result<Self, ProtocolError> {
        if opcode == Opcode::Text {
            let text = str::from_utf8(payload).map_err(|_| ProtocolError::InvalidUtf8)?;
            return Ok(Self::Text(Cow::Borrowed(text)));
        }
        Ok(Self::Binary(Cow::Borrowed(payload)))
    }

    /// The same, independent of the buffer that it was read from.
    pub fn into_owned(self) -> Event<'static> {
        match self {
            Self::Text(text) => Event::Text(Cow::Owned(text.into_owned())),
            Self::Binary(bytes) => Event::Binary(Cow::Owned(bytes.into_owned())),
            Self::Ping(bytes) => Event::Ping(Cow::Owned(bytes.into_owned())),
            Self::Pong(bytes) => Event::Pong(Cow::Owned(bytes.into_owned())),
            Self::Close(close) => Event::Close(close.map(Close::into_owned)),
        }
    }
}
