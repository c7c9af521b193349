//! Certificates: reads them from their files, holds the one that a door shows now, and takes up a new one without touching
//! what is connected. Knows files and rustls; knows no socket and no door. aws-lc-rs is its one crypto provider, named
//! wherever a configuration is built, so that no default has to be installed.

mod certificates;
mod config;
mod load;
mod names;

pub use certificates::{Certificates, DoorTls, Found};
pub use config::{ClientAuth, TlsConfig, WatchConfig};
pub use load::{ClientCa, Wanted};
pub use names::ClientNames;
