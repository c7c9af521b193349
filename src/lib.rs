//! Tidings: the real-time notification gateway of a microservice fleet. See ARCHITECTURE.md.
//!
//! Rooms, bottom to top; each names only what is below it: `model`, `telemetry`, `tls`, `wire`, `backplane`, `tickets`,
//! `hub`, `sources`, `fleet`, `doors`, `config`, `node`, `cli`.

pub mod backplane;
pub mod cli;
pub mod config;
pub mod doors;
pub mod fleet;
pub mod hub;
pub mod model;
pub mod node;
pub mod sources;
pub mod telemetry;
pub mod tickets;
pub mod tls;
pub mod wire;

/// The generated service API (`proto/tidings/v1/tidings.proto`).
#[allow(missing_docs, clippy::all, rustdoc::all, unreachable_pub)]
pub mod proto {
    pub mod google {
        pub mod rpc {
            tonic::include_proto!("google.rpc");
        }
    }
    pub mod tidings {
        pub mod v1 {
            tonic::include_proto!("tidings.v1");
        }
    }
    /// The file descriptors, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/tidings_descriptor.bin"));
}
