use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::units;

/// `[public.tls]`, `[admin.tls]`, `[probe.tls]`: what a door shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsConfig {
    /// A PEM file: the door's certificate first, then those between it and its issuer's root.
    pub cert_file: PathBuf,
    /// A PEM file: the certificate's private key, without a passphrase.
    pub key_file: PathBuf,
}

/// `[tls]`: how certificates are kept fresh.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchConfig {
    /// How often the files are looked at; zero = only on SIGHUP.
    #[serde(with = "units::duration")]
    pub watch_interval: Duration,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            watch_interval: Duration::from_secs(30),
        }
    }
}

/// Whether a client has to show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// It may; without one it shows an API key.
    #[default]
    Optional,
    /// The handshake fails without one.
    Required,
}
