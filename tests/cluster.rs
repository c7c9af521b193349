//! Three nodes over one Redis: whichever node holds the user delivers.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::fleet::{
    USER, assert_honest, devices, devices_of, fleet, fleet_with, load, push_as, reunited,
};
use crate::support::heard::Heard;
use crate::support::redis::RedisServer;
use crate::support::{DEADLINE, TestNode, next, next_message, next_of, refused, until};

const PUSHERS: usize = 3;
const PUSHES: usize = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_devices_on_three_nodes_get_each_of_ten_thousand_pushes_once_in_one_order() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    let pushers = nodes.iter().enumerate().map(|(p, node)| async move {
        for n in (p..PUSHES).step_by(PUSHERS) {
            let answer = node.push(USER, json!({"p": p, "n": n})).await;
            assert_eq!(answer["status"], "DISPATCHED_TO_CLUSTER", "{answer}");
            assert_eq!(answer["other_nodes"], 2, "{answer}");
        }
    });
    join_all(pushers).await;
    until("every device has all", async || {
        devices.iter().all(|device| device.count() >= PUSHES)
    })
    .await;
    for device in &devices {
        device.assert_no_doubles();
        assert_eq!(device.count(), PUSHES);
        assert_eq!(device.ids(), devices[0].ids(), "one order for all");
        let heard = device.data();
        for p in 0..PUSHERS {
            let of_pusher: Vec<_> = heard
                .iter()
                .filter(|d| d["p"] == p)
                .map(|d| d["n"].clone())
                .collect();
            let sent: Vec<_> = (p..PUSHES).step_by(PUSHERS).map(|n| json!(n)).collect();
            assert_eq!(of_pusher, sent, "pusher {p}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_says_where_the_user_is() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let answer = nodes[0].push(USER, json!(0)).await;
    assert_eq!(answer["status"], "STORED", "{answer}");
    let (_, answer) = push_as(&nodes[0], Some("VOLATILE"), json!(0)).await;
    assert_eq!(answer["status"], "NOBODY_CONNECTED", "{answer}");
    let (mut here, _) = nodes[0].join(USER, "").await;
    let answer = nodes[0].push(USER, json!(1)).await;
    assert_eq!(
        (
            &answer["status"],
            &answer["local_connections"],
            &answer["other_nodes"]
        ),
        (&json!("DELIVERED_LOCALLY"), &json!(1), &json!(0)),
        "{answer}"
    );
    let answer = nodes[1].push(USER, json!(2)).await;
    assert_eq!(
        (
            &answer["status"],
            &answer["local_connections"],
            &answer["other_nodes"]
        ),
        (&json!("DISPATCHED_TO_CLUSTER"), &json!(0), &json!(1)),
        "{answer}"
    );
    let (mut there, _) = nodes[1].join(USER, "&since=now").await;
    let answer = nodes[0].push(USER, json!(3)).await;
    assert_eq!(
        (
            &answer["status"],
            &answer["local_connections"],
            &answer["other_nodes"]
        ),
        (&json!("DISPATCHED_TO_CLUSTER"), &json!(1), &json!(1)),
        "{answer}"
    );
    for n in 0..=3 {
        assert_eq!(next(&mut here).await["data"], n);
    }
    assert_eq!(next(&mut there).await["data"], 3);
    drop((here, there));
    until("nobody is there, and every node says so", async || {
        let answer = nodes[2].push(USER, json!(4)).await;
        answer["status"] == "STORED"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_nodes_that_hold_a_user_listen_for_it() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let channel = "tidings:m:{user:42}";
    assert_eq!(redis.listeners(channel).await, 0);
    let (socket, _) = nodes[0].join(USER, "").await;
    assert_eq!(redis.listeners(channel).await, 1);
    let (second, _) = nodes[0].join(USER, "").await;
    let (other, _) = nodes[1].join(USER, "&channels=orders:eu").await;
    assert_eq!(redis.listeners(channel).await, 2);
    until("the subscriber's node listens to the channel", async || {
        redis.listeners("tidings:m:{channel:orders:eu}").await == 1
    })
    .await;
    nodes[2].push(USER, json!(1)).await;
    drop((socket, second, other));
    until("nobody listens any more", async || {
        redis.listeners(channel).await + redis.listeners("tidings:m:{channel:orders:eu}").await == 0
    })
    .await;
    // The third node never held the user, and heard nothing of the push.
    let metrics = nodes[2].metrics().await;
    let heard = metrics
        .lines()
        .find(|line| line.starts_with("tidings_backplane_received_total{reason=\"user\"}"));
    assert_eq!(heard, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channels_messages_reach_its_subscribers_on_all_nodes_in_one_order() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let mut subscribers = Vec::new();
    for (n, node) in nodes.iter().cycle().take(6).enumerate() {
        let (mut socket, _) = node.join(&format!("u{n}"), "&channels=orders:eu").await;
        next_of(&mut socket, "subscribed").await;
        subscribers.push(Heard::on(socket));
    }
    let publishers = nodes.iter().enumerate().map(|(p, node)| async move {
        for n in 0..100 {
            node.publish("orders:eu", json!([p, n])).await;
        }
    });
    join_all(publishers).await;
    for subscriber in &subscribers {
        until("a subscriber has all", async || subscriber.count() == 300).await;
        subscriber.assert_no_doubles();
        assert_eq!(subscriber.ids(), subscribers[0].ids());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_reaches_its_users_on_all_nodes_by_one_envelope_per_node() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let mut all = Vec::new();
    for (n, node) in nodes.iter().cycle().take(30).enumerate() {
        all.push((n, Heard::on(node.join(&format!("u{n}"), "").await.0)));
    }
    let mut ear = redis.connect().await.expect("connected");
    ear.command(&["PSUBSCRIBE", "tidings:m:*"])
        .await
        .expect("listening");
    let users: Vec<_> = (0..300).step_by(2).map(|n| format!("u{n}")).collect();
    let (status, answer) = nodes[0]
        .post(
            "/v1/broadcast",
            json!({"user_ids": users, "message": "even", "class": "VOLATILE"}),
        )
        .await;
    assert_eq!(status, 200, "{answer}");
    // The ear counts as a node: the number is a hint.
    assert_eq!(
        (&answer["local_connections"], &answer["other_nodes"]),
        (&json!(5), &json!(3)),
        "{answer}"
    );
    let everyone = json!({"everyone": true, "message": "all"});
    let (status, answer) = nodes[1].post("/v1/broadcast", everyone).await;
    assert_eq!(status, 200, "{answer}");
    for (n, device) in &all {
        device.until_it_has(&answer).await;
        let expected = if n % 2 == 0 {
            vec![json!("even"), json!("all")]
        } else {
            vec![json!("all")]
        };
        assert_eq!(device.data(), expected, "u{n}");
    }
    // The push is behind all envelopes of the broadcasts.
    nodes[0].push("nobody", json!("end")).await;
    let mut envelopes = 0;
    loop {
        let published = ear.receive().await.expect("something").items();
        let channel = published[2].text();
        if channel == "tidings:m:{user:nobody}" {
            break;
        }
        if !channel.contains("{node:") {
            envelopes += 1;
        }
    }
    assert!(
        (2..=2 * nodes.len()).contains(&envelopes),
        "{envelopes} envelopes"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_arrives_at_another_node_as_it_was_given() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let mut raw = nodes[1].open(USER, "&format=raw").await;
    let long = "\u{e4} \"quoted\" \n".repeat(4000);
    let cases = [
        (json!({"message": long}), Message::text(long)),
        (json!({"message": null}), Message::text("null")),
        (
            json!({"json": "{ \"a\" : 1.50 }"}),
            Message::text("{ \"a\" : 1.50 }"),
        ),
        (json!({"message": ""}), Message::text("")),
        (
            json!({"binary": "AQID/w=="}),
            Message::binary(vec![1, 2, 3, 255]),
        ),
    ];
    for (mut body, expected) in cases {
        body["user_id"] = USER.into();
        let (status, answer) = nodes[0].post("/v1/push", body).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(next_message(&mut raw).await, Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleets_with_different_prefixes_share_a_redis_and_nothing_else() {
    let redis = RedisServer::start().await;
    let ours = fleet(&redis.url()).await;
    let theirs = fleet_with(&redis.url(), |c| c.backplane.prefix = "staging:".into()).await;
    let (our_devices, their_devices) = (devices(&ours).await, devices(&theirs).await);
    let ticket = ours[0].ticket(json!({"user_id": USER})).await;
    let url = format!("ws://{}/ws?ticket={ticket}", theirs[0].at.public);
    assert_eq!(refused(&url, &[]).await.0, 401);
    let answer = ours[0].push(USER, json!("ours")).await;
    assert_eq!(answer["other_nodes"], 2, "{answer}");
    reunited(&theirs, &their_devices).await;
    assert!(their_devices.iter().all(|device| !device.has(&answer)));
    reunited(&ours, &our_devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_left_leaves_nothing_at_redis() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let before = redis.command(&["CLIENT", "LIST"]).await.text();
    assert!(before.lines().count() > 3, "{before}");
    for mut node in nodes {
        node.join(USER, "").await;
        let leaving = node
            .node
            .take()
            .expect("it runs")
            .leave(std::future::ready(()));
        tokio::time::timeout(DEADLINE, leaving)
            .await
            .expect("in time");
    }
    until("only this test is connected", async || {
        let clients = redis.command(&["CLIENT", "LIST"]).await.text();
        let nodes = redis.command(&["HLEN", "tidings:nodes"]).await;
        clients.lines().count() == 1 && nodes.int() == 0
    })
    .await;
}

/// Comes and goes as the user, on one node after another; each time, a push at the next node must be heard once the
/// welcome is there.
async fn come_and_go(nodes: &[TestNode], who: usize, stop: &AtomicBool) -> usize {
    let mut visits = 0;
    while !stop.load(Ordering::Acquire) {
        let at = who + visits;
        let (mut socket, _) = nodes[at % nodes.len()].join(USER, "").await;
        let mine = json!({"visitor": who, "visit": visits});
        let (status, answer) = push_as(&nodes[(at + 1) % nodes.len()], None, mine).await;
        assert_eq!(status, 200, "{answer}");
        while next_of(&mut socket, "message").await["id"] != answer["message_id"] {}
        // Some leave in peace, some just vanish.
        if at.is_multiple_of(2) {
            let _ = socket.close(None).await;
        }
        visits += 1;
    }
    visits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_push_is_missed_while_other_connections_of_the_user_come_and_go() {
    let redis = RedisServer::start().await;
    let nodes = fleet_with(&redis.url(), |c| {
        c.limits.connections_per_user = 0;
        // Else a visitor on a loaded machine may find its own message gone already, and is told of a gap.
        c.inbox.max_messages = 100_000;
        c.inbox.max_bytes = 64 << 20;
    })
    .await;
    // The steady device is on one node only: on the others, listening begins and ends all the time.
    let steady = devices_of(&nodes[..1], USER).await;
    let stop = AtomicBool::new(false);
    let visitors = join_all((0..8).map(|who| come_and_go(&nodes, who, &stop)));
    let pushers = load(&nodes, None, &stop);
    let enough = async {
        until("a thousand messages have come", async || {
            steady[0].count() > 1000
        })
        .await;
        stop.store(true, Ordering::Release);
    };
    let (visits, outcomes, ()) = tokio::join!(visitors, pushers, enough);
    assert!(visits.iter().all(|visits| *visits > 0), "{visits:?}");
    for outcome in &outcomes {
        assert_eq!(outcome.status, 200, "{outcome:?}");
        steady[0].until_it_has(&outcome.answer).await;
    }
    assert_honest(&outcomes, &steady);
    reunited(&nodes, &steady).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_users_come_at_once_and_each_hears_its_own() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let users = (0..1000).map(|n| {
        let nodes = &nodes;
        async move {
            let user = format!("u{n}");
            let (socket, _) = nodes[n % 3].join(&user, "").await;
            let device = Heard::on(socket);
            let answer = nodes[(n + 1) % 3].push(&user, json!(n)).await;
            device.until_it_has(&answer).await;
            assert_eq!(device.data(), [json!(n)]);
        }
    });
    // A hundred at a time, so that descriptors suffice.
    let users: Vec<_> = users.collect();
    let mut waves = users.into_iter();
    loop {
        let wave: Vec<_> = waves.by_ref().take(100).collect();
        if wave.is_empty() {
            break;
        }
        join_all(wave).await;
    }
    until("no node listens for any of them", async || {
        let channels = redis
            .command(&["PUBSUB", "CHANNELS", "tidings:m:{user:*"])
            .await;
        channels.items().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_know_each_other() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    for node in &nodes {
        until("a node lists all three", async || {
            let (status, answer) = node.get("/v1/nodes").await;
            let list = answer["nodes"].as_array().cloned().unwrap_or_default();
            let ids: HashSet<_> = list.iter().filter_map(|n| n["id"].as_str()).collect();
            status == 200 && ids == HashSet::from(["a", "b", "c"])
        })
        .await;
    }
}
