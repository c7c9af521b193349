use http::uri::Authority;
use http::{Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::exit::Failure;
use super::listen::End;
use super::secure::{NoTls, TlsArgs};
use super::upgrade;

/// An open WebSocket, before any frame.
pub(super) type Link = TokioIo<Upgraded>;

fn again(why: impl ToString) -> End {
    End::Again(why.to_string(), None)
}

/// Opens a WebSocket at a `ws://` or `wss://` URL.
pub(super) async fn dial(url: &str, ticket: &str, tls: &TlsArgs) -> Result<Link, End> {
    let stop = |why: String| End::Stop(Failure::usage(why));
    let uri: Uri = url
        .parse()
        .map_err(|_| stop(format!("{url:?} is not a URL")))?;
    let (secure, authority) = match (uri.scheme_str(), uri.authority()) {
        (Some("ws"), Some(authority)) => (false, authority),
        (Some("wss"), Some(authority)) => (true, authority),
        _ => return Err(stop(format!("{url:?} must begin with ws:// or wss://"))),
    };
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority
        .port_u16()
        .unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|e| again(format!("{authority} cannot be reached: {e}")))?;
    if !secure {
        return handshake(stream, &uri, authority, ticket).await;
    }
    // A WebSocket is opened by HTTP/1.1 here, and by its ticket: the certificate is for the service door.
    let stream = tls.encrypt(stream, host, "http/1.1", false).await;
    let stream = stream.map_err(|error| match error {
        NoTls::Stop(failure) => End::Stop(failure),
        NoTls::Again(why) => again(why),
    })?;
    handshake(stream, &uri, authority, ticket).await
}

/// The WebSocket handshake.
async fn handshake<S>(
    stream: S,
    uri: &Uri,
    authority: &Authority,
    ticket: &str,
) -> Result<Link, End>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(again)?;
    // Ends with the upgrade or with the sender.
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/ws", |path| path.as_str());
    let (request, accept) = upgrade::request(authority.as_str(), path, ticket)
        .map_err(|e| End::Stop(Failure::usage(e.to_string())))?;
    let response = sender.send_request(request).await.map_err(again)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(response).await);
    }
    if !accept.is_in(response.headers()) {
        let why = format!("{authority} does not speak WebSocket");
        return Err(End::Stop(Failure::usage(why)));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(again)?;
    Ok(TokioIo::new(upgraded))
}

async fn refused(response: Response<Incoming>) -> End {
    let status = response.status();
    let body = response.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let why = format!("refused with {status}: {}", String::from_utf8_lossy(&body));
    match status.as_u16() {
        401 | 429 | 503 => again(why),
        _ => End::Stop(Failure::refused(why)),
    }
}
