//! The body on the wire. Numbers are for ever: a field that goes leaves its number unused.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::{Answer, Question};
use crate::model::{
    Address, Ask, Body, ChannelName, ConnectionId, ConnectionInfo, DeviceName, Grant, Member,
    Members, Message, MessageId, NodeId, Said, Sessions, Target, UserId, unix_millis,
};

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
    /// Unix milliseconds.
    #[prost(uint64, optional, tag = "9")]
    expires: Option<u64>,
    #[prost(string, optional, tag = "10")]
    collapse_key: Option<String>,
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
const REPLACE: u32 = 5;
const PRESENCE: u32 = 6;
const PLACES: u32 = 7;
const EVICT: u32 = 8;

#[derive(Clone, PartialEq, prost::Message)]
struct AnswerBody {
    #[prost(fixed64, tag = "1")]
    to: u64,
    #[prost(uint32, optional, tag = "2")]
    applied: Option<u32>,
    #[prost(message, repeated, tag = "3")]
    connections: Vec<Connection>,
    #[prost(fixed64, tag = "4")]
    from: u64,
    #[prost(message, optional, tag = "5")]
    members: Option<MembersBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MembersBody {
    #[prost(uint32, tag = "1")]
    total: u32,
    #[prost(message, repeated, tag = "2")]
    some: Vec<MemberBody>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MemberBody {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(bytes = "bytes", tag = "2")]
    connection: Bytes,
    #[prost(string, optional, tag = "3")]
    device: Option<String>,
    #[prost(string, tag = "4")]
    node: String,
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
    /// As text; one that is no address is as good as none.
    #[prost(string, optional, tag = "7")]
    ip: Option<String>,
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
            expires: message.expires,
            collapse_key: message.collapse_key.as_deref().map(str::to_owned),
        }
    }
}

impl MessageBody {
    fn parse(self) -> Option<Message> {
        let user = |text: &String| UserId::parse(text).ok();
        let target = match (self.many, self.users.as_slice(), &self.channel) {
            (true, users, None) => Target::Users(users.iter().map(user).collect::<Option<_>>()?),
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
            expires: self.expires,
            collapse_key: self.collapse_key.map(Into::into),
            ..Message::new(
                MessageId::from_bytes(self.id.as_ref().try_into().ok()?),
                target,
                body,
                self.time,
            )
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
            Ask::Places(user) => {
                body.user = Some(user.to_string());
                body.ask = PLACES;
            }
            Ask::Evict(id) => {
                about(&Sessions::Connection(*id));
                body.ask = EVICT;
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
            Ask::Replace(id) => {
                about(&Sessions::Connection(*id));
                body.ask = REPLACE;
            }
            Ask::Presence(channel) => {
                body.channel = channel.to_string();
                body.ask = PRESENCE;
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
            REPLACE => Ask::Replace(connection_id(self.connection.as_ref()?)?),
            PRESENCE => Ask::Presence(channel()?),
            PLACES => Ask::Places(user()?),
            EVICT => Ask::Evict(connection_id(self.connection.as_ref()?)?),
            // Of a later version: who asked counts this node as unknown.
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
        let mut body = Self {
            to: answer.to,
            from: answer.from,
            ..Self::default()
        };
        match &answer.said {
            Said::Applied(count) => body.applied = Some(*count),
            Said::Connections(list) => {
                body.connections = list.iter().map(Connection::from).collect();
            }
            Said::Members(members) => {
                body.members = Some(MembersBody {
                    total: members.total,
                    some: members.some.iter().map(MemberBody::from).collect(),
                });
            }
        }
        body
    }
}

impl AnswerBody {
    fn parse(self) -> Option<Answer> {
        let connections = self.connections.into_iter().map(Connection::parse);
        Some(Answer {
            to: self.to,
            from: self.from,
            said: match (self.applied, self.members) {
                (Some(count), _) => Said::Applied(count),
                (None, Some(members)) => Said::Members(members.parse()?),
                (None, None) => Said::Connections(connections.collect::<Option<_>>()?),
            },
        })
    }
}

impl MembersBody {
    fn parse(self) -> Option<Members> {
        let some = self.some.into_iter().map(MemberBody::parse);
        Some(Members {
            some: some.collect::<Option<_>>()?,
            total: self.total,
        })
    }
}

impl From<&Member> for MemberBody {
    fn from(member: &Member) -> Self {
        Self {
            user: member.user.to_string(),
            connection: Bytes::copy_from_slice(&member.connection.to_bytes()),
            device: member.device.as_ref().map(ToString::to_string),
            node: member.node.to_string(),
        }
    }
}

impl MemberBody {
    fn parse(self) -> Option<Member> {
        let device = self.device.as_deref().map(DeviceName::parse).transpose();
        Some(Member {
            user: UserId::parse(&self.user).ok()?,
            connection: connection_id(&self.connection)?,
            device: device.ok()?,
            node: NodeId(self.node.into()),
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
            ip: info.ip.map(|ip| ip.to_string()),
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
            ip: self.ip.and_then(|ip| ip.parse().ok()),
        })
    }
}

fn connection_id(bytes: &Bytes) -> Option<ConnectionId> {
    bytes.as_ref().try_into().ok().map(ConnectionId::from_bytes)
}
