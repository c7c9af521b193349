//! Events on topics reach screens, on every node, and what is wrong with one harms no other.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use redis::cmd;
use serde_json::{Value, json};
use tidings::backplane::{BackplaneKind, BackplaneUrl};
use tidings::config::Config;
use tidings::sources::SourceConfig;

use crate::support::{Socket, TestNode, next, next_of, node_with, until};

/// A redis-server on a free port; ends on drop.
pub struct Redis {
    port: u16,
    child: Child,
}

impl Redis {
    pub async fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let redis = Self {
            port,
            child: spawn(port),
        };
        redis.wait_until_it_answers().await;
        redis
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port);
        self.wait_until_it_answers().await;
    }

    async fn wait_until_it_answers(&self) {
        until("redis-server answers", async || {
            self.connect().await.is_ok()
        })
        .await;
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let client = redis::Client::open(self.url())?;
        client.get_multiplexed_async_connection().await
    }

    pub async fn publish(&self, topic: &str, event: impl AsRef<[u8]>) {
        let mut redis = self.connect().await.expect("connected");
        let publish = cmd("PUBLISH").arg(topic).arg(event.as_ref()).to_owned();
        let _: i64 = publish.query_async(&mut redis).await.expect("published");
    }

    /// Waits until so many nodes hear a topic.
    pub async fn heard_by(&self, topic: &str, nodes: i64) {
        until("the nodes hear the topic", async || {
            let mut redis = self.connect().await.expect("connected");
            let ask = cmd("PUBSUB").arg("NUMSUB").arg(topic).to_owned();
            let found: Result<(String, i64), _> = ask.query_async(&mut redis).await;
            found.expect("answered").1 == nodes
        })
        .await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--dir", "/tmp"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server starts; install it, as in: sudo apt-get install redis-server")
}

pub fn source(keys: &str) -> SourceConfig {
    let text = format!("kind = \"redis-pubsub\"\n{keys}");
    toml::from_str(&text).expect("a source")
}

const ORDERS: &str = "topic = \"orders.completed\"\nuser = \"/customer/id\"\n";

/// A node of a cluster that reads a topic.
async fn node_on(redis: &Redis, sources: &[&str]) -> TestNode {
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
    let redis = Redis::start().await;
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
    redis.heard_by("orders.completed", 2).await;
    let mut ids = Vec::new();
    for n in 0..50 {
        let event = format!("{{\"customer\": {{\"id\": \"42\"}}, \"n\": {n}.0}}");
        redis.publish("orders.completed", event).await;
        // Were one delivered twice, it would stand where the next is looked for.
        let message = same(&mut devices).await;
        assert_eq!(message["data"]["n"].to_string(), format!("{n}.0"));
        assert!(message.get("channel").is_none() && message.get("position").is_none());
        ids.push(message["id"].to_string());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    redis
        .publish("orders.completed", "{\"customer\":{\"id\":43}}")
        .await;
    assert_eq!(next(&mut other).await["data"]["customer"]["id"], 43);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_events_are_counted_and_harm_nothing() {
    let redis = Redis::start().await;
    let node = node_on(&redis, &["topic = \"notes\""]).await;
    let (mut socket, _) = node.join("42", "").await;
    redis.heard_by("notes", 1).await;
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
        redis.publish("notes", event).await;
    }
    redis
        .publish("notes", "{\"user_id\":\"42\",\"message\":\"well-formed\"}")
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
    let mut redis = Redis::start().await;
    let (a, b) = (
        node_on(&redis, &[ORDERS]).await,
        node_on(&redis, &[ORDERS]).await,
    );
    let mut devices = vec![a.join("42", "").await.0, b.join("42", "").await.0];
    let event = |n: u32| format!("{{\"customer\":{{\"id\":42}},\"n\":{n}}}");
    redis.heard_by("orders.completed", 2).await;
    redis.publish("orders.completed", event(1)).await;
    assert_eq!(same(&mut devices).await["data"]["n"], 1);
    redis.restart().await;
    redis.heard_by("orders.completed", 2).await;
    redis.publish("orders.completed", event(2)).await;
    assert_eq!(same(&mut devices).await["data"]["n"], 2);
    let mut connection = redis.connect().await.expect("connected");
    let kill = cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]).to_owned();
    let _: i64 = kill.query_async(&mut connection).await.expect("killed");
    redis.heard_by("orders.completed", 2).await;
    redis.publish("orders.completed", event(3)).await;
    assert_eq!(same(&mut devices).await["data"]["n"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_topic_may_go_to_a_user_and_to_a_channel_of_a_node_without_redis_links() {
    let redis = Redis::start().await;
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
    redis.heard_by("sales", 1).await;
    let event = json!({"id": 7, "seller": "42", "shop": "shop:eu", "sum": 12.5, "note": "sold"});
    redis.publish("sales", event.to_string()).await;
    let to_user = next(&mut socket).await;
    let to_channel = next(&mut socket).await;
    assert_eq!(to_user["data"], 12.5);
    assert_eq!(
        (&to_channel["data"], &to_channel["channel"]),
        (&json!("sold"), &json!("shop:eu"))
    );
    assert_ne!(to_user["id"], to_channel["id"]);
}
