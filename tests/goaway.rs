//! A drain that nobody notices: sessions are told to go elsewhere before they are closed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tidings::config::Config;
use tidings::hub::{Namespace, PublishRule, SubscribeRule};
use tidings::model::ChannelName;
use tidings::proto::tidings::v1 as pb;
use tidings::proto::tidings::v1::notification_client::NotificationClient;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::Channel;

use crate::support::events::Events;
use crate::support::fleet::{all_known, all_ready, node_at, push_as};
use crate::support::heard::Heard;
use crate::support::process::{Running, dev};
use crate::support::redis::RedisServer;
use crate::support::{DEADLINE, KEY, Socket, TestNode, closed, connect, next, next_of, say, until};

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
    all_known(&nodes).await;
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
    let began = std::time::Instant::now();
    let leaving = leave(&mut nodes[0]);
    assert_eq!(u16::from(closed(&mut socket).await.code), 1012);
    // No earlier than that.
    assert!(began.elapsed() >= Duration::from_millis(1500));
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
    until("it knows that the other can take them", async || {
        outlook(&nodes[0]).await["others_ready"] == 1
    })
    .await;
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
    assert_eq!(foreseen["told"], json!(0));
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

/// Pushes by gRPC, one after another; what fails because the node leaves is tried at the other with the same key.
async fn push_through(who: usize, at: [SocketAddr; 2], stop: Arc<AtomicBool>) -> Vec<String> {
    let channel = async |at: SocketAddr| {
        let endpoint = Channel::from_shared(format!("http://{at}")).expect("a URL");
        NotificationClient::new(endpoint.connect_lazy())
    };
    let mut clients = [channel(at[0]).await, channel(at[1]).await];
    let mut ids = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let push = |n: usize| {
            let push = pb::PushRequest {
                user_id: "42".into(),
                body: Some(pb::push_request::Body::Message(n.to_string())),
                idempotency_key: format!("{who}-{n}"),
                ..Default::default()
            };
            let mut request = tonic::Request::new(push);
            let key = format!("Bearer {KEY}").parse().expect("a value");
            request.metadata_mut().insert("authorization", key);
            request
        };
        let mut answer = clients[0].push_notification(push(ids.len())).await;
        if answer.is_err() {
            answer = clients[1].push_notification(push(ids.len())).await;
        }
        ids.push(answer.expect("an answer").into_inner().message_id);
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered_while_the_service_door_closes() {
    let redis = RedisServer::start().await;
    let delay = |c: &mut Config| {
        c.drain.grace = Duration::from_secs(1);
        c.inbox.max_messages = 100_000;
        c.inbox.max_bytes = 64 << 20;
    };
    let mut nodes = nodes(&redis.url(), &["a", "b"], delay).await;
    let device = Heard::on(nodes[1].join("42", "").await.0);
    let (_stays, _) = nodes[0].join("1", "").await;
    let stop = Arc::new(AtomicBool::new(false));
    let at = [nodes[0].at.service, nodes[1].at.service];
    let pushers: Vec<_> = (0..4)
        .map(|n| tokio::spawn(push_through(n, at, stop.clone())))
        .collect();
    until("calls are answered", async || device.count() > 50).await;
    left(leave(&mut nodes[0])).await;
    let had = device.count();
    until("calls are answered elsewhere", async || {
        device.count() > had + 20
    })
    .await;
    stop.store(true, Ordering::Release);
    let mut ids = Vec::new();
    for pusher in pushers {
        ids.extend(pusher.await.expect("every call was answered"));
    }
    for id in &ids {
        device.until_it_has(&json!({"message_id": id})).await;
    }
    device.assert_open();
    device.assert_no_doubles();
}

/// What a balancer is: each connection goes to the first node that takes it.
async fn balancer(behind: [SocketAddr; 2]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = listener.accept().await {
            tokio::spawn(async move {
                for at in behind {
                    if let Ok(mut inside) = TcpStream::connect(at).await {
                        let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                        return;
                    }
                }
            });
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tidings_listen_moves_and_prints_every_message_once() {
    let redis = RedisServer::start().await;
    let mut nodes = nodes(&redis.url(), &["a", "b"], |c| {
        c.drain.spread = Duration::from_secs(1);
    })
    .await;
    let balancer = balancer([nodes[0].at.public, nodes[1].at.public]).await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args([
            "listen",
            "--user",
            "42",
            "--channel",
            "orders:eu",
            "--server",
        ])
        .arg(format!("http://{}", nodes[1].at.service))
        .args(["--url", &format!("ws://{balancer}/ws")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    // Read all the time: one that cannot print does not read its connection either.
    let (print, mut printed) = tokio::sync::mpsc::unbounded_channel::<Value>();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            let _ = print.send(serde_json::from_str(&line).expect("JSON"));
        }
    });
    let mut frame = async || -> Value {
        let frame = tokio::time::timeout(DEADLINE, printed.recv()).await;
        frame.expect("in time").expect("a frame")
    };
    assert_eq!(frame().await["node"], "a");
    let leaving = leave(&mut nodes[0]);
    let mut sent = 0;
    while !leaving.is_finished() {
        let (status, _) = push_as(&nodes[1], Some("VOLATILE"), json!(sent)).await;
        assert_eq!(status, 200);
        sent += 1;
    }
    left(leaving).await;
    nodes[1].publish("orders:eu", json!("the end")).await;
    let (mut heard, mut node) = (Vec::new(), json!("a"));
    loop {
        let frame = frame().await;
        match frame["type"].as_str() {
            Some("welcome") => node = frame["node"].clone(),
            Some("goaway") => assert_eq!(frame["ticket"], "…"),
            Some("message") if frame["data"] == "the end" => break,
            Some("message") => heard.push(frame["data"].as_u64().expect("a number")),
            _ => {}
        }
    }
    assert_eq!(node, "b");
    assert_eq!(heard, (0..sent).collect::<Vec<u64>>());
    child.kill().await.expect("it ends");
    let mut said = String::new();
    let mut errors = child.stderr.take().expect("piped");
    errors.read_to_string(&mut said).await.expect("text");
    assert!(!said.contains("connecting again"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tidings_drain_says_what_would_happen_and_then_waits_until_the_node_has_left() {
    let tidings = |args: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(args).kill_on_drop(true).stdout(Stdio::piped());
        command
    };
    let running = Running::start(&mut dev()).await;
    let admin = format!("http://{}", running.node.at.admin);
    let run = async |args: &[&str]| {
        let output = tidings(&["drain", "--admin", &admin]).args(args).output();
        let output = tokio::time::timeout(DEADLINE, output).await;
        let output = output.expect("in time").expect("it ran");
        (
            output.status.code(),
            String::from_utf8(output.stdout).expect("text"),
        )
    };
    let (code, said) = run(&["--dry-run"]).await;
    assert_eq!(code, Some(0));
    assert!(
        said.contains("would take up to") && said.contains("no other node"),
        "{said}"
    );
    let (code, said) = run(&["--dry-run", "--json"]).await;
    let outlook: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, &outlook["phase"]), (Some(0), &json!("serving")));
    let (code, said) = run(&[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the node has left"), "{said}");
    assert!(running.ended().await.0.success());
    assert_eq!(
        run(&["--dry-run"]).await.0,
        Some(4),
        "nobody is there any more"
    );
}
