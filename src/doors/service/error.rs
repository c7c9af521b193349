use std::collections::HashMap;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use prost::Message as _;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::hub::Refusal;
use crate::model::GrantError;
use crate::model::MessageId;
use crate::tickets::IssueError;

/// Whose reasons those of [`ErrorDetails`] are (AIP-193).
const DOMAIN: &str = "tidings";

/// The stable codes of the service API, gRPC's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Code {
    InvalidArgument,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    AlreadyExists,
    ResourceExhausted,
    Unimplemented,
    Unavailable,
    Aborted,
    Internal,
}

/// Why a call is not answered with what it asked for: the same in both protocols.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// Which kind.
    pub code: Code,
    /// What is wrong and what to do.
    pub detail: String,
    /// The field of the request that is wrong.
    pub field: Option<&'static str>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// The message that may or may not have been accepted.
    pub message_id: Option<MessageId>,
}

impl Code {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Aborted => "ABORTED",
            Self::Internal => "INTERNAL",
        }
    }

    fn http(self) -> StatusCode {
        match self {
            Self::InvalidArgument => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Aborted => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn grpc(self) -> tonic::Code {
        match self {
            Self::InvalidArgument => tonic::Code::InvalidArgument,
            Self::Unauthenticated => tonic::Code::Unauthenticated,
            Self::PermissionDenied => tonic::Code::PermissionDenied,
            Self::NotFound => tonic::Code::NotFound,
            Self::AlreadyExists => tonic::Code::AlreadyExists,
            Self::ResourceExhausted => tonic::Code::ResourceExhausted,
            Self::Unimplemented => tonic::Code::Unimplemented,
            Self::Unavailable => tonic::Code::Unavailable,
            Self::Aborted => tonic::Code::Aborted,
            Self::Internal => tonic::Code::Internal,
        }
    }
}

impl ApiError {
    /// An error with its sentence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            field: None,
            retry_after: None,
            message_id: None,
        }
    }

    /// `INVALID_ARGUMENT` for a field; `problem` is read after its name.
    pub fn invalid(field: &'static str, problem: impl std::fmt::Display) -> Self {
        Self {
            field: Some(field),
            ..Self::new(Code::InvalidArgument, format!("{field} {problem}"))
        }
    }

    /// `UNIMPLEMENTED` for a field.
    pub fn unimplemented(field: &'static str, why: &str) -> Self {
        Self {
            field: Some(field),
            ..Self::new(
                Code::Unimplemented,
                format!("{field} is not implemented yet: {why}"),
            )
        }
    }

    /// `UNAVAILABLE` for a question that the backplane did not answer; `problem` is a sentence for the operator.
    pub(super) fn unavailable(problem: String) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(Code::Unavailable, problem)
        }
    }

    /// For an item of a stream: what the status of a call would be, with the same details.
    pub(super) fn to_rpc_status(&self) -> crate::proto::google::rpc::Status {
        let status = tonic::Status::from(self.clone());
        crate::proto::google::rpc::Status::decode(status.details())
            .expect("tonic-types encodes a google.rpc.Status")
    }

    /// What a program may read: `ErrorInfo`, and `BadRequest` and `RetryInfo` where they apply.
    fn details(&self) -> ErrorDetails {
        let id = self
            .message_id
            .map(|id| ("message_id".into(), id.to_string()));
        let metadata: HashMap<String, String> = id.into_iter().collect();
        let mut details = ErrorDetails::with_error_info(self.code.name(), DOMAIN, metadata);
        if let Some(field) = self.field {
            details.add_bad_request_violation(field, &self.detail);
        }
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        details
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid { field, problem } => Self::invalid(field, problem),
            Refusal::Busy { retry_after } => Self {
                retry_after: Some(retry_after),
                ..Self::new(
                    Code::ResourceExhausted,
                    "the node is too busy; nothing was accepted",
                )
            },
            Refusal::Unavailable(problem) => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new(
                    Code::Unavailable,
                    format!("{problem}; nothing was accepted"),
                )
            },
            Refusal::Conflict => Self {
                field: Some("idempotency_key"),
                ..Self::new(
                    Code::AlreadyExists,
                    "idempotency_key was used for another body within the last 5 minutes; nothing was accepted",
                )
            },
            Refusal::Unknown { id, problem } => Self {
                message_id: Some(id),
                ..Self::new(
                    Code::Aborted,
                    format!("unknown: {problem}; message {id} may or may not have been accepted"),
                )
            },
        }
    }
}

impl From<GrantError> for ApiError {
    fn from(error: GrantError) -> Self {
        Self::invalid(error.field, error.problem)
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Invalid(inner) => Self::invalid(inner.field, inner.problem),
            IssueError::Full => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new(
                    Code::ResourceExhausted,
                    "too many tickets wait to be redeemed",
                )
            },
            IssueError::Unavailable(problem) => {
                tracing::warn!(%problem, "a ticket could not be issued");
                Self::new(Code::Unavailable, "tickets cannot be issued now")
            }
        }
    }
}

impl From<ApiError> for tonic::Status {
    fn from(error: ApiError) -> Self {
        let details = error.details();
        let mut status = Self::with_error_details(error.code.grpc(), error.detail, details);
        let mut put = |key: &'static str, text: String| {
            if let Ok(value) = text.parse() {
                status.metadata_mut().insert(key, value);
            }
        };
        if let Some(after) = error.retry_after {
            put("retry-after-ms", after.as_millis().to_string());
        }
        if let Some(id) = error.message_id {
            put("message-id", id.to_string());
        }
        status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        problem(self.code.http(), self.code.name(), &self)
    }
}

/// A problem document (RFC 9457) with a status of its own.
pub(super) fn problem(status: StatusCode, code: &str, error: &ApiError) -> Response {
    let mut body = serde_json::json!({
        "title": status.canonical_reason().unwrap_or("error"),
        "status": status.as_u16(),
        "code": code,
        "detail": error.detail,
    });
    if let Some(field) = error.field {
        body["field"] = field.into();
    }
    if let Some(after) = error.retry_after {
        body["retry_after_ms"] = (after.as_millis() as u64).into();
    }
    if let Some(id) = error.message_id {
        body["message_id"] = id.to_string().into();
    }
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    if let Some(after) = error.retry_after {
        headers.insert(RETRY_AFTER, after.as_secs().max(1).into());
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(
            http::header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer"),
        );
    }
    response
}
