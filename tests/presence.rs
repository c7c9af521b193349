//! Who subscribes to a channel: on whichever node, and no ghosts.

use serde_json::{Value, json};

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::fleet::{fleet, node_at};
use crate::support::redis::RedisServer;
use crate::support::{TestNode, next_of, node, say, until};

async fn presence(node: &TestNode, channel: &str) -> Value {
    let path = format!("/v1/channels/{channel}/presence");
    let (status, answer) = node.get(&path).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// User, device and node of each member, in order.
fn members(answer: &Value) -> Vec<String> {
    let list = answer["members"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let member = |m: &Value| {
        [&m["user_id"], &m["device"], &m["node"]]
            .map(text)
            .join(" ")
    };
    let mut members: Vec<_> = list.iter().map(member).collect();
    members.sort();
    members
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_says_who_subscribes_to_a_channel() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let mut sockets = Vec::new();
    for (node, user, more) in [
        (0, "42", "&device=phone&channels=room:1"),
        (0, "43", "&channels=room:1"),
        (1, "42", "&device=tv&channels=room:1,room:2"),
        (2, "44", "&channels=room:2"),
    ] {
        let (mut socket, welcome) = nodes[node].join(user, more).await;
        next_of(&mut socket, "subscribed").await;
        sockets.push((socket, welcome));
    }
    for node in &nodes {
        let answer = presence(node, "room:1").await;
        assert_eq!(members(&answer), ["42 phone a", "42 tv b", "43 - a"]);
        assert_eq!(answer["total"], 3, "{answer}");
    }
    let answer = presence(&nodes[0], "room:2").await;
    assert_eq!(members(&answer), ["42 tv b", "44 - c"]);
    let found = answer["members"].as_array().expect("a list");
    let named = |connection: &Value| found.iter().any(|m| m["connection"] == *connection);
    assert!(named(&sockets[2].1["connection"]) && named(&sockets[3].1["connection"]));
    let bye = json!({"type": "unsubscribe", "channel": "room:1"});
    say(&mut sockets[2].0, bye).await;
    next_of(&mut sockets[2].0, "unsubscribed").await;
    let answer = presence(&nodes[2], "room:1").await;
    assert_eq!(members(&answer), ["42 phone a", "43 - a"]);
    let answer = presence(&nodes[1], "nobody:here").await;
    assert_eq!(answer, json!({"members": [], "total": 0, "unknown": 0}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_silent_is_unknown_and_one_that_is_gone_leaves_no_ghosts() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let a = node_at(&redis.url(), "a", |_| {}).await;
    let b = node_at(&url, "b", |_| {}).await;
    let (mut here, _) = a.join("42", "&channels=room:1").await;
    next_of(&mut here, "subscribed").await;
    let (mut there, _) = b.join("43", "&channels=room:1").await;
    next_of(&mut there, "subscribed").await;
    proxy.set(Whom::Marked, Way::Down, Fault::Cut);
    let answer = presence(&a, "room:1").await;
    assert_eq!(members(&answer), ["42 - a"]);
    assert_eq!(
        (&answer["total"], &answer["unknown"]),
        (&json!(1), &json!(1)),
        "{answer}"
    );
    proxy.set(Whom::Marked, Way::Down, Fault::None);
    until("the node answers again", async || {
        presence(&a, "room:1").await["total"] == 2
    })
    .await;
    // As if killed: its connections to Redis end, and nothing of it speaks any more.
    proxy.refuse(true).await;
    proxy.reset(Whom::All);
    until("it is asked no more", async || {
        let answer = presence(&a, "room:1").await;
        members(&answer) == ["42 - a"] && answer["unknown"] == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_name_of_a_channel_is_found_and_what_is_none_is_told() {
    let node = node().await;
    let (mut socket, _) = node.join("42", "").await;
    let channel = "c".repeat(255);
    say(
        &mut socket,
        json!({"type": "subscribe", "channel": channel}),
    )
    .await;
    next_of(&mut socket, "subscribed").await;
    assert_eq!(presence(&node, &channel).await["total"], 1);
    let (status, answer) = node.get("/v1/channels/a@b/presence").await;
    assert_eq!(
        (status, &answer["field"]),
        (400, &json!("channel")),
        "{answer}"
    );
}
