//! What the public door refuses: what the client is told, and that each refusal is counted by its reason.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{
    DEADLINE, TestNode, closed, connect_with, next, next_of, node, node_with, refused, until,
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// A handshake's time where a test waits for its end.
const SHORT: Duration = Duration::from_secs(1);

async fn node_with_jwt(jwt: Value, handshake_timeout: Duration) -> TestNode {
    node_with(|c| {
        c.jwt = Some(serde_json::from_value(jwt).expect("valid"));
        c.limits.handshake_timeout = handshake_timeout;
    })
    .await
}

/// A token for user 42, expiring that many seconds from now.
fn signed(secret: &str, audience: &str, expires_in: i64) -> String {
    let now = tidings::model::unix_millis() as i64 / 1000;
    let claims = json!({"sub": "42", "aud": audience, "exp": now + expires_in});
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("signed")
}

/// Swaps a JWT for a ticket at the public door: status and body.
async fn swap(node: &TestNode, token: &str) -> (u16, String) {
    let request = node
        .http
        .post(format!("http://{}/v1/tickets", node.at.public))
        .header("authorization", format!("Bearer {token}"));
    let response = request.send().await.expect("answered");
    let status = response.status().as_u16();
    (status, response.text().await.expect("text"))
}

/// Writes bytes to the public door and reads what it answers until it closes.
async fn raw(node: &TestNode, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(node.at.public).await.expect("connected");
    stream.write_all(bytes).await.expect("written");
    let mut answer = Vec::new();
    // A reset behind the answer is an end too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn until_counted(node: &TestNode, metric: &str, reason: &str, count: u32) {
    let line = format!("tidings_{metric}_total{{reason=\"{reason}\"}} {count}\n");
    until(&line, async || node.metrics().await.contains(&line)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_jwts_look_alike_and_only_the_node_knows_why() {
    let jwt = json!({"key": SECRET, "algorithm": "HS256", "audience": "tidings"});
    let node = node_with_jwt(jwt, DEADLINE).await;
    let bad = [
        ("malformed", "garbage".to_owned()),
        ("expired", signed(SECRET, "tidings", -60)),
        ("audience", signed(SECRET, "others", 60)),
        ("signature", signed(&"x".repeat(32), "tidings", 60)),
    ];
    let ws = format!("ws://{}/ws", node.at.public);
    let missing = swap(&node, "").await;
    let no_ticket = refused(&ws, &[]).await;
    assert_eq!((missing.0, no_ticket.0), (401, 401));
    for (reason, token) in bad {
        assert_eq!(swap(&node, &token).await, missing, "{reason}");
        let bearer = format!("Bearer {token}");
        let at_ws = refused(&ws, &[("authorization", &bearer)]).await;
        assert_eq!(at_ws, no_ticket, "{reason}");
        until_counted(&node, "jwt_refusals", reason, 2).await;
    }
    assert_eq!(swap(&node, &signed(SECRET, "tidings", 60)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_for_a_node_that_takes_none_looks_like_a_bad_one() {
    let node = node().await;
    let ws = format!("ws://{}/ws", node.at.public);
    let token = format!("Bearer {}", signed(SECRET, "tidings", 60));
    let answer = refused(&ws, &[("authorization", &token)]).await;
    assert_eq!(answer, refused(&ws, &[]).await);
    until_counted(&node, "jwt_refusals", "not_configured", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_handshake_is_counted_by_its_reason() {
    let node = node().await;
    let get = async |path: &str| {
        let url = format!("http://{}{path}", node.at.public);
        node.http.get(url).send().await.expect("answered")
    };
    assert_eq!(get("/sse").await.status(), 401);
    until_counted(&node, "refusals", "ticket", 1).await;
    assert_eq!(get("/nothing").await.status(), 404);
    until_counted(&node, "refusals", "not_found", 1).await;
    // No [jwt], so there is nothing either.
    assert_eq!(swap(&node, "x").await.0, 404);
    until_counted(&node, "refusals", "not_found", 2).await;
    let wrong = get("/v1/tickets").await;
    assert_eq!(wrong.status(), 405);
    assert_eq!(wrong.headers()["allow"], "POST, OPTIONS");
    until_counted(&node, "refusals", "method", 1).await;
    let foreign = node
        .http
        .post(format!("http://{}/v1/tickets", node.at.public))
        .header("origin", "https://evil.example");
    assert_eq!(foreign.send().await.expect("answered").status(), 403);
    until_counted(&node, "refusals", "origin", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_became_a_request_is_counted_too() {
    let node = node_with(|c| c.limits.handshake_timeout = SHORT).await;
    let large = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(40_000));
    raw(&node, large.as_bytes()).await;
    until_counted(&node, "refusals", "headers", 1).await;
    let answer = raw(&node, b"this is no HTTP\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    until_counted(&node, "refusals", "bad_request", 1).await;
    for begun in [&b""[..], b"GET /ws HTTP/1.1\r\nhost:"] {
        raw(&node, begun).await;
    }
    until_counted(&node, "refusals", "too_slow", 2).await;
    // A connection that is kept and idle is closed too, and nothing was refused.
    let kept = raw(&node, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(kept.starts_with("HTTP/1.1 200"), "{kept}");
    until_counted(&node, "refusals", "too_slow", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_refused_at_connect_is_counted_like_one_that_is_asked_for_later() {
    let node = node_with(|c| c.limits.subscriptions = 1).await;
    let (mut socket, _) = node.join("42", "&channels=a,b").await;
    assert_eq!(next_of(&mut socket, "error").await["code"], "limit");
    until_counted(&node, "client_errors", "limit", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_refused_as_slow() {
    let jwt = json!({"key": SECRET, "algorithm": "HS256", "audience": "tidings"});
    let node = node_with_jwt(jwt, SHORT).await;
    let head = format!(
        "POST /v1/tickets HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\nauthorization: Bearer {}\r\n\r\n",
        signed(SECRET, "tidings", 60)
    );
    let answer = raw(&node, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    until_counted(&node, "refusals", "too_slow", 1).await;
}

/// An auth service that accepts every connection and never answers.
async fn deaf_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/keys", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admission_that_hangs_ends_at_the_deadline_as_later() {
    let jwt = json!({"jwks_url": deaf_server().await, "audience": "tidings"});
    let node = node_with_jwt(jwt, SHORT).await;
    let token = signed(SECRET, "tidings", 60);
    let bearer = format!("Bearer {token}");
    let own = format!("http://{}", node.at.public);

    let at_ws = node.http.get(format!("{own}/ws")).headers(
        [
            ("authorization", bearer.as_str()),
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        .into_iter()
        .map(|(name, value)| {
            let name = name.parse::<http::HeaderName>().expect("a name");
            (name, value.parse().expect("a value"))
        })
        .collect(),
    );
    let answer = at_ws.send().await.expect("answered");
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    let body = answer.text().await.expect("text");
    assert!(body.contains("\"code\":\"unavailable\""), "{body}");
    until_counted(&node, "refusals", "timeout", 1).await;

    let ws = format!("ws://{}/ws", node.at.public);
    let headers = [("origin", own.as_str()), ("authorization", &bearer)];
    let mut told = connect_with(&ws, &headers)
        .await
        .expect("accepted to be told");
    let frame = next(&mut told).await;
    assert_eq!(
        (&frame["type"], &frame["code"]),
        (&json!("refused"), &json!("unavailable"))
    );
    assert!(frame["after_ms"].as_u64().is_some_and(|ms| ms >= 1000));
    assert_eq!(u16::from(closed(&mut told).await.code), 1013);
    until_counted(&node, "refusals", "timeout", 2).await;

    let (status, body) = swap(&node, &token).await;
    assert!(
        status == 503 && body.contains("\"code\":\"unavailable\""),
        "{status} {body}"
    );
    until_counted(&node, "refusals", "timeout", 3).await;
    until("all places are free", async || {
        node.node().connections() == 0
    })
    .await;
}
