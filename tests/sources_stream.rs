//! Events on a stream reach screens once: whichever node takes them, and whatever happens to it before it confirms.

use serde_json::{Value, json};
use tidings::config::Config;
use tidings::sources::SourceConfig;

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::fleet::{all_ready, node_at};
use crate::support::heard::Heard;
use crate::support::redis::{RedisCluster, RedisServer};
use crate::support::resp::Reply;
use crate::support::{TestNode, until};

const TOPIC: &str = "orders.completed";
const DEAD: &str = "orders.completed.dead";

fn source(keys: &str) -> SourceConfig {
    let text = format!(
        "kind = \"redis-stream\"\ntopic = \"{TOPIC}\"\nclaim_after = \"1s\"\nuser = \"/customer\"\nmessage = \"/n\"\n{keys}"
    );
    toml::from_str(&text).expect("a source")
}

/// Of the events of these tests, as they are configured.
fn with_source(keys: &str) -> impl FnOnce(&mut Config) + '_ {
    move |config| config.sources = vec![source(keys)]
}

/// Adds an event, as any service does; answers its id.
async fn add(redis: &RedisServer, field: &str, event: impl AsRef<[u8]>) -> String {
    let words = [
        b"XADD",
        TOPIC.as_bytes(),
        b"*",
        field.as_bytes(),
        event.as_ref(),
    ];
    redis.command(&words).await.text()
}

async fn add_event(redis: &RedisServer, customer: &str, n: u32) -> String {
    let event = json!({"customer": customer, "n": n}).to_string();
    add(redis, "data", event).await
}

/// Events that were taken and are not confirmed.
async fn pending(redis: &RedisServer) -> i64 {
    pending_of(redis, "tidings").await
}

async fn pending_of(redis: &RedisServer, group: &str) -> i64 {
    match redis.try_command(&["XPENDING", TOPIC, group]).await {
        Ok(Reply::Array(items)) => items[0].int(),
        _ => -1,
    }
}

/// Events that no node took yet; -1 without the group.
async fn waiting(redis: &RedisServer) -> i64 {
    let Ok(Reply::Array(groups)) = redis.try_command(&["XINFO", "GROUPS", TOPIC]).await else {
        return -1;
    };
    for group in groups {
        let fields = group.items();
        let lag = fields.iter().position(|field| field.text() == "lag");
        if let Some(Reply::Int(lag)) = lag.map(|at| &fields[at + 1]) {
            return *lag;
        }
    }
    -1
}

async fn all_confirmed(redis: &RedisServer) {
    until("all is taken and confirmed", async || {
        waiting(redis).await == 0 && pending(redis).await == 0
    })
    .await;
}

async fn outcomes(node: &TestNode, outcome: &str) -> u64 {
    let start =
        format!("tidings_source_stream_events_total{{topic=\"{TOPIC}\",outcome=\"{outcome}\"}} ");
    let metrics = node.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.map_or(0, |count| count.parse().expect("a count"))
}

async fn device(node: &TestNode, user: &str) -> Heard {
    Heard::on(node.join(user, "").await.0)
}

async fn until_heard(device: &Heard, count: usize) {
    until("the events are heard", async || device.count() >= count).await;
}

fn numbers(count: u32) -> Vec<Value> {
    (0..count).map(Value::from).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_delivered_once_by_one_of_the_nodes() {
    let redis = RedisServer::start().await;
    // Added before anybody takes them.
    for n in 0..20 {
        add_event(&redis, "42", n).await;
    }
    let nodes = [
        node_at(&redis.url(), "a", with_source("")).await,
        node_at(&redis.url(), "b", with_source("")).await,
    ];
    all_ready(&nodes).await;
    let devices = [device(&nodes[0], "42").await, device(&nodes[1], "42").await];
    for n in 20..300 {
        add_event(&redis, "42", n).await;
    }
    // The inbox held the first ones until a device was there: one of the two has them.
    all_confirmed(&redis).await;
    for device in &devices {
        until("the last is heard", async || {
            device.data().contains(&json!(299))
        })
        .await;
        device.assert_no_doubles();
    }
    let both = outcomes(&nodes[0], "accepted").await + outcomes(&nodes[1], "accepted").await;
    assert_eq!(both, 300);
    for n in 0..300 {
        let heard = devices.iter().any(|d| d.data().contains(&json!(n)));
        assert!(heard, "{n}");
    }
    let (_, kept) = nodes[0].get("/v1/history?address=user:42&limit=1000").await;
    assert_eq!(kept["entries"].as_array().map(Vec::len), Some(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_keeps_the_order_of_the_stream_for_each_user() {
    let redis = RedisServer::start().await;
    let node = node_at(&redis.url(), "a", with_source("")).await;
    let devices = [device(&node, "42").await, device(&node, "43").await];
    for n in 0..200 {
        add_event(&redis, "42", n).await;
        add_event(&redis, "43", n).await;
    }
    for device in &devices {
        until_heard(device, 200).await;
        assert_eq!(device.data(), numbers(200));
        let positions = device.messages().iter().all(|m| m["position"].is_string());
        assert!(positions, "they are kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_had_taken_another_delivers_once() {
    let redis = RedisServer::start().await;
    // Its way to the backplane is cut, so that it takes and cannot deliver.
    let proxy = ChaosProxy::to(redis.port).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tidings.toml");
    let text = format!(
        "[node]\nid = \"doomed\"\n[backplane]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:{}\"\n[[sources]]\nkind = \"redis-stream\"\ntopic = \"{TOPIC}\"\nurl = {:?}\nuser = \"/customer\"\nmessage = \"/n\"\n",
        proxy.port,
        redis.url()
    );
    std::fs::write(&file, text).expect("written");
    let mut doomed = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["dev", "--config"])
        .arg(&file)
        .args(["--set", "public.listen=127.0.0.1:0"])
        .args(["--set", "service.listen=127.0.0.1:0"])
        .args(["--set", "admin.listen=127.0.0.1:0"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary runs");
    until("it made the group", async || pending(&redis).await == 0).await;
    proxy.set(Whom::All, Way::Up, Fault::Cut);
    for n in 0..5 {
        add_event(&redis, "42", n).await;
    }
    // It takes no more while it cannot deliver what it has.
    until("it has taken some", async || pending(&redis).await > 0).await;
    let taken = pending(&redis).await;
    doomed.kill().await.expect("killed");
    let unsecured = |config: &mut Config| {
        with_source("")(config);
        config.backplane.secret = None;
    };
    let node = node_at(&redis.url(), "heir", unsecured).await;
    let device = device(&node, "42").await;
    all_confirmed(&redis).await;
    until_heard(&device, 5).await;
    let mut heard: Vec<_> = device.data().iter().map(Value::as_u64).collect();
    heard.sort_unstable();
    assert_eq!(heard, (0..5).map(Some).collect::<Vec<_>>());
    assert_eq!(outcomes(&node, "claimed").await, taken as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_delivered_and_not_confirmed_is_not_delivered_again() {
    let redis = RedisServer::start().await;
    let node = node_at(&redis.url(), "a", with_source("")).await;
    let device = device(&node, "42").await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(add_event(&redis, "42", n).await);
    }
    until_heard(&device, 5).await;
    all_confirmed(&redis).await;
    // As if the node that delivered them had died before it confirmed.
    let mut claim = vec!["XCLAIM", TOPIC, "tidings", "dead", "0"];
    claim.extend(ids.iter().map(String::as_str));
    claim.push("FORCE");
    redis.command(&claim).await;
    assert_eq!(pending(&redis).await, 5);
    let other = node_at(&redis.url(), "b", with_source("")).await;
    all_confirmed(&redis).await;
    add_event(&redis, "42", 5).await;
    until_heard(&device, 6).await;
    assert_eq!(device.data(), numbers(6));
    device.assert_no_doubles();
    let again = outcomes(&node, "claimed").await + outcomes(&other, "claimed").await;
    assert!(again >= 5, "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_under_its_name_begins_with_what_it_had_not_confirmed() {
    let redis = RedisServer::start().await;
    let create = ["XGROUP", "CREATE", TOPIC, "tidings", "0", "MKSTREAM"];
    redis.command(&create).await;
    for n in 0..150 {
        add_event(&redis, "42", n).await;
    }
    let take = [
        "XREADGROUP",
        "GROUP",
        "tidings",
        "a",
        "COUNT",
        "130",
        "STREAMS",
        TOPIC,
        ">",
    ];
    redis.command(&take).await;
    // Some of it is in the stream no more.
    redis.command(&["XTRIM", TOPIC, "MAXLEN", "=", "140"]).await;
    let slow = |config: &mut Config| {
        config.sources = vec![source("").clone()];
        config.sources[0].claim_after = None;
    };
    let node = node_at(&redis.url(), "a", |config| {
        slow(config);
        config.inbox.max_messages = 1000;
    })
    .await;
    let device = device(&node, "42").await;
    all_confirmed(&redis).await;
    until_heard(&device, 140).await;
    assert_eq!(
        device.data(),
        (10..150).map(Value::from).collect::<Vec<_>>()
    );
    assert_eq!(outcomes(&node, "trimmed").await, 10);
    assert_eq!(outcomes(&node, "claimed").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_event_is_a_dead_letter_with_its_reason_and_stops_nothing() {
    let redis = RedisServer::start().await;
    let node = node_at(&redis.url(), "a", with_source("")).await;
    let device = device(&node, "42").await;
    let big = json!({"customer": 42, "n": "x".repeat(70_000)}).to_string();
    let malformed: [(&str, &[u8], &str); 6] = [
        ("data", b"\xff\x00\n", "not_json"),
        ("json", b"{\"customer\":42,\"n\":1}", "no_field"),
        ("data", b"{\"n\":1}", "no_address"),
        ("data", b"{\"customer\":\"4 2\",\"n\":1}", "bad_address"),
        ("data", b"{\"customer\":42}", "no_message"),
        ("data", big.as_bytes(), "too_big"),
    ];
    let mut ids = Vec::new();
    for (n, (field, event, _)) in (0..).zip(&malformed) {
        ids.push(add(&redis, field, event).await);
        add_event(&redis, "42", n).await;
    }
    until_heard(&device, 6).await;
    assert_eq!(device.data(), numbers(6));
    all_confirmed(&redis).await;
    let letters = redis.command(&["XRANGE", DEAD, "-", "+"]).await.items();
    assert_eq!(letters.len(), 6);
    for ((letter, id), (field, event, reason)) in letters.into_iter().zip(&ids).zip(&malformed) {
        let [_, fields] = <[Reply; 2]>::try_from(letter.items()).expect("an entry");
        let fields: Vec<_> = fields.items().into_iter().map(Reply::bytes).collect();
        let expected: [&[u8]; 6] = [
            b"tidings.reason",
            reason.as_bytes(),
            b"tidings.id",
            id.as_bytes(),
            field.as_bytes(),
            event,
        ];
        assert_eq!(fields, expected, "{reason}");
        let line = format!("tidings_source_malformed_total{{reason=\"{reason}\"}} 1");
        assert!(node.metrics().await.contains(&line), "{line}");
    }
    assert_eq!(outcomes(&node, "dead").await, 6);
    assert_eq!(outcomes(&node, "accepted").await, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_confirmed_while_the_backplane_refuses() {
    let log = RedisServer::start().await;
    let mut redis = RedisServer::start().await;
    let keys = format!("url = {:?}", log.url());
    let node = node_at(&redis.url(), "a", with_source(&keys)).await;
    let device = device(&node, "42").await;
    add_event(&log, "42", 0).await;
    until_heard(&device, 1).await;
    redis.kill().await;
    for n in 1..4 {
        add_event(&log, "42", n).await;
    }
    until("it was tried more than once", async || {
        outcomes(&node, "retried").await > 3
    })
    .await;
    assert!(pending(&log).await > 0);
    assert_eq!(pending(&log).await + waiting(&log).await, 3);
    redis.restart().await;
    all_confirmed(&log).await;
    until_heard(&device, 4).await;
    assert_eq!(device.data(), numbers(4));
    device.assert_no_doubles();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_taken_on_after_a_restart_a_freeze_and_a_flush() {
    let redis = RedisServer::start().await;
    let mut log =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let keys = format!("url = {:?}", log.url());
    let node = node_at(&redis.url(), "a", with_source(&keys)).await;
    let device = device(&node, "42").await;
    let mut added = 0;
    let mut more = async |log: &RedisServer| {
        for _ in 0..3 {
            add_event(log, "42", added).await;
            added += 1;
        }
        until_heard(&device, added as usize).await;
        all_confirmed(log).await;
    };
    more(&log).await;
    log.restart().await;
    more(&log).await;
    log.pause();
    until("the connection is given up", async || {
        let metrics = node.metrics().await;
        metrics.contains("tidings_source_links 0\n")
    })
    .await;
    log.resume();
    more(&log).await;
    log.command(&["FLUSHALL"]).await;
    more(&log).await;
    log.command(&["XGROUP", "DESTROY", TOPIC, "tidings"]).await;
    until("the group is made again", async || pending(&log).await == 0).await;
    log.restart_empty().await;
    more(&log).await;
    assert_eq!(device.data(), numbers(15));
    device.assert_no_doubles();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_entry_may_go_to_a_user_and_to_a_channel_and_its_fields_may_be_the_event() {
    let redis = RedisServer::start().await;
    let to = |pointers: &str| -> SourceConfig {
        let text = format!(
            "kind = \"redis-stream\"\ntopic = \"{TOPIC}\"\nfield = \"\"\ngroup = \"screens\"\nid = \"/id\"\n{pointers}"
        );
        toml::from_str(&text).expect("a source")
    };
    let node = node_at(&redis.url(), "a", |config| {
        config.sources = vec![
            to("user = \"/seller\"\nmessage = \"/sum\""),
            to("channel = \"/shop\"\nmessage = \"/note\""),
        ];
    })
    .await;
    let (socket, _) = node.join("42", "&channels=shop:eu").await;
    let device = Heard::on(socket);
    let sold = async |id: &str, sum: &str| {
        let words = [
            "XADD", TOPIC, "*", "id", id, "seller", "42", "shop", "shop:eu", "sum", sum, "note",
            "sold",
        ];
        redis.command(&words).await;
    };
    sold("7", "12.50").await;
    until_heard(&device, 2).await;
    // The service tried again; then it is wrong about an id.
    sold("7", "12.50").await;
    sold("7", "13.00").await;
    sold("8", "14.00").await;
    until_heard(&device, 4).await;
    until("all is confirmed", async || {
        pending_of(&redis, "screens").await == 0
    })
    .await;
    let mut heard: Vec<_> = device
        .messages()
        .iter()
        .map(|m| (m["channel"].to_string(), m["data"].to_string()))
        .collect();
    heard.sort();
    let text = |channel: &str, data: &str| (channel.to_owned(), format!("{data:?}"));
    let (shop, user) = ("\"shop:eu\"", "null");
    let expected = [
        text(shop, "sold"),
        text(shop, "sold"),
        text(user, "12.50"),
        text(user, "14.00"),
    ];
    assert_eq!(heard, expected);
    let letters = redis.command(&["XRANGE", DEAD, "-", "+"]).await.text();
    assert!(letters.contains("tidings.reason\nconflict\n") && letters.contains("13.00"));
    assert_eq!(letters.matches("tidings.reason").count(), 1, "{letters}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_the_stream_and_its_dead_letters_are_found_where_they_are() {
    let cluster = RedisCluster::start().await;
    let node = node_at(&cluster.url(), "a", with_source("")).await;
    let device = device(&node, "42").await;
    let at = async |key| &cluster.primaries[cluster.owner(key).await.0];
    let (log, dead) = (at(TOPIC).await, at(DEAD).await);
    assert_ne!(log.port, dead.port, "this test is about two servers");
    add(log, "data", "nonsense").await;
    add_event(log, "42", 0).await;
    until_heard(&device, 1).await;
    all_confirmed(log).await;
    assert_eq!(dead.command(&["XLEN", DEAD]).await.int(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_leaves_nothing_behind() {
    let redis = RedisServer::start().await;
    let mut a = node_at(&redis.url(), "a", with_source("")).await;
    let b = node_at(&redis.url(), "b", with_source("")).await;
    let device = device(&b, "42").await;
    let leaving = a.node.take().expect("it runs");
    let adding = async {
        for n in 0..200 {
            add_event(&redis, "42", n).await;
        }
    };
    tokio::join!(leaving.leave(std::future::pending()), adding);
    until_heard(&device, 200).await;
    all_confirmed(&redis).await;
    device.assert_no_doubles();
    assert_eq!(outcomes(&b, "claimed").await, 0, "nothing was left behind");
}
