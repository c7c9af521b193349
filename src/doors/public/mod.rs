//! The public door: where browsers and other clients come in. `GET /ws`, `POST /v1/tickets`, and in dev the playground.
//! HTTP is hyper's, on the shard's own thread; after an upgrade the TCP stream goes to the shard.

mod cors;
mod handshake;
mod playground;
mod refusal;
mod upgrade;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

use crate::hub::Shard;
use crate::tickets::{JwtVerifier, Tickets};
use cors::Origins;
use refusal::problem;

pub use playground::Playground;

/// Sockets that are accepted only to be told why they are refused, at once; beyond that a status has to do.
const TOLD_AT_ONCE: usize = 1024;

/// The public door of a node; one for all shards.
pub struct Public {
    origins: Origins,
    tickets: Arc<Tickets>,
    jwt: Option<JwtVerifier>,
    url: Option<String>,
    playground: Option<Playground>,
    told: Arc<Semaphore>,
}

impl Public {
    /// `same_host` also allows every origin on the host that the request names (in dev).
    pub fn new(
        config: &super::config::PublicConfig,
        same_host: bool,
        tickets: Arc<Tickets>,
        jwt: Option<JwtVerifier>,
        url: Option<String>,
        playground: Option<Playground>,
    ) -> Self {
        Self {
            origins: Origins::new(&config.allowed_origins, same_host),
            tickets,
            jwt,
            url,
            playground,
            told: Arc::new(Semaphore::new(TOLD_AT_ONCE)),
        }
    }

    /// Serves one connection, on the shard's thread.
    pub fn connection(self: &Arc<Self>, shard: &Rc<Shard>, stream: TcpStream, peer: SocketAddr) {
        let limits = &shard.hub.limits;
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.handshake_timeout.max(Duration::from_millis(1)))
            .max_buf_size(limits.header_bytes.max(8 << 10));
        let (door, shard) = (self.clone(), shard.clone());
        let service = service_fn(move |request| {
            let (door, shard) = (door.clone(), shard.clone());
            async move { Ok::<_, std::convert::Infallible>(door.answer(&shard, peer, request).await) }
        });
        let connection = http
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        // Owned by the shard's thread; ends with the connection, by the header deadline, or by the upgrade.
        spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, timeout = error.is_timeout(), "a client's HTTP connection ended early");
            }
        });
    }

    async fn answer(
        self: &Arc<Self>,
        shard: &Rc<Shard>,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (_, "/ws") => upgrade::answer(self, shard, peer, request, false).await,
            #[cfg(feature = "echo")]
            (_, "/echo") => upgrade::answer(self, shard, peer, request, true).await,
            (_, "/sse") => problem(
                StatusCode::NOT_IMPLEMENTED,
                "unimplemented",
                "server-sent events are not implemented yet; open a WebSocket at /ws",
            ),
            (&Method::POST | &Method::OPTIONS, "/v1/tickets") => {
                cors::tickets(self, shard, request).await
            }
            (_, "/v1/tickets") => problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "bad_request",
                "use POST with Authorization: Bearer <your JWT>",
            ),
            _ => match &self.playground {
                Some(playground) => playground.answer(request).await,
                None => not_found(),
            },
        }
    }
}

fn not_found() -> Response<Body> {
    problem(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is /ws and POST /v1/tickets here; services use the service door",
    )
}
