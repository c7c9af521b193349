use bytes::{BufMut as _, Bytes, BytesMut};

use super::{CloseCode, Opcode, mask};

/// The most bytes of a close frame's reason: 125 less the code.
const REASON_MAX: usize = 123;

/// A server's frame: header and payload in one allocation.
pub fn frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(payload.len() + 10);
    put_header(&mut bytes, opcode, payload.len(), 0);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// A client's frame. The mask has to be unpredictable (RFC 6455 section 5.3).
pub fn masked_frame(opcode: Opcode, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut bytes = BytesMut::with_capacity(payload.len() + 14);
    put_header(&mut bytes, opcode, payload.len(), 0x80);
    bytes.put_slice(&key);
    let from = bytes.len();
    bytes.put_slice(payload);
    mask::apply(&mut bytes[from..], key, 0);
    bytes.into()
}

/// The payload of a close frame; the reason is cut at a character to 123 bytes.
pub fn close_payload(code: CloseCode, reason: &str) -> Vec<u8> {
    let mut payload = code.get().to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(REASON_MAX)]);
    payload
}

/// A server's close frame.
pub fn close_frame(code: CloseCode, reason: &str) -> Bytes {
    frame(Opcode::Close, &close_payload(code, reason))
}

fn put_header(bytes: &mut BytesMut, opcode: Opcode, length: usize, masked: u8) {
    bytes.put_u8(0x80 | opcode as u8);
    match length {
        0..=125 => bytes.put_u8(masked | length as u8),
        126..=0xffff => {
            bytes.put_u8(masked | 126);
            bytes.put_u16(length as u16);
        }
        _ => {
            bytes.put_u8(masked | 127);
            bytes.put_u64(length as u64);
        }
    }
}
