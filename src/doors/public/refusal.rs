use std::time::Duration;

use axum::body::Body;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{Response, StatusCode};

use crate::wire::codec::CloseCode;

/// Why a handshake is refused: the documented set. Each has a status, a close code for sockets that are accepted only to
/// be told, and a name, which is the `code` of the `refused` frame and the reason in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request itself is wrong.
    BadRequest,
    /// Something that this version does not do.
    Unimplemented,
    /// The ticket (or JWT) is missing, unknown, used or expired.
    Ticket,
    /// The page's origin is not allowed.
    Origin,
    /// The ticket is not for this address.
    Ip,
    /// The user has as many connections as it may.
    UserLimit,
    /// The node is full, or over its budget; come back later.
    Overloaded,
    /// What is needed cannot be reached; come back later.
    Unavailable,
}

/// A refusal with its sentence.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) kind: Kind,
    /// What is wrong and what to do.
    pub(super) detail: String,
    /// When to come back.
    pub(super) after: Option<Duration>,
}

impl Kind {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Ticket => StatusCode::UNAUTHORIZED,
            Self::Origin | Self::Ip => StatusCode::FORBIDDEN,
            Self::UserLimit => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unimplemented => "unimplemented",
            Self::Ticket => "ticket",
            Self::Origin => "origin",
            Self::Ip => "ip",
            Self::UserLimit => "user_limit",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
        }
    }

    pub(super) fn close_code(self) -> CloseCode {
        match self {
            Self::Ticket => CloseCode::SESSION_ENDED,
            Self::UserLimit => CloseCode::USER_LIMIT,
            Self::Overloaded | Self::Unavailable => CloseCode::TRY_AGAIN_LATER,
            Self::BadRequest | Self::Unimplemented | Self::Origin | Self::Ip => {
                CloseCode::CLIENT_ERRORS
            }
        }
    }
}

impl Refusal {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            after: None,
        }
    }

    /// One that means "later": 1 to 5 s from now, so that a crowd comes back spread.
    pub(super) fn later(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            after: Some(Duration::from_millis(rand::random_range(1_000..5_000))),
        }
    }

    /// The answer for a client that can read a status. The connection closes behind it.
    pub(super) fn response(&self) -> Response<Body> {
        let mut response = problem(self.kind.status(), self.kind.name(), &self.detail);
        let headers = response.headers_mut();
        headers.insert(CONNECTION, http::HeaderValue::from_static("close"));
        if let Some(after) = self.after {
            headers.insert(RETRY_AFTER, after.as_secs().max(1).into());
        }
        response
    }
}

/// A problem document (RFC 9457).
pub(super) fn problem(status: StatusCode, code: &str, detail: &str) -> Response<Body> {
    let body = serde_json::json!({
        "title": status.canonical_reason().unwrap_or("error"),
        "status": status.as_u16(),
        "code": code,
        "detail": detail,
    });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/problem+json"),
    );
    response
}
