use super::ProtocolError;

/// Which end of the connection the decoder serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its peer is a client, whose frames are masked.
    Server,
    /// Its peer is a server, whose frames are not.
    Client,
}

/// What a frame is (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    fn parse(nibble: u8) -> Option<Self> {
        Some(match nibble {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    /// Whether it is a control frame: short, never fragmented, allowed between fragments.
    pub fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// A frame's header, checked by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) length: u64,
    pub(super) mask: Option<[u8; 4]>,
}

/// The most bytes of a header.
pub(super) const HEADER_MAX: usize = 14;

impl Header {
    /// Reads a header and how long it is; `None` = more bytes are needed. Rules that the first two bytes show are
    /// checked with them.
    pub(super) fn parse(bytes: &[u8], role: Role) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        let fin = first & 0x80 != 0;
        let opcode = Opcode::parse(first & 0x0f).ok_or(ProtocolError::ReservedOpcode)?;
        let masked = second & 0x80 != 0;
        match (role, masked) {
            (Role::Server, false) => return Err(ProtocolError::Unmasked),
            (Role::Client, true) => return Err(ProtocolError::Masked),
            _ => {}
        }
        let short = second & 0x7f;
        if opcode.is_control() {
            if !fin {
                return Err(ProtocolError::FragmentedControl);
            }
            if short > 125 {
                return Err(ProtocolError::OversizedControl);
            }
        }
        let (length, rest) = match short {
            126 => match rest.split_first_chunk::<2>() {
                None => return Ok(None),
                Some((long, _)) if u16::from_be_bytes(*long) < 126 => {
                    return Err(ProtocolError::LengthNotMinimal);
                }
                Some((long, rest)) => (u16::from_be_bytes(*long).into(), rest),
            },
            127 => match rest.split_first_chunk::<8>() {
                None => return Ok(None),
                Some((long, rest)) => match u64::from_be_bytes(*long) {
                    length if length >> 63 == 1 => return Err(ProtocolError::LengthOutOfRange),
                    length if length <= u16::MAX.into() => {
                        return Err(ProtocolError::LengthNotMinimal);
                    }
                    length => (length, rest),
                },
            },
            short => (short.into(), rest),
        };
        let (mask, rest) = match masked.then(|| rest.split_first_chunk::<4>()) {
            None => (None, rest),
            Some(None) => return Ok(None),
            Some(Some((mask, rest))) => (Some(*mask), rest),
        };
        let header = Self {
            fin,
            opcode,
            length,
            mask,
        };
        Ok(Some((header, bytes.len() - rest.len())))
    }
}
