//! Who is let in, and what a refusal says.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{closed, connect, connect_with, next, node, node_with, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_opens_one_connection_only() {
    let node = node().await;
    let url = node.url("42", "").await;
    let races = (0..200).map(|_| connect(&url));
    let opened: Vec<_> = join_all(races)
        .await
        .into_iter()
        .filter_map(Result::ok)
        .collect();
    assert_eq!(opened.len(), 1);
    assert_eq!(node.push("42", json!(1)).await["local_connections"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_may_come_as_a_subprotocol() {
    let node = node().await;
    let ticket = node
        .ticket(json!({"user_id": "42", "device": "phone"}))
        .await;
    let offered = format!("tidings.v1, tidings.ticket.{ticket}");
    let url = format!("ws://{}/ws", node.at.public);
    let mut socket = connect_with(&url, &[("sec-websocket-protocol", &offered)])
        .await
        .expect("an upgrade");
    let welcome = next(&mut socket).await;
    assert_eq!(
        (&welcome["user"], &welcome["device"]),
        (&json!("42"), &json!("phone"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_unknown_and_used_tickets_look_alike() {
    let node = node().await;
    let used = node.url("42", "").await;
    let _socket = connect(&used).await.expect("an upgrade");
    let base = format!("ws://{}/ws", node.at.public);
    let mut answers = Vec::new();
    for url in [
        base.clone(),
        format!("{base}?ticket={}", "A".repeat(43)),
        format!("{base}?ticket=short"),
        used,
    ] {
        answers.push(refused(&url, &[]).await);
    }
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    assert_eq!(
        (answers[0].0, &answers[0].1["code"]),
        (401, &json!("ticket"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_origin_is_refused_and_the_ticket_lives() {
    let node = node().await;
    let url = node.url("42", "").await;
    for origin in ["https://evil.example", "null"] {
        let (status, body) = refused(&url, &[("origin", origin)]).await;
        assert_eq!((status, &body["code"]), (403, &json!("origin")));
    }
    let own = format!("http://{}", node.at.public);
    connect_with(&url, &[("origin", &own)])
        .await
        .expect("the same host is allowed in dev");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tickets_own_origins_and_addresses_bind_it() {
    let node = node().await;
    let bound = json!({"user_id": "42", "ips": ["10.0.0.0/8"]});
    let url = format!(
        "ws://{}/ws?ticket={}",
        node.at.public,
        node.ticket(bound).await
    );
    assert_eq!(refused(&url, &[]).await.1["code"], "ip");
    let bound = json!({"user_id": "42", "origins": ["https://app.example"]});
    let url = format!(
        "ws://{}/ws?ticket={}",
        node.at.public,
        node.ticket(bound).await
    );
    let own = format!("http://{}", node.at.public);
    assert_eq!(refused(&url, &[("origin", &own)]).await.1["code"], "origin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refuse_close_tells_the_refusal_as_a_frame() {
    let node = node().await;
    let mut socket = connect(&format!("ws://{}/ws?ticket=x&refuse=close", node.at.public))
        .await
        .expect("accepted");
    assert_eq!(
        next(&mut socket).await,
        json!({"type": "refused", "code": "ticket"})
    );
    assert_eq!(u16::from(closed(&mut socket).await.code), 4001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_is_told_to_every_browser() {
    let node = node_with(|c| c.limits.connections = 1).await;
    let _first = node.join("42", "").await;
    let url = node.url("43", "").await;
    let (status, body) = refused(&url, &[]).await;
    assert_eq!((status, &body["code"]), (503, &json!("overloaded")));
    let own = format!("http://{}", node.at.public);
    let mut socket = connect_with(&url, &[("origin", &own)])
        .await
        .expect("accepted to be told");
    let frame = next(&mut socket).await;
    assert_eq!(
        (&frame["type"], &frame["code"]),
        (&json!("refused"), &json!("overloaded"))
    );
    assert!(frame["after_ms"].as_u64().is_some_and(|ms| ms >= 1000));
    assert_eq!(u16::from(closed(&mut socket).await.code), 1013);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_query_is_named() {
    let node = node().await;
    let cases = [
        ("ticket=a&ticket=b", 400, "twice"),
        ("tickt=a", 400, "tickt"),
        ("ack=x", 400, "ack must be"),
        ("since=0-1", 400, "since"),
        ("format=xml", 400, "format"),
        ("ping=yes", 400, "ping"),
        ("channels=a%20b", 400, "spaces"),
        ("channels=a@5", 400, "behind the @ of a"),
        ("device=a%20b", 400, "device"),
    ];
    for (query, expected, word) in cases {
        let (status, body) = refused(&format!("ws://{}/ws?{query}", node.at.public), &[]).await;
        let detail = body["detail"].as_str().unwrap_or_default();
        assert!(
            status == expected && detail.contains(word),
            "{query}: {status} {body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_users_limit_the_oldest_goes_or_the_newest_is_refused() {
    use tidings::hub::UserLimit;
    let node = node_with(|c| c.limits.connections_per_user = 2).await;
    let (mut oldest, _) = node.join("42", "").await;
    let _second = node.join("42", "").await;
    let _third = node.join("42", "").await;
    assert_eq!(u16::from(closed(&mut oldest).await.code), 4502);
    assert_eq!(node.push("42", json!(1)).await["local_connections"], 2);

    let node = node_with(|c| {
        c.limits.connections_per_user = 1;
        c.limits.user_limit = UserLimit::Refuse;
    })
    .await;
    let _first = node.join("42", "").await;
    assert_eq!(
        refused(&node.url("42", "").await, &[]).await.1["code"],
        "user_limit"
    );
    let _other = node.join("43", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_no_handshake_is_told_what_it_lacks() {
    let node = node().await;
    let get = node
        .http
        .get(format!("http://{}/ws?ticket=x", node.at.public));
    let response = get.send().await.expect("answered");
    assert_eq!(response.status(), 400);
    assert!(
        response
            .text()
            .await
            .expect("text")
            .contains("Upgrade: websocket")
    );
    let sse = node
        .http
        .get(format!("http://{}/sse", node.at.public))
        .send()
        .await
        .expect("answered");
    assert_eq!(sse.status(), 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_is_swapped_for_a_ticket_and_opens_a_socket_by_itself() {
    let secret = "0123456789abcdef0123456789abcdef";
    let jwt = json!({"key": secret, "algorithm": "HS256", "audience": "tidings"});
    let node = node_with(|c| c.jwt = Some(serde_json::from_value(jwt).expect("valid"))).await;
    let now = tidings::model::unix_millis() / 1000;
    let sign = |claims: serde_json::Value| {
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("signed")
    };
    let good = sign(json!({"sub": "42", "aud": "tidings", "exp": now + 60, "channels": ["news"]}));
    let own = format!("http://{}", node.at.public);
    let ask = |token: String, body: &'static str| {
        let request = node
            .http
            .post(format!("{own}/v1/tickets"))
            .header("origin", &own);
        request
            .header("authorization", format!("Bearer {token}"))
            .body(body)
            .send()
    };
    let response = ask(good.clone(), r#"{"device":"laptop"}"#)
        .await
        .expect("answered");
    assert_eq!(
        response.headers()["access-control-allow-origin"],
        own.as_str()
    );
    let issued: serde_json::Value =
        serde_json::from_str(&response.text().await.expect("text")).expect("JSON");
    let ticket = issued["ticket"].as_str().expect("a ticket");
    let mut socket = connect(&format!("ws://{}/ws?ticket={ticket}", node.at.public))
        .await
        .expect("an upgrade");
    assert_eq!(next(&mut socket).await["device"], "laptop");
    assert_eq!(next(&mut socket).await["channel"], "news");
    let bearer = format!("Bearer {good}");
    let url = format!("ws://{}/ws", node.at.public);
    connect_with(&url, &[("authorization", &bearer)])
        .await
        .expect("a JWT opens too");
    let expired = sign(json!({"sub": "42", "aud": "tidings", "exp": now - 60}));
    assert_eq!(ask(expired, "").await.expect("answered").status(), 401);
    assert_eq!(
        ask(good, r#"{"channels":["x"]}"#)
            .await
            .expect("answered")
            .status(),
        400
    );
    let preflight = node
        .http
        .request(reqwest::Method::OPTIONS, format!("{own}/v1/tickets"));
    let preflight = preflight
        .header("origin", &own)
        .send()
        .await
        .expect("answered");
    assert_eq!(preflight.status(), 204);
}
