use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// A message's id: 48 bits of Unix milliseconds, then 80 random bits; 22 base64url characters as text. Made before the
/// first attempt to publish, so that a retry can be told from a second message.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId([u8; 16]);

impl MessageId {
    /// A new id.
    pub fn new(unix_millis: u64) -> Self {
        let mut bytes: [u8; 16] = rand::random();
        bytes[..6].copy_from_slice(&unix_millis.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// An id by its bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Parses the text form; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == bytes.len()).then_some(Self(bytes))
    }

    /// The id of this broadcast's message to one user: the same at each retry.
    pub fn of_user(&self, user: &super::UserId) -> Self {
        let hash = super::sha256(&[&self.0[..], user.as_str().as_bytes()].concat());
        let mut bytes = self.0;
        bytes[6..].copy_from_slice(&hash[..10]);
        Self(bytes)
    }

    /// By what a position recognises its message.
    pub fn tag(&self) -> super::Tag {
        let [.., a, b, c, d] = self.0;
        super::Tag(u32::from_be_bytes([a, b, c, d]))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base64(&self.0, f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base64(&self.0, f)
    }
}

/// A connection's id. Inside: 48 random bits of the node's incarnation, the shard, and the slot and generation of the
/// session there, so that a session is found without a map. Opaque to everybody else; 22 base64url characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// The node's incarnation; the lower 48 bits count.
    pub incarnation: u64,
    /// The shard's index.
    pub shard: u16,
    /// The session's slot in the shard.
    pub slot: u32,
    /// How often the slot was used before.
    pub generation: u32,
}

impl ConnectionId {
    /// Parses the text form; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == bytes.len()).then(|| Self::from_bytes(bytes))
    }

    /// An id by its bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [
            i0,
            i1,
            i2,
            i3,
            i4,
            i5,
            h0,
            h1,
            s0,
            s1,
            s2,
            s3,
            g0,
            g1,
            g2,
            g3,
        ] = bytes;
        Self {
            incarnation: u64::from_be_bytes([0, 0, i0, i1, i2, i3, i4, i5]),
            shard: u16::from_be_bytes([h0, h1]),
            slot: u32::from_be_bytes([s0, s1, s2, s3]),
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
        }
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&self.incarnation.to_be_bytes()[2..]);
        bytes[6..8].copy_from_slice(&self.shard.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.slot.to_be_bytes());
        bytes[12..].copy_from_slice(&self.generation.to_be_bytes());
        bytes
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base64(&self.to_bytes(), f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn write_base64(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = [0; 22];
    URL_SAFE_NO_PAD
        .encode_slice(bytes, &mut text)
        .map_err(|_| fmt::Error)?;
    f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
}

/// A node's name in the cluster, for people: from `[node] id`, else the host's name and four random characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeId(pub Arc<str>);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_connection_id_survives_its_text(incarnation in 0u64..1 << 48, shard: u16, slot: u32, generation: u32) {
            let id = ConnectionId { incarnation, shard, slot, generation };
            proptest::prop_assert_eq!(ConnectionId::parse(&id.to_string()), Some(id));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            if let Some(id) = ConnectionId::parse(&text) {
                proptest::prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
