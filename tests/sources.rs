//! Events on topics reach screens, on every node, and what is wrong with one harms no other.

use serde_json::{Value, json};
use tidings::backplane::{BackplaneKind, BackplaneUrl};
use tidings::config::Config;
use tidings::sources::SourceConfig;

use crate::support::redis::{RedisCluster, RedisServer};
use crate::support::{Socket, TestNode, next, next_of, node_with, until};

/// Publishes an event, as any service does.
async fn publish(redis: &RedisServer, topic: &str, event: impl AsRef<[u8]>) {
    let words = [b"PUBLISH", topic.as_bytes(), event.as_ref()];
    redis.command(&words).await;
}

/// Waits until so many nodes hear a topic.
pub async fn heard_by(redis: &RedisServer, topic: &str, nodes: i64) {
    until("the nodes hear the topic", async || {
        redis.listeners(topic).await == nodes
    })
    .await;
}

pub fn source(keys: &str) -> SourceConfig {
    let text = format!("kind = \"redis-pubsub\"\n{keys}");
    toml::from_str(&text).expect("a source")
}

const ORDERS: &str = "topic = \"orders.completed\"\nuser = \"/customer/id\"\n";

/// A node of a cluster that reads a topic.
async fn node_on(redis: &RedisServer, sources: &[&str]) -> TestNode {
    node_with(|config: &mut Config| {
        config.backplane.kind = BackplaneKind::Redis;
        config.backplane.url = Some(BackplaneUrl::new(redis.url()));
        config.sources = sources.iter().map(|keys| source(keys)).collect();
    })
    .await
}

/// The next messages of some devices, which all get the same.
async fn same(devices: &mut [Socket]) -> Value {
    let first = next_of(&mut devices[0], "message").await;
    for other in &mut devices[1..] {
        let frame = next_of(other, "message").await;
        assert_eq!(
            (&frame["id"], &frame["data"]),
            (&first["id"], &first["data"])
        );
    }
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_reaches_a_users_devices_on_every_node_once_each() {
    let redis = RedisServer::start().await;
    let (a, b) = (
        node_on(&redis, &[ORDERS]).await,
        node_on(&redis, &[ORDERS]).await,
    );
    let mut devices = vec![
        a.join("42", "&device=phone").await.0,
        a.join("42", "&device=laptop").await.0,
        b.join("42", "&device=tv").await.0,
    ];
    let (mut other, _) = b.join("43", "").await;
    heard_by(&redis, "orders.completed", 2).await;
    let mut ids = Vec::new();
    for n in 0..50 {
        let event = format!("{{\"customer\": {{\"id\": \"42\"}}, \"n\": {n}.0}}");
        publish(&redis, "orders.completed", event).await;
        // Were one delivered twice, it would stand where the next is looked for.
        let message = same(&mut devices).await;
        assert_eq!(message["data"]["n"].to_string(), format!("{n}.0"));
        assert!(message.get("channel").is_none() && message.get("position").is_none());
        ids.push(message["id"].to_string());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    publish(&redis, "orders.completed", "{\"customer\":{\"id\":43}}").await;
    assert_eq!(next(&mut other).await["data"]["customer"]["id"], 43);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_events_are_counted_and_harm_nothing() {
    let redis = RedisServer::start().await;
    let node = node_on(&redis, &["topic = \"notes\""]).await;
    let (mut socket, _) = node.join("42", "").await;
    heard_by(&redis, "notes", 1).await;
    let big = format!(
        "{{\"user_id\":\"42\",\"message\":\"{}\"}}",
        "x".repeat(70_000)
    );
    let malformed: [&[u8]; 6] = [
        b"",
        b"\xff\x00\n\x1b[2J",
        b"{\"message\":1}",
        b"{\"user_id\":\"4 2\",\"message\":1}",
        b"{\"user_id\":\"42\"}",
        big.as_bytes(),
    ];
    for event in malformed {
        publish(&redis, "notes", event).await;
    }
    publish(
        &redis,
        "notes",
        "{\"user_id\":\"42\",\"message\":\"well-formed\"}",
    )
    .await;
    assert_eq!(next(&mut socket).await["data"], "well-formed");
    let metrics = node.metrics().await;
    for line in [
        "tidings_source_events_total 7",
        "tidings_source_malformed_total{reason=\"not_json\"} 2",
        "tidings_source_malformed_total{reason=\"no_address\"} 1",
        "tidings_source_malformed_total{reason=\"bad_address\"} 1",
        "tidings_source_malformed_total{reason=\"no_message\"} 1",
        "tidings_source_malformed_total{reason=\"too_big\"} 1",
        "tidings_source_links 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(!metrics.contains("source_losses_total{"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_survives_a_restart_of_redis_and_a_killed_link() {
    let mut redis = RedisServer::start().await;
    let (a, b) = (
        node_on(&redis, &[ORDERS]).await,
        node_on(&redis, &[ORDERS]).await,
    );
    let mut devices = vec![a.join("42", "").await.0, b.join("42", "").await.0];
    let event = |n: u32| format!("{{\"customer\":{{\"id\":42}},\"n\":{n}}}");
    heard_by(&redis, "orders.completed", 2).await;
    publish(&redis, "orders.completed", event(1)).await;
    assert_eq!(same(&mut devices).await["data"]["n"], 1);
    redis.restart().await;
    heard_by(&redis, "orders.completed", 2).await;
    publish(&redis, "orders.completed", event(2)).await;
    assert_eq!(same(&mut devices).await["data"]["n"], 2);
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    heard_by(&redis, "orders.completed", 2).await;
    publish(&redis, "orders.completed", event(3)).await;
    assert_eq!(same(&mut devices).await["data"]["n"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_topic_may_go_to_a_user_and_to_a_channel_of_a_node_without_redis_links() {
    let redis = RedisServer::start().await;
    let url = redis.url();
    let node = node_with(|config| {
        let to = |pointers: &str| {
            let keys = format!("topic = \"sales\"\nurl = {url:?}\nid = \"/id\"\n{pointers}");
            source(&keys)
        };
        config.sources = vec![
            to("user = \"/seller\"\nmessage = \"/sum\""),
            to("channel = \"/shop\"\nmessage = \"/note\""),
        ];
    })
    .await;
    let (mut socket, _) = node.join("42", "&channels=shop:eu").await;
    next_of(&mut socket, "subscribed").await;
    heard_by(&redis, "sales", 1).await;
    let event = json!({"id": 7, "seller": "42", "shop": "shop:eu", "sum": 12.5, "note": "sold"});
    publish(&redis, "sales", event.to_string()).await;
    let to_user = next(&mut socket).await;
    let to_channel = next(&mut socket).await;
    assert_eq!(to_user["data"], 12.5);
    assert_eq!(
        (&to_channel["data"], &to_channel["channel"]),
        (&json!("sold"), &json!("shop:eu"))
    );
    assert_ne!(to_user["id"], to_channel["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_notices_a_frozen_redis_and_comes_back() {
    let redis = RedisServer::start().await;
    let node = node_on(&redis, &[ORDERS]).await;
    let (mut socket, _) = node.join("42", "").await;
    heard_by(&redis, "orders.completed", 1).await;
    redis.pause();
    let links = async |number: &str| {
        let line = format!("tidings_source_links {number}\n");
        node.metrics().await.contains(&line)
    };
    until("the link is given up", async || links("0").await).await;
    redis.resume();
    until("there is another", async || links("1").await).await;
    heard_by(&redis, "orders.completed", 1).await;
    publish(&redis, "orders.completed", "{\"customer\":{\"id\":42}}").await;
    assert_eq!(next(&mut socket).await["data"]["customer"]["id"], 42);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_a_topic_is_heard_wherever_it_is_published_and_one_node_may_be_gone() {
    let mut cluster = RedisCluster::start().await;
    let node = node_with(|config| {
        config.backplane.kind = BackplaneKind::Redis;
        config.backplane.url = Some(BackplaneUrl::new(cluster.url()));
        config.sources = vec![source("topic = \"notes\"")];
    })
    .await;
    let (mut socket, _) = node.join("42", "").await;
    let event = |text: &str| json!({"user_id": 42, "message": text}).to_string();
    heard_by(&cluster.primaries[0], "notes", 1).await;
    for (n, primary) in cluster.primaries.iter().enumerate() {
        publish(primary, "notes", event(&format!("at {n}"))).await;
        assert_eq!(next(&mut socket).await["data"], format!("at {n}"));
    }
    cluster.primaries[0].kill().await;
    let [_, second, third] = &cluster.primaries[..] else {
        panic!("three primaries");
    };
    until("another node of the cluster is heard", async || {
        second.listeners("notes").await + third.listeners("notes").await == 1
    })
    .await;
    for primary in [second, third] {
        publish(primary, "notes", event("after")).await;
        assert_eq!(next(&mut socket).await["data"], "after");
    }
}
