use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Pointer;
use crate::backplane::redis::Place;
use crate::backplane::{BackplaneConfig, BackplaneKind, BackplaneUrl};
use crate::model::units;

/// One of `[[sources]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct SourceConfig {
    /// What the topic is on.
    pub kind: SourceKind,
    /// The topic, by its full name: the backplane's prefix is not put before it.
    pub topic: String,
    /// Where it is; left out = where the backplane is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<BackplaneUrl>,
    /// Where in an event its user is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Pointer>,
    /// Where its channel is, in place of a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<Pointer>,
    /// Where the message is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Pointer>,
    /// Where the event's own id is, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Pointer>,
    /// Of a stream: the field of an entry that the event is in; empty = its fields are the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Of a stream: the consumer group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Of a stream: after how long an event that a node took and did not confirm goes to another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_after: Option<Patience>,
}

/// A duration of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience(#[serde(with = "units::duration")] pub Duration);

/// The field of an entry that an event is in, unless it is configured.
const FIELD: &str = "data";
/// When an event goes to another node, unless it is configured, and the least that may be.
const CLAIM_AFTER: Duration = Duration::from_secs(30);
const CLAIM_AFTER_MIN: Duration = Duration::from_secs(1);

/// The kinds of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A Redis Pub/Sub channel.
    RedisPubsub,
    /// A Redis Stream, read by a consumer group.
    RedisStream,
}

/// A section as it is written.
#[derive(Deserialize)]
struct Fields {
    kind: SourceKind,
    topic: String,
    #[serde(default)]
    url: Option<BackplaneUrl>,
    #[serde(default)]
    user: Option<Pointer>,
    #[serde(default)]
    channel: Option<Pointer>,
    #[serde(default)]
    message: Option<Pointer>,
    #[serde(default)]
    id: Option<Pointer>,
    #[serde(default)]
    field: Option<String>,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    claim_after: Option<Patience>,
}

impl TryFrom<Fields> for SourceConfig {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        if fields.topic.is_empty() {
            return Err("has an empty topic; name the Pub/Sub channel or the stream of the events");
        }
        if fields.user.is_some() && fields.channel.is_some() {
            return Err("has both user and channel; an event is for one of them, so take one out");
        }
        let of_stream = fields.kind == SourceKind::RedisStream;
        if !of_stream && (fields.field.is_some() || fields.group.is_some()) {
            return Err("has field or group, which are for kind = \"redis-stream\"; take them out");
        }
        if !of_stream && fields.claim_after.is_some() {
            return Err("has claim_after, which is for kind = \"redis-stream\"; take it out");
        }
        if fields.group.as_deref() == Some("") {
            return Err("has an empty group; name the consumer group, or leave the key out");
        }
        if fields
            .claim_after
            .is_some_and(|Patience(after)| after < CLAIM_AFTER_MIN)
        {
            return Err("has a claim_after below 1s; a node needs that long to deliver an event");
        }
        let Fields {
            kind,
            topic,
            url,
            user,
            channel,
            message,
            id,
            field,
            group,
            claim_after,
        } = fields;
        Ok(Self {
            kind,
            topic,
            url,
            user,
            channel,
            message,
            id,
            field,
            group,
            claim_after,
        })
    }
}

impl SourceConfig {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// A sentence with the key and the fix.
    pub fn check(&self, backplane: &BackplaneConfig) -> Result<(), String> {
        self.place(backplane).map(|_| ())
    }

    /// The field of an entry that its event is in.
    pub(super) fn field(&self) -> &str {
        self.field.as_deref().unwrap_or(FIELD)
    }

    /// The consumer group: as configured, else of the backplane's prefix, which is that of the nodes that belong together.
    pub(super) fn group(&self, backplane: &BackplaneConfig) -> String {
        let prefix = backplane.prefix.trim_end_matches(':');
        match (&self.group, prefix) {
            (Some(group), _) => group.clone(),
            (None, "") => "tidings".into(),
            (None, prefix) => prefix.into(),
        }
    }

    /// After how long an event goes to another node.
    pub(super) fn claim_after(&self) -> Duration {
        self.claim_after
            .map_or(CLAIM_AFTER, |Patience(after)| after)
    }

    /// Where its topic is.
    ///
    /// # Errors
    /// As above.
    pub(super) fn place(&self, backplane: &BackplaneConfig) -> Result<Place, String> {
        let topic = &self.topic;
        match (&self.url, backplane.kind) {
            (Some(url), _) => {
                let key = format!("[[sources]] {topic:?} url");
                Place::parse(&key, url, backplane.ca_file.as_deref())
            }
            (None, BackplaneKind::Redis) => Place::of(backplane),
            (None, BackplaneKind::Memory) => Err(format!(
                "[[sources]] {topic:?} has no url, and [backplane] is not on Redis; say where the topic is, as in url = \"redis://127.0.0.1:6379\""
            )),
        }
    }
}
