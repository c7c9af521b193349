use std::time::Duration;

use axum::body::Body;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use hyper::body::Incoming;

use super::answer::Answer;
use super::arrival::Arrival;
use super::handshake::Handshake;
use super::refusal::{Kind, Refusal};
use super::upgrade::{not_admitted, take_place};
use super::{Public, budget, cors};
use crate::hub::{EventStream, Shard};
use crate::model::{Grant, Since};
use crate::tickets::{Opening, Pass, SealError};
use crate::wire::events::{CHANNELS_MAX, retry};

/// What proxies of the nginx kind understand: pass each event on at once.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// When a client comes back whose user has too many connections, in seconds.
const USER_LIMIT_PAUSE: std::ops::Range<u64> = 15..30;

/// A client that is not taken. A browser's `EventSource` comes back after a 200 that ends, and after nothing else.
struct Declined {
    refusal: Refusal,
    /// The line with what it comes back with, if its ticket is spent.
    id: Option<String>,
}

impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, id: None }
    }
}

/// Answers a request for server-sent events, and its preflight.
pub(super) async fn answer(
    door: &Public,
    arrival: &Arrival,
    request: Request<Incoming>,
) -> Response<Answer> {
    let refused = |refusal: Refusal| {
        refusal.count(arrival);
        refusal.response().map(Answer::from)
    };
    let origin = match door.live.load().origins.check(request.headers()) {
        Ok(origin) => origin,
        Err(refusal) => return refused(refusal),
    };
    let mut response = match *request.method() {
        Method::OPTIONS => {
            cors::preflight("GET", "authorization, cache-control, last-event-id").map(Answer::from)
        }
        Method::GET => match admit(door, arrival, &request, origin.clone()).await {
            Ok(events) => stream(Answer::Events(events)),
            Err(Declined { refusal, id }) if refusal.after.is_some() => {
                refusal.count(arrival);
                later(&refusal, id.as_deref())
            }
            Err(Declined { refusal, .. }) => refused(refusal),
        },
        _ => {
            let mut response = refused(Refusal::new(Kind::Method, "use GET"));
            let allow = HeaderValue::from_static("GET, OPTIONS");
            response.headers_mut().insert(ALLOW, allow);
            response
        }
    };
    cors::allow(response.headers_mut(), origin.as_ref());
    response
}

/// The order of admission, as at `/ws`.
async fn admit(
    door: &Public,
    arrival: &Arrival,
    request: &Request<Incoming>,
    origin: Option<crate::model::Origin>,
) -> Result<EventStream, Declined> {
    let mut handshake = Handshake::parse_events(request)?;
    check_channels(handshake.asked.channels.len())?;
    let shard = &arrival.shard;
    let place = take_place(arrival)?;
    let reservation = shard.reserve();
    let opening = Opening {
        connection: reservation.connection(),
        again: true,
    };
    handshake.asked.origin = origin.clone();
    let claim = budget::Claim {
        proof: &handshake.proof,
        origin,
        opening,
    };
    let redeeming = budget::admit(door, arrival, claim);
    let mut grant = arrival.in_time(redeeming).await.inspect_err(|refusal| {
        if refusal.kind == Kind::Ticket {
            shard.hub.admission.give_back();
        }
    })?;
    // The ticket wins.
    grant.device = grant.device.or(handshake.device.take());
    check_channels(count_channels(&grant, &handshake))?;
    let pass = Shard::pass(&grant, &reservation, &handshake.asked);
    let since = handshake.asked.since.or(grant.since);
    let fresh = grant.resumes.is_none();
    // From here on the ticket is spent.
    let preparing = async {
        let prepared = shard.prepare(grant, handshake.asked, (place, reservation));
        prepared.await.map_err(not_admitted)
    };
    let admitted = arrival.in_time(preparing).await.and_then(|prepared| {
        let events = shard.admit_events(prepared).map_err(no_ticket)?;
        // Another one showed the same ticket meanwhile, and is served.
        events.ok_or_else(|| Refusal::later(Kind::Overloaded, "the ticket was shown again"))
    });
    admitted.map_err(|mut refusal| {
        if refusal.kind == Kind::UserLimit {
            let pause = Duration::from_secs(rand::random_range(USER_LIMIT_PAUSE));
            refusal.after = Some(pause);
        }
        // One that resumes has what it comes back with.
        let id = fresh.then(|| come_back(shard, &pass, since)).flatten();
        Declined { refusal, id }
    })
}

fn come_back(shard: &Shard, pass: &Pass, since: Option<Since>) -> Option<String> {
    let id = shard.come_back(pass, since);
    id.inspect_err(|problem| tracing::debug!(%problem, "a client cannot come back"))
        .ok()
}

fn count_channels(grant: &Grant, handshake: &Handshake) -> usize {
    let first = match &grant.resumes {
        Some(resumes) => &resumes.subscribed[..],
        None => &grant.channels[..],
    };
    let asked = handshake.asked.channels.iter();
    let more = asked.filter(|(channel, _)| !first.contains(channel));
    first.len() + more.count()
}

fn check_channels(count: usize) -> Result<(), Refusal> {
    match count <= CHANNELS_MAX {
        true => Ok(()),
        false => Err(Refusal::new(
            Kind::BadRequest,
            format!(
                "ticket and query name {count} channels; at /sse there may be {CHANNELS_MAX}, and more at /ws"
            ),
        )),
    }
}

fn no_ticket(error: SealError) -> Refusal {
    match error {
        SealError::TooLarge => Refusal::new(Kind::BadRequest, format!("{error}; use /ws")),
        SealError::Ended => Refusal::new(Kind::Ticket, "the session is over; fetch a new ticket"),
        SealError::NoSecret | SealError::Random(_) => {
            tracing::warn!(problem = %error, "no resume ticket for a client");
            let told = "resume tickets cannot be made now; come back later";
            Refusal::later(Kind::Unavailable, told)
        }
    }
}

/// Not now: a stream that ends at once, after which a browser comes back, unlike after a 503.
fn later(refusal: &Refusal, id: Option<&str>) -> Response<Answer> {
    let (retry, id) = (
        retry(refusal.after_ms().unwrap_or_default()),
        id.unwrap_or_default(),
    );
    let code = refusal.kind.code();
    stream(Body::from(format!("{retry}{id}: {code}\n\n")).into())
}

fn stream(body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}
