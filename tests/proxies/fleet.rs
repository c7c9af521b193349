use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::through;
use crate::support::fleet::{self, node_at};
use crate::support::heard::Heard;
use crate::support::proxy::{Kind, Place, Proxied, Proxy};
use crate::support::redis::RedisServer;
use crate::support::{TestNode, next};

through!(
    a_red_node_gets_no_newcomers_and_keeps_who_is_there,
    a_change_of_nodes_under_load_cuts_nobody,
);

/// Nodes `a` and `b` of one fleet, as nodes 1 and 2 of a place.
async fn two_nodes(redis: &RedisServer, place: Place) -> Vec<TestNode> {
    let mut nodes = Vec::new();
    for (number, name) in [(1, "a"), (2, "b")] {
        let url = redis.url();
        let node = node_at(&url, name, |c| {
            place.take(c, number);
            c.drain.deregister_delay = Duration::from_secs(3600);
        });
        nodes.push(node.await);
    }
    fleet::all_ready(&nodes).await;
    nodes
}

/// As many connections of the user as it takes until both nodes have some, told apart.
async fn on_both(proxy: &Proxy, issuer: &TestNode) -> (Vec<Proxied>, Vec<Proxied>) {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let mut socket = proxy.join(issuer, fleet::USER).await;
        let welcome = next(&mut socket).await;
        match welcome["node"].as_str() {
            Some("a") => of_a.push(socket),
            Some("b") => of_b.push(socket),
            other => panic!("{other:?}"),
        }
        if of_a.len() >= 3 && of_b.len() >= 3 {
            return (of_a, of_b);
        }
    }
    panic!("all at one node: {} and {}", of_a.len(), of_b.len());
}

async fn a_red_node_gets_no_newcomers_and_keeps_who_is_there(kind: Kind) {
    let (redis, place) = (RedisServer::start().await, Place::new());
    let mut nodes = two_nodes(&redis, place).await;
    let proxy = Proxy::start(kind, place, &[1, 2]).await;
    let (of_a, of_b) = on_both(&proxy, &nodes[1]).await;
    let devices: Vec<_> = of_a.into_iter().chain(of_b).map(Heard::on).collect();
    let (now, told) = tokio::sync::oneshot::channel::<()>();
    let leaving = nodes[0].node.take().expect("it runs");
    let left = tokio::spawn(leaving.leave(async {
        let _ = told.await;
    }));
    if kind == Kind::Nginx {
        // It asks nobody for their health: its operator does.
        proxy.now_knows(&[2]).await;
    }
    proxy.until_newcomers_are_at(&nodes[1], "b").await;
    let answer = nodes[1].push(fleet::USER, json!("still there")).await;
    for device in &devices {
        device.until_it_has(&answer).await;
        device.assert_open();
    }
    now.send(()).expect("it waits");
    left.await.expect("it left");
}

async fn a_change_of_nodes_under_load_cuts_nobody(kind: Kind) {
    let (redis, place) = (RedisServer::start().await, Place::new());
    let nodes = two_nodes(&redis, place).await;
    let proxy = Proxy::start(kind, place, &[1]).await;
    let mut devices = Vec::new();
    for _ in 0..10 {
        let mut socket = proxy.join(&nodes[0], fleet::USER).await;
        assert_eq!(next(&mut socket).await["node"], "a");
        devices.push(Heard::on(socket));
    }
    let stop = AtomicBool::new(false);
    let load = fleet::load(&nodes[1..], None, &stop);
    let change = async {
        fleet::heard_again(&devices).await;
        // Each newcomer in between must be let in, wherever.
        proxy.now_knows(&[2]).await;
        proxy.until_newcomers_are_at(&nodes[1], "b").await;
        fleet::heard_again(&devices).await;
        proxy.now_knows(&[1, 2]).await;
        fleet::heard_again(&devices).await;
        stop.store(true, Ordering::Release);
    };
    let (outcomes, ()) = tokio::join!(load, change);
    for outcome in &outcomes {
        assert_eq!(outcome.status, 200, "{outcome:?}");
        for device in &devices {
            device.until_it_has(&outcome.answer).await;
        }
    }
    for device in &devices {
        device.assert_open();
        device.assert_no_doubles();
    }
}
