//! Control calls: whichever node is asked, they are applied where the sessions are.

use serde_json::{Value, json};

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::fleet::{USER, fleet, node_at};
use crate::support::redis::RedisServer;
use crate::support::{Socket, TestNode, closed, next, next_of, until};

/// A connection of the user on each node, and their ids.
async fn connections(nodes: &[TestNode]) -> (Vec<Socket>, Vec<Value>) {
    let (mut sockets, mut ids) = (Vec::new(), Vec::new());
    for (n, node) in nodes.iter().enumerate() {
        let (socket, welcome) = node.join(USER, &format!("&device=d{n}")).await;
        sockets.push(socket);
        ids.push(welcome["connection"].clone());
    }
    (sockets, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_says_where_a_user_is() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let (_sockets, mut ids) = connections(&nodes).await;
    ids.sort_by_key(Value::to_string);
    for node in &nodes {
        let (status, answer) = node.get("/v1/users/42/connections").await;
        assert_eq!(status, 200, "{answer}");
        assert_ne!(answer["unknown"], 1, "{answer}");
        let list = answer["connections"].as_array().expect("a list");
        let mut found: Vec<_> = list.iter().map(|c| c["connection"].clone()).collect();
        found.sort_by_key(Value::to_string);
        assert_eq!(found, ids);
        let mut places: Vec<_> = list
            .iter()
            .map(|c| (c["node"].as_str(), c["device"].as_str()))
            .collect();
        places.sort_unstable();
        let expected = [("a", "d0"), ("b", "d1"), ("c", "d2")].map(|(n, d)| (Some(n), Some(d)));
        assert_eq!(places, expected);
    }
    let (_, answer) = nodes[0].get("/v1/users/nobody/connections").await;
    assert_eq!(answer["connections"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_disconnected_from_all_nodes_or_one_connection_from_its_own() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let (mut sockets, ids) = connections(&nodes).await;
    let one = json!({"connection": ids[1], "reason": "only this"});
    let (status, answer) = nodes[0].post("/v1/disconnect", one).await;
    assert_eq!((status, &answer["applied"]), (200, &json!(1)), "{answer}");
    let frame = closed(&mut sockets[1]).await;
    assert_eq!(
        (u16::from(frame.code), frame.reason.as_str()),
        (4501, "only this")
    );
    let all = json!({"user_id": USER, "reason": "account closed"});
    let (status, answer) = nodes[1].post("/v1/disconnect", all).await;
    assert_eq!((status, &answer["applied"]), (200, &json!(2)), "{answer}");
    for n in [0, 2] {
        let frame = closed(&mut sockets[n]).await;
        assert_eq!(
            (u16::from(frame.code), frame.reason.as_str()),
            (4501, "account closed")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_made_or_ended_at_one_node_holds_at_all_once_it_is_answered() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let (mut sockets, ids) = connections(&nodes).await;
    for round in 0..20 {
        let asked = &nodes[round % 3];
        let body = json!({"user_id": USER, "channel": "orders:eu"});
        let (status, answer) = asked.post("/v1/subscribe", body.clone()).await;
        assert_eq!((status, &answer["applied"]), (200, &json!(3)), "{answer}");
        nodes[(round + 1) % 3]
            .publish("orders:eu", json!({"in": round}))
            .await;
        // Heard first: order is promised per address, and the end of a subscription goes to the user's.
        for socket in &mut sockets {
            assert_eq!(next(socket).await["type"], "subscribed");
            let frame = next(socket).await;
            assert_eq!(frame["data"], json!({"in": round}), "{frame}");
        }
        let (status, answer) = asked.post("/v1/unsubscribe", body).await;
        assert_eq!((status, &answer["applied"]), (200, &json!(3)), "{answer}");
        nodes[(round + 1) % 3]
            .publish("orders:eu", json!({"after": round}))
            .await;
        // What was published after the answer is not between this and the next round's `subscribed`.
        for socket in &mut sockets {
            let frame = next(socket).await;
            assert_eq!(
                (&frame["type"], &frame["code"]),
                (&json!("unsubscribed"), &json!("revoked")),
                "{frame}"
            );
        }
    }
    let one = json!({"connection": ids[2], "channel": "orders:us"});
    let (_, answer) = nodes[0].post("/v1/subscribe", one).await;
    assert_eq!(answer["applied"], 1, "{answer}");
    nodes[1].publish("orders:us", json!("one")).await;
    assert_eq!(next_of(&mut sockets[2], "message").await["data"], "one");
    for n in [0, 1] {
        nodes[2].push(USER, json!("end")).await;
        assert_eq!(next(&mut sockets[n]).await["data"], "end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_answer_is_unknown() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let nodes = [
        node_at(&redis.url(), "a", |_| {}).await,
        node_at(&url, "b", |_| {}).await,
    ];
    let (_sockets, _) = connections(&nodes).await;
    proxy.set(Whom::Marked, Way::Down, Fault::Cut);
    let (status, answer) = nodes[0].get("/v1/users/42/connections").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer["connections"].as_array().map(Vec::len),
        Some(1),
        "{answer}"
    );
    assert_eq!(answer["unknown"], 1, "{answer}");
    proxy.set(Whom::Marked, Way::Down, Fault::None);
    until("the node answers again", async || {
        let (_, answer) = nodes[0].get("/v1/users/42/connections").await;
        answer["connections"].as_array().map(Vec::len) == Some(2)
    })
    .await;
}
