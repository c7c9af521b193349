//! The layout of a message that was kept, as the script that keeps it publishes it: its place, then its envelope.
//!
//! ```text
//! byte 0      2: a version that nodes without streams skip, and count
//! 8 bytes     the stream's epoch
//! 4 bytes     the tag of the message before it
//! digits      its offset, in decimal
//! `:`         and then the envelope
//! ```
//!
//! And what the script publishes that gives a stream a new epoch: one byte, 3. It is not signed either: it makes nodes look
//! where the stream stands, and no more.
//!
//! The place is not covered by the envelope's signature, since only Redis knows it: whoever can publish there can say that
//! a message is elsewhere in its stream, but cannot make one.

use bytes::Bytes;

use super::EnvelopeError;
use crate::model::{Place, Tag};

const VERSION: u8 = 2;
const NEW_EPOCH: [u8; 1] = [3];

/// Whether these bytes say that the stream of the address to which they came has a new epoch.
pub(in crate::backplane) fn is_new_epoch(bytes: &[u8]) -> bool {
    bytes == NEW_EPOCH
}

/// Takes the place off an envelope that has one.
///
/// # Errors
/// It begins as one, and is none.
pub(in crate::backplane) fn split(bytes: Bytes) -> Result<(Option<Place>, Bytes), EnvelopeError> {
    let Some((&VERSION, rest)) = bytes.split_first() else {
        return Ok((None, bytes));
    };
    let parsed = || {
        let (epoch, rest) = rest.split_first_chunk()?;
        let (previous, rest) = rest.split_first_chunk()?;
        let digits = rest.iter().position(|byte| *byte == b':')?;
        let offset = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        let place = Place {
            epoch: u64::from_be_bytes(*epoch),
            offset,
            previous: Tag(u32::from_be_bytes(*previous)),
        };
        Some((place, bytes.slice_ref(&rest[digits + 1..])))
    };
    let (place, envelope) = parsed().ok_or(EnvelopeError::Malformed)?;
    Ok((Some(place), envelope))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_place_is_taken_off() {
        let bytes = Bytes::from_static(b"\x02\0\0\0\0\0\0\0\x07\0\0\0\x0912:rest:");
        let place = Place {
            epoch: 7,
            offset: 12,
            previous: Tag(9),
        };
        let rest = Bytes::from_static(b"rest:");
        assert_eq!(split(bytes), Ok((Some(place), rest)));
        let plain = Bytes::from_static(b"\x01\0rest");
        assert_eq!(split(plain.clone()), Ok((None, plain)));
        for bad in [
            b"\x02".as_slice(),
            b"\x02\0\0\0\0\0\0\0\x07\0\0\0\x09",
            b"\x02\0\0\0\0\0\0\0\x07\0\0\0\x0912",
            b"\x02\0\0\0\0\0\0\0\x07\0\0\0\x09:",
            b"\x02\0\0\0\0\0\0\0\x07\0\0\0\x09-1:",
            b"\x02\0\0\0\0\0\0\0\x07\0\0\0\x0999999999999999999999:",
        ] {
            assert_eq!(
                split(Bytes::from_static(bad)),
                Err(EnvelopeError::Malformed)
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_or_refused(mut bytes: Vec<u8>, ours: bool) {
            if ours {
                bytes.splice(..0, [VERSION]);
            }
            let _ = split(bytes.into());
        }
    }
}
