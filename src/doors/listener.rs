//! Serves an axum router on a socket, HTTP/1.1 and HTTP/2 with prior knowledge or by ALPN, until told to stop.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

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
/// How long those who are on the way in at the stop have to say what they want.
const LAST_ARRIVALS: Duration = Duration::from_secs(1);

/// Serves a door until `stop`; then who waits to be accepted still is, HTTP/2 clients get GOAWAY, and calls in flight finish,
/// within a bound. Its inputs: a connection; a finished TLS handshake; the end of a connection; the stop. All connections end
/// with the future.
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
    let until = Instant::now() + LAST_ARRIVALS;
    for stream in backlog(socket, until) {
        match &tls {
            None => serving.begin(stream, None),
            Some(tls) if handshakes.len() >= TLS_HANDSHAKES_MAX => tls.failed("full"),
            Some(tls) => {
                handshakes.spawn(handshake(door, tls.clone(), stream));
            }
        }
    }
    while let Ok(Some(done)) = timeout_at(until, handshakes.join_next()).await {
        if let Ok(Some(stream)) = done {
            serving.begin_tls(stream);
        }
    }
    handshakes.shutdown().await;
    serving.finish(until).await;
}

/// Whom the kernel has accepted for us, since closing the socket resets them; the socket is closed. Those who go on coming
/// have until then.
fn backlog(socket: TcpListener, until: Instant) -> Vec<TcpStream> {
    let mut waiting = Vec::new();
    // Asked directly: the runtime may not know yet of who came last.
    let Ok(socket) = socket.into_std() else {
        return waiting;
    };
    while Instant::now() < until {
        let stream = match socket.accept() {
            Ok((stream, _)) => stream.set_nonblocking(true).map(|()| stream),
            // An error of one that is gone already.
            Err(error) if is_of_one(&error) => continue,
            // Nobody waits, or there are no descriptors for who does.
            Err(_) => break,
        };
        if let Ok(stream) = stream.and_then(TcpStream::from_std) {
            let _ = stream.set_nodelay(true);
            waiting.push(stream);
        }
    }
    waiting
}

/// Whether an accept failed for what befell the connection that would have come (accept(2)); the next may succeed.
fn is_of_one(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionAborted, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | HostUnreachable | Interrupted | NetworkDown | NetworkUnreachable
    )
}

/// The connections of a door.
struct Serving {
    door: &'static str,
    routes: axum::Router,
    http: Builder<TokioExecutor>,
    graceful: GracefulShutdown,
    connections: JoinSet<()>,
    /// Each connection holds one until its first request is there.
    unasked: mpsc::Sender<Infallible>,
    all_asked: mpsc::Receiver<Infallible>,
}

impl Serving {
    fn new(door: &'static str, routes: axum::Router) -> Self {
        let (unasked, all_asked) = mpsc::channel(1);
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
            unasked,
            all_asked,
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
        let unasked = Arc::new(Mutex::new(Some(self.unasked.clone())));
        let routes = routes.map_request(move |request: Request<Incoming>| {
            let mut unasked = unasked.lock().unwrap_or_else(PoisonError::into_inner);
            unasked.take();
            drop(unasked);
            request
        });
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

    /// Tells all connections to end with the calls that are in flight, and waits, within a bound. Who came just now has until
    /// then to ask, its TLS handshake included: told before that, a connection ends without an answer.
    async fn finish(mut self, until: Instant) {
        drop(self.unasked);
        let _ = timeout_at(until, self.all_asked.recv()).await;
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_waits_to_be_accepted_at_the_stop_is_answered_and_not_reset() {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = socket.local_addr().expect("bound");
        let mut waiting = Vec::new();
        for _ in 0..30 {
            let mut stream = TcpStream::connect(at).await.expect("connected");
            let asks = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
            stream.write_all(asks).await.expect("sent");
            waiting.push(stream);
        }
        // One that never asks holds up nobody for long.
        let _silent = TcpStream::connect(at).await.expect("connected");
        let routes = axum::Router::new().route("/", get(async || "here"));
        let stopped = std::future::ready(());
        serve("test", socket, routes, None, stopped).await;
        for mut stream in waiting {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("no reset");
            assert!(answer.ends_with("here"), "{answer:?}");
        }
        assert!(TcpStream::connect(at).await.is_err());
    }
}
