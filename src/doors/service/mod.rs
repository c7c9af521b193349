//! The service door: where back-end services come in, by gRPC and by HTTP/JSON on one port. Both translate into [`Api`],
//! which meets the hub.

mod api;
mod error;
mod grpc;
mod http;
mod keys;
mod live_keys;
mod questions;

use std::sync::Arc;

use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::fleet::{Phase, Phases};
use crate::proto;
use crate::proto::tidings::v1 as pb;

pub use api::Api;
pub use error::{ApiError, Code};
pub use keys::{ApiKey, ApiKeys};
pub use live_keys::LiveKeys;

/// The services that `grpc.health.v1` tells about; the first is the door as a whole.
const HEALTH_NAMES: [&str; 5] = [
    "",
    pb::notification_server::SERVICE_NAME,
    pb::tickets_server::SERVICE_NAME,
    pb::connections_server::SERVICE_NAME,
    pb::delivery_server::SERVICE_NAME,
];

/// The routes of both protocols, with `grpc.health.v1` and, if wanted, reflection. Health turns when the node drains; open
/// streams end when it closes.
///
/// # Errors
/// The embedded descriptors cannot be read.
pub async fn routes(
    api: Arc<Api>,
    phases: Phases,
    window: usize,
    reflection: bool,
) -> Result<axum::Router, String> {
    let grpc = grpc::Grpc {
        api: api.clone(),
        phases: phases.clone(),
        window,
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in HEALTH_NAMES {
        health
            .set_service_status(name, ServingStatus::Serving)
            .await;
    }
    tokio::spawn(tell_health(health, phases));
    let mut routes = Routes::new(health_service)
        .add_service(pb::notification_server::NotificationServer::new(
            grpc.clone(),
        ))
        .add_service(pb::tickets_server::TicketsServer::new(grpc.clone()))
        .add_service(pb::connections_server::ConnectionsServer::new(grpc.clone()))
        .add_service(pb::delivery_server::DeliveryServer::new(grpc));
    if reflection {
        let service = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|e| format!("gRPC reflection: {e}"))?;
        routes = routes.add_service(service);
    }
    Ok(routes
        .prepare()
        .into_axum_router()
        .reset_fallback()
        .merge(http::routes(api)))
}

/// Ends with the node, as its phases do.
async fn tell_health(mut health: HealthReporter, mut phases: Phases) {
    phases.reached(Phase::Draining).await;
    for name in HEALTH_NAMES {
        health
            .set_service_status(name, ServingStatus::NotServing)
            .await;
    }
    phases.reached(Phase::Closing).await;
    for name in HEALTH_NAMES {
        // Ends the watches of health, which would hold their connections otherwise.
        health.clear_service_status(name).await;
    }
}
