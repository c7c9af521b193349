//! What is pushed arrives.

use serde_json::json;

use crate::support::{closed, connect, next, next_message, next_of, node, node_with, say};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_devices_of_a_user_get_every_push_once_in_order() {
    let node = node().await;
    let mut sockets = Vec::new();
    for device in 0..10 {
        sockets.push(node.join("42", &format!("&device=d{device}")).await.0);
    }
    let _other = node.join("43", "").await;
    for n in 0..200 {
        let answer = node.push("42", json!({"n": n})).await;
        assert_eq!(answer["status"], "DELIVERED_LOCALLY");
        assert_eq!(answer["local_connections"], 10);
    }
    for socket in &mut sockets {
        for n in 0..200 {
            let frame = next(socket).await;
            assert_eq!(frame["type"], "message");
            assert_eq!(frame["data"]["n"], n);
            assert!(frame.get("channel").is_none());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_subscribers_of_a_channel_get_every_message_in_order() {
    let node = node_with(|c| c.limits.handshakes_per_second = 0).await;
    let mut sockets = Vec::new();
    for user in 0..1000 {
        let (mut socket, _) = node.join(&format!("u{user}"), "&channels=news").await;
        assert_eq!(next(&mut socket).await["type"], "subscribed");
        sockets.push(socket);
    }
    for n in 0..20 {
        let answer = node.publish("news", json!(n)).await;
        assert_eq!(answer["local_connections"], 1000);
    }
    for socket in &mut sockets {
        for n in 0..20 {
            let frame = next(socket).await;
            assert_eq!(
                (&frame["channel"], &frame["data"]),
                (&json!("news"), &json!(n))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_publishers_are_seen_in_one_order_by_all() {
    let node = node().await;
    let mut sockets = Vec::new();
    for user in 0..8 {
        let (mut socket, _) = node.join(&format!("u{user}"), "&channels=race").await;
        next_of(&mut socket, "subscribed").await;
        sockets.push(socket);
    }
    let publishers = (0..8).map(|p| {
        let node = &node;
        async move {
            for n in 0..50 {
                node.publish("race", json!([p, n])).await;
            }
        }
    });
    futures_util::future::join_all(publishers).await;
    let mut orders = Vec::new();
    for socket in &mut sockets {
        let mut order = Vec::new();
        for _ in 0..400 {
            order.push(next(socket).await["id"].as_str().expect("an id").to_owned());
        }
        orders.push(order);
    }
    assert!(orders.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_connected_is_said() {
    let node = node().await;
    let answer = node.push("nobody", json!("hello")).await;
    assert_eq!(answer["status"], "STORED");
    assert_eq!(answer["local_connections"], 0);
    let live = json!({"user_id": "nobody", "message": "hello", "class": "VOLATILE"});
    let (_, answer) = node.post("/v1/push", live).await;
    assert_eq!(answer["status"], "NOBODY_CONNECTED");
    assert_eq!(answer["message_id"].as_str().map(str::len), Some(22));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_arrives_as_it_was_given() {
    let node = node().await;
    let (mut socket, _) = node.join("42", "").await;
    let mut raw = node.open("42", "&format=raw").await;
    let cases = [
        (
            json!({"user_id": "42", "message": "text \"quoted\""}),
            json!("text \"quoted\""),
        ),
        (
            json!({"user_id": "42", "json": "{ \"a\" : 1.50 }"}),
            json!({"a": 1.5}),
        ),
        (json!({"user_id": "42", "message": null}), json!(null)),
        (
            json!({"user_id": "42", "binary": "AQID/w=="}),
            json!("AQID/w=="),
        ),
    ];
    for (body, data) in cases {
        node.post("/v1/push", body).await;
        assert_eq!(next(&mut socket).await["data"], data);
    }
    assert_eq!(
        next_message(&mut raw).await,
        Some(Message::text("text \"quoted\""))
    );
    assert_eq!(
        next_message(&mut raw).await,
        Some(Message::text("{ \"a\" : 1.50 }"))
    );
    assert_eq!(next_message(&mut raw).await, Some(Message::text("null")));
    assert_eq!(
        next_message(&mut raw).await,
        Some(Message::binary(vec![1, 2, 3, 255]))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_reaches_the_named_users_or_everyone_once() {
    let node = node().await;
    let mut sockets = Vec::new();
    for user in ["a", "b", "c"] {
        sockets.push(node.join(user, "").await.0);
    }
    let named = json!({"user_ids": ["a", "b", "a", "absent"], "message": 1});
    let (status, answer) = node.post("/v1/broadcast", named).await;
    assert_eq!(
        (status, &answer["local_connections"]),
        (200, &json!(2)),
        "{answer}"
    );
    let (_, answer) = node
        .post("/v1/broadcast", json!({"everyone": true, "message": 2}))
        .await;
    assert_eq!(answer["local_connections"], 3);
    for (socket, expected) in sockets.iter_mut().zip([vec![1, 2], vec![1, 2], vec![2]]) {
        for n in expected {
            assert_eq!(next(socket).await["data"], n);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_publish_where_its_namespace_allows_it() {
    let node = node().await;
    let (mut alice, _) = node.join("alice", "&channels=chat:7").await;
    let (mut bob, _) = node.join("bob", "").await;
    next_of(&mut alice, "subscribed").await;
    say(
        &mut bob,
        json!({"type": "publish", "ref": "p", "channel": "chat:7", "data": {"hi": 1}}),
    )
    .await;
    let published = next(&mut bob).await;
    assert_eq!(
        (&published["type"], &published["ref"]),
        (&json!("published"), &json!("p"))
    );
    let message = next(&mut alice).await;
    assert_eq!(
        (&message["data"], &message["id"]),
        (&json!({"hi": 1}), &published["id"])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_is_closed_and_nobody_else_is_harmed() {
    let node = node_with(|c| c.limits.outbox_bytes = 256 << 10).await;
    let slow = node.open("42", "").await;
    let (mut quick, _) = node.join("42", "").await;
    let reader = tokio::spawn(async move {
        let mut seen = 0;
        while seen < 400 {
            assert_eq!(next(&mut quick).await["data"]["n"], seen);
            seen += 1;
        }
    });
    let filler = "x".repeat(60_000);
    for n in 0..400 {
        node.push("42", json!({"n": n, "filler": filler})).await;
    }
    reader.await.expect("the quick one got all");
    assert!(
        node.metrics()
            .await
            .contains("tidings_slow_consumers_total 1\n")
    );
    // The slow one is gone from the node within the second that it has to take the close frame.
    crate::support::until("the slow one is dropped", async || {
        node.node().connections() <= 1
    })
    .await;
    assert_eq!(
        node.push("42", json!("after")).await["local_connections"],
        0
    );
    drop(slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnected_user_is_told_why() {
    let node = node().await;
    let (mut socket, _) = node.join("42", "").await;
    let body = json!({"user_id": "42", "reason": "account closed"});
    assert_eq!(node.post("/v1/disconnect", body).await.1["applied"], 1);
    let frame = closed(&mut socket).await;
    assert_eq!(
        (u16::from(frame.code), frame.reason.as_str()),
        (4501, "account closed")
    );
    assert!(
        connect(&format!("ws://{}/ws?ticket=used", node.at.public))
            .await
            .is_err()
    );
}
