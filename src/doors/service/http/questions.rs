use std::net::IpAddr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Answer;
use crate::backplane::NodeLease;
use crate::doors::config::Scope;
use crate::doors::service::api::{Api, unimplemented};
use crate::doors::service::error::{ApiError, Code};
use crate::doors::service::keys::ApiKey;
use crate::model::{Body, ChannelName, ConnectionInfo, DeviceName, Member, Message, UserId};

pub(super) async fn where_is(
    State(api): State<Arc<Api>>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> Result<axum::Json<impl Serialize>, ApiError> {
    let run = async |_: &ApiKey| api.where_is(&user).await;
    let (connections, unknown) = api.call("WhereIs", Scope::Read, &headers, run).await?;
    Ok(axum::Json(Whereabouts {
        connections: connections.into_iter().map(Connection::from).collect(),
        unknown,
    }))
}

#[derive(Serialize)]
struct Whereabouts {
    connections: Vec<Connection>,
    unknown: u32,
}

#[derive(Serialize)]
struct Connection {
    node: String,
    connection: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceName>,
    connected_at: u64,
    channels: Vec<ChannelName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    /// Byte for byte as the ticket had them.
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<Box<RawValue>>,
}

impl From<ConnectionInfo> for Connection {
    fn from(info: ConnectionInfo) -> Self {
        let connected_at = info.connected_at.duration_since(UNIX_EPOCH);
        let claims = info.claims.map(|text| text.to_string());
        Self {
            node: info.node.to_string(),
            connection: info.connection.to_string(),
            device: info.device,
            connected_at: connected_at.map_or(0, |since| since.as_millis() as u64),
            channels: info.channels,
            ip: info.ip,
            claims: claims.and_then(|text| RawValue::from_string(text).ok()),
        }
    }
}

async fn later(api: &Api, method: &'static str, headers: &HeaderMap) -> Answer {
    let run = async |_: &ApiKey| unimplemented(method);
    api.call(method, Scope::Read, headers, run)
        .await
        .map(axum::Json)
}

pub(super) async fn presence(
    State(api): State<Arc<Api>>,
    Path(channel): Path<String>,
    headers: HeaderMap,
) -> Result<axum::Json<impl Serialize>, ApiError> {
    let run = async |_: &ApiKey| api.presence(&channel).await;
    let (members, unknown) = api.call("Presence", Scope::Read, &headers, run).await?;
    Ok(axum::Json(Present {
        members: members.some.into_iter().map(Subscriber::from).collect(),
        total: members.total,
        unknown,
    }))
}

#[derive(Serialize)]
struct Present {
    members: Vec<Subscriber>,
    total: u32,
    unknown: u32,
}

#[derive(Serialize)]
struct Subscriber {
    user_id: UserId,
    connection: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceName>,
    node: String,
}

impl From<Member> for Subscriber {
    fn from(member: Member) -> Self {
        Self {
            user_id: member.user,
            connection: member.connection.to_string(),
            device: member.device,
            node: member.node.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    address: String,
    #[serde(default)]
    since: String,
    #[serde(default)]
    limit: u32,
}

pub(super) async fn history(
    State(api): State<Arc<Api>>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<axum::Json<impl Serialize>, ApiError> {
    let run = async |caller: &ApiKey| {
        let Query(asked) = query.map_err(|wrong| {
            let detail = format!("the query is not what this call takes: {}", reason(&wrong));
            ApiError::new(Code::InvalidArgument, detail)
        })?;
        api.history(caller, &asked.address, &asked.since, asked.limit)
            .await
    };
    let history = api.call("History", Scope::Read, &headers, run).await?;
    Ok(axum::Json(Kept {
        entries: history.messages.into_iter().map(Entry::from).collect(),
        position: history.position.to_string(),
        recovered: history.recovered,
    }))
}

/// What is wrong, without the library's introduction.
fn reason(wrong: &QueryRejection) -> String {
    use std::error::Error as _;
    match wrong.source() {
        Some(why) => why.to_string(),
        None => wrong.body_text(),
    }
}

#[derive(Serialize)]
struct Kept {
    entries: Vec<Entry>,
    position: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
}

/// The body is as a push takes it: any JSON, or base64.
#[derive(Serialize)]
struct Entry {
    message_id: String,
    position: String,
    time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<String>,
}

impl From<Message> for Entry {
    fn from(message: Message) -> Self {
        let raw = |text: String| RawValue::from_string(text).ok();
        let (json, binary) = match &message.body {
            Body::Text(text) => (raw(Value::from(&**text).to_string()), None),
            Body::Json(text) => (raw(text.as_ref().to_owned()), None),
            Body::Binary(bytes) => (None, Some(STANDARD.encode(bytes))),
        };
        let position = message.position().map(|position| position.to_string());
        Self {
            message_id: message.id.to_string(),
            position: position.unwrap_or_default(),
            time: message.time,
            message: json,
            binary,
        }
    }
}

pub(super) async fn explain(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    later(&api, "Explain", &headers).await
}

pub(super) async fn nodes(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    let run = async |_: &ApiKey| api.nodes().await;
    let nodes = api.call("Nodes", Scope::Read, &headers, run).await?;
    let node = |lease: &NodeLease| {
        json!({
            "id": lease.node,
            "version": lease.version,
            "connections": lease.connections,
            "load": lease.load,
            "since": lease.since,
            "draining": lease.draining,
        })
    };
    let nodes: Vec<_> = nodes.iter().map(node).collect();
    Ok(axum::Json(json!({ "nodes": nodes })))
}
