//! The admin door: `/metrics`, `/drain`, `/livez`, `/readyz`; the probe door has the last two alone.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CONTENT_TYPE, ORIGIN};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::config::Scope;
use super::service::LiveKeys;
use crate::fleet::{Drain, Health};
use crate::telemetry::Metrics;

/// What OpenMetrics 1.0 is sent as.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(serde::Deserialize)]
struct Asked {
    door: Option<String>,
}

/// `/livez` and `/readyz`.
pub fn probe_routes(health: Arc<Health>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(health)
}

/// The probes, `/metrics` and `/drain`. With keys, every request but the probes needs one with the scope `admin`.
pub fn routes(
    health: Arc<Health>,
    metrics: Metrics,
    drain: Arc<Drain>,
    keys: Option<Arc<LiveKeys>>,
) -> Router {
    let guarded = Router::new()
        .route("/drain", get(outlook).post(begin_drain))
        .with_state(drain)
        .route(
            "/metrics",
            get(async move || ([(CONTENT_TYPE, OPENMETRICS)], metrics.render())),
        );
    let guarded = guarded.layer(from_fn(move |request: Request, next: Next| {
        let keys = keys.clone();
        async move {
            let allowed = keys.map_or(Ok(()), |keys| {
                keys.now()
                    .authenticate(request.headers())?
                    .require(Scope::Admin)
            });
            match allowed {
                Ok(()) => next.run(request).await,
                Err(error) => error.into_response(),
            }
        }
    }));
    probe_routes(health).merge(guarded)
}

async fn readyz(State(health): State<Arc<Health>>, Query(asked): Query<Asked>) -> Response {
    let reasons = match asked.door.as_deref() {
        Some("service") => health.service_reasons(),
        None | Some("public") => health.reasons(),
        Some(_) => {
            let body = json!({"ready": false, "reasons": ["door must be public or service"]});
            return (StatusCode::BAD_REQUEST, axum::Json(body)).into_response();
        }
    };
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({"ready": reasons.is_empty(), "reasons": reasons});
    (status, axum::Json(body)).into_response()
}

/// How long a drain takes, and how far it is.
async fn outlook(State(drain): State<Arc<Drain>>) -> Response {
    axum::Json(drain.outlook().await).into_response()
}

/// Begins a drain, as SIGTERM does. One that is under way is not begun again. On loopback no key is asked for, and any page in
/// a browser there can send this: none may.
async fn begin_drain(State(drain): State<Arc<Drain>>, headers: HeaderMap) -> Response {
    if headers.contains_key(ORIGIN) {
        let error = "a page of a browser may not drain a node; use tidings drain\n";
        return (StatusCode::FORBIDDEN, error).into_response();
    }
    drain.ask();
    (StatusCode::ACCEPTED, axum::Json(drain.outlook().await)).into_response()
}
