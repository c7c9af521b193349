//! The public door: where browsers and other clients come in. `GET /ws`, `GET /sse`, `POST /v1/tickets`, and in dev the playground.
//! HTTP is hyper's, on the shard's own thread; after an upgrade the TCP stream goes to the shard.

mod answer;
mod arrival;
mod budget;
mod cors;
mod forwarded;
mod handshake;
mod playground;
mod proof;
mod proxies;
mod proxy_header;
mod refusal;
mod sse;
mod upgrade;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use crate::doors::config::PublicConfig;
use crate::doors::secure;
use crate::hub::{ArrivalGuard, Shard};
use crate::tickets::{JwtVerifier, Tickets};
use crate::tls::DoorTls;
use answer::Answer;
use arrival::Arrival;
use cors::Origins;
use proxies::Proxies;
use proxy_header::NoHeader;
use refusal::{Kind, Refusal};

pub use budget::Pacing;
pub use playground::Playground;

/// Sockets that are accepted only to be told why they are refused, at once; beyond that a status has to do.
/// A crowd over the budget is told its slots that way: each is told within a round trip.
const TOLD_AT_ONCE: usize = 4096;

/// The public door of a node; one for all shards.
pub struct Public {
    live: ArcSwap<Live>,
    same_host: bool,
    tickets: Arc<Tickets>,
    url: Option<String>,
    playground: Option<Playground>,
    pacing: Pacing,
    told: Arc<Semaphore>,
    tls: Option<Arc<DoorTls>>,
}

/// What a reload changes, as a whole.
struct Live {
    origins: Origins,
    proxies: Proxies,
    jwt: Option<Arc<JwtVerifier>>,
}

impl Live {
    fn new(config: &PublicConfig, same_host: bool, jwt: Option<Arc<JwtVerifier>>) -> Self {
        Self {
            origins: Origins::new(&config.allowed_origins, same_host),
            proxies: Proxies::new(config),
            jwt,
        }
    }
}

impl Public {
    /// `same_host` also allows every origin on the host that the request names (in dev).
    pub fn new(
        config: &PublicConfig,
        same_host: bool,
        tickets: Arc<Tickets>,
        jwt: Option<Arc<JwtVerifier>>,
        url: Option<String>,
        playground: Option<Playground>,
        pacing: Pacing,
    ) -> Self {
        Self {
            live: ArcSwap::from_pointee(Live::new(config, same_host, jwt)),
            same_host,
            tickets,
            url,
            playground,
            pacing,
            told: Arc::new(Semaphore::new(TOLD_AT_ONCE)),
            tls: None,
        }
    }

    /// Speaks TLS.
    pub fn with_tls(mut self, tls: Option<Arc<DoorTls>>) -> Self {
        self.tls = tls;
        self
    }

    /// Goes on with other origins, trusted proxies and keys for JWTs, from the next request on.
    pub fn take_up(&self, config: &PublicConfig, jwt: Option<Arc<JwtVerifier>>) {
        let live = Live::new(config, self.same_host, jwt);
        self.live.store(Arc::new(live));
    }

    /// Who checks JWTs now.
    pub fn jwt(&self) -> Option<Arc<JwtVerifier>> {
        self.live.load().jwt.clone()
    }

    /// Serves one connection, on the shard's thread: accepted, its PROXY header where its peer sends one, TLS where the door
    /// speaks it, then HTTP.
    pub fn connection(self: &Arc<Self>, shard: &Rc<Shard>, stream: TcpStream, peer: SocketAddr) {
        let accepted = Instant::now();
        let arriving = shard.hub.admission.arrive();
        give_up_after(
            &stream,
            shard.hub.heartbeat.interval + shard.hub.heartbeat.pong_timeout,
        );
        if self.tls.is_none() && !self.live.load().proxies.expects_header(peer) {
            return self.http(shard, stream, peer, (accepted, arriving));
        }
        // Owned by the shard's thread; ends by the handshake's deadline.
        let since = (accepted, arriving);
        spawn_local(self.clone().before_http(shard.clone(), stream, peer, since));
    }

    async fn before_http(
        self: Arc<Self>,
        shard: Rc<Shard>,
        stream: TcpStream,
        peer: SocketAddr,
        since: (Instant, ArrivalGuard),
    ) {
        let deadline = since.0 + handshake_time(&shard);
        let client = match self.live.load().proxies.expects_header(peer) {
            false => Ok(peer),
            true => proxies::read_header(&stream, peer, deadline).await,
        };
        let client = match client {
            Ok(client) => client,
            Err(NoHeader::Nothing) => return,
            Err(problem) => {
                shard.hub.metrics.refused(Kind::ProxyHeader.reason());
                let why = problem.why();
                tracing::debug!(%peer, "closed a trusted proxy's connection: {why}");
                return;
            }
        };
        let Some(tls) = &self.tls else {
            return self.http(&shard, stream, client, since);
        };
        match timeout_at(deadline, secure::handshake(tls, stream)).await {
            Ok(Ok(stream)) => self.http(&shard, stream, client, since),
            Ok(Err((error, stream))) => {
                tracing::debug!(%client, %error, "a client's TLS handshake failed");
                // One that goes away in the middle was not refused.
                if error.kind() == std::io::ErrorKind::InvalidData {
                    shard.hub.metrics.refused(Kind::Tls.reason());
                    secure::linger(stream).await;
                }
            }
            Err(_) => shard.hub.metrics.refused(Kind::TooSlow.reason()),
        }
    }

    /// Serves HTTP on a connection whose other end is, or speaks for, `peer`.
    fn http<S>(
        self: &Arc<Self>,
        shard: &Rc<Shard>,
        stream: S,
        peer: SocketAddr,
        (accepted, arriving): (Instant, ArrivalGuard),
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let time = handshake_time(shard);
        let left = (accepted + time).saturating_duration_since(Instant::now());
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(left.max(Duration::from_millis(1)))
            .max_buf_size(shard.hub.limits.now().header_bytes.max(8 << 10));
        // The first request's time runs from the accepted connection; that of a later one, on a kept connection, from its own beginning.
        let accepted = Rc::new(Cell::new(Some(accepted)));
        let (door, metrics, first) = (self.clone(), shard.hub.metrics.clone(), accepted.clone());
        let arriving = Cell::new(Some(arriving));
        let shard = shard.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let arrival = Arrival {
                shard: shard.clone(),
                client: door
                    .live
                    .load()
                    .proxies
                    .client(peer.ip(), request.headers()),
                deadline: first.take().unwrap_or_else(Instant::now) + time,
            };
            let (door, arriving) = (door.clone(), arriving.take());
            async move {
                let answer = door.answer(&arrival, request).await;
                // By now it has its place, if it has one.
                drop(arriving);
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = http
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        // Owned by the shard's thread; ends with the connection, by the header deadline, or by the upgrade.
        spawn_local(async move {
            if let Err(error) = connection.await {
                let refused = cut_off(&error, accepted.take().is_some()).map(Kind::reason);
                if let Some(reason) = refused {
                    metrics.refused(reason);
                }
                tracing::debug!(%peer, refused, "a client's HTTP connection ended early");
            }
        });
    }

    async fn answer(
        self: &Arc<Self>,
        arrival: &Arrival,
        request: Request<Incoming>,
    ) -> Response<Answer> {
        let mut response = self.route(arrival, request).await;
        // A kept connection would be cut in its next request.
        let leaving = arrival.shard.hub.leaving.load(Ordering::Relaxed);
        if leaving && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    }

    async fn route(
        self: &Arc<Self>,
        arrival: &Arrival,
        request: Request<Incoming>,
    ) -> Response<Answer> {
        let refusal = match (request.method(), request.uri().path()) {
            (_, "/ws") => {
                let answer = upgrade::answer(self, arrival, request, false).await;
                return answer.map(Answer::from);
            }
            (_, "/sse") => return sse::answer(self, arrival, request).await,
            #[cfg(feature = "echo")]
            (_, "/echo") => {
                let answer = upgrade::answer(self, arrival, request, true).await;
                return answer.map(Answer::from);
            }
            (&Method::POST | &Method::OPTIONS, "/v1/tickets") => {
                let answer = cors::tickets(self, arrival, request).await;
                return answer.map(Answer::from);
            }
            (_, "/v1/tickets") => Refusal::new(
                Kind::Method,
                "use POST with Authorization: Bearer <your JWT>",
            ),
            _ => match &self.playground {
                Some(playground) => match playground.answer(request).await {
                    Ok(response) => return response.map(Answer::from),
                    Err(refusal) => refusal,
                },
                None => not_found(),
            },
        };
        refusal.count(arrival);
        refusal.response().map(Answer::from)
    }
}

/// How long a handshake may take.
fn handshake_time(shard: &Shard) -> Duration {
    let limits = shard.hub.limits.now();
    limits.handshake_timeout.max(Duration::from_millis(1))
}

/// Makes the kernel give a connection up whose client takes nothing for so long; never, if that is zero. While HTTP has
/// it there are no pings, and an event stream of a client that vanished would stay for many minutes.
fn give_up_after(stream: &TcpStream, time: Duration) {
    // Where the system has no such option, TCP gives up by itself, later.
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(time));
}

/// What hyper refused before there was a request. `first` = nothing was asked on this connection yet; a kept connection
/// that is idle for too long is only closed.
fn cut_off(error: &hyper::Error, first: bool) -> Option<Kind> {
    if error.is_timeout() {
        first.then_some(Kind::TooSlow)
    } else if error.is_parse_too_large() {
        Some(Kind::Headers)
    } else {
        error.is_parse().then_some(Kind::BadRequest)
    }
}

fn not_found() -> Refusal {
    Refusal::new(
        Kind::NotFound,
        "there is /ws, /sse and POST /v1/tickets here; services use the service door",
    )
}
