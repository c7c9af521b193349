use std::time::Duration;

use axum::body::Body;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};

use super::arrival::Arrival;
use crate::wire::codec::CloseCode;

/// Why a request is refused: the documented set. Each has a status, a close code for sockets that are accepted only to be
/// told, a code for the client, and a reason for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request itself is wrong.
    BadRequest,
    /// The headers are larger than the limit.
    Headers,
    /// A trusted proxy's connection did not begin with a PROXY header.
    ProxyHeader,
    /// The client did not finish its request in time.
    TooSlow,
    /// The path takes another method.
    Method,
    /// There is nothing here.
    NotFound,
    /// The playground is not for this page or host.
    Forbidden,
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
    /// What is needed did not answer before the deadline; come back later. To the client the same as unavailable.
    Timeout,
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
            Self::BadRequest | Self::ProxyHeader => StatusCode::BAD_REQUEST,
            Self::Headers => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Ticket => StatusCode::UNAUTHORIZED,
            Self::Origin | Self::Ip | Self::Forbidden => StatusCode::FORBIDDEN,
            Self::UserLimit => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded | Self::Unavailable | Self::Timeout => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What the client is told, in the problem document and in the `refused` frame.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Timeout => Self::Unavailable.reason(),
            Self::Method | Self::ProxyHeader => Self::BadRequest.reason(),
            other => other.reason(),
        }
    }

    /// What it is counted as.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Headers => "headers",
            Self::ProxyHeader => "proxy_header",
            Self::TooSlow => "too_slow",
            Self::Method => "method",
            Self::NotFound => "not_found",
            Self::Forbidden => "forbidden",
            Self::Ticket => "ticket",
            Self::Origin => "origin",
            Self::Ip => "ip",
            Self::UserLimit => "user_limit",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
        }
    }

    pub(super) fn close_code(self) -> CloseCode {
        match self {
            Self::Ticket => CloseCode::SESSION_ENDED,
            Self::UserLimit => CloseCode::USER_LIMIT,
            Self::Overloaded | Self::Unavailable | Self::Timeout => CloseCode::TRY_AGAIN_LATER,
            Self::BadRequest
            | Self::Headers
            | Self::ProxyHeader
            | Self::TooSlow
            | Self::Method
            | Self::NotFound
            | Self::Forbidden
            | Self::Origin
            | Self::Ip => CloseCode::CLIENT_ERRORS,
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

    /// Counts it, and says in the log what the client is told. Each refusal is counted once.
    pub(super) fn count(&self, arrival: &Arrival) {
        let reason = self.kind.reason();
        arrival.shard.hub.metrics.refused(reason);
        tracing::debug!(client = %arrival.client, reason, "refused a client: {}", self.detail);
    }

    /// The answer for a client that can read a status. The connection closes behind it.
    pub(super) fn response(&self) -> Response<Body> {
        let mut response = problem(self);
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        match self.kind {
            Kind::Ticket => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Kind::Method => {
                headers.insert(ALLOW, HeaderValue::from_static("POST, OPTIONS"));
            }
            _ => {}
        }
        if let Some(after) = self.after {
            // Whole seconds, and never too soon.
            let seconds = after.as_millis().div_ceil(1_000).max(1);
            headers.insert(
                RETRY_AFTER,
                u64::try_from(seconds).unwrap_or(u64::MAX).into(),
            );
        }
        response
    }

    /// When to come back, in milliseconds.
    pub(super) fn after_ms(&self) -> Option<u64> {
        let millis = self.after?.as_millis();
        Some(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

/// A problem document (RFC 9457).
fn problem(refusal: &Refusal) -> Response<Body> {
    let status = refusal.kind.status();
    let mut body = serde_json::json!({
        "title": status.canonical_reason().unwrap_or("error"),
        "status": status.as_u16(),
        "code": refusal.kind.code(),
        "detail": refusal.detail,
    });
    if let Some(after) = refusal.after_ms() {
        body["after_ms"] = after.into();
    }
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/problem+json"),
    );
    response
}
