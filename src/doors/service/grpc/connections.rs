use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status};

use super::Grpc;
use crate::backplane::NodeLease;
use crate::doors::config::Scope;
use crate::doors::service::ApiKey;
use crate::doors::service::api::sessions;
use crate::model::{Body, ConnectionInfo, Member, Message};
use crate::proto::tidings::v1 as pb;

macro_rules! target {
    ($target:expr, $kind:path) => {{
        use $kind as Target;
        match &$target {
            Some(Target::UserId(user)) => sessions(Some(user), None),
            Some(Target::Connection(id)) => sessions(None, Some(id)),
            None => sessions(None, None),
        }
    }};
}

#[tonic::async_trait]
impl pb::connections_server::Connections for Grpc {
    async fn where_is(
        &self,
        request: Request<pb::WhereIsRequest>,
    ) -> Result<Response<pb::WhereIsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let headers = metadata.into_headers();
        let run = async |_: &ApiKey| self.api.where_is(&request.user_id).await;
        let (connections, unknown) = self.api.call("WhereIs", Scope::Read, &headers, run).await?;
        Ok(Response::new(pb::WhereIsResponse {
            connections: connections.into_iter().map(connection).collect(),
            unknown,
        }))
    }

    async fn disconnect(
        &self,
        request: Request<pb::DisconnectRequest>,
    ) -> Result<Response<pb::DisconnectResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let headers = metadata.into_headers();
        let run = async |caller: &ApiKey| {
            let sessions = target!(request.target, pb::disconnect_request::Target)?;
            self.api.disconnect(caller, sessions, request.reason).await
        };
        let done = self
            .api
            .call("Disconnect", Scope::Admin, &headers, run)
            .await?;
        Ok(Response::new(pb::DisconnectResponse {
            applied: done.applied,
            unknown: done.unknown,
        }))
    }

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<pb::SubscribeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let headers = metadata.into_headers();
        let run = async |caller: &ApiKey| {
            let sessions = target!(request.target, pb::subscribe_request::Target)?;
            self.api
                .subscribe(caller, sessions, &request.channel, &request.reason, true)
                .await
        };
        let done = self
            .api
            .call("Subscribe", Scope::Admin, &headers, run)
            .await?;
        Ok(Response::new(pb::SubscribeResponse {
            applied: done.applied,
            unknown: done.unknown,
        }))
    }

    async fn unsubscribe(
        &self,
        request: Request<pb::UnsubscribeRequest>,
    ) -> Result<Response<pb::UnsubscribeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let headers = metadata.into_headers();
        let run = async |caller: &ApiKey| {
            let sessions = target!(request.target, pb::unsubscribe_request::Target)?;
            self.api
                .subscribe(caller, sessions, &request.channel, &request.reason, false)
                .await
        };
        let done = self
            .api
            .call("Unsubscribe", Scope::Admin, &headers, run)
            .await?;
        Ok(Response::new(pb::UnsubscribeResponse {
            applied: done.applied,
            unknown: done.unknown,
        }))
    }

    async fn presence(
        &self,
        request: Request<pb::PresenceRequest>,
    ) -> Result<Response<pb::PresenceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let run = async |_: &ApiKey| self.api.presence(&request.channel).await;
        let headers = metadata.into_headers();
        let (members, unknown) = self
            .api
            .call("Presence", Scope::Read, &headers, run)
            .await?;
        Ok(Response::new(pb::PresenceResponse {
            members: members.some.into_iter().map(member).collect(),
            total: members.total,
            unknown,
        }))
    }

    async fn history(
        &self,
        request: Request<pb::HistoryRequest>,
    ) -> Result<Response<pb::HistoryResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let pb::HistoryRequest {
            address,
            since,
            limit,
        } = request;
        let run = async |caller: &ApiKey| self.api.history(caller, &address, &since, limit).await;
        let headers = metadata.into_headers();
        let history = self.api.call("History", Scope::Read, &headers, run).await?;
        Ok(Response::new(pb::HistoryResponse {
            position: history.position.to_string(),
            recovered: history.recovered,
            entries: history.messages.into_iter().map(entry).collect(),
        }))
    }

    async fn nodes(
        &self,
        request: Request<pb::NodesRequest>,
    ) -> Result<Response<pb::NodesResponse>, Status> {
        let headers = request.into_parts().0.into_headers();
        let run = async |_: &ApiKey| self.api.nodes().await;
        let nodes = self.api.call("Nodes", Scope::Read, &headers, run).await?;
        let node = |lease: NodeLease| pb::nodes_response::Node {
            id: lease.node,
            version: lease.version,
            connections: u32::try_from(lease.connections).unwrap_or(u32::MAX),
            load: lease.load,
            since: Some((SystemTime::UNIX_EPOCH + Duration::from_millis(lease.since)).into()),
            draining: lease.draining,
        };
        Ok(Response::new(pb::NodesResponse {
            nodes: nodes.into_iter().map(node).collect(),
        }))
    }
}

fn connection(info: ConnectionInfo) -> pb::Connection {
    pb::Connection {
        node: info.node.to_string(),
        connection: info.connection.to_string(),
        device: info.device.map(|d| d.to_string()).unwrap_or_default(),
        connected_at: Some(info.connected_at.into()),
        channels: info.channels.iter().map(ToString::to_string).collect(),
        claims: info.claims.as_deref().unwrap_or_default().into(),
        ip: info.ip.map(|ip| ip.to_string()).unwrap_or_default(),
    }
}

fn member(member: Member) -> pb::presence_response::Member {
    pb::presence_response::Member {
        user_id: member.user.to_string(),
        connection: member.connection.to_string(),
        device: member.device.map(|d| d.to_string()).unwrap_or_default(),
        node: member.node.to_string(),
    }
}

fn entry(message: Message) -> pb::history_response::Entry {
    use pb::history_response::entry::Body as Given;
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(message.time);
    let position = message.position().map(|position| position.to_string());
    pb::history_response::Entry {
        message_id: message.id.to_string(),
        position: position.unwrap_or_default(),
        time: Some(time.into()),
        body: Some(match message.body {
            Body::Text(text) => Given::Json(serde_json::Value::from(&*text).to_string()),
            Body::Json(text) => Given::Json(text.as_ref().to_owned()),
            Body::Binary(bytes) => Given::Binary(bytes),
        }),
    }
}
