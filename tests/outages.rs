//! Redis fails in every way it can: an answer is accepted, refused or unknown and never wrong, connections live on, and
//! readiness tells the truth.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::fleet::{
    USER, all_ready, assert_honest, devices, fleet, fleet_with, load, node_at, push_as, reunited,
};
use crate::support::heard::Heard;
use crate::support::redis::{RedisServer, SLOW_LOAD};
use crate::support::{TestNode, refused, until};

/// How Redis goes away, and comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    Killed,
    Frozen,
}

/// How long Redis stays away once every node is red: a moment, or as many seconds as the environment says.
fn longer() -> Duration {
    let set = std::env::var("TIDINGS_OUTAGE_SECONDS").ok();
    let seconds = set.map_or(0, |text| {
        text.parse().expect("TIDINGS_OUTAGE_SECONDS is a number")
    });
    Duration::from_secs(seconds)
}

/// Waits until a node refuses what it cannot keep.
async fn until_refused(node: &TestNode) {
    until("a push is refused", async || {
        push_as(node, None, json!("refused?")).await.0 == 503
    })
    .await;
}

/// What is answered while Redis is away: refused, but for what is said to be live only, which the node's own have.
async fn assert_decided(node: &TestNode, own: &Heard, others: &[&Heard]) {
    for class in [None, Some("KEPT")] {
        let (status, answer) = push_as(node, class, json!("refused")).await;
        assert_eq!(
            (status, &answer["code"]),
            (503, &json!("UNAVAILABLE")),
            "{class:?}: {answer}"
        );
    }
    let (status, answer) = push_as(node, Some("VOLATILE"), json!("live")).await;
    assert_eq!(
        (status, &answer["degraded"]),
        (200, &json!(true)),
        "{answer}"
    );
    assert_eq!(
        (&answer["status"], &answer["local_connections"]),
        (&json!("DELIVERED_LOCALLY"), &json!(1)),
        "{answer}"
    );
    own.until_it_has(&answer).await;
    assert!(others.iter().all(|other| !other.has(&answer)));
    assert!(!own.data().contains(&json!("refused")));
}

async fn redis_goes_away_under_load(away: Away) {
    let mut redis = RedisServer::start().await;
    let grace = Duration::from_secs(3);
    let nodes = fleet_with(&redis.url(), |c| c.backplane.readiness_grace = grace).await;
    let devices = devices(&nodes).await;
    let stop = AtomicBool::new(false);
    let pushers = load(&nodes, None, &stop);
    let scenario = async {
        until("the load runs", async || {
            devices.iter().all(|device| device.count() > 50)
        })
        .await;
        match away {
            Away::Killed => redis.kill().await,
            Away::Frozen => redis.pause(),
        }
        for node in &nodes {
            until_refused(node).await;
            if away == Away::Killed {
                // A blip of the Redis that all share takes no node out of the balancer.
                assert_eq!(node.readyz().await.0, 200);
            }
        }
        for (n, node) in nodes.iter().enumerate() {
            let others: Vec<_> = (0..3).filter(|o| *o != n).map(|o| &devices[o]).collect();
            assert_decided(node, &devices[n], &others).await;
        }
        for node in &nodes {
            until("the node is not ready", async || {
                node.readyz().await.0 == 503
            })
            .await;
            let (_, reasons) = node.readyz().await;
            assert!(
                reasons.contains("backplane") || reasons.contains("Redis"),
                "{reasons}"
            );
        }
        tokio::time::sleep(longer()).await;
        match away {
            Away::Killed => redis.restart().await,
            Away::Frozen => redis.resume(),
        }
        all_ready(&nodes).await;
        let had: Vec<_> = devices.iter().map(Heard::count).collect();
        until("the load is heard again", async || {
            devices
                .iter()
                .zip(&had)
                .all(|(device, had)| device.count() > had + 50)
        })
        .await;
        stop.store(true, Ordering::Release);
    };
    let (outcomes, ()) = tokio::join!(pushers, scenario);
    assert!(outcomes.iter().any(|outcome| outcome.status == 503));
    reunited(&nodes, &devices).await;
    assert_honest(&outcomes, &devices);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_is_refused_honestly_and_the_same_connections_get_later_pushes() {
    redis_goes_away_under_load(Away::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_redis_is_refused_honestly_and_the_same_connections_get_later_pushes() {
    redis_goes_away_under_load(Away::Frozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_without_redis_and_is_ready_once_it_comes() {
    let mut redis = RedisServer::start().await;
    redis.kill().await;
    let nodes = [
        node_at(&redis.url(), "a", |_| {}).await,
        node_at(&redis.url(), "b", |_| {}).await,
    ];
    for node in &nodes {
        assert_eq!(node.readyz().await.0, 503);
        assert_eq!(push_as(node, None, json!("nobody")).await.0, 503);
    }
    redis.restart().await;
    all_ready(&nodes).await;
    let devices = devices(&nodes).await;
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_subscriber_links_are_rebuilt_under_load() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    let stop = AtomicBool::new(false);
    let pushers = load(&nodes, None, &stop);
    let scenario = async {
        for kind in ["pubsub", "normal", "pubsub"] {
            redis.command(&["CLIENT", "KILL", "TYPE", kind]).await;
            let had: Vec<_> = devices.iter().map(Heard::count).collect();
            until("the load is heard again", async || {
                devices
                    .iter()
                    .zip(&had)
                    .all(|(device, had)| device.count() > had + 50)
            })
            .await;
        }
        stop.store(true, Ordering::Release);
    };
    let (outcomes, ()) = tokio::join!(pushers, scenario);
    reunited(&nodes, &devices).await;
    assert_honest(&outcomes, &devices);
}

/// Two nodes beside the Redis, and one behind the proxy.
async fn one_behind(redis: &RedisServer, proxy: &ChaosProxy) -> Vec<TestNode> {
    // Longer than the test: what makes a node red here is its own trouble, which is told at once.
    let an_hour = Duration::from_secs(3600);
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let mut nodes = Vec::new();
    for (name, url) in [("a", redis.url()), ("b", redis.url()), ("c", url)] {
        nodes.push(node_at(&url, name, |c| c.backplane.readiness_grace = an_hour).await);
    }
    all_ready(&nodes).await;
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_subscriber_link_is_found_though_commands_go_on() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let nodes = one_behind(&redis, &proxy).await;
    let devices = devices(&nodes).await;
    for way in [Way::Down, Way::Up] {
        proxy.set(Whom::Marked, way, Fault::Cut);
        // New connections need a new subscription, so that a link that hears but cannot speak is found, too.
        until("the deaf node is not ready", async || {
            let url = nodes[2].url("late", "").await;
            tokio::spawn(async move {
                let connecting = crate::support::connect(&url);
                let _ = tokio::time::timeout(Duration::from_secs(5), connecting).await;
            });
            nodes[2].readyz().await.0 == 503
        })
        .await;
        assert_eq!(nodes[0].readyz().await.0, 200);
        let (status, answer) = push_as(&nodes[0], None, json!("for who hears")).await;
        assert_eq!(status, 200, "{answer}");
        devices[0].until_it_has(&answer).await;
        devices[1].until_it_has(&answer).await;
        let (status, answer) = push_as(&nodes[2], Some("VOLATILE"), json!("from the deaf")).await;
        assert_eq!(
            (status, &answer["degraded"]),
            (200, &json!(true)),
            "{answer}"
        );
        proxy.set(Whom::Marked, way, Fault::None);
        reunited(&nodes, &devices).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_command_link_is_found_though_messages_come() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let nodes = one_behind(&redis, &proxy).await;
    let devices = devices(&nodes).await;
    proxy.set(Whom::Unmarked, Way::Down, Fault::Cut);
    until_refused(&nodes[2]).await;
    let (status, answer) = push_as(&nodes[0], None, json!("it still hears")).await;
    assert_eq!(status, 200, "{answer}");
    for device in &devices[..2] {
        device.until_it_has(&answer).await;
    }
    proxy.set(Whom::Unmarked, Way::Down, Fault::None);
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_line_to_redis_ends_no_connection() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::to(redis.port).await;
    let nodes = one_behind(&redis, &proxy).await;
    let devices = devices(&nodes).await;
    let stop = AtomicBool::new(false);
    let pushers = load(&nodes, None, &stop);
    let scenario = async {
        for fault in [
            Fault::Delay(Duration::from_millis(40)),
            Fault::Slow(20_000),
            Fault::Slow(200),
        ] {
            proxy.set_both(Whom::All, fault);
            let had = devices[0].count();
            until("the load goes on", async || devices[0].count() > had + 50).await;
        }
        proxy.set_both(Whom::All, Fault::None);
        for ending in [
            |proxy: &ChaosProxy| proxy.reset(Whom::All),
            |proxy: &ChaosProxy| proxy.half_close(Whom::All, Way::Up),
            |proxy: &ChaosProxy| proxy.half_close(Whom::All, Way::Down),
        ] {
            ending(&proxy);
            let had = devices[2].count();
            until("the load is heard again", async || {
                devices[2].count() > had + 50
            })
            .await;
        }
        stop.store(true, Ordering::Release);
    };
    let (outcomes, ()) = tokio::join!(pushers, scenario);
    reunited(&nodes, &devices).await;
    assert_honest(&outcomes, &devices);
}

/// A push is either accepted and heard by all, or refused.
async fn assert_accepted_or_refused(nodes: &[TestNode], devices: &[Heard]) {
    for (n, node) in nodes.iter().enumerate() {
        let data = json!({"either": n});
        let (status, answer) = push_as(node, None, data.clone()).await;
        match status {
            200 => {
                for device in devices {
                    device.until_it_has(&answer).await;
                }
            }
            _ => {
                assert_eq!(
                    (status, &answer["code"]),
                    (503, &json!("UNAVAILABLE")),
                    "{answer}"
                );
                assert!(!devices.iter().any(|device| device.data().contains(&data)));
            }
        }
    }
}

/// Waits until no node issues a ticket, and Redis has said why.
async fn no_tickets(redis: &RedisServer, nodes: &[TestNode], error: &str) {
    for node in nodes {
        until(&format!("a ticket is refused for {error}"), async || {
            let (status, answer) = node.post("/v1/tickets", json!({"user_id": USER})).await;
            let refused = (status, answer["code"].as_str()) == (503, Some("UNAVAILABLE"));
            assert!(refused || status == 200, "{status} {answer}");
            let said = redis.command(&["INFO", "errorstats"]).await.text();
            refused && said.contains(&format!("errorstat_{error}:"))
        })
        .await;
    }
}

async fn tickets_again(nodes: &[TestNode]) {
    for node in nodes {
        until("tickets are issued and redeemed again", async || {
            let (status, answer) = node.post("/v1/tickets", json!({"user_id": "43"})).await;
            let Some(ticket) = answer["ticket"].as_str().filter(|_| status == 200) else {
                return false;
            };
            let url = format!("ws://{}/ws?ticket={ticket}", node.at.public);
            crate::support::connect(&url).await.is_ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_turned_replica_issues_no_tickets() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    let url = nodes[0].url("44", "").await;
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    no_tickets(&redis, &nodes, "READONLY").await;
    assert_eq!(refused(&url, &[]).await.0, 503);
    assert_accepted_or_refused(&nodes, &devices).await;
    redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    tickets_again(&nodes).await;
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_loads_issues_no_tickets_until_it_has_loaded() {
    let mut redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    redis.fill(500).await;
    redis.restart_loading(SLOW_LOAD).await;
    no_tickets(&redis, &nodes, "LOADING").await;
    for device in &devices {
        device.assert_open();
    }
    redis.finish_loading().await;
    tickets_again(&nodes).await;
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_memory_issues_no_tickets() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    no_tickets(&redis, &nodes, "OOM").await;
    assert_accepted_or_refused(&nodes, &devices).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    tickets_again(&nodes).await;
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_wants_another_password_is_refused_honestly() {
    let mut redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    redis.require_password("new").await;
    for kind in ["normal", "pubsub"] {
        redis.command(&["CLIENT", "KILL", "TYPE", kind]).await;
    }
    for node in &nodes {
        until_refused(node).await;
    }
    for (n, node) in nodes.iter().enumerate() {
        let others: Vec<_> = (0..3).filter(|o| *o != n).map(|o| &devices[o]).collect();
        assert_decided(node, &devices[n], &others).await;
    }
    no_tickets(&redis, &nodes, "NOAUTH").await;
    redis.require_password("").await;
    tickets_again(&nodes).await;
    reunited(&nodes, &devices).await;
}
