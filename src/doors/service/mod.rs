//! The service door: where back-end services come in, by gRPC and by HTTP/JSON on one port. Both translate into [`Api`],
//! which meets the hub.

mod api;
mod error;
mod grpc;
mod http;
mod keys;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::doors::listener;
use crate::proto;
use crate::proto::tidings::v1 as pb;

pub use api::Api;
pub use error::{ApiError, Code};
pub use keys::{ApiKey, ApiKeys};

/// The routes of both protocols, with `grpc.health.v1` and, if wanted, reflection. `draining` turns true when the node
/// leaves: health says so and open streams end.
///
/// # Errors
/// The embedded descriptors cannot be read.
pub async fn routes(
    api: Arc<Api>,
    draining: watch::Receiver<bool>,
    window: usize,
    reflection: bool,
) -> Result<axum::Router, String> {
    let grpc = grpc::Grpc {
        api: api.clone(),
        draining: draining.clone(),
        window,
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<pb::notification_server::NotificationServer<grpc::Grpc>>()
        .await;
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
    // Ends with the node: the sender of `draining` is the node's.
    let mut watched = draining;
    tokio::spawn(async move {
        if watched.wait_for(|draining| *draining).await.is_ok() {
            health
                .set_not_serving::<pb::notification_server::NotificationServer<grpc::Grpc>>()
                .await;
            health
                .set_service_status("", tonic_health::ServingStatus::NotServing)
                .await;
        }
    });
    Ok(routes
        .prepare()
        .into_axum_router()
        .reset_fallback()
        .merge(http::routes(api)))
}

/// Serves until told to stop; then no connection is accepted, HTTP/2 clients get GOAWAY, and calls in flight finish.
pub async fn serve(socket: TcpListener, routes: axum::Router, stop: impl Future<Output = ()>) {
    listener::serve("service", socket, routes, stop).await;
}
