use std::fmt::Write as _;

use bytes::Bytes;

use crate::model::{Address, ChannelName, ConnectionId, MessageId, UserId};

/// Slots of a Redis Cluster.
pub(super) const SLOTS: u16 = 16_384;

/// What most channels have room in, behind the prefix.
const CHANNEL_BYTES: usize = 56;

/// Names of Redis keys and Pub/Sub channels. What belongs to one address shares a hash tag, so that a cluster keeps it
/// together.
#[derive(Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// Where an address's envelopes are published.
    pub(super) fn channel(&self, address: &Address) -> String {
        let mut channel = String::with_capacity(self.prefix.len() + CHANNEL_BYTES);
        write!(channel, "{}m:{{{address}}}", self.prefix).expect("a string grows as it must");
        channel
    }

    /// Where an address's stream is.
    pub(super) fn stream(&self, address: &Address) -> String {
        format!("{}s:{{{address}}}", self.prefix)
    }

    /// Where its meta is: where it stands.
    pub(super) fn meta(&self, address: &Address) -> String {
        format!("{}t:{{{address}}}", self.prefix)
    }

    /// Where a user's cursors are.
    pub(super) fn cursors(&self, address: &Address) -> String {
        format!("{}c:{{{address}}}", self.prefix)
    }

    /// Where a caller's idempotency key is, by its hash.
    pub(super) fn once(&self, address: &Address, key: &[u8]) -> String {
        format!("{}k:{{{address}}}:{}", self.prefix, hex(key))
    }

    /// Where a retry leaves word of a message.
    pub(super) fn marker(&self, address: &Address, id: MessageId) -> String {
        format!("{}i:{{{address}}}:{}", self.prefix, hex(id.as_bytes()))
    }

    /// The address of such a channel.
    pub(super) fn address(&self, channel: &[u8]) -> Option<Address> {
        let text = std::str::from_utf8(channel).ok()?;
        let text = text.strip_prefix(self.prefix.as_str())?;
        let text = text.strip_prefix("m:{")?.strip_suffix('}')?;
        if text == "everyone" {
            return Some(Address::Everyone);
        }
        match text.split_once(':')? {
            ("user", user) => UserId::parse(user).ok().map(Address::User),
            ("channel", name) => ChannelName::parse(name).ok().map(Address::Channel),
            ("node", hex) => u64::from_str_radix(hex, 16).ok().map(Address::Node),
            _ => None,
        }
    }

    /// Where the probes of one link go; in a cluster, `salt` finds the slot.
    pub(super) fn probe(&self, incarnation: u64, link: usize, salt: u32) -> String {
        format!("{}probe:{{{incarnation:012x}:{link}:{salt}}}", self.prefix)
    }

    /// Where the era of streams is.
    pub(super) fn era(&self) -> String {
        format!("{}era", self.prefix)
    }

    /// Where the nodes' leases are.
    pub(super) fn nodes(&self) -> String {
        format!("{}nodes", self.prefix)
    }

    /// Where the cluster's own secret is, if the configuration names none.
    pub(super) fn secret(&self) -> String {
        format!("{}secret", self.prefix)
    }

    /// That a user's resume ticket was used, and by which connection.
    pub(super) fn resumed(&self, user: &UserId, ticket: &impl std::fmt::Display) -> String {
        format!("{}r:{{user:{user}}}:{ticket}", self.prefix)
    }

    /// Until when what a user was given is revoked; with a connection, that all that continues it is.
    pub(super) fn revoked(&self, user: &UserId, first: Option<ConnectionId>) -> String {
        match first {
            None => format!("{}v:{{user:{user}}}", self.prefix),
            Some(first) => format!("{}v:{{user:{user}}}:{first}", self.prefix),
        }
    }

    /// Where the fleet's handshake budget is.
    pub(super) fn budget(&self) -> String {
        format!("{}budget", self.prefix)
    }

    /// When a proof that is not stored has its slot, by the hex of its hash.
    pub(super) fn slot(&self, hash: &impl std::fmt::Display) -> String {
        format!("{}slot:{hash}", self.prefix)
    }

    /// Where a ticket waits, by the hex of its hash. Public: foreign services write it.
    pub(super) fn ticket(&self, hash: &impl std::fmt::Display) -> String {
        format!("{}ticket:{hash}", self.prefix)
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string grows as it must");
    }
    text
}

/// The slot of a key (Redis Cluster specification, "Hash tags" and "Keys distribution model").
pub(super) fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let hashed = match tag {
        Some((tag, _)) if !tag.is_empty() => tag,
        _ => key,
    };
    crc16(hashed.as_bytes()) % SLOTS
}

/// CRC-16/XMODEM: polynomial 0x1021, from zero.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

/// A push's channel and bytes.
pub(super) fn message(data: Vec<redis::Value>) -> Option<(Vec<u8>, Bytes)> {
    let [
        redis::Value::BulkString(channel),
        redis::Value::BulkString(bytes),
    ] = <[redis::Value; 2]>::try_from(data).ok()?
    else {
        return None;
    };
    Some((channel, bytes.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_that_of_the_hash_tag() {
        // The check value of the specification.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot("foo"), 12_182);
        assert_eq!(slot("{user1000}.following"), slot("{user1000}.followers"));
        assert_eq!(slot("foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot("a{b"), crc16(b"a{b") % SLOTS);
    }

    #[test]
    fn an_address_survives_its_channel() {
        let keys = Keys::new("tidings:");
        for address in [
            Address::User(UserId::parse("42:x").expect("a user")),
            Address::Channel(ChannelName::parse("orders:eu").expect("a channel")),
            Address::Everyone,
            Address::Node(0xa1),
        ] {
            let channel = keys.channel(&address);
            assert_eq!(keys.address(channel.as_bytes()), Some(address), "{channel}");
        }
        for other in [
            "tidings:m:{}",
            "other:m:{everyone}",
            "tidings:m:{user:}",
            "x",
            "tidings:m:{room:1}",
        ] {
            assert_eq!(keys.address(other.as_bytes()), None, "{other}");
        }
    }
}
