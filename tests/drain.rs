//! How a node leaves.

use std::time::Duration;

use serde_json::json;

use crate::support::{closed, node_with, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_red_accepts_on_and_closes_with_1012() {
    let mut node = node_with(|c| {
        c.drain.deregister_delay = Duration::from_millis(800);
        c.drain.spread = Duration::from_millis(300);
    })
    .await;
    let (mut socket, _) = node.join("42", "").await;
    let ready = format!("http://{}/readyz", node.at.admin);
    assert_eq!(
        node.http
            .get(&ready)
            .send()
            .await
            .expect("answered")
            .status(),
        200
    );
    let leaving = tokio::spawn(
        node.node
            .take()
            .expect("it runs")
            .leave(std::future::pending()),
    );
    until("readiness is red", async || {
        node.http
            .get(&ready)
            .send()
            .await
            .is_ok_and(|r| r.status() == 503)
    })
    .await;
    let body = node
        .http
        .get(&ready)
        .send()
        .await
        .expect("answered")
        .text()
        .await
        .expect("text");
    assert_eq!(body, r#"{"ready":false,"reasons":["draining"]}"#);
    let (mut late, _) = node.join("43", "").await;
    assert_eq!(node.push("42", json!(1)).await["local_connections"], 1);
    for socket in [&mut socket, &mut late] {
        assert_eq!(u16::from(closed(socket).await.code), 1012);
    }
    leaving.await.expect("it left");
    assert!(
        tokio::net::TcpStream::connect(node.at.public)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_means_now() {
    let mut node = node_with(|c| c.drain.deregister_delay = Duration::from_secs(3600)).await;
    let (mut socket, _) = node.join("42", "").await;
    let (now, when) = tokio::sync::oneshot::channel::<()>();
    let leaving = node.node.take().expect("it runs").leave(async {
        let _ = when.await;
    });
    let leaving = tokio::spawn(leaving);
    now.send(()).expect("it listens");
    assert_eq!(u16::from(closed(&mut socket).await.code), 1012);
    leaving.await.expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_sessions_leaves_at_once() {
    let mut node = node_with(|c| c.drain.deregister_delay = Duration::from_secs(3600)).await;
    let leaving = node
        .node
        .take()
        .expect("it runs")
        .leave(std::future::pending());
    tokio::time::timeout(crate::support::DEADLINE, leaving)
        .await
        .expect("at once");
}
