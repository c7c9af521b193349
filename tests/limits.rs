//! What happens past a limit, and that all is given back.

use serde_json::json;

use crate::support::process::{Running, dev_after};
use crate::support::{connect, next, next_of, node, node_with, refused, say, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_connections_leaves_nothing_behind() {
    let node = node_with(|c| c.limits.handshakes_per_second = 0).await;
    for _ in 0..5 {
        let mut sockets = Vec::new();
        for n in 0..100 {
            sockets.push(node.open(&format!("u{}", n % 7), "&channels=a,b").await);
        }
        drop(sockets);
    }
    until("all places are free", async || {
        node.node().connections() == 0
    })
    .await;
    until("all sessions are gone", async || {
        node.metrics().await.contains("tidings_connections 0\n")
    })
    .await;
    assert_eq!(node.node().outbox_bytes(), 0);
    assert_eq!(
        node.publish("a", json!(1)).await["status"],
        "NOBODY_CONNECTED"
    );
    assert_eq!(node.push("u1", json!(1)).await["status"], "STORED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_handshake_budget_is_later_and_an_unknown_ticket_costs_nothing() {
    let node = node_with(|c| c.limits.handshakes_per_second = 1).await;
    let unknown = format!("ws://{}/ws?ticket={}", node.at.public, "A".repeat(43));
    for _ in 0..5 {
        assert_eq!(refused(&unknown, &[]).await.0, 401);
    }
    let (first, second) = (node.url("42", "").await, node.url("43", "").await);
    let _first = connect(&first).await.expect("in the budget");
    assert_eq!(refused(&second, &[]).await.0, 503);
    // The refusal came before the redemption: the ticket is good still.
    until("the budget has room", async || {
        connect(&second).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_have_a_limit_and_the_connection_lives() {
    let node = node_with(|c| c.limits.subscriptions = 2).await;
    let (mut socket, _) = node.join("42", "&channels=a,b,c").await;
    next_of(&mut socket, "subscribed").await;
    next_of(&mut socket, "subscribed").await;
    assert_eq!(next(&mut socket).await["code"], "limit");
    say(
        &mut socket,
        json!({"type": "subscribe", "ref": 1, "channel": "d"}),
    )
    .await;
    let frame = next(&mut socket).await;
    assert_eq!(
        (&frame["code"], &frame["ref"]),
        (&json!("limit"), &json!(1))
    );
    node.push("42", json!("alive")).await;
    assert_eq!(next(&mut socket).await["data"], "alive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_over_the_limit_are_refused() {
    let node = node().await;
    let long = "x".repeat(40_000);
    let request = node
        .http
        .get(format!("http://{}/", node.at.public))
        .header("x-long", long);
    let status = request.send().await.map(|r| r.status().as_u16());
    assert!(matches!(status, Ok(431) | Err(_)), "{status:?}");
    node.join("42", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_descriptors_the_connections_live_and_new_ones_come_in_once_some_are_free() {
    // The limit is the child's own; it leaves room for about forty connections.
    let more = "--set limits.connections=1000 --set limits.handshake_timeout=1s";
    let running = Running::start(&mut dev_after("ulimit -n 80", more)).await;
    let node = &running.node;
    let (mut living, _) = node.join("42", "").await;
    // Both ends of the service door's connection are there already; these take what is left.
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(
            tokio::net::TcpStream::connect(node.at.public)
                .await
                .expect("the backlog takes it"),
        );
    }
    until("the node is out of descriptors", async || {
        node.push("42", json!("still here")).await;
        next(&mut living).await["data"] == "still here"
            && node.metrics().await.contains("reason=\"descriptors\"")
    })
    .await;
    drop(idle);
    let (mut late, _) = node.join("43", "").await;
    node.push("43", json!("welcome back")).await;
    assert_eq!(next(&mut late).await["data"], "welcome back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_takes_all_the_descriptors_that_it_may() {
    // The soft limit is what shells and systemd give; up to the hard one a process may take what it needs.
    let more = "--set limits.connections=1000";
    let running = Running::start(&mut dev_after("ulimit -Sn 64", more)).await;
    let node = &running.node;
    let mut sockets = Vec::new();
    for user in 0..100 {
        sockets.push(node.join(&format!("u{user}"), "").await);
    }
}
