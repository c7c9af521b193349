use std::borrow::Cow;

use super::header::Opcode;
use super::utf8::Utf8Buffer;
use super::{Event, ProtocolError};

/// A message that came in pieces so far: in several frames, or in several reads.
///
/// Its memory grows with what has arrived, never with what a header announced.
#[derive(Debug)]
pub(super) struct Message {
    content: Content,
    /// Frames begun, the first one included.
    pub(super) frames: u32,
}

#[derive(Debug)]
enum Content {
    Text(Utf8Buffer),
    Binary(Vec<u8>),
}

impl Message {
    /// An empty message of the kind that its first frame says.
    pub(super) fn new(first: Opcode) -> Self {
        let content = match first {
            Opcode::Text => Content::Text(Utf8Buffer::default()),
            _ => Content::Binary(Vec::new()),
        };
        Self { content, frames: 1 }
    }

    /// Bytes that have come.
    pub(super) fn len(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Binary(bytes) => bytes.len(),
        }
    }

    /// Bytes of memory behind it.
    pub(super) fn capacity(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.capacity(),
            Content::Binary(bytes) => bytes.capacity(),
        }
    }

    /// Adds the next bytes, unmasked. Text is refused as soon as it can be seen to be wrong.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        match &mut self.content {
            Content::Text(text) => text.push(bytes)?,
            Content::Binary(all) => all.extend_from_slice(bytes),
        }
        Ok(())
    }

    /// The whole message.
    pub(super) fn finish(self) -> Result<Event<'static>, ProtocolError> {
        Ok(match self.content {
            Content::Text(text) => Event::Text(Cow::Owned(text.finish()?)),
            Content::Binary(bytes) => Event::Binary(Cow::Owned(bytes)),
        })
    }
}
