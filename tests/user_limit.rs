//! The limit of connections per user holds across the cluster.

use futures_util::future::join_all;
use serde_json::json;
use tidings::hub::UserLimit;

use crate::support::events::Events;
use crate::support::fleet::{all_ready, node_at};
use crate::support::redis::RedisServer;
use crate::support::{Socket, TestNode, closed, next_message, refused, until};

async fn fleet(redis: &RedisServer, limit: u32, past: UserLimit) -> Vec<TestNode> {
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let limited = |c: &mut tidings::config::Config| {
            c.limits.connections_per_user = limit;
            c.limits.user_limit = past;
        };
        nodes.push(node_at(&redis.url(), name, limited).await);
    }
    all_ready(&nodes).await;
    nodes
}

async fn join(node: &TestNode) -> Socket {
    node.join("42", "").await.0
}

async fn count(node: &TestNode) -> usize {
    let (status, body) = node.get("/v1/users/42/connections").await;
    assert_eq!((status, &body["unknown"]), (200, &json!(0)), "{body}");
    body["connections"].as_array().expect("a list").len()
}

async fn until_count(node: &TestNode, wanted: usize) {
    until("as many as may are there", async || {
        count(node).await == wanted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_users_limit_the_oldest_of_all_nodes_closes() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 2, UserLimit::Replace).await;
    let mut oldest = join(&nodes[1]).await;
    let mut second = join(&nodes[0]).await;
    let _third = join(&nodes[0]).await;
    assert_eq!(u16::from(closed(&mut oldest).await.code), 4502);
    let _fourth = join(&nodes[1]).await;
    assert_eq!(u16::from(closed(&mut second).await.code), 4502);
    until_count(&nodes[0], 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_users_limit_the_newest_is_refused_on_any_node() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 2, UserLimit::Refuse).await;
    let _inside = (join(&nodes[0]).await, join(&nodes[1]).await);
    for node in &nodes {
        let (status, body) = refused(&node.url("42", "").await, &[]).await;
        assert_eq!((status, &body["code"]), (429, &json!("user_limit")));
        node.join("43", "").await;
    }
    assert_eq!(count(&nodes[0]).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_continues_a_connection_elsewhere_counts_as_one_with_it() {
    for past in [UserLimit::Replace, UserLimit::Refuse] {
        let redis = RedisServer::start().await;
        let nodes = fleet(&redis, 2, past).await;
        let mut other = join(&nodes[0]).await;
        let ticket = nodes[0].ticket(json!({"user_id": "42"})).await;
        let query = format!("ticket={ticket}");
        let mut events = Events::open(&nodes[0], &query, &[]).await.expect("a 200");
        events.next_of("welcome").await;
        let id = events.last_id.clone();
        let mut again = Events::back(&nodes[1], &query, &id).await.expect("a 200");
        assert_eq!(again.next_of("welcome").await["user"], "42");
        assert_eq!(events.try_next().await, None, "its place was taken");
        until_count(&nodes[1], 2).await;
        // The other one lives: it gets what is pushed.
        nodes[1].push("42", json!("still here?")).await;
        let text = next_message(&mut other).await.expect("it is open");
        assert!(text.to_string().contains("still here?"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_come_to_two_nodes_at_once_end_at_the_limit() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 3, UserLimit::Replace).await;
    let all = join_all((0..20).map(|n| join(&nodes[n % 2]))).await;
    until_count(&nodes[0], 3).await;
    drop(all);

    let nodes = fleet(&redis, 3, UserLimit::Refuse).await;
    let urls = join_all((0..20).map(|n| nodes[n % 2].url("42", ""))).await;
    let all = join_all(urls.iter().map(|url| crate::support::connect(url))).await;
    let inside = all.iter().filter(|opened| opened.is_ok()).count();
    assert!(inside <= 3, "{inside}");
}
