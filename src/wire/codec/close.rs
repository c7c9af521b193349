use std::borrow::Cow;
use std::fmt;

use super::ProtocolError;

/// Why a connection closes: a code that may stand in a close frame (RFC 6455 section 7.4, and the IANA registry).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: done.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the server goes down, or the page was left.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: a rule of the protocol was broken.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: a kind of message that is not taken here.
    pub const UNSUPPORTED: Self = Self(1003);
    /// 1007: text that is not UTF-8.
    pub const INVALID_TEXT: Self = Self(1007);
    /// 1008: a policy was broken.
    pub const POLICY: Self = Self(1008);
    /// 1009: a message that is too big.
    pub const TOO_BIG: Self = Self(1009);
    /// 1011: our fault.
    pub const INTERNAL: Self = Self(1011);
    /// 1012: the server restarts.
    pub const RESTART: Self = Self(1012);
    /// 1013: full or overloaded, come back later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// 4001: the session ended by its ticket; fetch a new one.
    pub const SESSION_ENDED: Self = Self(4001);
    /// 4002: the client did not read what came for it.
    pub const SLOW_CONSUMER: Self = Self(4002);
    /// 4003: no answer to a ping.
    pub const NO_PONG: Self = Self(4003);
    /// 4500: too many bad frames; do not come back.
    pub const CLIENT_ERRORS: Self = Self(4500);
    /// 4501: a service disconnected the user; do not come back.
    pub const DISCONNECTED: Self = Self(4501);
    /// 4502: a newer connection of the user took the place; do not come back.
    pub const REPLACED: Self = Self(4502);
    /// 4503: the user has as many connections as it may; do not come back.
    pub const USER_LIMIT: Self = Self(4503);

    /// The code, if an endpoint may send it: 1000–1003, 1007–1014 and 3000–4999. The rest is unassigned, or means
    /// something that is never on the wire (1005, 1006 and 1015).
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloseCode({})", self.0)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a close frame says, where it says anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close<'a> {
    /// The code.
    pub code: CloseCode,
    /// Words for a person; often empty.
    pub reason: Cow<'a, str>,
}

impl<'a> Close<'a> {
    /// Reads the payload of a close frame: nothing, or a code and a reason (section 5.5.1).
    pub(super) fn parse(payload: &'a [u8]) -> Result<Option<Self>, ProtocolError> {
        let Some((&code, reason)) = payload.split_first_chunk::<2>() else {
            return match payload.len() {
                0 => Ok(None),
                _ => Err(ProtocolError::TruncatedCloseCode),
            };
        };
        let code =
            CloseCode::new(u16::from_be_bytes(code)).ok_or(ProtocolError::InvalidCloseCode)?;
        let reason = str::from_utf8(reason).map_err(|_| ProtocolError::InvalidUtf8)?;
        Ok(Some(Self {
            code,
            reason: Cow::Borrowed(reason),
        }))
    }

    /// The same, independent of the buffer that it was read from.
    pub fn into_owned(self) -> Close<'static> {
        Close {
            code: self.code,
            reason: Cow::Owned(self.reason.into_owned()),
        }
    }
}
