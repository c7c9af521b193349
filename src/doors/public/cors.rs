use axum::body::Body;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN, VARY,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use super::arrival::Arrival;
use super::handshake::bearer;
use super::refusal::{Kind, Refusal};
use super::{Public, proof};
use crate::model::GrantError;
use crate::model::Origin;
use crate::tickets::{IssueError, IssueRequest, parse_device, parse_since};

/// The most bytes of the body of `POST /v1/tickets`.
const BODY_MAX_BYTES: usize = 4 << 10;
/// What who shows no good JWT is told, whatever is wrong with it.
const NOT_GOOD: &str = "the JWT is missing or not good; show one: Authorization: Bearer <token>";

/// The origins that browsers may come from.
pub(super) struct Origins {
    allowed: Vec<Origin>,
    same_host: bool,
}

impl Origins {
    pub(super) fn new(allowed: &[Origin], same_host: bool) -> Self {
        Self {
            allowed: allowed.to_vec(),
            same_host,
        }
    }

    /// The request's origin. None (not a browser) is accepted; what is there and not allowed, `null` included, is not.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<Option<Origin>, Refusal> {
        let Some(value) = headers.get(ORIGIN) else {
            return Ok(None);
        };
        let refused = |shown: &str| {
            Refusal::new(
                Kind::Origin,
                format!("the origin {shown:?} is not allowed; add it to [public] allowed_origins"),
            )
        };
        let text = value.to_str().map_err(|_| refused("?"))?;
        let origin = Origin::parse(text).map_err(|_| refused(text))?;
        let allowed =
            self.allowed.contains(&origin) || (self.same_host && same_host(&origin, headers));
        allowed.then_some(Some(origin)).ok_or_else(|| refused(text))
    }
}

fn same_host(origin: &Origin, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<http::uri::Authority>().ok());
    let theirs = origin.as_str().split_once("://").map(|(_, rest)| rest);
    let theirs = theirs.and_then(|rest| rest.parse::<http::uri::Authority>().ok());
    matches!((host, theirs), (Some(a), Some(b)) if a.host().eq_ignore_ascii_case(b.host()))
}

/// `POST /v1/tickets` and its preflight: a user's JWT for a ticket.
pub(super) async fn tickets(
    door: &Public,
    arrival: &Arrival,
    request: Request<Incoming>,
) -> Response<Body> {
    let refused = |refusal: Refusal| {
        refusal.count(arrival);
        refusal.response()
    };
    let origin = match door.live.load().origins.check(request.headers()) {
        Ok(origin) => origin,
        Err(refusal) => return refused(refusal),
    };
    let mut response = if request.method() == Method::OPTIONS {
        preflight("POST", "authorization, content-type")
    } else {
        let issuing = issue(door, arrival, request);
        arrival.in_time(issuing).await.unwrap_or_else(refused)
    };
    allow(response.headers_mut(), origin.as_ref());
    response
}

/// Lets a page of an allowed origin read an answer.
pub(super) fn allow(headers: &mut HeaderMap, origin: Option<&Origin>) {
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin.and_then(|o| HeaderValue::from_str(o.as_str()).ok()) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
}

/// The answer to a preflight (Fetch standard, section 3.3.2).
pub(super) fn preflight(methods: &'static str, allowed: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(methods),
    );
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static(allowed),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// What the body may set.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    device: Option<String>,
    since: Option<String>,
}

async fn issue(
    door: &Public,
    arrival: &Arrival,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    if door.jwt().is_none() {
        return Err(Refusal::new(
            Kind::NotFound,
            "this node takes no JWT: [jwt] is not configured; a service issues tickets at the service door",
        ));
    }
    let token = bearer(request.headers()).ok_or_else(|| Refusal::new(Kind::Ticket, NOT_GOOD))?;
    let mut grant = proof::verify(door, arrival, &token, NOT_GOOD).await?;
    let wanted = read_body(arrival, request).await?;
    let field = |error: GrantError| Refusal::new(Kind::BadRequest, error.to_string());
    if let Some(since) = &wanted.since {
        grant.since = parse_since(since).map_err(field)?;
    }
    if let Some(device) = &wanted.device {
        grant.device = parse_device(device).map_err(field)?;
    }
    let hub = &arrival.shard.hub;
    for channel in grant.channels.iter() {
        hub.router
            .check_grantable("channels", channel)
            .map_err(|_| {
                Refusal::new(
                    Kind::BadRequest,
                    format!("nobody may subscribe to {channel}, which the JWT names"),
                )
            })?;
    }
    let asked = IssueRequest { grant, ttl: None };
    let issued = door.tickets.issue(asked).await.map_err(not_issued)?;
    hub.metrics.tickets_issued.inc();
    let mut body = serde_json::json!({
        "ticket": issued.ticket.expose(),
        "expires_at": issued.expires_at,
    });
    if let Some(url) = &door.url {
        body["url"] = url.as_str().into();
    }
    let mut response = Response::new(Body::from(body.to_string()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn not_issued(error: IssueError) -> Refusal {
    match error {
        IssueError::Invalid(error) => Refusal::new(Kind::BadRequest, error.to_string()),
        IssueError::Full => {
            Refusal::later(Kind::Overloaded, "too many tickets wait; come back later")
        }
        IssueError::Unavailable(problem) => {
            tracing::warn!(%problem, "a ticket could not be issued");
            let told = "tickets cannot be issued now; come back later";
            Refusal::later(Kind::Unavailable, told)
        }
    }
}

async fn read_body(arrival: &Arrival, request: Request<Incoming>) -> Result<Wanted, Refusal> {
    let bad = |detail: String| Refusal::new(Kind::BadRequest, detail);
    let body = Limited::new(request.into_body(), BODY_MAX_BYTES).collect();
    let bytes = tokio::time::timeout_at(arrival.deadline, body)
        .await
        .map_err(|_| Refusal::new(Kind::TooSlow, "the body took too long"))?
        .map_err(|_| bad(format!("the body must be at most {BODY_MAX_BYTES} bytes")))?
        .to_bytes();
    if bytes.is_empty() {
        return Ok(Wanted::default());
    }
    serde_json::from_slice(&bytes).map_err(|e| {
        bad(format!(
            "the body must be a JSON object with device and since alone: {e}"
        ))
    })
}
