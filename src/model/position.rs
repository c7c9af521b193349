use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::MessageId;

/// The part of a message's id by which a position recognises it: 32 of its random bits. Zero stands before the first
/// message of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tag(pub u32);

/// A place in a stream: just behind one message. Opaque to clients: 16 to 27 characters of base64url.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// 64 random bits of the node that began the stream; another epoch means that the old stream is lost.
    pub epoch: u64,
    /// How many messages the stream had, this one included; 0 is its beginning.
    pub offset: u64,
    /// The message at that offset.
    pub tag: Tag,
}

/// Why a text is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionError;

impl fmt::Display for PositionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be \"now\" or a position as a frame gave it, unchanged")
    }
}

impl std::error::Error for PositionError {}

/// Bytes of epoch and tag.
const FIXED: usize = 12;

impl Position {
    /// Parses the text form; there is one text for each position.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, PositionError> {
        let mut bytes = [0; FIXED + 8];
        let length = URL_SAFE_NO_PAD
            .decode_slice(text, &mut bytes)
            .map_err(|_| PositionError)?;
        let offset = bytes[..length].get(FIXED..).ok_or(PositionError)?;
        if offset.first() == Some(&0) {
            return Err(PositionError);
        }
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        Ok(Self {
            epoch: number(&bytes[..8]),
            offset: number(offset),
            tag: Tag(number(&bytes[8..FIXED]) as u32),
        })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; FIXED + 8];
        bytes[..8].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[8..FIXED].copy_from_slice(&self.tag.0.to_be_bytes());
        let offset = self.offset.to_be_bytes();
        let from = self.offset.leading_zeros() as usize / 8;
        let length = FIXED + offset.len() - from;
        bytes[FIXED..length].copy_from_slice(&offset[from..]);
        let mut text = [0; 27];
        let count = URL_SAFE_NO_PAD
            .encode_slice(&bytes[..length], &mut text)
            .map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text[..count]).map_err(|_| fmt::Error)?)
    }
}

/// Where a session wants to begin in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// With what comes from now on.
    Now,
    /// Behind this position.
    After(Position),
}

impl Since {
    /// Parses `now` or a position.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, PositionError> {
        match text {
            "now" => Ok(Self::Now),
            text => Position::parse(text).map(Self::After),
        }
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::After(position) => position.fmt(f),
        }
    }
}

/// Where a kept message is in the stream of its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The stream's.
    pub epoch: u64,
    /// From 1.
    pub offset: u64,
    /// The message before it, by which a stream that was rolled back is found out.
    pub previous: Tag,
}

impl Place {
    /// The position just before the message.
    pub fn before(&self) -> Position {
        Position {
            epoch: self.epoch,
            offset: self.offset.saturating_sub(1),
            tag: self.previous,
        }
    }

    /// The position just behind the message, whose id this is.
    pub fn behind(&self, id: MessageId) -> Position {
        Position {
            epoch: self.epoch,
            offset: self.offset,
            tag: id.tag(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_position_survives_its_text(epoch: u64, offset: u64, small in 0..1000u64, tag: u32) {
            for offset in [offset, small] {
                let position = Position { epoch, offset, tag: Tag(tag) };
                let text = position.to_string();
                prop_assert!((16..=27).contains(&text.len()));
                prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
                prop_assert_eq!(Position::parse(&text), Ok(position));
            }
        }

        #[test]
        fn a_text_is_parsed_or_refused_and_has_one_form(text in "[A-Za-z0-9_-]{0,30}") {
            if let Ok(position) = Position::parse(&text) {
                prop_assert_eq!(position.to_string(), text);
            }
        }
    }
}
