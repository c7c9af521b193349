use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::model::sha256;

/// A one-time proof that opens a connection: 256 bits as exactly 43 base64url characters (RFC 4648 section 5, without
/// padding). Its `Debug` is redacted, and it has no `Display`: whoever shows it says [`Ticket::expose`].
#[derive(Clone)]
pub struct Ticket([u8; Ticket::LENGTH]);

impl Ticket {
    /// Its length in characters.
    pub const LENGTH: usize = 43;

    /// A new one, from the random source of the operating system.
    ///
    /// # Errors
    /// That source failed; a sentence for the operator.
    pub fn generate() -> Result<Self, String> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)
            .map_err(|e| format!("the random source of the operating system failed: {e}"))?;
        let mut text = [0; Self::LENGTH];
        URL_SAFE_NO_PAD
            .encode_slice(secret, &mut text)
            .expect("32 bytes are 43 base64url characters");
        Ok(Self(text))
    }

    /// Parses a ticket that was shown; `None` if it cannot be one, and then no store need be asked. Length and alphabet
    /// are all that is asked: a foreign service may write any 43 such characters, also ones whose last holds bits that
    /// no encoder would set. What counts is the text, not the bytes that it encodes.
    pub fn parse(text: &str) -> Option<Self> {
        let text: [u8; Self::LENGTH] = text.as_bytes().try_into().ok()?;
        text.iter()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
            .then_some(Self(text))
    }

    /// The ticket itself, for its owner alone: never for a log, a metric or a trace.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a ticket is ASCII")
    }

    /// What of it may be stored: SHA-256 of its 43 characters.
    pub fn hash(&self) -> TicketHash {
        TicketHash(sha256(&self.0))
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(***)")
    }
}

/// SHA-256 of a ticket's text: how a ticket is kept and found at rest. Its `Display` is lower-case hex. It opens nothing,
/// since 256 random bits cannot be found from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketHash(pub [u8; 32]);

impl fmt::Display for TicketHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_generated_ticket_is_another_and_parses() {
        let tickets: std::collections::HashSet<String> = (0..100)
            .map(|_| Ticket::generate().expect("random").expose().to_owned())
            .collect();
        assert_eq!(tickets.len(), 100);
        assert!(tickets.iter().all(|t| Ticket::parse(t).is_some()));
    }

    #[test]
    fn the_hash_is_that_of_the_text() {
        let ticket = Ticket::parse(&"A".repeat(43)).expect("43 characters");
        assert_eq!(ticket.hash(), TicketHash(sha256("A".repeat(43).as_bytes())));
        let hex = ticket.hash().to_string();
        assert_eq!(hex.len(), 64);
        assert!(hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')));
        let padded = format!("{}B", "A".repeat(42));
        let padded = Ticket::parse(&padded).expect("bits that no encoder sets are allowed");
        assert_ne!(padded.hash(), ticket.hash());
    }

    #[test]
    fn a_ticket_does_not_show_itself() {
        let ticket = Ticket::generate().expect("random");
        assert_eq!(format!("{ticket:?}"), "Ticket(***)");
    }

    proptest! {
        #[test]
        fn what_is_not_43_base64url_characters_is_no_ticket(text in prop_oneof![
            any::<String>(), "[A-Za-z0-9_-]{40,46}", "[A-Za-z0-9_+/=~é-]{43}",
        ]) {
            let alphabet = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            let is_one = text.chars().count() == 43 && text.chars().all(alphabet);
            let parsed = Ticket::parse(&text);
            prop_assert_eq!(parsed.as_ref().map(Ticket::expose), is_one.then_some(text.as_str()));
        }
    }
}
