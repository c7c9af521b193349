//! The whole configuration: the sum of what each room reads. Only the composition root sees it.

mod change;
mod check;
mod dev;
mod file;
mod keys;
mod load;
mod problem;
mod table;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use change::Changes;
#[cfg(test)]
pub(crate) use keys::{Kind, known};
pub use load::{Sources, load};

use crate::backplane::BackplaneConfig;
use crate::doors::config::{AdminConfig, ApiKeyConfig, ProbeConfig, PublicConfig, ServiceConfig};
use crate::fleet::{ConsulConfig, DrainConfig};
use crate::hub::{HeartbeatConfig, HubConfig, InboxConfig, Limits, Namespace};
use crate::sources::SourceConfig;
use crate::telemetry::LogConfig;
use crate::tickets::{JwtConfig, TicketConfig};

/// Everything a node reads at start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Who this node is.
    pub node: NodeConfig,
    /// Where clients come in.
    pub public: PublicConfig,
    /// Where services come in.
    pub service: ServiceConfig,
    /// Where people and probes come in.
    pub admin: AdminConfig,
    /// Probes alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeConfig>,
    /// What links nodes.
    pub backplane: BackplaneConfig,
    /// Who may call the service door.
    pub api_keys: Vec<ApiKeyConfig>,
    /// One-time tickets.
    pub tickets: TicketConfig,
    /// Who may swap a JWT for a ticket; left out = nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtConfig>,
    /// The users' inboxes.
    pub inbox: InboxConfig,
    /// Rules of channels.
    pub namespaces: Vec<Namespace>,
    /// Topics as a way in.
    pub sources: Vec<SourceConfig>,
    /// How dead peers are found.
    pub heartbeat: HeartbeatConfig,
    /// How the node leaves.
    pub drain: DrainConfig,
    /// Where the node registers; left out = nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consul: Option<ConsulConfig>,
    /// Every limit.
    pub limits: Limits,
    /// Shards and writes.
    pub hub: HubConfig,
    /// Logs.
    pub log: LogConfig,
}

impl Config {
    /// Whether anything is kept.
    pub fn keeps(&self) -> bool {
        self.inbox.keep().is_some() || self.namespaces.iter().any(|n| n.keep().is_some())
    }
}

/// `[node]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeConfig {
    /// Its name in the cluster; none = the host's name and four random characters.
    pub id: Option<String>,
}

/// How a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `tidings dev`: one node on loopback, open channels, the playground, a known key.
    Dev,
    /// `tidings serve`.
    Production,
}
