use std::io;
use std::ops::Deref;

use bytes::{Buf, Bytes};

use super::CloseCode;
use super::header::{CONTROL_MAX_BYTES, FIN, MASKED, Opcode};
use super::mask::Mask;

const HEADER_MAX_BYTES: usize = 10;
const MASK_BYTES: usize = 4;
const REASON_MAX_BYTES: usize = CONTROL_MAX_BYTES - 2;

/// The header of an unmasked frame: 2, 4 or 10 bytes.
#[derive(Debug, Clone, Copy)]
pub struct EncodedHeader {
    bytes: [u8; HEADER_MAX_BYTES],
    len: u8,
}

impl Deref for EncodedHeader {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The header of an unmasked frame that is a whole message, with the shortest form of its length (RFC 6455 section 5.2).
pub fn header(opcode: Opcode, payload_len: usize) -> EncodedHeader {
    debug_assert!(
        !opcode.is_control() || payload_len <= CONTROL_MAX_BYTES,
        "a control frame carries at most 125 bytes"
    );
    let mut bytes = [0; HEADER_MAX_BYTES];
    bytes[0] = FIN | opcode as u8;
    let len = if payload_len <= 125 {
        bytes[1] = payload_len as u8;
        2
    } else if let Ok(payload_len) = u16::try_from(payload_len) {
        bytes[1] = 126;
        bytes[2..4].copy_from_slice(&payload_len.to_be_bytes());
        4
    } else {
        bytes[1] = 127;
        bytes[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
        10
    };
    EncodedHeader { bytes, len }
}

/// A server's frame that is a whole message: header and payload in one allocation.
///
/// The payload of a control frame has at most 125 bytes; what [`Event`](super::Event) gave always fits.
pub fn frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let header = header(opcode, payload.len());
    let mut frame = Vec::with_capacity(header.len() + payload.len());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(payload);
    frame.into()
}

/// A client's frame that is a whole message. The mask is to be unforeseeable, and another for each frame (section 5.3).
pub fn masked_frame(opcode: Opcode, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let header = header(opcode, payload.len());
    let mut frame = Vec::with_capacity(header.len() + MASK_BYTES + payload.len());
    frame.extend_from_slice(&header);
    frame[1] |= MASKED;
    frame.extend_from_slice(&mask);
    let start = frame.len();
    frame.extend_from_slice(payload);
    Mask::new(mask).apply(&mut frame[start..]);
    frame
}

/// The payload of a close frame. A reason over 123 bytes is cut, at a character's boundary (section 5.5.1).
pub fn close_payload(code: CloseCode, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(REASON_MAX_BYTES)];
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.get().to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    payload
}

/// A server's close frame. A reason over 123 bytes is cut, at a character's boundary.
pub fn close_frame(code: CloseCode, reason: &str) -> Bytes {
    frame(Opcode::Close, &close_payload(code, reason))
}

/// Builds a payload in place, behind room for its header: the frame is never copied.
///
/// Written to as an [`io::Write`] that does not fail.
#[derive(Debug)]
pub struct FrameBuilder {
    /// The longest header's room, then the payload.
    buffer: Vec<u8>,
}

impl FrameBuilder {
    /// An empty payload with room for `payload_bytes`; it grows beyond them.
    pub fn with_capacity(payload_bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(HEADER_MAX_BYTES + payload_bytes);
        buffer.resize(HEADER_MAX_BYTES, 0);
        Self { buffer }
    }

    /// Adds to the payload.
    pub fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What was written so far.
    pub fn payload(&self) -> &[u8] {
        &self.buffer[HEADER_MAX_BYTES..]
    }

    /// Puts the header right before the payload. The frame is a server's, and a whole message.
    pub fn finish(mut self, opcode: Opcode) -> Bytes {
        let header = header(opcode, self.payload().len());
        let start = HEADER_MAX_BYTES - header.len();
        self.buffer[start..HEADER_MAX_BYTES].copy_from_slice(&header);
        let mut frame = Bytes::from(self.buffer);
        frame.advance(start);
        frame
    }
}

impl io::Write for FrameBuilder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_header_has_the_shortest_form_of_the_length() {
        let text = |len| header(Opcode::Text, len).to_vec();
        assert_eq!(text(0), [0x81, 0]);
        assert_eq!(text(125), [0x81, 125]);
        assert_eq!(text(126), [0x81, 126, 0, 126]);
        assert_eq!(text(65_535), [0x81, 126, 0xff, 0xff]);
        assert_eq!(text(65_536), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(header(Opcode::Binary, 1)[..], [0x82, 1]);
        assert_eq!(header(Opcode::Pong, 4)[..], [0x8a, 4]);
    }

    #[test]
    fn the_frames_of_the_rfc_are_written_as_it_shows_them() {
        // Section 5.7.
        assert_eq!(frame(Opcode::Text, b"Hello")[..], *b"\x81\x05Hello");
        assert_eq!(frame(Opcode::Ping, b"Hello")[..], *b"\x89\x05Hello");
        let masked = masked_frame(Opcode::Text, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        let expected = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        assert_eq!(masked, expected);
    }

    #[test]
    fn a_payload_built_in_place_makes_the_same_frame_where_it_lies() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; len];
            let mut builder = FrameBuilder::with_capacity(len);
            builder.write_all(&payload).unwrap();
            let at = builder.payload().as_ptr();
            let built = builder.finish(Opcode::Text);
            assert_eq!(built, frame(Opcode::Text, &payload));
            assert_eq!(built[built.len() - len..].as_ptr(), at, "it was copied");
        }
    }

    #[test]
    fn a_payload_may_outgrow_the_room_that_was_foreseen() {
        let mut builder = FrameBuilder::with_capacity(1);
        serde_json::to_writer(&mut builder, &vec![7; 100]).unwrap();
        let json = serde_json::to_vec(&vec![7; 100]).unwrap();
        assert_eq!(builder.finish(Opcode::Text), frame(Opcode::Text, &json));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let fits = "a".repeat(123);
        assert_eq!(
            &close_payload(CloseCode::POLICY, &fits)[2..],
            fits.as_bytes()
        );
        // The 123rd byte would be the first of an é.
        let cut = close_frame(CloseCode::POLICY, &format!("{}é", "a".repeat(122)));
        assert_eq!(cut[..4], [0x88, 124, 0x03, 0xf0]);
        assert_eq!(&cut[4..], "a".repeat(122).as_bytes());
    }
}
