//! Serves an axum router on a socket, HTTP/1.1 and HTTP/2 with prior knowledge or by ALPN, until told to stop.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

use super::secure;
use crate::tls::{ClientNames, DoorTls};

/// How long the headers of a request may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS handshakes under way at once; who comes beyond that is dropped.
const TLS_HANDSHAKES_MAX: usize = 1024;
/// A silent HTTP/2 peer is asked after this, and dropped if it stays silent as long again.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long calls in flight may take after the stop.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves a door until `stop`; then no connection is accepted, HTTP/2 clients get GOAWAY, and calls in flight finish, within a
/// bound. Its inputs: a connection; a finished TLS handshake; the end of a connection; the stop. All connections end with the
/// future.
pub async fn serve(
    door: &'static str,
    socket: TcpListener,
    routes: axum::Router,
    tls: Option<Arc<DoorTls>>,
    stop: impl Future<Output = ()>,
) {
    let mut serving = Serving::new(door, routes);
    let mut handshakes: JoinSet<Option<TlsStream<TcpStream>>> = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            Some(done) = handshakes.join_next() => {
                if let Ok(Some(stream)) = done {
                    serving.begin_tls(stream);
                }
                continue;
            }
            Some(_) = serving.connections.join_next() => continue,
            () = &mut stop => break,
        };
        match (accepted, &tls) {
            (Ok((stream, _)), None) => {
                let _ = stream.set_nodelay(true);
                serving.begin(stream, None);
            }
            (Ok(_), Some(tls)) if handshakes.len() >= TLS_HANDSHAKES_MAX => tls.failed("full"),
            (Ok((stream, _)), Some(tls)) => {
                let _ = stream.set_nodelay(true);
                handshakes.spawn(handshake(door, tls.clone(), stream));
            }
            (Err(error), _) => {
                tracing::warn!(door, %error, "a connection could not be accepted; trying again in 100 ms");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(socket);
    handshakes.shutdown().await;
    serving.finish().await;
}

/// The connections of a door.
struct Serving {
    door: &'static str,
    routes: axum::Router,
    http: Builder<TokioExecutor>,
    graceful: GracefulShutdown,
    connections: JoinSet<()>,
}

impl Serving {
    fn new(door: &'static str, routes: axum::Router) -> Self {
        let mut http = Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        Self {
            door,
            routes,
            http,
            graceful: GracefulShutdown::new(),
            connections: JoinSet::new(),
        }
    }

    /// Serves a connection whose client may have shown a certificate.
    fn begin_tls(&mut self, stream: TlsStream<TcpStream>) {
        let shown = stream.get_ref().1.peer_certificates();
        let names = shown.and_then(|chain| chain.first()).map(ClientNames::of);
        self.begin(stream, names.map(Arc::new));
    }

    fn begin<S>(&mut self, stream: S, client: Option<Arc<ClientNames>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let routes = match client {
            // Each request has it; a request cannot bring one of its own.
            Some(names) => self.routes.clone().layer(axum::Extension(names)),
            None => self.routes.clone(),
        };
        let service = TowerToHyperService::new(routes);
        let connection = self
            .http
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let (door, connection) = (self.door, self.graceful.watch(connection));
        self.connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(door, error, "a connection ended early");
            }
        });
    }

    /// Tells all connections to end with the calls that are in flight, and waits, within a bound.
    async fn finish(self) {
        let finished = tokio::time::timeout(FINISH_TIMEOUT, self.graceful.shutdown()).await;
        if finished.is_err() {
            let door = self.door;
            tracing::warn!(door, "calls in flight did not finish in time");
        }
    }
}

/// A TLS handshake, within its time. What fails is counted, and is the client's business.
async fn handshake(
    door: &'static str,
    tls: Arc<DoorTls>,
    stream: TcpStream,
) -> Option<TlsStream<TcpStream>> {
    match tokio::time::timeout(TLS_TIMEOUT, secure::handshake(&tls, stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err((error, stream))) => {
            tls.failed("handshake");
            tracing::debug!(door, %error, "a TLS handshake failed");
            secure::linger(stream).await;
        }
        Err(_) => tls.failed("timeout"),
    }
    None
}
