use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use axum::body::Body;
use http::header::{
    CONNECTION, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::server::TlsStream;

use super::arrival::Arrival;
use super::handshake::{self, Handshake};
use super::refusal::{Kind, Refusal};
use super::{Public, budget, give_up_after};
use crate::hub::{Link, NoPlace, NotAdmitted, PlaceGuard, Prepared, Reservation, Shard};
use crate::model::Grant;
use crate::tickets::Opening;
use crate::wire::codec::{self, Opcode};
use crate::wire::frames::{SUBPROTOCOL, ServerFrame};

/// How long a socket that is only told why it is refused may take to close.
const TOLD_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers a request for a WebSocket: the whole order of admission. `echo` = the test builds' endpoint, which asks for
/// no ticket.
pub(super) async fn answer(
    door: &Arc<Public>,
    arrival: &Arrival,
    mut request: Request<Incoming>,
    echo: bool,
) -> Response<Body> {
    let accept = match handshake::upgrade_key(&request) {
        Ok(accept) => accept,
        Err(refusal) => {
            refusal.count(arrival);
            let mut response = refusal.response();
            response.headers_mut().insert(
                http::header::SEC_WEBSOCKET_VERSION,
                HeaderValue::from_static("13"),
            );
            return response;
        }
    };
    let subprotocol = offers_subprotocol(&request);
    let upgrade = hyper::upgrade::on(&mut request);
    let admission = admit(door, arrival, &request, echo);
    match arrival.in_time(admission).await {
        Ok(prepared) => {
            let (shard, deadline) = (arrival.shard.clone(), arrival.deadline);
            spawn_local(async move {
                match tokio::time::timeout_at(deadline, take_link(upgrade)).await {
                    Ok(Some((link, early))) => shard.admit(prepared, link, early),
                    Ok(None) | Err(_) => shard.hub.metrics.refused("gone"),
                }
            });
            switching(&accept, subprotocol)
        }
        Err(refusal) => {
            refusal.count(arrival);
            let told = handshake::wants_refusals_told(request.uri().query())
                || (refusal.after.is_some() && request.headers().contains_key(ORIGIN));
            let permit = told
                .then(|| door.told.clone().try_acquire_owned().ok())
                .flatten();
            let Some(permit) = permit else {
                return refusal.response();
            };
            // It counts as on the way in, or a drain would cut it off before it is told.
            let arriving = arrival.shard.hub.admission.arrive();
            spawn_local(async move {
                let _held = (permit, arriving);
                let _ = tokio::time::timeout(TOLD_TIMEOUT, tell(upgrade, refusal)).await;
            });
            switching(&accept, subprotocol)
        }
    }
}

/// Parse, origin, limits by IP and node, the node's and the fleet's budget, redeem, the user's limit: in this order, what
/// costs nothing first.
async fn admit(
    door: &Public,
    arrival: &Arrival,
    request: &Request<Incoming>,
    echo: bool,
) -> Result<Prepared, Refusal> {
    let mut handshake = if echo {
        Handshake::default()
    } else {
        Handshake::parse(request)?
    };
    let origin = door.live.load().origins.check(request.headers())?;
    let shard = &arrival.shard;
    let hub = &shard.hub;
    let place = take_place(arrival)?;
    let reservation = shard.reserve();
    let opening = Opening {
        connection: reservation.connection(),
        again: false,
    };
    let held = (place, reservation);
    #[cfg(feature = "echo")]
    if echo {
        handshake.asked.echo = true;
        let user = crate::model::UserId::parse("echo").expect("a valid id");
        return prepare(shard, Grant::of(user), handshake, held).await;
    }
    let _ = echo;
    handshake.asked.origin = origin.clone();
    let claim = budget::Claim {
        proof: &handshake.proof,
        origin,
        opening,
    };
    let mut grant = budget::admit(door, arrival, claim)
        .await
        .inspect_err(|refusal| {
            if refusal.kind == Kind::Ticket {
                hub.admission.give_back();
            }
        })?;
    // The ticket wins.
    grant.device = grant.device.or(handshake.device.take());
    prepare(shard, grant, handshake, held).await
}

/// A place on the node, by the limits of node and address, and a token of the handshake budget.
pub(super) fn take_place(arrival: &Arrival) -> Result<PlaceGuard, Refusal> {
    let admission = &arrival.shard.hub.admission;
    admission.take(arrival.client).map_err(|full| {
        let why = match full {
            NoPlace::NodeFull => "this node holds as many connections as it may; come back later",
            NoPlace::IpFull => {
                "your address holds as many connections as it may; close one, or come back later"
            }
            NoPlace::OverBudget => "too many connections are being opened; come back later",
        };
        Refusal::later(Kind::Overloaded, why)
    })
}

async fn prepare(
    shard: &Rc<Shard>,
    grant: Grant,
    handshake: Handshake,
    held: (PlaceGuard, Reservation),
) -> Result<Prepared, Refusal> {
    shard
        .prepare(grant, handshake.asked, held)
        .await
        .map_err(not_admitted)
}

pub(super) fn not_admitted(error: NotAdmitted) -> Refusal {
    match error {
        NotAdmitted::UserLimit => Refusal::new(
            Kind::UserLimit,
            "this user has as many connections as it may; close one first",
        ),
        NotAdmitted::Unavailable(problem) => {
            tracing::warn!(%problem, "a handshake found no backplane");
            Refusal::later(
                Kind::Unavailable,
                "the backplane cannot be reached; come back later",
            )
        }
    }
}

fn offers_subprotocol(request: &Request<Incoming>) -> bool {
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|protocol| protocol.trim() == SUBPROTOCOL)
}

fn switching(accept: &str, subprotocol: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(accept).expect("base64 is a header value");
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if subprotocol {
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(SUBPROTOCOL),
        );
    }
    response
}

/// The connection out of hyper again, and what the client sent behind its handshake.
async fn take_link(upgrade: OnUpgrade) -> Option<(Link, Vec<u8>)> {
    let upgraded = upgrade.await.ok()?;
    let (link, early) = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => (Link::Plain(parts.io.into_inner()), parts.read_buf),
        Err(upgraded) => {
            let parts = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>().ok()?;
            let stream = Box::new(parts.io.into_inner());
            (Link::Tls(stream), parts.read_buf)
        }
    };
    forget_waker(link.socket());
    give_up_after(link.socket(), Duration::ZERO);
    // Copied: the buffer that hyper read into would live as long as the session.
    Some((link, early.to_vec()))
}

/// Makes the socket's readiness forget whom it would wake. That is hyper's task: it has ended, but its memory (about
/// 1.5 KB) lives as long as a waker of it does, and only the next poll for readiness, or bytes, replace the one that is
/// kept here. The hub never polls: it waits by futures, which are listed elsewhere.
fn forget_waker(stream: &TcpStream) {
    let mut nobody = Context::from_waker(Waker::noop());
    let _ = stream.poll_read_ready(&mut nobody);
    let _ = stream.poll_write_ready(&mut nobody);
}

/// One `refused` frame and a close frame; then the client's end of the stream is awaited.
async fn tell(upgrade: OnUpgrade, refusal: Refusal) -> Option<()> {
    let mut stream = TokioIo::new(upgrade.await.ok()?);
    let frame = ServerFrame::Refused {
        code: refusal.kind.code(),
        after_ms: refusal.after_ms(),
    };
    let mut bytes = codec::frame(Opcode::Text, frame.to_json().as_bytes()).to_vec();
    bytes.extend_from_slice(&codec::close_frame(
        refusal.kind.close_code(),
        &refusal.detail,
    ));
    stream.write_all(&bytes).await.ok()?;
    stream.shutdown().await.ok()?;
    let mut rest = [0; 512];
    while stream.read(&mut rest).await.ok()? > 0 {}
    Some(())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Wake;

    use tokio::io::{AsyncRead as _, ReadBuf};

    use super::*;

    struct Ended;

    impl Wake for Ended {
        fn wake(self: Arc<Self>) {}
    }

    #[tokio::test]
    async fn a_stream_that_was_taken_keeps_no_task_of_the_handshake() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (_client, (mut stream, _)) = (client.expect("connected"), accepted.expect("accepted"));
        let task = Arc::new(Ended);
        let waker = Waker::from(task.clone());
        let mut context = Context::from_waker(&waker);
        let mut bytes = [0; 8];
        let mut buffer = ReadBuf::new(&mut bytes);
        let polled = Pin::new(&mut stream).poll_read(&mut context, &mut buffer);
        drop(waker);
        assert!(polled.is_pending());
        assert_eq!(Arc::strong_count(&task), 2);
        forget_waker(&stream);
        assert_eq!(Arc::strong_count(&task), 1);
    }
}
