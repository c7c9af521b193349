use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::{HERE, behind_with};
use crate::support::events::Events;
use crate::support::proxy::{Kind, Setup};
use crate::support::{next_message, next_of, until};

/// The idle timeout of the test's proxies is shorter than what clients are silent for, and longer than two heartbeats.
const SHORT: Setup<'static> = Setup {
    proxy_protocol: false,
    words: &["75s=5s"],
};
const SILENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_keeps_silent_connections_through_each() {
    // At once, as silence takes time and nothing else.
    join_all(Kind::ALL.map(keeps_silent_connections)).await;
}

async fn keeps_silent_connections(kind: Kind) {
    let every = Duration::from_secs(2);
    let (node, proxy) = behind_with(kind, SHORT, |c| c.heartbeat.interval = every).await;
    let mut socket = proxy.join(&node, "42").await;
    next_of(&mut socket, "welcome").await;
    let ticket = node.ticket(json!({"user_id": "42"})).await;
    let url = format!("https://localhost:{}/sse?ticket={ticket}", proxy.clients);
    let http = proxy.http(HERE);
    let mut events = Events::at(&http, &url, &[]).await.expect("a stream");
    events.next_of("welcome").await;
    // Pings are answered by the client's library; nothing else is said.
    let silence = tokio::time::sleep(SILENCE);
    tokio::pin!(silence);
    loop {
        tokio::select! {
            () = &mut silence => break,
            message = next_message(&mut socket) => {
                assert!(matches!(message, Some(Message::Ping(_))), "{message:?}");
            }
        }
    }
    node.push("42", json!("still there")).await;
    let told = next_of(&mut socket, "message").await;
    assert_eq!(told["data"], "still there");
    let told = events.next_of("message").await;
    assert_eq!(told["data"], "still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_heartbeat_the_proxy_cuts_it() {
    // Traefik has no idle timeout for WebSockets.
    join_all([Kind::Nginx, Kind::Haproxy, Kind::Envoy].map(cuts_silent_connections)).await;
}

async fn cuts_silent_connections(kind: Kind) {
    let (node, proxy) = behind_with(kind, SHORT, |c| c.heartbeat.interval = Duration::ZERO).await;
    let mut socket = proxy.join(&node, "42").await;
    next_of(&mut socket, "welcome").await;
    let ended = next_message(&mut socket).await;
    assert!(ended.is_none(), "{kind:?}: {ended:?}");
    until("the node sees it", async || node.node().connections() == 0).await;
}
