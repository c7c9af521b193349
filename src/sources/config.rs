use serde::{Deserialize, Serialize};

use super::Pointer;
use crate::backplane::redis::Place;
use crate::backplane::{BackplaneConfig, BackplaneKind, BackplaneUrl};

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
}

/// The kinds of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A Redis Pub/Sub channel.
    RedisPubsub,
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
}

impl TryFrom<Fields> for SourceConfig {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        if fields.topic.is_empty() {
            return Err("has an empty topic; name the Pub/Sub channel that the events come on");
        }
        if fields.user.is_some() && fields.channel.is_some() {
            return Err("has both user and channel; an event is for one of them, so take one out");
        }
        let Fields {
            kind,
            topic,
            url,
            user,
            channel,
            message,
            id,
        } = fields;
        Ok(Self {
            kind,
            topic,
            url,
            user,
            channel,
            message,
            id,
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
