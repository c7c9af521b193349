//! A drain that nobody notices: sessions are told to go elsewhere before they are closed.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tidings::config::Config;
use tidings::hub::{Namespace, PublishRule, SubscribeRule};
use tidings::model::ChannelName;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::support::events::Events;
use crate::support::fleet::{all_ready, node_at, push_as};
use crate::support::redis::RedisServer;
use crate::support::{DEADLINE, Socket, TestNode, closed, connect, next, next_of, say, until};

const FOREVER: Duration = Duration::from_secs(3600);

/// Nodes at one Redis, all ready, that see each other.
async fn nodes(url: &str, names: &[&str], change: impl Fn(&mut Config)) -> Vec<TestNode> {
    let mut nodes = Vec::new();
    for name in names {
        let node = node_at(url, name, |c| {
            c.drain.grace = FOREVER;
            change(c);
        });
        nodes.push(node.await);
    }
    all_ready(&nodes).await;
    for node in &nodes {
        until("the nodes see each other", async || {
            let (_, answer) = node.get("/v1/nodes").await;
            answer["nodes"]
                .as_array()
                .is_some_and(|n| n.len() >= names.len())
        })
        .await;
    }
    nodes
}

/// The node begins to drain; it has left when the task ends.
fn leave(node: &mut TestNode) -> JoinHandle<()> {
    let node = node.node.take().expect("it runs");
    tokio::spawn(node.leave(std::future::pending()))
}

async fn left(leaving: JoinHandle<()>) {
    let left = tokio::time::timeout(DEADLINE, leaving).await;
    left.expect("in time").expect("it left");
}

async fn resume(node: &TestNode, goaway: &Value, more: &str) -> Socket {
    let ticket = goaway["ticket"].as_str().expect("a ticket");
    let url = format!("ws://{}/ws?ticket={ticket}{more}", node.at.public);
    connect(&url).await.expect("an upgrade")
}

async fn outlook(node: &TestNode) -> Value {
    let url = format!("http://{}/drain", node.at.admin);
    let answer = node.http.get(url).send().await.expect("answered");
    serde_json::from_str(&answer.text().await.expect("text")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_moves_to_another_node_and_the_old_connection_ends_at_the_new_welcome() {
    let redis = RedisServer::start().await;
    let mut nodes = nodes(&redis.url(), &["a", "b"], |_| {}).await;
    let (mut old, welcome) = nodes[0].join("42", "&channels=orders:eu").await;
    next_of(&mut old, "subscribed").await;
    let leaving = leave(&mut nodes[0]);
    let told = next_of(&mut old, "goaway").await;
    let after = told["after_ms"].as_u64().expect("a time");
    assert!((1..=1000).contains(&after), "{told}");
    assert!(
        told["ticket"]
            .as_str()
            .is_some_and(|t| t.starts_with("r1."))
    );
    // Until it has moved it gets what comes.
    let answer = push_as(&nodes[1], None, json!("before")).await.1;
    let frame = next_of(&mut old, "message").await;
    assert_eq!(frame["id"], answer["message_id"]);
    let since = format!("&since={}", frame["position"].as_str().expect("a position"));
    let mut new = resume(&nodes[1], &told, &since).await;
    let again = next(&mut new).await;
    assert_eq!(
        (&again["type"], &again["node"], &again["recovered"]),
        (&json!("welcome"), &json!("b"), &json!(true))
    );
    assert_eq!(again["user"], welcome["user"]);
    assert_eq!(next(&mut new).await["channel"], "orders:eu");
    let end = closed(&mut old).await;
    assert_eq!(
        (u16::from(end.code), end.reason.as_str()),
        (1000, "resumed")
    );
    left(leaving).await;
    let answer = push_as(&nodes[1], None, json!("after")).await.1;
    assert_eq!(next(&mut new).await["id"], answer["message_id"]);
}

/// Everything that a client hears, over all its connections, until its last one has heard the given data.
async fn follow_the_moves(mut socket: Socket, next_node: String) -> Vec<Value> {
    let mut heard: Vec<Value> = Vec::new();
    let (mut inbox, mut channel) = (String::new(), String::new());
    let mut moved: Option<Socket> = None;
    loop {
        // Both are read while there are two.
        let from_new = async {
            match &mut moved {
                Some(new) => new.next().await,
                None => std::future::pending().await,
            }
        };
        let (frame, is_new) = tokio::select! {
            frame = socket.next() => (frame, false),
            frame = from_new => (frame, true),
        };
        let frame: Value = match frame {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).expect("JSON"),
            Some(Ok(Message::Ping(_))) => continue,
            // The old one ends; the new one is the connection.
            Some(Ok(Message::Close(Some(end)))) if !is_new && u16::from(end.code) == 1000 => {
                socket = moved.take().expect("only once there is a new one");
                continue;
            }
            other => panic!("{other:?}"),
        };
        if let Some(position) = frame["position"].as_str() {
            match frame["channel"].as_str() {
                Some(_) => channel = position.into(),
                None => inbox = position.into(),
            }
        }
        if frame["type"] == "goaway" {
            let ticket = frame["ticket"].as_str().expect("a ticket");
            let after = frame["after_ms"].as_u64().expect("a time");
            tokio::time::sleep(Duration::from_millis(after)).await;
            let query = format!("ticket={ticket}&since={inbox}&channels=kept:c%40{channel}");
            let url = format!("ws://{next_node}/ws?{query}");
            moved = Some(connect(&url).await.expect("an upgrade"));
        }
        assert_ne!(frame["recovered"], false, "{frame}");
        assert_ne!(frame["type"], "gap", "{frame}");
        if frame["type"] == "message" {
            let last = frame["data"] == "the end";
            heard.push(frame);
            if last {
                return heard;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_a_move_whatever_its_class() {
    let redis = RedisServer::start().await;
    let kept = |c: &mut Config| {
        c.drain.spread = Duration::from_secs(1);
        c.inbox.max_messages = 10_000;
        c.inbox.max_bytes = 16 << 20;
        c.namespaces = vec![Namespace {
            name: ChannelName::parse("kept").expect("a name"),
            subscribe: SubscribeRule::Any,
            publish: PublishRule::Nobody,
            max_messages: 10_000,
            max_age: FOREVER,
            max_bytes: 16 << 20,
        }];
    };
    let mut nodes = nodes(&redis.url(), &["a", "b"], kept).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let (mut socket, _) = nodes[0].join("42", "&channels=kept:c").await;
        next_of(&mut socket, "subscribed").await;
        let at = nodes[1].at.public.to_string();
        clients.push(tokio::spawn(follow_the_moves(socket, at)));
    }
    let mut sent = Vec::new();
    let mut leaving = None;
    let mut more = 50;
    // Pushes before, while and after they move.
    while more > 0 {
        for class in ["KEPT", "VOLATILE"] {
            let (status, answer) = push_as(&nodes[1], Some(class), json!(sent.len())).await;
            assert_eq!(status, 200, "{answer}");
            sent.push(answer["message_id"].clone());
        }
        sent.push(nodes[1].publish("kept:c", json!("c")).await["message_id"].clone());
        if leaving.is_none() && sent.len() > 150 {
            leaving = Some(leave(&mut nodes[0]));
        }
        if leaving.as_ref().is_some_and(JoinHandle::is_finished) {
            more -= 1;
        }
    }
    left(leaving.expect("it began")).await;
    push_as(&nodes[1], None, json!("the end")).await;
    for client in clients {
        let heard = tokio::time::timeout(DEADLINE, client).await;
        let heard = heard.expect("in time").expect("no panic");
        let ids: HashSet<&Value> = heard.iter().map(|frame| &frame["id"]).collect();
        let lost: Vec<_> = sent.iter().filter(|id| !ids.contains(id)).collect();
        assert!(lost.is_empty(), "lost {} of {}", lost.len(), sent.len());
        // In the overlap a message comes over both at most.
        for id in &sent {
            assert!(heard.iter().filter(|frame| frame["id"] == *id).count() <= 2);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_go_is_closed_and_who_gets_no_frames_is_closed_at_once() {
    let redis = RedisServer::start().await;
    let grace = |c: &mut Config| c.drain.grace = Duration::from_millis(500);
    let mut nodes = nodes(&redis.url(), &["a", "b"], grace).await;
    let (mut stubborn, _) = nodes[0].join("1", "").await;
    let mut raw = nodes[0].open("2", "&format=raw").await;
    let ticket = nodes[0].ticket(json!({"user_id": "3"})).await;
    let query = format!("ticket={ticket}");
    let mut events = Events::open(&nodes[0], &query, &[])
        .await
        .expect("a stream");
    events.next_of("welcome").await;
    let leaving = leave(&mut nodes[0]);
    next_of(&mut stubborn, "goaway").await;
    for socket in [&mut raw, &mut stubborn] {
        let end = closed(socket).await;
        assert_eq!(
            (u16::from(end.code), end.reason.as_str()),
            (1012, "restart")
        );
    }
    assert!(events.try_next().await.is_none(), "the stream ends");
    assert!(
        events.retry.is_some_and(|retry| retry <= 1000),
        "{:?}",
        events.retry
    );
    left(leaving).await;
    let mut back = Events::back(&nodes[1], &query, &events.last_id)
        .await
        .expect("a stream");
    assert_eq!(back.next_of("welcome").await["node"], "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fits_in_no_resume_ticket_is_told_without_one() {
    let redis = RedisServer::start().await;
    let mut nodes = nodes(&redis.url(), &["a", "b"], |_| {}).await;
    let names: Vec<String> = (0..30)
        .map(|n| format!("ns:{n}{}", "x".repeat(200)))
        .collect();
    let ticket = nodes[0]
        .ticket(json!({"user_id": "42", "channels": names}))
        .await;
    let url = format!("ws://{}/ws?ticket={ticket}", nodes[0].at.public);
    let mut socket = connect(&url).await.expect("an upgrade");
    next_of(&mut socket, "welcome").await;
    let leaving = leave(&mut nodes[0]);
    let told = next_of(&mut socket, "goaway").await;
    assert!(
        told["after_ms"].is_u64() && told.get("ticket").is_none(),
        "{told}"
    );
    drop(socket);
    left(leaving).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_while_no_other_node_is_ready() {
    let redis = RedisServer::start().await;
    let url = redis.url();
    let slow = |c: &mut Config| c.drain.wait = FOREVER;
    let mut two = nodes(&url, &["a", "b"], slow).await;
    // The other one drains too: somebody is connected there, and does not go.
    let (_stays, _) = two[1].join("1", "").await;
    let (mut socket, _) = two[0].join("42", "").await;
    let _other = leave(&mut two[1]);
    until("the other one is red", async || {
        two[1].readyz().await.0 == 503
    })
    .await;
    until("it says so", async || {
        let (_, answer) = two[0].get("/v1/nodes").await;
        answer["nodes"]
            .as_array()
            .is_some_and(|n| n.iter().any(|n| n["draining"] == true))
    })
    .await;
    let leaving = leave(&mut two[0]);
    until("it waits", async || {
        outlook(&two[0]).await["phase"] == "waiting"
    })
    .await;
    // What is said next comes before any goaway.
    say(&mut socket, json!({"type": "ping", "ref": "here"})).await;
    assert_eq!(
        next(&mut socket).await,
        json!({"type": "pong", "ref": "here"})
    );
    assert_eq!(outlook(&two[0]).await["told"], 0);
    let third = nodes(&url, &["c"], |_| {}).await;
    let told = next_of(&mut socket, "goaway").await;
    let mut new = resume(&third[0], &told, "").await;
    assert_eq!(next(&mut new).await["node"], "c");
    left(leaving).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_wait_is_over_everyone_is_closed() {
    let redis = RedisServer::start().await;
    let short = |c: &mut Config| c.drain.wait = Duration::from_millis(1500);
    let mut nodes = nodes(&redis.url(), &["a"], short).await;
    let (mut socket, _) = nodes[0].join("42", "").await;
    // What a node says that is not ready, and stays so.
    let lease = json!({"node": "z", "incarnation": "00000000000f", "version": "9", "connections": 0,
        "load": 0.0, "since": 0, "draining": false, "ready": false});
    let until_late = format!("99999999999999 {lease}");
    redis
        .command(&["HSET", "tidings:nodes", "00000000000f", &until_late])
        .await;
    let leaving = leave(&mut nodes[0]);
    assert_eq!(u16::from(closed(&mut socket).await.code), 1012);
    left(leaving).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_waits_for_nobody() {
    let redis = RedisServer::start().await;
    let slow = |c: &mut Config| c.drain.wait = FOREVER;
    let mut nodes = nodes(&redis.url(), &["a"], slow).await;
    let (mut socket, _) = nodes[0].join("42", "").await;
    let leaving = leave(&mut nodes[0]);
    let end = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => assert!(!text.contains("goaway"), "{text}"),
            Some(Ok(Message::Close(Some(end)))) => break end,
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(u16::from(end.code), 1012);
    left(leaving).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_foreseen_and_begun_at_the_admin_door() {
    let redis = RedisServer::start().await;
    let mut nodes = nodes(&redis.url(), &["a", "b"], |c| {
        c.drain.spread = Duration::from_secs(30)
    })
    .await;
    let (_socket, _) = nodes[0].join("42", "").await;
    let foreseen = outlook(&nodes[0]).await;
    assert_eq!(
        (
            &foreseen["phase"],
            &foreseen["connections"],
            &foreseen["websocket"]
        ),
        (&json!("serving"), &json!(1), &json!(1)),
        "{foreseen}"
    );
    assert_eq!(
        (&foreseen["others_ready"], &foreseen["told"]),
        (&json!(1), &json!(0))
    );
    assert!(
        foreseen["seconds"].as_f64().is_some_and(|s| s >= 30.0),
        "{foreseen}"
    );
    let node = nodes[0].node.take().expect("it runs");
    let asked = node.asked_to_leave();
    let url = format!("http://{}/drain", nodes[0].at.admin);
    let answer = nodes[0].http.post(url).send().await.expect("answered");
    assert_eq!(answer.status(), 202);
    tokio::time::timeout(DEADLINE, asked).await.expect("asked");
    node.leave(std::future::ready(())).await;
}
