//! Nodes that one Redis links, and a user with a device on each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tidings::backplane::{BackplaneKind, BackplaneUrl};
use tidings::config::Config;
use tidings::model::Secret;

use super::heard::Heard;
use super::{TestNode, node_with, until};

/// With which the nodes of a fleet sign.
pub const SECRET: &str = "the fleet's own secret";
/// Who has a device on each node.
pub const USER: &str = "42";

/// One node at a Redis.
pub async fn node_at(url: &str, name: &str, change: impl FnOnce(&mut Config)) -> TestNode {
    node_with(|c| {
        c.node.id = Some(name.into());
        c.backplane.kind = BackplaneKind::Redis;
        c.backplane.url = Some(BackplaneUrl::new(url));
        c.backplane.secret = Some(Secret::new(SECRET));
        c.limits.handshakes_per_second = 0;
        change(c);
    })
    .await
}

/// Three nodes, `a`, `b` and `c`, all ready.
pub async fn fleet(url: &str) -> Vec<TestNode> {
    fleet_with(url, |_| {}).await
}

pub async fn fleet_with(url: &str, change: impl Fn(&mut Config)) -> Vec<TestNode> {
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(node_at(url, name, &change).await);
    }
    all_ready(&nodes).await;
    nodes
}

/// Waits until every node is ready.
pub async fn all_ready(nodes: &[TestNode]) {
    for node in nodes {
        until("the node is ready", async || node.readyz().await.0 == 200).await;
    }
}

/// Waits until every node sees as many as there are.
pub async fn all_known(nodes: &[TestNode]) {
    for node in nodes {
        until("the nodes see each other", async || {
            let (_, answer) = node.get("/v1/nodes").await;
            let known = answer["nodes"].as_array();
            known.is_some_and(|known| known.len() >= nodes.len())
        })
        .await;
    }
}

/// A device of the user on each node.
pub async fn devices(nodes: &[TestNode]) -> Vec<Heard> {
    devices_of(nodes, USER).await
}

pub async fn devices_of(nodes: &[TestNode], user: &str) -> Vec<Heard> {
    let mut devices = Vec::new();
    for node in nodes {
        devices.push(Heard::on(node.join(user, "").await.0));
    }
    devices
}

/// A push of whatever class, and its answer: status and body.
pub async fn push_as(node: &TestNode, class: Option<&str>, data: Value) -> (u16, Value) {
    let mut body = json!({"user_id": USER, "message": data});
    if let Some(class) = class {
        body["class"] = class.into();
    }
    node.post("/v1/push", body).await
}

/// What was answered to one push of a load.
#[derive(Debug)]
pub struct Outcome {
    pub data: Value,
    pub status: u16,
    pub answer: Value,
}

/// A pusher at each node, one push after another, until it is told to stop. The data of a push are its pusher's number
/// `p` and its own number `n`.
pub async fn load(nodes: &[TestNode], class: Option<&str>, stop: &AtomicBool) -> Vec<Outcome> {
    let pushers = nodes.iter().enumerate().map(|(p, node)| async move {
        let mut outcomes = Vec::new();
        while !stop.load(Ordering::Acquire) {
            let data = json!({"p": p, "n": outcomes.len()});
            let (status, answer) = push_as(node, class, data.clone()).await;
            outcomes.push(Outcome {
                data,
                status,
                answer,
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        outcomes
    });
    let outcomes = futures_util::future::join_all(pushers).await;
    outcomes.into_iter().flatten().collect()
}

/// Fails if a device heard a push of a load that was refused, one of them twice, or one pusher's in another order.
pub fn assert_honest(outcomes: &[Outcome], devices: &[Heard]) {
    for device in devices {
        device.assert_open();
        device.assert_no_doubles();
        let heard = device.data();
        let numbers = |p: u64| {
            heard
                .iter()
                .filter(move |d| d["p"] == p)
                .map(|d| d["n"].as_u64())
        };
        for p in 0..devices.len() as u64 {
            assert!(
                numbers(p).is_sorted(),
                "pusher {p}: {:?}",
                numbers(p).collect::<Vec<_>>()
            );
        }
        for outcome in outcomes.iter().filter(|outcome| outcome.status == 503) {
            assert!(
                !heard.contains(&outcome.data),
                "refused and heard: {outcome:?}"
            );
        }
    }
    for outcome in outcomes {
        let code = &outcome.answer["code"];
        let known = match outcome.status {
            200 => outcome.answer["message_id"].is_string(),
            503 => code == "UNAVAILABLE",
            504 => code == "ABORTED",
            _ => false,
        };
        assert!(known, "no outcome of the three: {outcome:?}");
    }
}

/// Waits until every device has heard 50 more of the load.
pub async fn heard_again(devices: &[Heard]) {
    let had: Vec<_> = devices.iter().map(Heard::count).collect();
    until("the load is heard again", async || {
        let mut each = devices.iter().zip(&had);
        each.all(|(device, had)| device.count() > had + 50)
    })
    .await;
}

/// Waits until a push at every node reaches every device; from then on, each must.
pub async fn reunited(nodes: &[TestNode], devices: &[Heard]) {
    for node in nodes {
        until("a push reaches every device", async || {
            let (status, answer) = push_as(node, Some("VOLATILE"), json!("are you there?")).await;
            if status != 200 {
                return false;
            }
            // Long enough for what comes, and short enough to ask again where it was lost.
            let asked = tokio::time::Instant::now();
            while asked.elapsed() < Duration::from_millis(500) {
                if devices.iter().all(|device| device.has(&answer)) {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            false
        })
        .await;
    }
    all_ready(nodes).await;
    for n in 0..10 {
        for node in nodes {
            let (status, answer) = push_as(node, None, json!({"again": n})).await;
            assert_eq!(status, 200, "{answer}");
            for device in devices {
                device.until_it_has(&answer).await;
            }
        }
    }
    for device in devices {
        device.assert_open();
        device.assert_no_doubles();
    }
}

/// Waits until a node refuses what it cannot keep.
pub async fn until_refused(node: &TestNode) {
    until("a push is refused", async || {
        push_as(node, None, json!("refused?")).await.0 == 503
    })
    .await;
}

/// What is answered while Redis is away: refused, but for what is said to be live only, which the node's own have.
pub async fn assert_decided(node: &TestNode, own: &Heard, others: &[&Heard]) {
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
