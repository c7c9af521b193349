mod connections;
mod deadline;
mod lanes;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use self::deadline::deadline;
use super::api::{Api, Given, Options, unimplemented};
use super::error::ApiError;
use super::keys::{ApiKey, Shown};
use crate::backplane::Durability;
use crate::doors::config::Scope;
use crate::fleet::Phases;
use crate::hub::{self, Accepted};
use crate::model::{Class, UserId};
use crate::proto::tidings::v1 as pb;
use crate::tickets::GrantFields;

/// The gRPC side of the service door: translates, no more.
#[derive(Clone)]
pub(super) struct Grpc {
    pub(super) api: Arc<Api>,
    /// Streams end when the node closes.
    pub(super) phases: Phases,
    /// Items of one stream that may be under way.
    pub(super) window: usize,
}

macro_rules! options {
    ($request:expr, $body:path, $deadline:expr) => {{
        use $body as Body;
        let request = $request;
        Ok::<_, ApiError>(Options {
            body: request.body.map(|body| match body {
                Body::Message(text) => Given::Text(text),
                Body::Json(text) => Given::Json(text),
                Body::Binary(bytes) => Given::Binary(bytes),
            }),
            class: class(request.class)?,
            ttl: request.ttl.map(duration).transpose()?,
            collapse_key: request.collapse_key,
            idempotency_key: request.idempotency_key,
            waits: waits(request.wait_for)? || request.wait_timeout.is_some(),
            deadline: $deadline,
        })
    }};
}

fn class(class: i32) -> Result<Class, ApiError> {
    match pb::push_request::Class::try_from(class) {
        Ok(pb::push_request::Class::Unspecified) => Ok(Class::Unset),
        Ok(pb::push_request::Class::Kept) => Ok(Class::Kept),
        Ok(pb::push_request::Class::Volatile) => Ok(Class::Volatile),
        Err(_) => Err(ApiError::invalid(
            "class",
            format!("{class} is not one of KEPT, VOLATILE"),
        )),
    }
}

fn waits(wait_for: i32) -> Result<bool, ApiError> {
    use pb::push_request::WaitFor;
    match WaitFor::try_from(wait_for) {
        Ok(WaitFor::Unspecified | WaitFor::Accepted) => Ok(false),
        Ok(WaitFor::Written | WaitFor::Acked) => Ok(true),
        Err(_) => Err(ApiError::invalid(
            "wait_for",
            format!("{wait_for} is not one of ACCEPTED, WRITTEN, ACKED"),
        )),
    }
}

fn status(accepted: &Accepted) -> i32 {
    match accepted.status {
        hub::Status::DeliveredLocally => pb::Status::DeliveredLocally as i32,
        hub::Status::DispatchedToCluster => pb::Status::DispatchedToCluster as i32,
        hub::Status::Stored => pb::Status::Stored as i32,
        hub::Status::NobodyConnected => pb::Status::NobodyConnected as i32,
    }
}

fn durability(accepted: &Accepted) -> i32 {
    use pb::push_response::Durability as Named;
    let named = match accepted.durability {
        None => Named::Unspecified,
        Some(Durability::Memory) => Named::Memory,
        Some(Durability::Stored) => Named::Stored,
        Some(Durability::Replicated) => Named::Replicated,
    };
    named as i32
}

fn position(accepted: &Accepted) -> String {
    accepted
        .position
        .map(|position| position.to_string())
        .unwrap_or_default()
}

fn push_response(accepted: &Accepted) -> pb::PushResponse {
    pb::PushResponse {
        status: status(accepted),
        message_id: accepted.id.to_string(),
        position: position(accepted),
        local_connections: accepted.local_connections,
        other_nodes: accepted.other_nodes,
        degraded: accepted.degraded,
        duplicate: accepted.duplicate,
        durability: durability(accepted),
        receipts: Vec::new(),
    }
}

async fn push(
    api: &Api,
    caller: &ApiKey,
    request: pb::PushRequest,
    deadline: Instant,
) -> Result<pb::PushResponse, ApiError> {
    let user = request.user_id.clone();
    let options = options!(request, pb::push_request::Body, deadline)?;
    api.push(caller, &user, options)
        .await
        .map(|accepted| push_response(&accepted))
}

#[tonic::async_trait]
impl pb::notification_server::Notification for Grpc {
    async fn push_notification(
        &self,
        request: Request<pb::PushRequest>,
    ) -> Result<Response<pb::PushResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let shown = Shown::of(metadata.into_headers(), &extensions);
        let run = async |caller: &ApiKey| push(&self.api, caller, request, deadline(&shown)?).await;
        let answer = self
            .api
            .call("PushNotification", Scope::Push, &shown, run)
            .await?;
        Ok(Response::new(answer))
    }

    type PushNotificationsStream = lanes::Results;

    async fn push_notifications(
        &self,
        request: Request<Streaming<pb::PushItem>>,
    ) -> Result<Response<lanes::Results>, Status> {
        let (metadata, extensions, items) = request.into_parts();
        let shown = Shown::of(metadata.into_headers(), &extensions);
        let method = "PushNotifications";
        let caller = self.api.admit(method, Scope::Push, &shown)?;
        let last = match shown.contains_key(deadline::HEADER) {
            true => Some(deadline(&shown)).transpose(),
            false => Ok(None),
        };
        let last = last.inspect_err(|error| self.api.refused(method, caller.name(), error))?;
        Ok(Response::new(lanes::run(self, &caller, items, last)))
    }

    async fn broadcast(
        &self,
        request: Request<pb::BroadcastRequest>,
    ) -> Result<Response<pb::BroadcastResponse>, Status> {
        let (metadata, extensions, mut request) = request.into_parts();
        let shown = Shown::of(metadata.into_headers(), &extensions);
        let run = async |caller: &ApiKey| {
            let users = std::mem::take(&mut request.user_ids);
            let everyone = request.everyone;
            let options = options!(request, pb::broadcast_request::Body, deadline(&shown)?)?;
            self.api.broadcast(caller, &users, everyone, options).await
        };
        let done = self.api.call("Broadcast", Scope::Push, &shown, run).await?;
        let accepted = &done.whole;
        let failure = |(user, refusal): (UserId, hub::Refusal)| pb::broadcast_response::Failure {
            user_id: user.to_string(),
            error: Some(ApiError::from(refusal).to_rpc_status()),
        };
        Ok(Response::new(pb::BroadcastResponse {
            status: status(accepted),
            message_id: accepted.id.to_string(),
            local_connections: accepted.local_connections,
            other_nodes: accepted.other_nodes,
            degraded: accepted.degraded,
            duplicate: accepted.duplicate,
            durability: durability(accepted),
            accepted: done.users,
            failures: done.failures.into_iter().map(failure).collect(),
        }))
    }

    async fn publish(
        &self,
        request: Request<pb::PublishRequest>,
    ) -> Result<Response<pb::PublishResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let shown = Shown::of(metadata.into_headers(), &extensions);
        let run = async |caller: &ApiKey| {
            let channel = request.channel.clone();
            let options = options!(request, pb::publish_request::Body, deadline(&shown)?)?;
            self.api.publish(caller, &channel, options).await
        };
        let accepted = self
            .api
            .call("Publish", Scope::Publish, &shown, run)
            .await?;
        Ok(Response::new(pb::PublishResponse {
            status: status(&accepted),
            message_id: accepted.id.to_string(),
            position: position(&accepted),
            local_connections: accepted.local_connections,
            other_nodes: accepted.other_nodes,
            degraded: accepted.degraded,
            duplicate: accepted.duplicate,
            durability: durability(&accepted),
            receipts: Vec::new(),
        }))
    }
}

#[tonic::async_trait]
impl pb::tickets_server::Tickets for Grpc {
    async fn issue_ticket(
        &self,
        request: Request<pb::IssueTicketRequest>,
    ) -> Result<Response<pb::IssueTicketResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let shown = Shown::of(metadata.into_headers(), &extensions);
        let run = async |_: &ApiKey| {
            let some = |text: String| (!text.is_empty()).then_some(text);
            let ttl = request.ttl.map(duration).transpose()?;
            let fields = GrantFields {
                user_id: request.user_id,
                device: some(request.device),
                channels: request.channels,
                claims: some(request.claims),
                origins: request.origins,
                ips: request.ips,
                session_seconds: Some(request.session_seconds),
                since: some(request.since),
            };
            self.api.issue_ticket(fields, ttl).await
        };
        let issued = self
            .api
            .call("IssueTicket", Scope::Ticket, &shown, run)
            .await?;
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_millis(issued.expires_at);
        Ok(Response::new(pb::IssueTicketResponse {
            ticket: issued.ticket.expose().to_owned(),
            expires_at: Some(expires_at.into()),
            url: self.api.url.clone().unwrap_or_default(),
        }))
    }
}

fn duration(duration: prost_types::Duration) -> Result<Duration, ApiError> {
    Duration::try_from(duration).map_err(|_| ApiError::invalid("ttl", "must not be negative"))
}

#[tonic::async_trait]
impl pb::delivery_server::Delivery for Grpc {
    async fn explain(
        &self,
        request: Request<pb::ExplainRequest>,
    ) -> Result<Response<pb::ExplainResponse>, Status> {
        let (metadata, extensions, _) = request.into_parts();
        let shown = Shown::of(metadata.into_headers(), &extensions);
        self.later("Explain", &shown).await
    }
}

impl Grpc {
    async fn later<T>(&self, method: &'static str, shown: &Shown) -> Result<Response<T>, Status> {
        let run = async |_: &ApiKey| unimplemented(method);
        Ok(self.api.call(method, Scope::Read, shown, run).await?)
    }
}
