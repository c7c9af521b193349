//! What a node tells about itself: structured logs and metrics.

mod budget;
mod consul;
/// Structured logs.
pub mod logs;
mod metrics;
mod reloads;
mod sources;

use serde::{Deserialize, Serialize};

pub use budget::BudgetMetrics;
pub use consul::ConsulMetrics;
pub use metrics::{BackplaneMetrics, Call, Closed, Metrics, Reason};
pub use reloads::ReloadMetrics;
pub use sources::{SourceMetrics, StreamEvent};

/// `[log]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// What of our own is logged. Libraries are held at `warn`: below it they log headers, and headers hold tickets.
    pub level: LogLevel,
    /// How it is written.
    pub format: LogFormat,
}

/// `[log] level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// `[log] format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For programs, one object a line.
    Json,
}
