//! What the doors read from the configuration.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::model::{IpPrefix, Origin, Secret};

/// The API key of `tidings dev`. Everybody knows it, so `serve` refuses to start with it.
pub const DEVELOPMENT_KEY: &str = "dev-key-not-for-production";

/// `[public]`: where clients come in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct PublicConfig {
    /// Address and port; port 0 = a free one.
    pub listen: SocketAddr,
    /// How clients reach this door from outside, as in `"wss://push.example.com/ws"`; shown as `url` with each ticket.
    pub url: Option<String>,
    /// Origins that browsers may connect from.
    pub allowed_origins: Vec<Origin>,
    /// Proxies, as addresses or prefixes, that are believed who their client is.
    pub trusted_proxies: Vec<IpPrefix>,
    /// Each connection of a trusted proxy begins with a PROXY protocol header (v1 or v2).
    pub proxy_protocol: bool,
}

impl Default for PublicConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            url: None,
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
        }
    }
}

/// `[service]`: where services come in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceConfig {
    /// Address and port; port 0 = a free one.
    pub listen: SocketAddr,
    /// Allows an address that is not loopback without TLS: only where the network itself is private.
    pub insecure: bool,
    /// Answers gRPC reflection; always on in dev.
    pub reflection: bool,
    /// Items of one `PushNotifications` stream that may be under way at once.
    pub stream_window: usize,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            insecure: false,
            reflection: false,
            stream_window: 256,
        }
    }
}

/// `[admin]`: where people and probes come in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminConfig {
    /// Address and port; port 0 = a free one. Away from loopback it demands an API key with the scope `admin`.
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8082)),
        }
    }
}

/// `[probe]`: `/livez` and `/readyz` alone. Left out = off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProbeConfig {
    /// Address and port; port 0 = a free one.
    pub listen: SocketAddr,
}

/// One of `[[api_keys]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApiKeyConfig {
    /// Its name, for logs and metrics.
    pub name: String,
    /// Lower-case hex SHA-256 of the key; `tidings config key` makes a pair.
    pub sha256: Secret,
    /// What it allows: `push`, `publish`, `ticket`, `read`, `admin`.
    pub scopes: Vec<Scope>,
    /// Address patterns that it may push and publish to, as in `"user:*"` or `"channel:orders:*"`; none = all.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Pushes and publishes a second, with a burst of as many; 0 = no limit.
    #[serde(default)]
    pub pushes_per_second: u32,
}

/// What an API key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// `PushNotification`, `PushNotifications`, `Broadcast`.
    Push,
    /// `Publish`.
    Publish,
    /// `IssueTicket`.
    Ticket,
    /// `WhereIs`, `Presence`, `History`, `Nodes`, `Explain`.
    Read,
    /// `Disconnect`, `Subscribe`, `Unsubscribe`; the admin door.
    Admin,
}

impl Scope {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Publish => "publish",
            Self::Ticket => "ticket",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}
