use super::ProtocolError;
use super::mask::Mask;

/// The bit of the first byte that ends a message.
pub(super) const FIN: u8 = 0x80;
/// The bit of the second byte that says that a key follows the length.
pub(super) const MASKED: u8 = 0x80;
/// The longest payload of a control frame.
pub(super) const CONTROL_MAX_BYTES: usize = 125;
const RESERVED: u8 = 0x70;

/// The end of the connection that we are. It decides who masks (RFC 6455 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes masked frames only.
    Server,
    /// Takes unmasked frames only.
    Client,
}

/// What a frame is (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of the message that is open.
    Continuation = 0x0,
    /// A text message, or the first fragment of one.
    Text = 0x1,
    /// A binary message, or the first fragment of one.
    Binary = 0x2,
    /// The connection closes.
    Close = 0x8,
    /// Asks for a pong.
    Ping = 0x9,
    /// Answers a ping.
    Pong = 0xa,
}

impl Opcode {
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Close, ping or pong: never fragmented, at most 125 bytes, allowed between the fragments of a message.
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// What a header is judged by: who we are and where in a message we are.
pub(super) struct Context {
    pub(super) role: Role,
    /// A message was begun and not ended.
    pub(super) message_open: bool,
    /// Bytes that the message may still have.
    pub(super) room: usize,
}

/// The header of one frame that keeps the rules.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) payload_len: usize,
    pub(super) mask: Mask,
}

impl Header {
    /// The longest header.
    pub(super) const MAX_BYTES: usize = 14;

    /// Reads a header off the front of `bytes`, and says how long it is. `None` if it is not whole; a rule that is broken
    /// by what is there is an error nevertheless.
    pub(super) fn parse(
        bytes: &[u8],
        context: &Context,
    ) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let fin = first & FIN != 0;
        let opcode = opcode(first, context)?;

        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        match (context.role, second & MASKED != 0) {
            (Role::Server, false) => return Err(ProtocolError::Unmasked),
            (Role::Client, true) => return Err(ProtocolError::Masked),
            _ => {}
        }
        let short_len = usize::from(second & !MASKED);
        if opcode.is_control() && short_len > CONTROL_MAX_BYTES {
            return Err(ProtocolError::OversizedControl);
        }

        let Some((payload_len, key_at)) = payload_len(short_len, &bytes[2..])? else {
            return Ok(None);
        };
        if !opcode.is_control() && payload_len > context.room as u64 {
            return Err(ProtocolError::MessageTooBig);
        }
        let (mask, len) = match context.role {
            Role::Client => (Mask::NONE, key_at),
            Role::Server => match bytes[key_at..].first_chunk() {
                Some(key) => (Mask::new(*key), key_at + key.len()),
                None => return Ok(None),
            },
        };
        let header = Self {
            fin,
            opcode,
            payload_len: payload_len as usize, // within `room`, so within usize
            mask,
        };
        Ok(Some((header, len)))
    }
}

/// The opcode in a frame's first byte, if that byte may come now.
fn opcode(first: u8, context: &Context) -> Result<Opcode, ProtocolError> {
    if first & RESERVED != 0 {
        return Err(ProtocolError::ReservedBits);
    }
    let opcode = Opcode::from_bits(first & 0x0f).ok_or(ProtocolError::ReservedOpcode)?;
    if opcode.is_control() {
        return match first & FIN {
            0 => Err(ProtocolError::FragmentedControl),
            _ => Ok(opcode),
        };
    }
    match (opcode == Opcode::Continuation, context.message_open) {
        (true, false) => Err(ProtocolError::UnexpectedContinuation),
        (false, true) => Err(ProtocolError::ExpectedContinuation),
        _ => Ok(opcode),
    }
}

/// The length of the payload, from the seven bits and what follows them, and where in the header it ends.
fn payload_len(short: usize, after: &[u8]) -> Result<Option<(u64, usize)>, ProtocolError> {
    let (len, least, end) = match short {
        126 => match after.first_chunk() {
            Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 126, 4),
            None => return Ok(None),
        },
        127 => match after.first_chunk() {
            Some(bytes) => (u64::from_be_bytes(*bytes), 1 << 16, 10),
            None => return Ok(None),
        },
        short => (short as u64, 0, 2),
    };
    if len >> 63 != 0 {
        return Err(ProtocolError::LengthOutOfRange);
    }
    if len < least {
        return Err(ProtocolError::LengthNotMinimal);
    }
    Ok(Some((len, end)))
}
