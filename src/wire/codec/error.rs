use std::fmt;

use super::CloseCode;

/// The rule that the other side broke. The connection cannot go on: send a close frame with [`close_code`] and close.
///
/// [`close_code`]: ProtocolError::close_code
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolError {
    /// A reserved bit is set and no extension was agreed on (section 5.2).
    ReservedBits,
    /// An opcode that the RFC keeps for later (section 5.2).
    ReservedOpcode,
    /// A control frame without FIN (section 5.5).
    FragmentedControl,
    /// A control frame with more than 125 bytes (section 5.5).
    OversizedControl,
    /// A continuation frame while no message is open (section 5.4).
    UnexpectedContinuation,
    /// A new message before the last fragment of the open one (section 5.4).
    ExpectedContinuation,
    /// A client's frame without a mask (section 5.1).
    Unmasked,
    /// A server's frame with a mask (section 5.1).
    Masked,
    /// A length written in more bytes than it needs (section 5.2).
    LengthNotMinimal,
    /// A 64-bit length with its highest bit set (section 5.2).
    LengthOutOfRange,
    /// A message longer than [`Limits::message_bytes`](super::Limits::message_bytes), known from a frame's header.
    MessageTooBig,
    /// A message of more frames than [`Limits::fragments`](super::Limits::fragments).
    TooManyFragments,
    /// Text, or the reason of a close, that is not UTF-8 (section 8.1).
    InvalidUtf8,
    /// A close frame with a payload of one byte: half a code (section 5.5.1).
    TruncatedCloseCode,
    /// A close code that may not be sent (section 7.4).
    InvalidCloseCode,
}

impl ProtocolError {
    /// All of them, for a table of counters.
    pub const ALL: [Self; 15] = [
        Self::ReservedBits,
        Self::ReservedOpcode,
        Self::FragmentedControl,
        Self::OversizedControl,
        Self::UnexpectedContinuation,
        Self::ExpectedContinuation,
        Self::Unmasked,
        Self::Masked,
        Self::LengthNotMinimal,
        Self::LengthOutOfRange,
        Self::MessageTooBig,
        Self::TooManyFragments,
        Self::InvalidUtf8,
        Self::TruncatedCloseCode,
        Self::InvalidCloseCode,
    ];

    /// The code to close with: 1002, or 1007 for bad text, or 1009 for what is too big (section 7.4.1).
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::InvalidUtf8 => CloseCode::INVALID_TEXT,
            Self::MessageTooBig | Self::TooManyFragments => CloseCode::TOO_BIG,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }

    /// A short name that never changes: the label of a metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved_bits",
            Self::ReservedOpcode => "reserved_opcode",
            Self::FragmentedControl => "fragmented_control",
            Self::OversizedControl => "oversized_control",
            Self::UnexpectedContinuation => "unexpected_continuation",
            Self::ExpectedContinuation => "expected_continuation",
            Self::Unmasked => "unmasked",
            Self::Masked => "masked",
            Self::LengthNotMinimal => "length_not_minimal",
            Self::LengthOutOfRange => "length_out_of_range",
            Self::MessageTooBig => "message_too_big",
            Self::TooManyFragments => "too_many_fragments",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::TruncatedCloseCode => "truncated_close_code",
            Self::InvalidCloseCode => "invalid_close_code",
        }
    }
}

/// The rule, short enough for the reason of a close frame.
impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReservedBits => "a reserved bit is set, and no extension was agreed on",
            Self::ReservedOpcode => "the opcode is reserved",
            Self::FragmentedControl => "a control frame must not be fragmented",
            Self::OversizedControl => "a control frame carries at most 125 bytes",
            Self::UnexpectedContinuation => "a continuation frame needs a message to continue",
            Self::ExpectedContinuation => "a new message must wait for the end of the open one",
            Self::Unmasked => "a client's frame must be masked",
            Self::Masked => "a server's frame must not be masked",
            Self::LengthNotMinimal => "a length must be written in as few bytes as it needs",
            Self::LengthOutOfRange => "the highest bit of a length must be zero",
            Self::MessageTooBig => "the message is longer than the limit",
            Self::TooManyFragments => "the message has more fragments than the limit",
            Self::InvalidUtf8 => "text must be UTF-8",
            Self::TruncatedCloseCode => "a close code has two bytes",
            Self::InvalidCloseCode => "the close code must not be sent",
        })
    }
}

impl std::error::Error for ProtocolError {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::wire::codec::close_payload;

    #[test]
    fn every_error_has_a_name_of_its_own_that_a_metric_can_carry() {
        let names: HashSet<_> = ProtocolError::ALL
            .iter()
            .map(|error| error.name())
            .collect();
        assert_eq!(names.len(), ProtocolError::ALL.len());
        for name in names {
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
        }
    }

    #[test]
    fn every_error_fits_the_reason_of_a_close_frame() {
        for error in ProtocolError::ALL {
            let payload = close_payload(error.close_code(), &error.to_string());
            assert_eq!(&payload[2..], error.to_string().as_bytes());
        }
    }

    #[test]
    fn the_close_code_says_which_kind_of_rule_was_broken() {
        let code = |error: ProtocolError| error.close_code().get();
        assert_eq!(code(ProtocolError::InvalidUtf8), 1007);
        assert_eq!(code(ProtocolError::MessageTooBig), 1009);
        assert_eq!(code(ProtocolError::TooManyFragments), 1009);
        let protocol = ProtocolError::ALL
            .iter()
            .filter(|error| code(**error) == 1002);
        assert_eq!(protocol.count(), 12);
    }
}
