//! What is kept reaches whoever was away: in order, once, and whoever cannot get it is told.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Socket, TestNode, next, next_of, node, node_with, say, until};
use tidings::hub::{Namespace, PublishRule, SubscribeRule};
use tidings::model::ChannelName;

/// A node whose namespace `kept` keeps this many messages.
async fn keeping(most: u32) -> TestNode {
    node_with(|c| {
        c.namespaces.push(Namespace {
            name: ChannelName::parse("kept").expect("a name"),
            subscribe: SubscribeRule::Any,
            publish: PublishRule::Any,
            max_messages: most,
            max_age: Duration::from_secs(3600),
            max_bytes: 1 << 20,
        });
    })
    .await
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

async fn messages(socket: &mut Socket, numbers: impl IntoIterator<Item = u32>) -> String {
    let mut last = String::new();
    for n in numbers {
        let frame = next(socket).await;
        assert_eq!(
            (&frame["type"], &frame["data"]),
            (&json!("message"), &json!(n))
        );
        last = text(&frame["position"]);
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_while_nobody_was_there_comes_first_and_once() {
    let node = node().await;
    for n in 0..3 {
        let answer = node.push("42", json!(n)).await;
        assert_eq!(answer["status"], "STORED");
        assert_eq!(answer["durability"], "MEMORY");
        assert!(answer["position"].is_string());
    }
    let (mut socket, welcome) = node.join("42", "").await;
    assert!(welcome["position"].is_string());
    assert!(welcome.get("recovered").is_none());
    messages(&mut socket, 0..3).await;
    node.push("42", json!(3)).await;
    messages(&mut socket, 3..4).await;
    // The shared cursor moved behind them: a reload does not see them again.
    drop(socket);
    until("the session is gone", async || {
        node.counter("tidings_connections").await == 0
    })
    .await;
    node.push("42", json!(4)).await;
    let (mut socket, _) = node.join("42", "").await;
    messages(&mut socket, 4..5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_resumes_exactly_there() {
    let node = node().await;
    let (mut socket, welcome) = node.join("42", "&device=a").await;
    let beginning = text(&welcome["position"]);
    node.push("42", json!(0)).await;
    let at = messages(&mut socket, 0..1).await;
    drop(socket);
    for n in 1..4 {
        node.push("42", json!(n)).await;
    }
    for (since, from) in [(&at, 1), (&beginning, 0)] {
        let (mut socket, welcome) = node.join("42", &format!("&since={since}")).await;
        assert_eq!(welcome["recovered"], true);
        assert_eq!(text(&welcome["position"]), *since);
        messages(&mut socket, from..4).await;
    }
    let (mut socket, welcome) = node.join("42", "&since=now").await;
    assert!(welcome.get("recovered").is_none());
    node.push("42", json!(4)).await;
    messages(&mut socket, 4..5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_more_than_is_kept_is_told() {
    let node = node_with(|c| c.inbox.max_messages = 5).await;
    let (_, welcome) = node.join("42", "&device=a").await;
    let beginning = text(&welcome["position"]);
    for n in 0..8 {
        node.push("42", json!(n)).await;
    }
    let (mut socket, welcome) = node.join("42", &format!("&since={beginning}")).await;
    assert_eq!(welcome["recovered"], false);
    messages(&mut socket, 3..8).await;
    // A position of a stream that is gone.
    let other = self::node().await;
    let (_, theirs) = other.join("42", "").await;
    let foreign = text(&theirs["position"]);
    let (mut socket, welcome) = node.join("42", &format!("&since={foreign}")).await;
    assert_eq!(welcome["recovered"], false);
    messages(&mut socket, 3..8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_begins_where_it_acknowledged() {
    let node = node().await;
    let (mut socket, welcome) = node.join("42", "&device=phone").await;
    assert!(welcome.get("recovered").is_none());
    for n in 0..4 {
        node.push("42", json!(n)).await;
    }
    let second = messages(&mut socket, 0..2).await;
    let last = messages(&mut socket, 2..4).await;
    say(&mut socket, json!({"type": "ack", "position": second})).await;
    let other = node.join("7", "").await.1;
    let unsent = text(&other["position"]);
    say(
        &mut socket,
        json!({"type": "ack", "ref": "x", "position": unsent}),
    )
    .await;
    let error = next_of(&mut socket, "error").await;
    assert_eq!(
        (&error["ref"], &error["code"]),
        (&json!("x"), &json!("bad_request"))
    );
    let mut resumed = None;
    until("the cursor is stored", async || {
        let (socket, welcome) = node.join("42", "&device=phone").await;
        let stored = welcome["recovered"] == true;
        resumed = Some((socket, welcome));
        stored
    })
    .await;
    let (mut socket, welcome) = resumed.expect("joined");
    assert_eq!(text(&welcome["position"]), second);
    assert_eq!(messages(&mut socket, 2..4).await, last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_channel_resumes_by_query_and_by_frame() {
    let node = keeping(100).await;
    let (mut socket, _) = node.join("1", "&channels=kept:a").await;
    let subscribed = next(&mut socket).await;
    let beginning = text(&subscribed["position"]);
    for n in 0..3 {
        let answer = node.publish("kept:a", json!(n)).await;
        assert_eq!(answer["status"], "DELIVERED_LOCALLY");
    }
    messages(&mut socket, 0..3).await;
    let (mut late, _) = node
        .join("2", &format!("&channels=kept:a@{beginning}"))
        .await;
    let subscribed = next(&mut late).await;
    assert_eq!(
        (&subscribed["type"], &subscribed["recovered"]),
        (&json!("subscribed"), &json!(true))
    );
    let last = messages(&mut late, 0..3).await;
    let (mut later, _) = node.join("3", "").await;
    say(
        &mut later,
        json!({"type": "subscribe", "ref": 1, "channel": "kept:a", "since": beginning}),
    )
    .await;
    let subscribed = next(&mut later).await;
    assert_eq!(
        (&subscribed["ref"], &subscribed["recovered"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(messages(&mut later, 0..3).await, last);
    node.publish("kept:a", json!(3)).await;
    for socket in [&mut socket, &mut late, &mut later] {
        messages(socket, 3..4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_missed_messages_come_through_a_small_outbox_among_live_ones() {
    let node = node_with(|c| {
        c.limits.message_bytes = 4 << 10;
        c.limits.outbox_bytes = 16 << 10;
        c.inbox.max_messages = 20_000;
        c.inbox.max_bytes = 64 << 20;
    })
    .await;
    let (_, welcome) = node.join("42", "&device=a").await;
    let beginning = text(&welcome["position"]);
    for n in 0..10_000 {
        node.push("42", json!(n)).await;
    }
    let (mut socket, welcome) = node
        .join("42", &format!("&device=b&since={beginning}"))
        .await;
    assert_eq!(welcome["recovered"], true);
    for n in 10_000..10_050 {
        node.push("42", json!(n)).await;
    }
    messages(&mut socket, 0..10_050).await;
    assert_eq!(node.counter("tidings_slow_consumers_total").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_a_retry_one_message() {
    let node = node().await;
    let (mut socket, _) = node.join("42", "").await;
    let push = async |body: Value| node.post("/v1/push", body).await;
    let first = json!({"user_id": "42", "message": "a", "idempotency_key": "k"});
    let (code, answer) = push(first.clone()).await;
    assert_eq!(code, 200, "{answer}");
    assert!(answer.get("duplicate").is_none());
    let (_, again) = push(first).await;
    assert_eq!(again["duplicate"], true);
    assert_eq!(
        (&again["message_id"], &again["position"]),
        (&answer["message_id"], &answer["position"])
    );
    let (code, other) =
        push(json!({"user_id": "42", "message": "b", "idempotency_key": "k"})).await;
    assert_eq!((code, &other["code"]), (409, &json!("ALREADY_EXISTS")));
    // The key's scope is the address.
    let (_, elsewhere) =
        push(json!({"user_id": "43", "message": "b", "idempotency_key": "k"})).await;
    assert!(elsewhere.get("duplicate").is_none());
    let volatile =
        json!({"user_id": "42", "message": "v", "class": "VOLATILE", "idempotency_key": "v"});
    push(volatile.clone()).await;
    assert_eq!(push(volatile).await.1["duplicate"], true);
    node.push("42", json!("end")).await;
    for data in ["a", "v", "end"] {
        assert_eq!(next(&mut socket).await["data"], data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_message_is_never_sent() {
    let node = node().await;
    let (code, _) = node
        .post(
            "/v1/push",
            json!({"user_id": "42", "message": 1, "ttl": "50ms"}),
        )
        .await;
    assert_eq!(code, 200);
    node.push("42", json!(2)).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let (mut socket, _) = node.join("42", "").await;
    assert_eq!(next(&mut socket).await["data"], 2);
    let (code, answer) = node
        .post(
            "/v1/push",
            json!({"user_id": "42", "message": 1, "ttl": "0s"}),
        )
        .await;
    assert_eq!((code, &answer["field"]), (400, &json!("ttl")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_broadcast_waits_in_each_inbox() {
    let node = node().await;
    let (mut here, _) = node.join("1", "").await;
    let body = json!({"user_ids": ["1", "2"], "message": "all", "idempotency_key": "b"});
    let (code, answer) = node.post("/v1/broadcast", body.clone()).await;
    assert_eq!((code, &answer["accepted"]), (200, &json!(2)));
    assert_eq!(next(&mut here).await["data"], "all");
    let (_, again) = node.post("/v1/broadcast", body).await;
    assert_eq!(
        (&again["accepted"], &again["duplicate"]),
        (&json!(2), &json!(true))
    );
    let (mut later, _) = node.join("2", "").await;
    assert_eq!(next(&mut later).await["data"], "all");
    node.push("1", json!("end")).await;
    assert_eq!(next(&mut here).await["data"], "end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_loses_what_is_superseded_and_not_its_connection() {
    let node = node_with(|c| {
        c.limits.outbox_bytes = 256 << 10;
        c.limits.node_outbox_bytes = 64 << 20;
    })
    .await;
    let (mut socket, _) = node.join("42", "").await;
    // It reads nothing, and is pushed far more than its socket and its outbox hold.
    let price = "x".repeat(32 << 10);
    for n in 0..600 {
        let body = json!({"user_id": "42", "message": {"n": n, "x": price}, "class": "VOLATILE",
            "collapse_key": "price"});
        assert_eq!(node.post("/v1/push", body).await.0, 200);
    }
    node.push("42", json!("end")).await;
    let (mut seen, mut last) = (0, None);
    loop {
        let frame = next(&mut socket).await;
        if frame["data"] == "end" {
            break;
        }
        let n = frame["data"]["n"].as_u64();
        assert!(n > last);
        (seen, last) = (seen + 1, n);
    }
    assert_eq!(last, Some(599));
    assert!(seen < 600, "nothing was superseded");
    let kept = json!({"user_id": "42", "message": 1, "collapse_key": "k", "class": "KEPT"});
    let (code, answer) = node.post("/v1/push", kept).await;
    assert_eq!((code, &answer["field"]), (400, &json!("collapse_key")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_vanishes_before_its_first_ack_comes_back_to_where_it_began() {
    let node = node().await;
    node.push("42", json!(0)).await;
    let (mut phone, welcome) = node.join("42", "&device=phone").await;
    assert!(welcome.get("recovered").is_none());
    messages(&mut phone, 0..1).await;
    drop(phone);
    // Another one, without a device, moves the cursor that all of those share.
    let (mut other, _) = node.join("42", "").await;
    messages(&mut other, 0..1).await;
    node.push("42", json!(1)).await;
    messages(&mut other, 1..2).await;
    drop(other);
    let (mut phone, welcome) = node.join("42", "&device=phone").await;
    assert_eq!(welcome["recovered"], true);
    messages(&mut phone, 0..2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_looks_at_what_is_live_alone_leaves_the_rest_to_who_comes_next() {
    let node = node().await;
    for n in 0..3 {
        node.push("42", json!(n)).await;
    }
    let (live, _) = node.join("42", "&since=now").await;
    // Longer than a cursor waits, if there is one.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drop(live);
    let (mut socket, _) = node.join("42", "").await;
    messages(&mut socket, 0..3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_device_and_ack_auto_the_node_moves_the_devices_own_cursor() {
    // One shard, so that the next session finds the cursor that the first one left.
    let node = node_with(|c| c.hub.shards = 1).await;
    let (mut phone, _) = node.join("42", "&device=phone&ack=auto").await;
    for n in 0..3 {
        node.push("42", json!(n)).await;
    }
    messages(&mut phone, 0..3).await;
    let last = messages(&mut phone, []).await;
    assert!(last.is_empty());
    drop(phone);
    until("the session is gone", async || {
        node.counter("tidings_connections").await == 0
    })
    .await;
    node.push("42", json!(3)).await;
    let (mut phone, welcome) = node.join("42", "&device=phone&ack=auto").await;
    assert_eq!(welcome["recovered"], true);
    messages(&mut phone, 3..4).await;
    // Nobody without a device has seen any of them.
    let (mut other, _) = node.join("42", "").await;
    messages(&mut other, 0..4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_a_retry_of_a_broadcast_one_too() {
    let node = node().await;
    let (mut socket, _) = node.join("1", "").await;
    let body = |users: &[&str]| json!({"user_ids": users, "message": "x", "class": "VOLATILE", "idempotency_key": "k"});
    let (code, answer) = node.post("/v1/broadcast", body(&["1", "2"])).await;
    assert_eq!(
        (code, &answer["status"]),
        (200, &json!("DELIVERED_LOCALLY")),
        "{answer}"
    );
    let (_, again) = node.post("/v1/broadcast", body(&["1", "2"])).await;
    assert_eq!(again["duplicate"], true);
    assert_eq!(node.post("/v1/broadcast", body(&["1"])).await.0, 409);
    node.push("1", json!("end")).await;
    for data in ["x", "end"] {
        assert_eq!(next(&mut socket).await["data"], data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_live_only_waits_until_who_is_behind_has_what_it_missed() {
    let node = node_with(|c| {
        c.limits.message_bytes = 4 << 10;
        c.limits.outbox_bytes = 16 << 10;
        c.inbox.max_messages = 20_000;
        c.inbox.max_bytes = 64 << 20;
    })
    .await;
    let (_, welcome) = node.join("42", "&device=a").await;
    let beginning = text(&welcome["position"]);
    let body = "x".repeat(2 << 10);
    for n in 0..4000 {
        let message = json!({"n": n, "x": body});
        assert_eq!(node.push("42", message).await["durability"], "MEMORY");
    }
    // Far more than its outbox and its socket hold, and it does not read yet.
    let query = format!("&device=b&since={beginning}");
    let (mut socket, _) = node.join("42", &query).await;
    let live = json!({"user_id": "42", "message": {"n": 4000}, "class": "VOLATILE"});
    assert_eq!(node.post("/v1/push", live).await.0, 200);
    for n in 0..=4000 {
        assert_eq!(next(&mut socket).await["data"]["n"], n);
    }
}
