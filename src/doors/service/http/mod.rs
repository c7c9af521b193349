mod questions;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::questions::{explain, history, nodes, presence, where_is};
use self::request::{
    BroadcastRequest, DisconnectRequest, PublishRequest, PushRequest, SubscriptionRequest,
    TicketRequest, read,
};
use super::api::{Api, sessions};
use super::error::{ApiError, Code, problem};
use super::keys::{ApiKey, Shown};
use crate::backplane::Durability;
use crate::doors::config::Scope;
use crate::hub::{self, Accepted, Applied};
use crate::model::UserId;
use crate::tickets::GrantFields;

/// What the routes below take and answer, for programs. `tests/openapi.rs` holds it against them.
const OPENAPI: &str = include_str!("openapi.json");
const JSON: (http::HeaderName, &str) = (http::header::CONTENT_TYPE, "application/json");

/// The JSON side of the service door.
pub(super) fn routes(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/push", post(push))
        .route("/v1/publish", post(publish))
        .route("/v1/broadcast", post(broadcast))
        .route("/v1/tickets", post(issue_ticket))
        .route("/v1/disconnect", post(disconnect))
        .route("/v1/subscribe", post(subscribe))
        .route("/v1/unsubscribe", post(unsubscribe))
        .route("/v1/users/{user}/connections", get(where_is))
        .route("/v1/channels/{channel}/presence", get(presence))
        .route("/v1/history", get(history))
        .route("/v1/explain", get(explain))
        .route("/v1/nodes", get(nodes))
        .route("/openapi.json", get(async || ([JSON], OPENAPI)))
        .fallback(async || {
            let error = ApiError::new(
                Code::NotFound,
                "there is no such path; see docs/service-api.md",
            );
            error.into_response()
        })
        .method_not_allowed_fallback(async || {
            let error = ApiError::new(
                Code::InvalidArgument,
                "the path is there, the method is wrong",
            );
            problem(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", &error)
        })
        // Read by `body`, with an error of ours.
        .layer(DefaultBodyLimit::disable())
        .with_state(api)
}

fn accepted_json(accepted: &Accepted) -> Value {
    let status = match accepted.status {
        hub::Status::DeliveredLocally => "DELIVERED_LOCALLY",
        hub::Status::DispatchedToCluster => "DISPATCHED_TO_CLUSTER",
        hub::Status::Stored => "STORED",
        hub::Status::NobodyConnected => "NOBODY_CONNECTED",
    };
    let mut answer = json!({
        "status": status,
        "message_id": accepted.id.to_string(),
        "local_connections": accepted.local_connections,
        "other_nodes": accepted.other_nodes,
    });
    if accepted.degraded {
        answer["degraded"] = true.into();
    }
    if accepted.duplicate {
        answer["duplicate"] = true.into();
    }
    if let Some(position) = accepted.position {
        answer["position"] = position.to_string().into();
    }
    if let Some(durability) = accepted.durability {
        answer["durability"] = match durability {
            Durability::Memory => "MEMORY",
            Durability::Stored => "STORED",
            Durability::Replicated => "REPLICATED",
        }
        .into();
    }
    answer
}

type Answer = Result<axum::Json<Value>, ApiError>;

/// Runs a call whose request is JSON.
async fn call<T: DeserializeOwned>(
    api: &Api,
    method: &'static str,
    scope: Scope,
    request: Request,
    run: impl AsyncFnOnce(&ApiKey, T) -> Result<Value, ApiError>,
) -> Answer {
    let shown = Shown::of(request.headers().clone(), request.extensions());
    let run = async |caller: &ApiKey| run(caller, read(api, request).await?).await;
    api.call(method, scope, &shown, run).await.map(axum::Json)
}

async fn push(State(api): State<Arc<Api>>, request: Request) -> Answer {
    call(
        &api,
        "PushNotification",
        Scope::Push,
        request,
        async |caller, r: PushRequest| {
            let accepted = api.push(caller, &r.user_id, r.options()?).await?;
            Ok(accepted_json(&accepted))
        },
    )
    .await
}

async fn publish(State(api): State<Arc<Api>>, request: Request) -> Answer {
    call(
        &api,
        "Publish",
        Scope::Publish,
        request,
        async |caller, r: PublishRequest| {
            let accepted = api.publish(caller, &r.channel, r.options()?).await?;
            Ok(accepted_json(&accepted))
        },
    )
    .await
}

async fn broadcast(State(api): State<Arc<Api>>, request: Request) -> Answer {
    call(
        &api,
        "Broadcast",
        Scope::Push,
        request,
        async |caller, r: BroadcastRequest| {
            let done = api
                .broadcast(caller, &r.user_ids, r.everyone, r.options()?)
                .await?;
            let failure = |(user, refusal): (UserId, hub::Refusal)| {
                let error = ApiError::from(refusal);
                json!({"user_id": user, "code": error.code.name(), "detail": error.detail})
            };
            let mut answer = accepted_json(&done.whole);
            if !r.everyone {
                answer["accepted"] = done.users.into();
            }
            if !done.failures.is_empty() {
                answer["failures"] = done.failures.into_iter().map(failure).collect();
            }
            Ok(answer)
        },
    )
    .await
}

async fn issue_ticket(State(api): State<Arc<Api>>, request: Request) -> Response {
    let answer = call(
        &api,
        "IssueTicket",
        Scope::Ticket,
        request,
        async |_, r: TicketRequest| {
            let ttl = request::parse_ttl(r.ttl.as_deref())?;
            let fields = GrantFields {
                user_id: r.user_id,
                device: r.device,
                channels: r.channels,
                claims: r.claims.map(|raw| raw.get().to_owned()),
                origins: r.origins,
                ips: r.ips,
                session_seconds: r.session_seconds,
                since: r.since,
            };
            let issued = api.issue_ticket(fields, ttl).await?;
            let mut answer = json!({
                "ticket": issued.ticket.expose(),
                "expires_at": issued.expires_at,
            });
            if let Some(url) = &api.url {
                answer["url"] = url.as_str().into();
            }
            Ok(answer)
        },
    )
    .await;
    let no_store = [(http::header::CACHE_CONTROL, "no-store")];
    (no_store, answer).into_response()
}

fn applied_json(applied: Applied) -> Value {
    json!({"applied": applied.applied, "unknown": applied.unknown})
}

async fn disconnect(State(api): State<Arc<Api>>, request: Request) -> Answer {
    call(
        &api,
        "Disconnect",
        Scope::Admin,
        request,
        async |caller, r: DisconnectRequest| {
            let sessions = sessions(r.user_id.as_deref(), r.connection.as_deref())?;
            let applied = api.disconnect(caller, sessions, r.reason).await?;
            Ok(applied_json(applied))
        },
    )
    .await
}

async fn change_subscription(
    api: &Api,
    method: &'static str,
    request: Request,
    on: bool,
) -> Answer {
    call(
        api,
        method,
        Scope::Admin,
        request,
        async |caller, r: SubscriptionRequest| {
            let sessions = sessions(r.user_id.as_deref(), r.connection.as_deref())?;
            let applied = api
                .subscribe(caller, sessions, &r.channel, &r.reason, on)
                .await?;
            Ok(applied_json(applied))
        },
    )
    .await
}

async fn subscribe(State(api): State<Arc<Api>>, request: Request) -> Answer {
    change_subscription(&api, "Subscribe", request, true).await
}

async fn unsubscribe(State(api): State<Arc<Api>>, request: Request) -> Answer {
    change_subscription(&api, "Unsubscribe", request, false).await
}
