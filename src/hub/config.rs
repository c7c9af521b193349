use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::backplane::Keep;
use crate::model::{ChannelName, units};

/// `[hub]`: how the node is cut into shards and when it writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct HubConfig {
    /// Shards, each a thread with its own connections; 0 = one per core. At most 128.
    pub shards: usize,
    /// How long a busy shard lets frames for one connection gather before it writes them at once. A quiet shard writes
    /// at once, whatever this says. At most 100 ms.
    #[serde(with = "units::duration")]
    pub coalesce: Duration,
    /// Commands that wait for one shard, at most; a full queue holds the publishers back.
    pub queue: usize,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            shards: 0,
            coalesce: Duration::from_millis(4),
            queue: 4096,
        }
    }
}

/// `[limits]`: every limit of a node. 0 = off, where a default is not derived.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Connections per node; 0 = by the descriptor limit.
    pub connections: usize,
    /// Connections per user.
    pub connections_per_user: u32,
    /// What happens beyond that.
    pub user_limit: UserLimit,
    /// Connections per IP address; 0 = off.
    pub connections_per_ip: u32,
    /// Handshakes a second, per node; 0 = off.
    pub handshakes_per_second: u32,
    /// Handshakes a second that all nodes together take; beyond, each is told its slot. 0 = off.
    pub fleet_handshakes_per_second: u32,
    /// How long a handshake may take, from the accepted TCP connection to the welcome.
    #[serde(with = "units::duration")]
    pub handshake_timeout: Duration,
    /// The most bytes of a request's line and headers. At least 8 KiB.
    #[serde(with = "units::size")]
    pub header_bytes: usize,
    /// The most bytes of one message, from a client or a service.
    #[serde(with = "units::size")]
    pub message_bytes: usize,
    /// How long a client may take to finish a message that it began.
    #[serde(with = "units::duration")]
    pub message_timeout: Duration,
    /// The most fragments of one client message.
    pub fragments: u32,
    /// Subscriptions per session.
    pub subscriptions: usize,
    /// Bytes that may wait for one session.
    #[serde(with = "units::size")]
    pub outbox_bytes: usize,
    /// Bytes that may wait for all sessions of the node; 0B = a quarter of its memory.
    #[serde(with = "units::size")]
    pub node_outbox_bytes: usize,
    /// Frames a second from one client, with a burst of as many; 0 = off.
    pub client_frames_per_second: u32,
    /// Bad frames from one client before it is closed with 4500.
    pub max_client_errors: u32,
    /// Users of one broadcast.
    pub broadcast_users: usize,
}

/// What happens to a connection beyond `connections_per_user`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserLimit {
    /// The user's oldest connection is closed with 4502.
    Replace,
    /// The new one is refused with 4503.
    Refuse,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 0,
            connections_per_user: 100,
            user_limit: UserLimit::Replace,
            connections_per_ip: 0,
            handshakes_per_second: 5_000,
            fleet_handshakes_per_second: 0,
            handshake_timeout: Duration::from_secs(10),
            header_bytes: 16 << 10,
            message_bytes: 64 << 10,
            message_timeout: Duration::from_secs(10),
            fragments: 64,
            subscriptions: 100,
            outbox_bytes: 1 << 20,
            node_outbox_bytes: 0,
            client_frames_per_second: 100,
            max_client_errors: 10,
            broadcast_users: 10_000,
        }
    }
}

/// The limits of a running node, which a reload changes. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct LiveLimits(Arc<ArcSwap<Limits>>);

impl LiveLimits {
    /// Begins with these.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(limits)))
    }

    /// As they are now.
    pub fn now(&self) -> Arc<Limits> {
        self.0.load_full()
    }

    pub(super) fn replace(&self, limits: Arc<Limits>) {
        self.0.store(limits);
    }
}

/// `[heartbeat]`: how a dead peer is found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct HeartbeatConfig {
    /// Silence in either direction before a ping, jittered downwards by up to a fifth; `"0s"` = off.
    #[serde(with = "units::duration")]
    pub interval: Duration,
    /// Silence after a ping before the connection is closed with 4003.
    #[serde(with = "units::duration")]
    pub pong_timeout: Duration,
    /// How often a heartbeat of an event stream renews the resume ticket that its client comes back with.
    #[serde(with = "units::duration")]
    pub renewal: Duration,
    /// How long a session lives that asked for none. No key, since whoever asks counts on [`super::SILENT_MAX`].
    #[serde(skip)]
    pub silent_max: Duration,
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            renewal: Duration::from_secs(60 * 60),
            silent_max: super::SILENT_MAX,
        }
    }
}

/// `[inbox]`: what is kept of a user's messages; beyond one of these bounds the oldest go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct InboxConfig {
    /// Messages kept per user; 0 = no inbox.
    pub max_messages: u32,
    /// How long a message is kept.
    #[serde(with = "units::duration")]
    pub max_age: Duration,
    /// Bytes kept per user.
    #[serde(with = "units::size")]
    pub max_bytes: usize,
}

impl Default for InboxConfig {
    fn default() -> Self {
        Self {
            max_messages: 100,
            max_age: kept_age(),
            max_bytes: 256 << 10,
        }
    }
}

/// One of `[[namespaces]]`: the rules of the channels whose name is, or begins up to the first `:` with, its name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Namespace {
    /// The part of a channel's name before the first `:`.
    pub name: ChannelName,
    /// Who may subscribe.
    #[serde(default)]
    pub subscribe: SubscribeRule,
    /// Which clients may publish.
    #[serde(default)]
    pub publish: PublishRule,
    /// Messages kept per channel; 0 = not kept.
    #[serde(default)]
    pub max_messages: u32,
    /// How long a message is kept.
    #[serde(default = "kept_age", with = "units::duration")]
    pub max_age: Duration,
    /// Bytes kept per channel.
    #[serde(default = "kept_bytes", with = "units::size")]
    pub max_bytes: usize,
}

fn kept_age() -> Duration {
    Duration::from_secs(24 * 60 * 60)
}

fn kept_bytes() -> usize {
    1 << 20
}

impl Namespace {
    /// What is kept of a channel's messages; none = nothing.
    pub fn keep(&self) -> Option<Keep> {
        keep(self.max_messages, self.max_age, self.max_bytes)
    }
}

impl InboxConfig {
    /// What is kept of a user's messages; none = users have no inbox.
    pub fn keep(&self) -> Option<Keep> {
        keep(self.max_messages, self.max_age, self.max_bytes)
    }
}

fn keep(messages: u32, age: Duration, bytes: usize) -> Option<Keep> {
    (messages > 0).then_some(Keep {
        messages,
        age,
        bytes: bytes as u64,
    })
}

/// Who may subscribe to the channels of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubscribeRule {
    /// Every session.
    Any,
    /// Sessions whose ticket named the channel, and those that a service subscribed.
    #[default]
    Ticket,
    /// No session.
    Nobody,
}

/// Which clients may publish to the channels of a namespace. Services always may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishRule {
    /// Every session.
    Any,
    /// Sessions that subscribe to the channel.
    Subscriber,
    /// No client.
    #[default]
    Nobody,
}

/// The rules of all namespaces, by name; a reload changes them.
#[derive(Debug)]
pub struct Namespaces {
    listed: ArcSwap<HashMap<Box<str>, Rules>>,
    unlisted: Rules,
}

/// The rules of one namespace.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Who may subscribe.
    pub subscribe: SubscribeRule,
    /// Which clients may publish.
    pub publish: PublishRule,
    /// What is kept of each of its channels; none = nothing.
    pub keep: Option<Keep>,
}

impl Namespaces {
    /// From the configuration. An unlisted namespace is `ticket`, `nobody` and not kept; with `open` (in dev) it is
    /// `any` and `any`.
    pub fn new(listed: &[Namespace], open: bool) -> Self {
        let (subscribe, publish) = match open {
            true => (SubscribeRule::Any, PublishRule::Any),
            false => (SubscribeRule::Ticket, PublishRule::Nobody),
        };
        Self {
            listed: ArcSwap::from_pointee(by_name(listed)),
            unlisted: Rules {
                subscribe,
                publish,
                keep: None,
            },
        }
    }

    /// Takes up other rules: what is asked from then on follows them. Who subscribes already stays.
    pub fn replace(&self, listed: &[Namespace]) {
        self.listed.store(Arc::new(by_name(listed)));
    }

    /// The rules of a channel.
    pub fn of(&self, channel: &ChannelName) -> Rules {
        let listed = self.listed.load();
        let rules = listed.get(channel.namespace());
        rules.copied().unwrap_or(self.unlisted)
    }
}

fn by_name(listed: &[Namespace]) -> HashMap<Box<str>, Rules> {
    let rules = |n: &Namespace| Rules {
        subscribe: n.subscribe,
        publish: n.publish,
        keep: n.keep(),
    };
    let named = listed.iter();
    named.map(|n| (n.name.as_str().into(), rules(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_no_heartbeats_has_ten_minutes_whatever_is_configured() {
        let configured: HeartbeatConfig =
            serde_json::from_str(r#"{"interval": "20s"}"#).expect("valid");
        assert_eq!(configured.interval, Duration::from_secs(20));
        assert_eq!(configured.silent_max, Duration::from_secs(10 * 60));
    }
}
