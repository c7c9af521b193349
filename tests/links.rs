//! The lines between a node and Redis fail one by one, in every way a line can.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::fleet::{
    all_ready, assert_honest, devices, fleet, heard_again, load, node_at, push_as, reunited,
    until_refused,
};
use crate::support::heard::Heard;
use crate::support::redis::RedisServer;
use crate::support::{TestNode, connect, next_message, until};

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
async fn killed_subscriber_links_are_rebuilt_under_load() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    let stop = AtomicBool::new(false);
    let pushers = load(&nodes, None, &stop);
    let scenario = async {
        for kind in ["pubsub", "normal", "pubsub"] {
            redis.command(&["CLIENT", "KILL", "TYPE", kind]).await;
            heard_again(&devices).await;
        }
        stop.store(true, Ordering::Release);
    };
    let (outcomes, ()) = tokio::join!(pushers, scenario);
    reunited(&nodes, &devices).await;
    assert_honest(&outcomes, &devices);
}

/// The third node is red for a link of its own, and the others go on.
async fn assert_deaf(nodes: &[TestNode], devices: &[Heard]) {
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_subscriber_link_is_found_though_commands_go_on() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let nodes = one_behind(&redis, &proxy).await;
    let devices = devices(&nodes).await;
    // Nobody comes or goes: nothing is asked of the link, and only its silence shows that it is dead.
    proxy.set(Whom::Marked, Way::Down, Fault::Cut);
    // Before it is found: what the node itself publishes goes past the link.
    let (status, answer) =
        push_as(&nodes[2], Some("VOLATILE"), json!("past the hanging link")).await;
    assert_eq!(
        (status, &answer["degraded"], &answer["local_connections"]),
        (200, &json!(true), &json!(1)),
        "{answer}"
    );
    devices[2].until_it_has(&answer).await;
    until("the deaf node is not ready", async || {
        nodes[2].readyz().await.0 == 503
    })
    .await;
    assert_deaf(&nodes, &devices).await;
    proxy.set(Whom::Marked, Way::Down, Fault::None);
    reunited(&nodes, &devices).await;
    devices.iter().for_each(Heard::assert_no_doubles);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_link_that_hears_and_cannot_speak_is_found_by_the_next_listen() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let nodes = one_behind(&redis, &proxy).await;
    let devices = devices(&nodes).await;
    proxy.set(Whom::Marked, Way::Up, Fault::Cut);
    let url = nodes[2].url("late", "").await;
    let _late = tokio::spawn(async move { connect(&url).await });
    until("the dumb node is not ready", async || {
        nodes[2].readyz().await.0 == 503
    })
    .await;
    assert_deaf(&nodes, &devices).await;
    proxy.set(Whom::Marked, Way::Up, Fault::None);
    reunited(&nodes, &devices).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_welcomed_by_a_node_that_cannot_hear_for_them() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let nodes = one_behind(&redis, &proxy).await;
    let url = nodes[0].url("late", "").await.replace(
        &nodes[0].at.public.to_string(),
        &nodes[2].at.public.to_string(),
    );
    proxy.set(Whom::Marked, Way::Up, Fault::Cut);
    match connect(&url).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 503),
        Err(other) => panic!("{other:?}"),
        Ok(mut socket) => match next_message(&mut socket).await {
            Some(Message::Text(text)) if text.contains("welcome") => {
                panic!("welcomed, and would miss what is pushed to them")
            }
            Some(Message::Close(_)) | None => {}
            other => panic!("{other:?}"),
        },
    }
    proxy.set(Whom::Marked, Way::Up, Fault::None);
    all_ready(&nodes).await;
    until("a newcomer is welcome, and heard for", async || {
        let url = nodes[2].url("late", "").await;
        let Ok(socket) = connect(&url).await else {
            return false;
        };
        let late = Heard::on(socket);
        let answer = nodes[0].push("late", json!("now")).await;
        answer["other_nodes"] == 1 && {
            late.until_it_has(&answer).await;
            true
        }
    })
    .await;
}
