//! The client wire.

use std::time::Duration;

use futures_util::SinkExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{DEADLINE, closed, next, next_message, next_of, node, node_with, say, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn welcome_is_first_and_every_answer_has_its_ref() {
    let node = node().await;
    let (mut socket, welcome) = node.join("42", "&channels=a").await;
    assert_eq!(
        (&welcome["user"], &welcome["heartbeat_seconds"]),
        (&json!("42"), &json!(25))
    );
    assert_eq!(
        next(&mut socket).await,
        json!({"type": "subscribed", "channel": "a"})
    );
    say(
        &mut socket,
        json!({"type": "subscribe", "ref": "1", "channel": "b"}),
    )
    .await;
    assert_eq!(
        next(&mut socket).await,
        json!({"type": "subscribed", "ref": "1", "channel": "b"})
    );
    node.publish("b", json!("x")).await;
    assert_eq!(next(&mut socket).await["channel"], "b");
    say(
        &mut socket,
        json!({"type": "unsubscribe", "ref": 2, "channel": "b"}),
    )
    .await;
    assert_eq!(
        next(&mut socket).await,
        json!({"type": "unsubscribed", "ref": 2, "channel": "b"})
    );
    assert_eq!(
        node.publish("b", json!("x")).await["status"],
        "NOBODY_CONNECTED"
    );
    say(&mut socket, json!({"type": "ping", "ref": "3"})).await;
    assert_eq!(next(&mut socket).await, json!({"type": "pong", "ref": "3"}));
    say(
        &mut socket,
        json!({"type": "unsubscribe", "ref": "4", "channel": "b"}),
    )
    .await;
    assert_eq!(next(&mut socket).await["code"], "not_subscribed");
    say(&mut socket, json!({"type": "ack", "position": "x"})).await;
    assert_eq!(next(&mut socket).await["code"], "bad_request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_decide_who_subscribes_and_publishes() {
    let rules = |name, subscribe, publish| {
        serde_json::from_value(json!({"name": name, "subscribe": subscribe, "publish": publish}))
            .expect("valid")
    };
    let node = node_with(|c| {
        c.namespaces = vec![
            rules("orders", "ticket", "nobody"),
            rules("chat", "any", "subscriber"),
            rules("hidden", "nobody", "any"),
        ];
    })
    .await;
    let ticket = node
        .ticket(json!({"user_id": "42", "channels": ["orders:1"]}))
        .await;
    let url = format!(
        "ws://{}/ws?ticket={ticket}&channels=orders:2,hidden:1",
        node.at.public
    );
    let mut socket = crate::support::connect(&url).await.expect("an upgrade");
    next_of(&mut socket, "welcome").await;
    assert_eq!(next(&mut socket).await["channel"], "orders:1");
    assert_eq!(next(&mut socket).await["code"], "forbidden");
    assert_eq!(next(&mut socket).await["code"], "forbidden");
    for (frame, code) in [
        (
            json!({"type": "subscribe", "channel": "orders:2"}),
            "forbidden",
        ),
        (
            json!({"type": "publish", "channel": "orders:1", "data": 1}),
            "forbidden",
        ),
        (
            json!({"type": "publish", "channel": "chat:1", "data": 1}),
            "forbidden",
        ),
    ] {
        say(&mut socket, frame).await;
        assert_eq!(next(&mut socket).await["code"], code);
    }
    let grant = json!({"user_id": "42", "channel": "orders:2"});
    assert_eq!(
        node.post("/v1/subscribe", grant.clone()).await.1["applied"],
        1
    );
    assert_eq!(
        next(&mut socket).await,
        json!({"type": "subscribed", "channel": "orders:2"})
    );
    assert_eq!(node.post("/v1/unsubscribe", grant).await.1["applied"], 1);
    assert_eq!(next(&mut socket).await["code"], "revoked");
    say(
        &mut socket,
        json!({"type": "subscribe", "channel": "orders:2"}),
    )
    .await;
    assert_eq!(next(&mut socket).await["code"], "forbidden");
    let (status, body) = node
        .post(
            "/v1/tickets",
            json!({"user_id": "42", "channels": ["hidden:1"]}),
        )
        .await;
    assert_eq!((status, &body["field"]), (400, &json!("channels")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_answered_and_then_closed() {
    let node = node_with(|c| c.limits.max_client_errors = 3).await;
    let (mut socket, _) = node.join("42", "").await;
    for _ in 0..3 {
        socket.send(Message::text("not json")).await.expect("sent");
        assert_eq!(next(&mut socket).await["code"], "bad_request");
    }
    assert_eq!(u16::from(closed(&mut socket).await.code), 4500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_message_closes_with_1009() {
    let node = node().await;
    let (mut socket, _) = node.join("42", "").await;
    let _ = socket.send(Message::text("x".repeat(70_000))).await;
    assert_eq!(u16::from(closed(&mut socket).await.code), 1009);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_frames_a_second_close_with_1008() {
    let node = node_with(|c| c.limits.client_frames_per_second = 20).await;
    let (mut socket, _) = node.join("42", "").await;
    for _ in 0..30 {
        if socket
            .send(Message::text(r#"{"type":"pong"}"#))
            .await
            .is_err()
        {
            break;
        }
    }
    assert_eq!(u16::from(closed(&mut socket).await.code), 1008);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_client_is_pinged_and_a_dead_one_closed() {
    let node = node_with(|c| {
        c.heartbeat.interval = Duration::from_millis(200);
        c.heartbeat.pong_timeout = Duration::from_millis(300);
    })
    .await;
    let (mut framed, _) = node.join("42", "&ping=frame").await;
    assert_eq!(next(&mut framed).await, json!({"type": "ping"}));
    say(&mut framed, json!({"type": "pong"})).await;
    assert_eq!(next(&mut framed).await, json!({"type": "ping"}));
    // From here on nothing is answered: tungstenite answers protocol pings, but not these.
    assert_eq!(u16::from(closed(&mut framed).await.code), 4003);
    let (mut plain, _) = node.join("43", "").await;
    for _ in 0..5 {
        assert!(matches!(
            next_message(&mut plain).await,
            Some(Message::Ping(_))
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_no_heartbeats_gets_none_and_is_counted() {
    let node = node_with(|c| c.heartbeat.interval = Duration::from_millis(200)).await;
    let (mut silent, welcome) = node.join("42", "&heartbeat=off").await;
    assert_eq!(welcome["heartbeat_seconds"], 0);
    let (mut other, _) = node.join("43", "").await;
    for _ in 0..5 {
        let message = next_message(&mut other).await;
        assert!(matches!(message, Some(Message::Ping(_))), "{message:?}");
    }
    say(&mut silent, json!({"type": "ping", "ref": "1"})).await;
    let first = next_message(&mut silent).await;
    assert!(matches!(first, Some(Message::Text(_))), "{first:?}");
    assert_eq!(node.counter("tidings_silent_connections_total").await, 1);
    // There, the stream's own heartbeats are what a client knows that it lives by.
    let query = format!(
        "ticket={}&heartbeat=off",
        node.ticket(json!({"user_id": "44"})).await
    );
    let refused = crate::support::events::Events::open(&node, &query, &[]).await;
    assert_eq!(refused.err().expect("refused").0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_no_heartbeats_is_told_to_come_back_after_its_time() {
    let node = node_with(|c| c.heartbeat.silent_max = Duration::from_millis(300)).await;
    let (mut other, _) = node.join("43", "").await;
    let (mut silent, _) = node.join("42", "&heartbeat=off").await;
    let end = closed(&mut silent).await;
    assert_eq!(
        (u16::from(end.code), end.reason.as_str()),
        (4001, "session_ended")
    );
    // It alone: the others are looked after by their heartbeats.
    node.push("43", json!("still here")).await;
    assert_eq!(next(&mut other).await["data"], "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_go_on_where_a_pong_may_take_longer_than_they_are_apart() {
    let node = node_with(|c| {
        c.heartbeat.interval = Duration::from_millis(200);
        c.heartbeat.pong_timeout = Duration::from_secs(3600);
    })
    .await;
    let (mut socket, _) = node.join("42", "").await;
    for _ in 0..5 {
        let message = next_message(&mut socket).await;
        assert!(matches!(message, Some(Message::Ping(_))), "{message:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_ticket() {
    let node = node().await;
    let ticket = node
        .ticket(json!({"user_id": "42", "session_seconds": 1}))
        .await;
    let url = format!("ws://{}/ws?ticket={ticket}", node.at.public);
    let mut socket = crate::support::connect(&url).await.expect("an upgrade");
    assert_eq!(u16::from(closed(&mut socket).await.code), 4001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_is_answered_and_the_place_given_back() {
    let node = node().await;
    let (mut socket, _) = node.join("42", "").await;
    socket.close(None).await.expect("sent");
    until("the place is free", async || node.node().connections() == 0).await;
    assert_eq!(node.push("42", json!(1)).await["status"], "STORED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_slow_with_the_handshake_is_dropped() {
    let node = node_with(|c| c.limits.handshake_timeout = Duration::from_millis(300)).await;
    let mut stream = tokio::net::TcpStream::connect(node.at.public)
        .await
        .expect("connected");
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\n")
        .await
        .expect("sent");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the node closed the connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_right_behind_the_handshake_is_read() {
    let node = node().await;
    let ticket = node.ticket(json!({"user_id": "42"})).await;
    let mut stream = tokio::net::TcpStream::connect(node.at.public)
        .await
        .expect("connected");
    let mut bytes = format!(
        "GET /ws?ticket={ticket} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        node.at.public
    )
    .into_bytes();
    let frame = br#"{"type":"ping","ref":"early"}"#;
    bytes.extend(tidings::wire::codec::masked_frame(
        tidings::wire::codec::Opcode::Text,
        frame,
        [1, 2, 3, 4],
    ));
    stream.write_all(&bytes).await.expect("sent");
    let mut seen = Vec::new();
    until("the early ping is answered", async || {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.expect("read");
        seen.extend_from_slice(&buffer[..count]);
        String::from_utf8_lossy(&seen).contains(r#""ref":"early""#)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_begun_and_not_finished_closes_with_1008() {
    let node = node_with(|c| c.limits.message_timeout = Duration::from_millis(300)).await;
    let (mut socket, _) = node.join("42", "").await;
    // A masked text frame of ten bytes, of which two come.
    let tokio_tungstenite::MaybeTlsStream::Plain(stream) = socket.get_mut() else {
        panic!("a plain socket");
    };
    stream
        .write_all(&[0x81, 0x8a, 0, 0, 0, 0, b'a', b'b'])
        .await
        .expect("sent");
    assert_eq!(u16::from(closed(&mut socket).await.code), 1008);
}
