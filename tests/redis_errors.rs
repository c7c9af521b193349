//! Redis is there and says no.

use std::time::Duration;

use serde_json::json;

use crate::support::fleet::{
    USER, assert_decided, devices, fleet, fleet_with, push_as, reunited, until_refused,
};
use crate::support::heard::Heard;
use crate::support::redis::{RedisServer, SLOW_LOAD};
use crate::support::{TestNode, connect, refused, until};

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
            connect(&url).await.is_ok()
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forbids_to_publish_makes_nodes_red_after_the_grace() {
    let redis = RedisServer::start().await;
    let grace = Duration::from_secs(2);
    let nodes = fleet_with(&redis.url(), |c| c.backplane.readiness_grace = grace).await;
    let devices = devices(&nodes).await;
    redis
        .command(&["ACL", "SETUSER", "default", "-publish"])
        .await;
    for (n, node) in nodes.iter().enumerate() {
        until_refused(node).await;
        let others: Vec<_> = (0..3).filter(|o| *o != n).map(|o| &devices[o]).collect();
        assert_decided(node, &devices[n], &others).await;
    }
    // Nothing goes from node to node: a balancer must not think that all is well.
    for node in &nodes {
        until("the node is not ready", async || {
            node.readyz().await.0 == 503
        })
        .await;
    }
    redis
        .command(&["ACL", "SETUSER", "default", "+publish"])
        .await;
    reunited(&nodes, &devices).await;
}
