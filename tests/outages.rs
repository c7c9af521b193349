//! Redis goes away and comes back: an answer is accepted, refused or unknown and never wrong, connections live on, and
//! readiness tells the truth.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::fleet::{
    all_ready, assert_decided, assert_honest, devices, fleet_with, heard_again, load, node_at,
    push_as, reunited, until_refused,
};
use crate::support::redis::RedisServer;
use crate::support::until;

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

async fn redis_goes_away_under_load(away: Away) {
    let mut redis = RedisServer::start().await;
    let grace = Duration::from_secs(3);
    let nodes = fleet_with(&redis.url(), |c| c.backplane.readiness_grace = grace).await;
    let devices = devices(&nodes).await;
    let stop = AtomicBool::new(false);
    let pushers = load(&nodes, None, &stop);
    let scenario = async {
        heard_again(&devices).await;
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
        heard_again(&devices).await;
        stop.store(true, Ordering::Release);
    };
    let (outcomes, ()) = tokio::join!(pushers, scenario);
    // What was under way when Redis went is tried again until its deadline, and may be all that the load has tried.
    let missed = |status| matches!(status, 503 | 504);
    assert!(outcomes.iter().any(|outcome| missed(outcome.status)));
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
