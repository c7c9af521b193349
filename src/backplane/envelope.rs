//! What crosses a backplane: a version, perhaps a signature, and a body in Protocol Buffers, whose numbered fields let
//! two versions of a node understand each other.
//!
//! ```text
//! byte 0      the version of this layout
//! byte 1      0 = unsigned, 1 = signed
//! 32 bytes    if signed: HMAC-SHA256 over the address, a zero byte and the body
//! the rest    the body
//! ```

use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::hmac;
use bytes::Bytes;
use prost::Message as _;

use crate::model::{
    Address, Ask, Body, ChannelName, ConnectionId, ConnectionInfo, DeviceName, Grant, Message,
    MessageId, NodeId, Said, Secret, Sessions, Target, UserId, unix_millis,
};

/// The layout that this node writes, and the only one it reads.
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
        let body = pb::Envelope::from(envelope);
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
        pb::Envelope::decode(bytes.slice(head..))
            .ok()
            .and_then(pb::Envelope::parse)
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

/// The body on the wire. Numbers are for ever: a field that goes leaves its number unused.
mod pb {
    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Envelope {
        #[prost(oneof = "Kind", tags = "1, 2, 3")]
        kind: Option<Kind>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    enum Kind {
        #[prost(message, tag = "1")]
        Message(MessageBody),
        #[prost(message, tag = "2")]
        Question(QuestionBody),
        #[prost(message, tag = "3")]
        Answer(AnswerBody),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct MessageBody {
        #[prost(bytes = "bytes", tag = "1")]
        id: Bytes,
        /// One user, one channel, or many users; none of them: everyone.
        #[prost(string, repeated, tag = "2")]
        users: Vec<String>,
        #[prost(string, optional, tag = "3")]
        channel: Option<String>,
        /// Unix milliseconds.
        #[prost(uint64, tag = "4")]
        time: u64,
        #[prost(oneof = "Data", tags = "5, 6, 7")]
        data: Option<Data>,
        /// A broadcast, however few its users are.
        #[prost(bool, tag = "8")]
        many: bool,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    enum Data {
        #[prost(string, tag = "5")]
        Text(String),
        #[prost(string, tag = "6")]
        Json(String),
        #[prost(bytes = "bytes", tag = "7")]
        Binary(Bytes),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct QuestionBody {
        #[prost(fixed64, tag = "1")]
        id: u64,
        #[prost(fixed64, tag = "2")]
        from: u64,
        #[prost(uint64, tag = "3")]
        within_ms: u64,
        #[prost(uint32, tag = "4")]
        ask: u32,
        #[prost(string, optional, tag = "5")]
        user: Option<String>,
        #[prost(bytes = "bytes", optional, tag = "6")]
        connection: Option<Bytes>,
        #[prost(string, tag = "7")]
        channel: String,
        #[prost(string, tag = "8")]
        reason: String,
    }

    const WHERE_IS: u32 = 1;
    const DISCONNECT: u32 = 2;
    const SUBSCRIBE: u32 = 3;
    const UNSUBSCRIBE: u32 = 4;

    #[derive(Clone, PartialEq, prost::Message)]
    struct AnswerBody {
        #[prost(fixed64, tag = "1")]
        to: u64,
        #[prost(uint32, optional, tag = "2")]
        applied: Option<u32>,
        #[prost(message, repeated, tag = "3")]
        connections: Vec<Connection>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Connection {
        #[prost(string, tag = "1")]
        node: String,
        #[prost(bytes = "bytes", tag = "2")]
        id: Bytes,
        #[prost(string, optional, tag = "3")]
        device: Option<String>,
        /// Unix milliseconds.
        #[prost(uint64, tag = "4")]
        connected_at: u64,
        #[prost(string, repeated, tag = "5")]
        channels: Vec<String>,
        #[prost(string, optional, tag = "6")]
        claims: Option<String>,
    }

    impl From<&super::Envelope> for Envelope {
        fn from(envelope: &super::Envelope) -> Self {
            let kind = match envelope {
                super::Envelope::Message(message) => Kind::Message(message.into()),
                super::Envelope::Question(question) => Kind::Question(question.into()),
                super::Envelope::Answer(answer) => Kind::Answer(answer.into()),
            };
            Self { kind: Some(kind) }
        }
    }

    impl Envelope {
        /// The envelope, unless something in it is not what it must be.
        pub(super) fn parse(self) -> Option<super::Envelope> {
            Some(match self.kind? {
                Kind::Message(message) => super::Envelope::Message(message.parse()?),
                Kind::Question(question) => super::Envelope::Question(question.parse()?),
                Kind::Answer(answer) => super::Envelope::Answer(answer.parse()?),
            })
        }
    }

    impl From<&Message> for MessageBody {
        fn from(message: &Message) -> Self {
            let (mut users, mut channel, mut many) = (Vec::new(), None, false);
            match &message.target {
                Target::One(Address::User(user)) => users.push(user.to_string()),
                Target::One(Address::Channel(name)) => channel = Some(name.to_string()),
                Target::One(Address::Everyone | Address::Node(_)) => {}
                Target::Users(list) => {
                    many = true;
                    users = list.iter().map(ToString::to_string).collect();
                }
            }
            Self {
                id: Bytes::copy_from_slice(message.id.as_bytes()),
                users,
                channel,
                time: message.time,
                data: Some(match &message.body {
                    Body::Text(text) => Data::Text(text.as_ref().to_owned()),
                    Body::Json(text) => Data::Json(text.as_ref().to_owned()),
                    Body::Binary(bytes) => Data::Binary(bytes.clone()),
                }),
                many,
            }
        }
    }

    impl MessageBody {
        fn parse(self) -> Option<Message> {
            let user = |text: &String| UserId::parse(text).ok();
            let target = match (self.many, self.users.as_slice(), &self.channel) {
                (true, users, None) => {
                    Target::Users(users.iter().map(user).collect::<Option<_>>()?)
                }
                (false, [], None) => Target::One(Address::Everyone),
                (false, [one], None) => Target::One(Address::User(user(one)?)),
                (false, [], Some(channel)) => {
                    Target::One(Address::Channel(ChannelName::parse(channel).ok()?))
                }
                _ => return None,
            };
            let body = match self.data? {
                Data::Text(text) => Body::Text(text.into()),
                // Only a signature says that a node checked it; without one it is checked here.
                Data::Json(text) => Body::json(&text).ok()?,
                Data::Binary(bytes) => Body::Binary(bytes),
            };
            Some(Message {
                id: MessageId::from_bytes(self.id.as_ref().try_into().ok()?),
                target,
                body,
                time: self.time,
            })
        }
    }

    impl From<&Question> for QuestionBody {
        fn from(question: &Question) -> Self {
            let mut body = Self {
                id: question.id,
                from: question.from,
                within_ms: u64::try_from(question.within.as_millis()).unwrap_or(u64::MAX),
                ..Self::default()
            };
            let mut about = |sessions: &Sessions| match sessions {
                Sessions::OfUser(user) => body.user = Some(user.to_string()),
                Sessions::Connection(id) => {
                    body.connection = Some(Bytes::copy_from_slice(&id.to_bytes()));
                }
            };
            match &question.ask {
                Ask::WhereIs(user) => {
                    body.user = Some(user.to_string());
                    body.ask = WHERE_IS;
                }
                Ask::Disconnect(sessions, reason) => {
                    about(sessions);
                    body.reason = reason.to_string();
                    body.ask = DISCONNECT;
                }
                Ask::Subscribe(sessions, channel) => {
                    about(sessions);
                    body.channel = channel.to_string();
                    body.ask = SUBSCRIBE;
                }
                Ask::Unsubscribe(sessions, channel) => {
                    about(sessions);
                    body.channel = channel.to_string();
                    body.ask = UNSUBSCRIBE;
                }
            }
            body
        }
    }

    impl QuestionBody {
        fn parse(self) -> Option<Question> {
            let user = || UserId::parse(self.user.as_deref()?).ok();
            let sessions = || match &self.connection {
                Some(id) => Some(Sessions::Connection(connection_id(id)?)),
                None => user().map(Sessions::OfUser),
            };
            let channel = || ChannelName::parse(&self.channel).ok();
            let ask = match self.ask {
                WHERE_IS => Ask::WhereIs(user()?),
                DISCONNECT => Ask::Disconnect(sessions()?, self.reason.as_str().into()),
                SUBSCRIBE => Ask::Subscribe(sessions()?, channel()?),
                UNSUBSCRIBE => Ask::Unsubscribe(sessions()?, channel()?),
                _ => return None,
            };
            Some(Question {
                id: self.id,
                from: self.from,
                within: Duration::from_millis(self.within_ms),
                ask,
            })
        }
    }

    impl From<&Answer> for AnswerBody {
        fn from(answer: &Answer) -> Self {
            let (applied, connections) = match &answer.said {
                Said::Applied(count) => (Some(*count), Vec::new()),
                Said::Connections(list) => (None, list.iter().map(Connection::from).collect()),
            };
            Self {
                to: answer.to,
                applied,
                connections,
            }
        }
    }

    impl AnswerBody {
        fn parse(self) -> Option<Answer> {
            let connections = self.connections.into_iter().map(Connection::parse);
            Some(Answer {
                to: self.to,
                said: match self.applied {
                    Some(count) => Said::Applied(count),
                    None => Said::Connections(connections.collect::<Option<_>>()?),
                },
            })
        }
    }

    impl From<&ConnectionInfo> for Connection {
        fn from(info: &ConnectionInfo) -> Self {
            let since = info.connected_at.duration_since(UNIX_EPOCH);
            let since = since.map_or_else(|_| unix_millis().into(), |since| since.as_millis());
            Self {
                node: info.node.to_string(),
                id: Bytes::copy_from_slice(&info.connection.to_bytes()),
                device: info.device.as_ref().map(ToString::to_string),
                claims: info.claims.as_deref().map(str::to_owned),
                connected_at: u64::try_from(since).unwrap_or(u64::MAX),
                channels: info.channels.iter().map(ToString::to_string).collect(),
            }
        }
    }

    impl Connection {
        fn parse(self) -> Option<ConnectionInfo> {
            let device = self.device.as_deref().map(DeviceName::parse).transpose();
            let claims = self.claims.as_deref().map(Grant::check_claims).transpose();
            let channels = self.channels.iter().map(|c| ChannelName::parse(c).ok());
            Some(ConnectionInfo {
                node: NodeId(self.node.into()),
                connection: connection_id(&self.id)?,
                device: device.ok()?,
                claims: claims.ok()?,
                connected_at: UNIX_EPOCH.checked_add(Duration::from_millis(self.connected_at))?,
                channels: channels.collect::<Option<_>>()?,
            })
        }
    }

    fn connection_id(bytes: &Bytes) -> Option<ConnectionId> {
        bytes.as_ref().try_into().ok().map(ConnectionId::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
                id: MessageId::new(1_764_000_000_000),
                target,
                body,
                time: 1_764_000_000_000,
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
        let said = |said| Envelope::Answer(Answer { to: 1, said });
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
            said(Said::Applied(0)),
            said(Said::Connections(Vec::new())),
            said(Said::Connections(vec![ConnectionInfo {
                node: NodeId("a".into()),
                connection: connection(),
                device: Some(DeviceName::parse("phone").expect("a device")),
                claims: Some("{}".into()),
                connected_at: UNIX_EPOCH + Duration::from_millis(1_764_000_000_000),
                channels: vec![channel()],
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
        fn one_wrong_bit_never_panics(which in 0..13usize, at: prop::sample::Index, bit in 0..8u8) {
            let sealer = Sealer::new(None);
            let mut bytes = sealer.seal(&Address::Everyone, &every_kind()[which]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = sealer.open(&Address::Everyone, bytes.into());
        }
    }
}
