use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::api::{Api, Given, Options, sessions, unimplemented};
use super::error::{ApiError, Code, problem};
use super::keys::ApiKey;
use crate::doors::config::Scope;
use crate::hub::{self, Accepted, Applied};
use crate::model::{Class, units};
use crate::tickets::GrantFields;

/// Room for the fields around a message, and for 10,000 user ids.
const BODY_EXTRA_BYTES: usize = 2 << 20;
/// How long a request's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Base64 as people write it: padded or not.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

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

/// Makes a struct of a request with the options that push, publish and broadcast share, in snake_case and camelCase.
macro_rules! message_request {
    ($name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty),* }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {
            $($(#[$attribute])* $field: $type,)*
            #[serde(default)]
            message: Option<Box<RawValue>>,
            #[serde(default)]
            json: Option<String>,
            #[serde(default)]
            binary: Option<String>,
            #[serde(default)]
            class: Option<String>,
            #[serde(default)]
            ttl: Option<String>,
            #[serde(default, alias = "collapseKey")]
            collapse_key: Option<String>,
            #[serde(default, alias = "idempotencyKey")]
            idempotency_key: Option<String>,
            #[serde(default, alias = "waitFor")]
            wait_for: Option<String>,
            #[serde(default, alias = "waitTimeout")]
            wait_timeout: Option<String>,
        }

        impl $name {
            fn options(&self) -> Result<Options, ApiError> {
                let class = match self.class.as_deref() {
                    None => Class::Unset,
                    Some("KEPT") => Class::Kept,
                    Some("VOLATILE") => Class::Volatile,
                    Some(other) => return Err(ApiError::invalid("class", format!("{other:?} is not one of KEPT, VOLATILE"))),
                };
                let waits = match self.wait_for.as_deref() {
                    None | Some("ACCEPTED") => self.wait_timeout.is_some(),
                    Some("WRITTEN" | "ACKED") => true,
                    Some(other) => {
                        return Err(ApiError::invalid("wait_for", format!("{other:?} is not one of ACCEPTED, WRITTEN, ACKED")));
                    }
                };
                Ok(Options {
                    body: body_of(self.message.as_deref(), self.json.as_deref(), self.binary.as_deref())?,
                    class,
                    ttl: self.ttl.is_some(),
                    collapse_key: self.collapse_key.is_some(),
                    idempotency_key: self.idempotency_key.is_some(),
                    waits,
                })
            }
        }
    };
}

message_request!(PushRequest {
    #[serde(alias = "userId")]
    user_id: String
});
message_request!(PublishRequest { channel: String });
message_request!(BroadcastRequest {
    #[serde(default, alias = "userIds")]
    user_ids: Vec<String>,
    #[serde(default)]
    everyone: bool
});

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TicketRequest {
    #[serde(alias = "userId")]
    user_id: String,
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    since: Option<String>,
    #[serde(default)]
    claims: Option<Box<RawValue>>,
    #[serde(default)]
    origins: Vec<String>,
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default, alias = "sessionSeconds")]
    session_seconds: Option<u64>,
    #[serde(default)]
    ttl: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ControlRequest {
    #[serde(default, alias = "userId")]
    user_id: Option<String>,
    #[serde(default)]
    connection: Option<String>,
    #[serde(default)]
    channel: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

/// The one body that is given. `message` may be any JSON: a string is text, all else is taken byte for byte.
fn body_of(
    message: Option<&RawValue>,
    json: Option<&str>,
    binary: Option<&str>,
) -> Result<Option<Given>, ApiError> {
    match (message, json, binary) {
        (None, None, None) => Ok(None),
        (Some(raw), None, None) => Ok(Some(match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => Given::Text(text),
            Err(_) => Given::Json(raw.get().to_owned()),
        })),
        (None, Some(text), None) => Ok(Some(Given::Json(text.to_owned()))),
        (None, None, Some(text)) => LENIENT
            .decode(text)
            .map(|bytes| Some(Given::Binary(bytes.into())))
            .map_err(|e| ApiError::invalid("binary", format!("is not base64: {e}"))),
        _ => Err(ApiError::invalid(
            "message",
            "must be the only body: give one of message, json and binary",
        )),
    }
}

/// Reads and parses a request's JSON.
async fn read<T: DeserializeOwned>(api: &Api, request: Request) -> Result<T, ApiError> {
    let json = |value: &http::HeaderValue| {
        value
            .to_str()
            .is_ok_and(|v| v.starts_with("application/json"))
    };
    if !request.headers().get(CONTENT_TYPE).is_some_and(json) {
        return Err(ApiError::new(
            Code::InvalidArgument,
            "send Content-Type: application/json",
        ));
    }
    // JSON may write each byte of a text as six.
    let most = api.limits.message_bytes * 6 + BODY_EXTRA_BYTES;
    let body = Limited::new(request.into_body(), most).collect();
    let bytes = tokio::time::timeout(BODY_TIMEOUT, body)
        .await
        .map_err(|_| ApiError::new(Code::InvalidArgument, "the body took too long to come"))?
        .map_err(|_| {
            ApiError::new(
                Code::InvalidArgument,
                format!("the body is over {most} bytes, or was cut off"),
            )
        })?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| {
        ApiError::new(
            Code::InvalidArgument,
            format!("the body is not what this call takes: {e}"),
        )
    })
}

fn accepted_json(accepted: &Accepted) -> Value {
    let status = match accepted.status {
        hub::Status::DeliveredLocally => "DELIVERED_LOCALLY",
        hub::Status::DispatchedToCluster => "DISPATCHED_TO_CLUSTER",
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
    let headers = request.headers().clone();
    let run = async |caller: &ApiKey| run(caller, read(api, request).await?).await;
    api.call(method, scope, &headers, run).await.map(axum::Json)
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
            let accepted = api
                .broadcast(caller, &r.user_ids, r.everyone, r.options()?)
                .await?;
            Ok(accepted_json(&accepted))
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
            let ttl = r.ttl.as_deref().map(units::parse_duration).transpose();
            let ttl = ttl.map_err(|e| ApiError::invalid("ttl", e))?;
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
        async |_, r: ControlRequest| {
            if r.channel.is_some() {
                return Err(ApiError::invalid("channel", "is not a field of this call"));
            }
            let sessions = sessions(r.user_id.as_deref(), r.connection.as_deref())?;
            let applied = api
                .disconnect(sessions, r.reason.unwrap_or_default())
                .await?;
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
        async |_, r: ControlRequest| {
            let sessions = sessions(r.user_id.as_deref(), r.connection.as_deref())?;
            let channel = r
                .channel
                .ok_or_else(|| ApiError::invalid("channel", "is missing"))?;
            let reason = r.reason.unwrap_or_default();
            let applied = api.subscribe(sessions, &channel, &reason, on).await?;
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

async fn where_is(
    State(api): State<Arc<Api>>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let run = async |_: &ApiKey| {
        let (connections, unknown) = api.where_is(&user).await?;
        let connections: Vec<Value> = connections.iter().map(connection_json).collect();
        Ok(json!({"connections": connections, "unknown": unknown}))
    };
    api.call("WhereIs", Scope::Read, &headers, run)
        .await
        .map(axum::Json)
}

fn connection_json(info: &hub::ConnectionInfo) -> Value {
    let connected_at = info.connected_at.duration_since(std::time::UNIX_EPOCH);
    let mut shown = json!({
        "node": info.node.to_string(),
        "connection": info.connection.to_string(),
        "connected_at": connected_at.map_or(0, |since| since.as_millis() as u64),
        "channels": info.channels,
    });
    if let Some(device) = &info.device {
        shown["device"] = device.as_str().into();
    }
    shown
}

async fn later(api: &Api, method: &'static str, headers: &HeaderMap) -> Answer {
    let run = async |_: &ApiKey| unimplemented(method);
    api.call(method, Scope::Read, headers, run)
        .await
        .map(axum::Json)
}

async fn presence(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    later(&api, "Presence", &headers).await
}

async fn history(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    later(&api, "History", &headers).await
}

async fn explain(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    later(&api, "Explain", &headers).await
}

async fn nodes(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    later(&api, "Nodes", &headers).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(text: &str) -> Result<Options, String> {
        let request: PushRequest = serde_json::from_str(text).map_err(|e| e.to_string())?;
        request.options().map_err(|e| e.detail)
    }

    #[test]
    fn a_message_is_any_json_and_a_string_is_never_parsed_again() {
        let body = |text: &str| push(text).map(|options| options.body);
        assert!(
            matches!(body(r#"{"user_id":"4","message":"{\"a\":1}"}"#), Ok(Some(Given::Text(t))) if t == r#"{"a":1}"#)
        );
        assert!(
            matches!(body(r#"{"userId":"4","message":{ "a":1.0 }}"#), Ok(Some(Given::Json(t))) if t == r#"{ "a":1.0 }"#)
        );
        assert!(
            matches!(body(r#"{"user_id":"4","message":null}"#), Ok(Some(Given::Json(t))) if t == "null")
        );
        assert!(
            matches!(body(r#"{"user_id":"4","binary":"AQI"}"#), Ok(Some(Given::Binary(b))) if b[..] == [1, 2])
        );
        assert!(matches!(body(r#"{"user_id":"4"}"#), Ok(None)));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let cases = [
            (r#"{"user_id":"4","message":1,"prority":1}"#, "prority"),
            (r#"{"message":1}"#, "user_id"),
            (r#"{"user_id":4,"message":1}"#, "string"),
            (r#"{"user_id":"4","message":1,"json":"2"}"#, "only body"),
            (r#"{"user_id":"4","binary":"?"}"#, "binary is not base64"),
            (
                r#"{"user_id":"4","message":1,"class":"kept"}"#,
                "class \"kept\" is not one of KEPT, VOLATILE",
            ),
            (r#"{"user_id":"4","message":1,"wait_for":"X"}"#, "wait_for"),
        ];
        for (text, sentence) in cases {
            let error = push(text).err().expect(text);
            assert!(error.contains(sentence), "{text}: {error}");
        }
    }
}
