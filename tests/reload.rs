//! A configuration that is reloaded while connections live.

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::config::{Changes, Config, Mode};
use tidings::model::Secret;
use tidings::node::Node;
use tidings::proto::tidings::v1 as pb;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::served::{Served, key, key_block};
use crate::support::{
    KEY, Socket, TestNode, config, connect, connect_with, next, next_of, node, node_with, refused,
    say, until,
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER_SECRET: &str = "fedcba9876543210fedcba9876543210";

/// Reloads a node with what it runs with, changed.
pub async fn reload(
    node: &mut TestNode,
    change: impl FnOnce(&mut Config),
) -> Result<Changes, String> {
    let node = node.node.as_mut().expect("it runs");
    let mut config = node.config().clone();
    change(&mut config);
    node.reload(|| Ok(config)).await
}

fn namespace(rules: Value) -> tidings::hub::Namespace {
    serde_json::from_value(rules).expect("a namespace")
}

fn signed(secret: &str) -> String {
    let exp = tidings::model::unix_millis() / 1000 + 600;
    let claims = json!({"sub": "42", "aud": "tidings", "exp": exp});
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key);
    format!("Bearer {}", token.expect("signed"))
}

async fn lives(node: &TestNode, socket: &mut Socket, user: &str) {
    node.push(user, json!("alive")).await;
    assert_eq!(next_of(socket, "message").await["data"], "alive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_keys_come_and_go_while_connections_live() {
    let mut node = node().await;
    let (mut socket, _) = node.join("42", "").await;
    let push = json!({"user_id": "42", "message": 1});
    assert_eq!(node.post_as("k2", "/v1/push", push.clone()).await.0, 401);
    let added = reload(&mut node, |c| {
        c.api_keys.push(key("second", "k2", &["push"]))
    })
    .await;
    assert_eq!(added.expect("applied").applied, ["[[api_keys]]"]);
    assert_eq!(node.post_as("k2", "/v1/push", push.clone()).await.0, 200);
    assert_eq!(next_of(&mut socket, "message").await["data"], 1);
    let removed = reload(&mut node, |c| c.api_keys.retain(|key| key.name != "second")).await;
    removed.expect("applied");
    assert_eq!(node.post_as("k2", "/v1/push", push).await.0, 401);
    lives(&node, &mut socket, "42").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_of_pushes_ends_with_its_key_and_another_goes_on() {
    let mut node = node_with(|c| c.api_keys.push(key("second", "k2", &["push"]))).await;
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", node.at.service));
    let channel = endpoint.expect("a URL").connect().await.expect("connected");
    let item = |n: u64| pb::PushItem {
        r#ref: n.to_string(),
        push: Some(pb::PushRequest {
            user_id: "42".into(),
            body: Some(pb::push_request::Body::Json(n.to_string())),
            ..Default::default()
        }),
    };
    let mut streams = Vec::new();
    for shown in [KEY, "k2"] {
        let (items, sent) = tokio::sync::mpsc::channel(4);
        let mut request = tonic::Request::new(ReceiverStream::new(sent));
        let bearer = format!("Bearer {shown}").parse().expect("a value");
        request.metadata_mut().insert("authorization", bearer);
        let mut client = pb::notification_client::NotificationClient::new(channel.clone());
        items.send(item(1)).await.expect("open");
        let opened = client.push_notifications(request).await.expect("opened");
        let mut results = opened.into_inner();
        let first = results.next().await.expect("answered").expect("a result");
        assert!(matches!(
            first.result,
            Some(pb::push_result::Result::Response(_))
        ));
        streams.push((items, results));
    }
    let removed = reload(&mut node, |c| c.api_keys.retain(|key| key.name != "second")).await;
    removed.expect("applied");
    let mut answers = Vec::new();
    for (items, results) in &mut streams {
        items.send(item(2)).await.expect("open");
        let answer = results.next().await.expect("answered").expect("a result");
        answers.push(match answer.result.expect("one of the two") {
            pb::push_result::Result::Response(_) => 0,
            pb::push_result::Result::Error(error) => error.code,
        });
    }
    assert_eq!(answers, [0, tonic::Code::Unauthenticated as i32]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_for_what_is_asked_from_then_on() {
    let mut node = node().await;
    let (mut old, _) = node.join("42", "&channels=a,b").await;
    next_of(&mut old, "subscribed").await;
    next_of(&mut old, "subscribed").await;
    let changed = reload(&mut node, |c| {
        c.limits.subscriptions = 1;
        c.limits.message_bytes = 1024;
        c.limits.connections_per_ip = 1;
        c.limits.handshakes_per_second = 0;
    });
    let applied = changed.await.expect("applied").applied;
    assert_eq!(applied.len(), 4, "{applied:?}");
    // What it has it keeps; what it asks for is looked at by the new limit.
    lives(&node, &mut old, "42").await;
    say(&mut old, json!({"type": "subscribe", "channel": "c"})).await;
    assert_eq!(next_of(&mut old, "error").await["code"], "limit");
    let big = json!({"user_id": "42", "message": "x".repeat(2000)});
    let (status, body) = node.post("/v1/push", big).await;
    assert_eq!(status, 400, "{body}");
    let (mut new, _) = node.join("43", "&channels=a,b").await;
    next_of(&mut new, "subscribed").await;
    assert_eq!(next_of(&mut new, "error").await["code"], "limit");
    // The one that was there before the limit does not count against it.
    let third = node.url("44", "").await;
    assert_eq!(refused(&third, &[]).await.1["code"], "overloaded");
    reload(&mut node, |c| c.limits.connections_per_ip = 0)
        .await
        .expect("applied");
    connect(&third).await.expect("an upgrade");
    drop((old, new));
    until("all places are free", async || {
        node.node().connections() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_change_and_throw_nobody_out() {
    let mut node = node().await;
    let (mut socket, _) = node.join("42", "&channels=orders:eu").await;
    next_of(&mut socket, "subscribed").await;
    let publish = json!({"type": "publish", "channel": "orders:eu", "data": 1, "ref": 1});
    say(&mut socket, publish.clone()).await;
    next_of(&mut socket, "published").await;
    let rules =
        json!({"name": "orders", "subscribe": "nobody", "publish": "nobody", "max_messages": 2});
    let changed = reload(&mut node, |c| c.namespaces = vec![namespace(rules)]).await;
    assert_eq!(changed.expect("applied").applied, ["[[namespaces]]"]);
    say(&mut socket, publish).await;
    assert_eq!(next_of(&mut socket, "error").await["code"], "forbidden");
    say(
        &mut socket,
        json!({"type": "subscribe", "channel": "orders:us"}),
    )
    .await;
    assert_eq!(next_of(&mut socket, "error").await["code"], "forbidden");
    // It subscribes still, and what is published from now on is kept.
    for n in 2..5 {
        let answer = node.publish("orders:eu", json!(n)).await;
        assert!(answer["position"].is_string(), "{answer}");
        assert_eq!(next_of(&mut socket, "message").await["data"], n);
    }
    let (_, history) = node.get("/v1/history?address=channel:orders:eu").await;
    assert_eq!(
        history["entries"].as_array().map(Vec::len),
        Some(2),
        "{history}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_and_trusted_proxies_change_for_the_next_handshake() {
    let mut node = node().await;
    let page = [
        ("origin", "https://app.example.com"),
        ("x-forwarded-for", "1.2.3.4"),
    ];
    let url = node.url("42", "").await;
    assert_eq!(refused(&url, &page).await.0, 403);
    let changed = reload(&mut node, |c| {
        c.public.allowed_origins =
            serde_json::from_value(json!(["https://app.example.com"])).expect("origins");
        c.public.trusted_proxies = serde_json::from_value(json!(["127.0.0.1"])).expect("prefixes");
    });
    let applied = changed.await.expect("applied").applied;
    assert_eq!(
        applied,
        ["[public] allowed_origins", "[public] trusted_proxies"]
    );
    let mut socket = connect_with(&url, &page).await.expect("an upgrade");
    next_of(&mut socket, "welcome").await;
    let (_, found) = node.get("/v1/users/42/connections").await;
    assert_eq!(found["connections"][0]["ip"], "1.2.3.4");
    reload(&mut node, |c| c.public.allowed_origins.clear())
        .await
        .expect("applied");
    assert_eq!(refused(&node.url("42", "").await, &page).await.0, 403);
    lives(&node, &mut socket, "42").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_jwt_key_counts_at_once_and_open_connections_stay() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("jwt.key");
    std::fs::write(&file, SECRET).expect("written");
    let jwt = json!({"key_file": &file, "algorithm": "HS256", "audience": "tidings"});
    let mut node = node_with(|c| c.jwt = Some(serde_json::from_value(jwt).expect("valid"))).await;
    let ws = format!("ws://{}/ws", node.at.public);
    let (old, new) = (signed(SECRET), signed(OTHER_SECRET));
    let mut socket = connect_with(&ws, &[("authorization", &old)])
        .await
        .expect("an upgrade");
    next_of(&mut socket, "welcome").await;
    assert_eq!(refused(&ws, &[("authorization", &new)]).await.0, 401);
    // The file alone has changed.
    std::fs::write(&file, OTHER_SECRET).expect("written");
    reload(&mut node, |_| {}).await.expect("applied");
    assert_eq!(refused(&ws, &[("authorization", &old)]).await.0, 401);
    connect_with(&ws, &[("authorization", &new)])
        .await
        .expect("an upgrade");
    // A key that cannot be read is no key: nothing changes.
    std::fs::remove_file(&file).expect("removed");
    let refusal = reload(&mut node, |c| c.api_keys.clear())
        .await
        .expect_err("refused");
    assert!(refusal.contains("jwt.key"), "{refusal}");
    connect_with(&ws, &[("authorization", &new)])
        .await
        .expect("an upgrade");
    lives(&node, &mut socket, "42").await;
    reload(&mut node, |c| c.jwt = None).await.expect("applied");
    assert_eq!(refused(&ws, &[("authorization", &new)]).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_is_named_and_the_rest_is_taken_up() {
    let mut node = node().await;
    for _ in 0..2 {
        // Named again as long as it differs from what the node runs with.
        let changes = reload(&mut node, |c| {
            c.drain.spread = std::time::Duration::from_secs(7);
            c.backplane.secret = Some(Secret::new("another"));
            c.limits.fragments = 3;
        });
        let changes = changes.await.expect("applied");
        assert_eq!(changes.restart, ["[backplane] secret", "[drain] spread"]);
        reload(&mut node, |c| c.limits.fragments = 2)
            .await
            .expect("applied");
    }
    let metrics = node.metrics().await;
    assert!(
        metrics.contains("tidings_reloads_total{outcome=\"applied\"} 4\n"),
        "{metrics}"
    );
    assert!(
        !metrics.contains("tidings_last_reload_timestamp_seconds 0\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_began_without_anything_kept_does_not_begin_to_keep_in_a_redis_that_it_never_looked_at()
 {
    let redis = crate::support::redis::RedisServer::start().await;
    let mut config = config();
    config.backplane =
        serde_json::from_value(json!({"kind": "redis", "url": redis.url()})).expect("valid");
    config.inbox.max_messages = 0;
    let mut node = Node::start(config.clone(), Mode::Dev)
        .await
        .expect("the node starts");
    config.namespaces = vec![namespace(json!({"name": "orders", "max_messages": 5}))];
    let refusal = node.reload(|| Ok(config)).await.expect_err("refused");
    assert!(refusal.contains("restart"), "{refusal}");
    node.leave(std::future::ready(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_takes_up_the_file_and_an_invalid_one_changes_nothing() {
    let served = Served::start("").await;
    let running = &served.running;
    let url = format!("ws://{}/ws", running.node.at.public);
    assert_eq!(refused(&url, &[]).await.0, 401);
    assert_eq!(
        (served.push("k1").await, served.push("k2").await),
        (200, 401)
    );

    // Invalid: told as `config check` tells it, and nothing of it is taken up.
    served.write(&format!(
        "{}[limits]\nfragmants = 3\n",
        key_block("second", "k2")
    ));
    running.signal(Signal::HUP);
    running.logged(&["refused", "ERROR"]).await;
    let at = format!("{}:", served.file.display());
    let line = running.logged(&["fragmants", "did you mean", &at]).await;
    assert!(line.contains("limits.fragments"), "{line}");
    assert_eq!(
        (served.push("k1").await, served.push("k2").await),
        (200, 401)
    );
    // It is read, and is not allowed: the same.
    served.write("[hub]\nshards = 1000\n");
    running.signal(Signal::HUP);
    running.logged(&["shards must be at most 128"]).await;

    // Good, with a change that takes a restart and a level that shows at once. Two at once are two, one after the other.
    let rest = format!(
        "[hub]\nqueue = 7\n[log]\nlevel = \"debug\"\n{}",
        key_block("second", "k2")
    );
    served.write(&rest);
    running.signal(Signal::HUP);
    running.signal(Signal::HUP);
    let line = running.logged(&["needs a restart", "WARN"]).await;
    assert!(
        line.contains("[hub] queue") && !line.contains("listen"),
        "{line}"
    );
    until("the new key counts", async || {
        served.push("k2").await == 200
    })
    .await;
    assert_eq!(served.push("k1").await, 200);
    until("it logs at debug", async || {
        assert_eq!(refused(&url, &[]).await.0, 401);
        let log = running.log();
        log.lines()
            .any(|line| line.contains("refused a client") && line.contains("DEBUG"))
    })
    .await;
    let metrics = running.node.metrics().await;
    assert!(
        metrics.contains("tidings_reloads_total{outcome=\"refused\"} 2\n"),
        "{metrics}"
    );
    let log = running.log();
    for secret in ["k1", "k2"] {
        let key = key("x", secret, &["push"]);
        assert!(!log.contains(key.sha256.expose()), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sighup_in_a_drain_changes_nothing() {
    let served = Served::start("").await;
    let running = &served.running;
    let ticket = served.ticket().await;
    let url = format!("ws://{}/ws?ticket={ticket}", running.node.at.public);
    let mut socket = connect(&url).await.expect("an upgrade");
    assert_eq!(next(&mut socket).await["type"], "welcome");
    running.signal(Signal::TERM);
    running.logged(&["draining"]).await;
    served.write("nonsense");
    running.signal(Signal::HUP);
    // Still here, and leaving as it would: the second signal hurries it.
    assert_eq!(served.push("k1").await, 200);
    running.signal(Signal::TERM);
    assert!(served.running.ended().await.0.success());
}
