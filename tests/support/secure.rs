//! Nodes whose public door speaks TLS, and clients' WebSockets on it.

use serde_json::json;
use tidings::config::Config;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;

use super::certs::{Ca, dial, tls};
use super::{TestNode, next, node_with};

/// A WebSocket on TLS, on whatever stream.
pub type Secure<S = TcpStream> = WebSocketStream<TlsStream<S>>;

/// A node whose public door speaks TLS, with a certificate of this issuer.
pub async fn secure(ca: &Ca, change: impl FnOnce(&mut Config)) -> TestNode {
    let files = ca.install("public", &ca.issue(&["localhost"]));
    node_with(|c| {
        c.public.tls = Some(tls(files));
        change(c);
    })
    .await
}

/// Asks for a WebSocket with this query.
pub async fn open<S>(stream: TlsStream<S>, query: &str) -> Secure<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let url = format!("ws://localhost/ws?{query}");
    let upgraded = tokio_tungstenite::client_async(url, stream).await;
    upgraded.expect("an upgrade").0
}

/// Takes a WebSocket of a user as far as the welcome.
pub async fn upgrade<S>(node: &TestNode, stream: TlsStream<S>, user: &str) -> Secure<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ticket = node.ticket(json!({"user_id": user})).await;
    let mut socket = open(stream, &format!("ticket={ticket}")).await;
    let welcome = next(&mut socket).await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    socket
}

/// A user's WebSocket over TLS.
pub async fn join(node: &TestNode, client: &TlsConnector, user: &str) -> Secure {
    let stream = dial(client, node.at.public).await.expect("TLS");
    upgrade(node, stream, user).await
}
