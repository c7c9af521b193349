//! What crosses a backplane: a version, perhaps a signature, and a body in Protocol Buffers, whose numbered fields let
//! two versions of a node understand each other.
//!
//! ```text
//! byte 0      the version of this layout
//! byte 1      0 = unsigned, 1 = signed
//! 32 bytes    if signed: HMAC-SHA256 over the address, a zero byte and the body
//! the rest    the body
//! ```
//!
//! A kept message's envelope has its place in front ([`kept`]).

mod body;
pub(super) mod kept;

use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use prost::Message as _;

use crate::model::{Address, Ask, Message, Said, Secret};

/// The layout of envelopes that this node writes, and the only one it reads.
const VERSION: u8 = 1;
const UNSIGNED: u8 = 0;
const SIGNED: u8 = 1;
const TAG_BYTES: usize = 32;
/// What separates this use of the cluster's secret from others.
const PURPOSE: &[u8] = b"tidings envelope 1";

/// One thing that goes through a backplane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Envelope {
    /// A message to deliver.
    Message(Message),
    /// One node asks those that listen.
    Question(Question),
    /// One of them answers.
    Answer(Answer),
}

/// What a node asks; answers go to [`Address::Node`] of `from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// By which its answers are known.
    pub id: u64,
    /// The incarnation of the node that asks.
    pub from: u64,
    /// How long it waits. On the wire, so that no two clocks are compared.
    pub within: Duration,
    /// What it asks.
    pub ask: Ask,
}

/// One node's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The question's id.
    pub to: u64,
    /// The incarnation of the node that answers: each counts once.
    pub from: u64,
    /// What the node says.
    pub said: Said,
}

/// Why bytes from a backplane are no envelope. What is not one is counted and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeError {
    /// Another version wrote it, or it is no envelope at all.
    Version,
    /// It is not signed, and must be.
    Unsigned,
    /// The signature is not by the cluster's secret over this address.
    Signature,
    /// The body is not what this version knows.
    Malformed,
}

impl EnvelopeError {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Unsigned => "unsigned",
            Self::Signature => "signature",
            Self::Malformed => "malformed",
        }
    }
}

/// Writes and reads envelopes; signs them when there is a secret.
#[derive(Clone)]
pub struct Sealer(Option<hmac::Key>);

impl Sealer {
    /// With the cluster's secret, if it has one.
    pub fn new(secret: Option<&Secret>) -> Self {
        Self(secret.map(|secret| {
            let root = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, PURPOSE).as_ref())
        }))
    }

    /// The bytes of an envelope for an address.
    pub fn seal(&self, to: &Address, envelope: &Envelope) -> Vec<u8> {
        let body = body::Envelope::from(envelope);
        let head = 2 + self.0.as_ref().map_or(0, |_| TAG_BYTES);
        let mut bytes = Vec::with_capacity(head + body.encoded_len());
        bytes.extend([VERSION, if self.0.is_some() { SIGNED } else { UNSIGNED }]);
        bytes.resize(head, 0);
        body.encode(&mut bytes).expect("a vector grows as it must");
        if let Some(key) = &self.0 {
            let tag = sign(key, to, &bytes[head..]);
            bytes[2..head].copy_from_slice(tag.as_ref());
        }
        bytes
    }

    /// The envelope in bytes that came to an address.
    ///
    /// # Errors
    /// See [`EnvelopeError`].
    pub fn open(&self, to: &Address, bytes: Bytes) -> Result<Envelope, EnvelopeError> {
        let (&[version, signed], rest) = bytes.split_first_chunk().ok_or(EnvelopeError::Version)?;
        if version != VERSION || signed > SIGNED {
            return Err(EnvelopeError::Version);
        }
        let (tag, head) = match signed {
            SIGNED => {
                let (tag, _) = rest
                    .split_at_checked(TAG_BYTES)
                    .ok_or(EnvelopeError::Malformed)?;
                (Some(tag), 2 + TAG_BYTES)
            }
            _ => (None, 2),
        };
        if let Some(key) = &self.0 {
            let tag = tag.ok_or(EnvelopeError::Unsigned)?;
            let signed = [to.to_string().as_bytes(), &[0], &bytes[head..]].concat();
            hmac::verify(key, &signed, tag).map_err(|_| EnvelopeError::Signature)?;
        }
        body::Envelope::decode(bytes.slice(head..))
            .ok()
            .and_then(body::Envelope::parse)
            .ok_or(EnvelopeError::Malformed)
    }
}

fn sign(key: &hmac::Key, to: &Address, body: &[u8]) -> hmac::Tag {
    let mut signing = hmac::Context::with_key(key);
    signing.update(to.to_string().as_bytes());
    signing.update(&[0]);
    signing.update(body);
    signing.sign()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        Body, ChannelName, ConnectionId, ConnectionInfo, DeviceName, Member, Members, MessageId,
        NodeId, Sessions, Target, UserId,
    };

    fn user(text: &str) -> UserId {
        UserId::parse(text).expect("a user")
    }

    fn channel() -> ChannelName {
        ChannelName::parse("orders:eu").expect("a channel")
    }

    fn connection() -> ConnectionId {
        ConnectionId {
            incarnation: 7,
            shard: 1,
            slot: 2,
            generation: 3,
        }
    }

    fn every_kind() -> Vec<Envelope> {
        let message = |target, body| {
            Envelope::Message(Message {
                expires: Some(1_764_000_060_000),
                collapse_key: Some("k".into()),
                ..Message::new(
                    MessageId::new(1_764_000_000_000),
                    target,
                    body,
                    1_764_000_000_000,
                )
            })
        };
        let question = |ask| {
            Envelope::Question(Question {
                id: 1,
                from: 2,
                within: Duration::from_secs(4),
                ask,
            })
        };
        let said = |said| {
            Envelope::Answer(Answer {
                to: 1,
                from: 2,
                said,
            })
        };
        let (one, text) = (Address::User(user("42")), Body::Text("Hi".into()));
        let of_user = Sessions::OfUser(user("42"));
        vec![
            message(Target::One(one), text.clone()),
            message(
                Target::One(Address::Channel(channel())),
                Body::json("[1, 2]").expect("JSON"),
            ),
            message(
                Target::One(Address::Everyone),
                Body::Binary(Bytes::from_static(&[0, 255])),
            ),
            message(Target::Users([].into()), text.clone()),
            message(Target::Users([user("1")].into()), text.clone()),
            message(Target::Users([user("1"), user("2")].into()), text),
            question(Ask::WhereIs(user("42"))),
            question(Ask::Disconnect(of_user.clone(), "so".into())),
            question(Ask::Subscribe(
                Sessions::Connection(connection()),
                channel(),
            )),
            question(Ask::Unsubscribe(of_user, channel())),
            question(Ask::Presence(channel())),
            question(Ask::Places(user("42"))),
            question(Ask::Evict(connection())),
            said(Said::Members(Members::default())),
            said(Said::Members(Members {
                some: vec![Member {
                    user: user("42"),
                    connection: connection(),
                    device: Some(DeviceName::parse("phone").expect("a device")),
                    node: NodeId("a".into()),
                }],
                total: 2,
            })),
            said(Said::Applied(0)),
            said(Said::Connections(Vec::new())),
            said(Said::Connections(vec![ConnectionInfo {
                node: NodeId("a".into()),
                connection: connection(),
                device: Some(DeviceName::parse("phone").expect("a device")),
                claims: Some("{}".into()),
                connected_at: UNIX_EPOCH + Duration::from_millis(1_764_000_000_000),
                channels: vec![channel()],
                ip: Some("2001:db8::1".parse().expect("an address")),
            }])),
        ]
    }

    fn secret(text: &str) -> Sealer {
        Sealer::new(Some(&Secret::new(text)))
    }

    #[test]
    fn every_envelope_survives_its_bytes() {
        let to = Address::Everyone;
        for sealer in [Sealer::new(None), secret("s")] {
            for envelope in every_kind() {
                let bytes = sealer.seal(&to, &envelope);
                assert_eq!(sealer.open(&to, bytes.into()), Ok(envelope));
            }
        }
    }

    #[test]
    fn with_a_secret_only_its_own_signature_over_this_address_counts() {
        let (to, other) = (Address::User(user("1")), Address::User(user("2")));
        for envelope in every_kind() {
            let bytes = secret("s").seal(&to, &envelope);
            let open = |sealer: Sealer, to, bytes: Vec<u8>| sealer.open(to, bytes.into());
            let forged = Err(EnvelopeError::Signature);
            assert_eq!(open(secret("t"), &to, bytes.clone()), forged);
            assert_eq!(open(secret("s"), &other, bytes.clone()), forged);
            let mut changed = bytes.clone();
            *changed.last_mut().expect("bytes") ^= 1;
            assert_eq!(open(secret("s"), &to, changed), forged);
            let unsigned = Sealer::new(None).seal(&to, &envelope);
            let refused = Err(EnvelopeError::Unsigned);
            assert_eq!(open(secret("s"), &to, unsigned), refused);
            // A node that has no secret yet reads those of one that has: a secret can be rolled out.
            assert!(open(Sealer::new(None), &to, bytes).is_ok());
        }
    }

    #[test]
    fn another_version_is_told_from_garbage_of_ours() {
        let open = |bytes: &'static [u8]| {
            Sealer::new(None).open(&Address::Everyone, Bytes::from_static(bytes))
        };
        for bytes in [
            b"".as_slice(),
            b"\x01",
            b"\x02\x00",
            b"{\"user_id\":\"42\"}",
        ] {
            assert_eq!(open(bytes), Err(EnvelopeError::Version), "{bytes:?}");
        }
        for bytes in [b"\x01\x00".as_slice(), b"\x01\x00\xff", b"\x01\x01short"] {
            assert_eq!(open(bytes), Err(EnvelopeError::Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_opened_or_refused(mut bytes: Vec<u8>, ours: bool) {
            if ours {
                bytes.splice(..0, [VERSION, UNSIGNED]);
            }
            let _ = Sealer::new(None).open(&Address::Everyone, bytes.into());
        }

        #[test]
        fn one_wrong_bit_never_panics(which: prop::sample::Index, at: prop::sample::Index, bit in 0..8u8) {
            let sealer = Sealer::new(None);
            let envelope = which.get(&every_kind()).clone();
            let mut bytes = sealer.seal(&Address::Everyone, &envelope);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = sealer.open(&Address::Everyone, bytes.into());
        }
    }
}
