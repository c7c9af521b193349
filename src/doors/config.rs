//! What the doors read from the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::{IpPrefix, Origin, Secret};
use crate::tls::{ClientAuth, TlsConfig};

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
    /// What it shows; left out = no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
}

impl Default for PublicConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            url: None,
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            tls: None,
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
    /// What it shows, and who may show what to it; left out = no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServiceTlsConfig>,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            insecure: false,
            reflection: false,
            stream_window: 256,
            tls: None,
        }
    }
}

/// `[admin]`: where people and probes come in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminConfig {
    /// Address and port; port 0 = a free one. Away from loopback it demands an API key with the scope `admin`.
    pub listen: SocketAddr,
    /// What it shows; left out = no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8082)),
            tls: None,
        }
    }
}

/// `[probe]`: `/livez` and `/readyz` alone. Left out = off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProbeConfig {
    /// Address and port; port 0 = a free one.
    pub listen: SocketAddr,
    /// What it shows; left out = no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
}

/// `[service.tls]`: what the service door shows, and whose certificates it takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceTlsConfig {
    /// As in [`TlsConfig`].
    pub cert_file: PathBuf,
    /// As in [`TlsConfig`].
    pub key_file: PathBuf,
    /// A PEM file of who vouches for services' certificates; left out = none is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
    /// Whether a service has to show one.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// Who may do what by its certificate.
    #[serde(default)]
    pub clients: Vec<ClientConfig>,
}

/// One of `[[service.tls.clients]]`: what the holder of a certificate may, as an API key would allow it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientConfig {
    /// A name of the certificate: its SPIFFE id, else a DNS name, else its common name.
    pub name: String,
    /// As of an API key.
    pub scopes: Vec<Scope>,
    /// As of an API key.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// As of an API key.
    #[serde(default)]
    pub pushes_per_second: u32,
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
