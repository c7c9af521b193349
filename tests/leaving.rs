//! What a node owes to those who are on their way in, and to the platform, when its process ends.

use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, client_async};

use crate::support::http2::{CALL, DATA, GOAWAY, HEADERS, Http2};
use crate::support::process::{Running, dev, dev_after};
use crate::support::{DEADLINE, KEY, closed, next, node, until};

/// Nobody is there to wait for, and nobody is in a hurry.
const SLOWLY: [&str; 4] = [
    "--set",
    "drain.deregister_delay=0s",
    "--set",
    "drain.spread=1h",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_door_says_goaway_and_answers_the_call_in_flight() {
    let mut node = node().await;
    let mut client = Http2::connect(node.at.service).await;
    client.begin_post("/v1/push", KEY).await;
    let leaving = node.node.take().expect("it runs");
    let leaving = tokio::spawn(leaving.leave(std::future::pending()));
    let mut told = client.next_of(GOAWAY).await;
    until("nobody else is let in", async || {
        TcpStream::connect(node.at.service).await.is_err()
    })
    .await;
    let push = json!({"user_id": "42", "message": "late"}).to_string();
    client.finish_post(push.as_bytes()).await;
    let head = client.next_of(HEADERS).await;
    assert!(head.stream == CALL && head.is_ok(), "{head:?}");
    let answer = client.next_of(DATA).await.payload;
    let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
    assert!(answer["message_id"].is_string(), "{answer}");
    // Said twice, so that what was on its way is known (RFC 9113, section 6.8): at last, that this call was the last.
    while let Some(frame) = client.next().await {
        if frame.kind == GOAWAY {
            told = frame;
        }
    }
    assert_eq!(told.goaway(), (CALL, 0));
    let left = tokio::time::timeout(DEADLINE, leaving).await;
    left.expect("in time").expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_to_be_accepted_when_the_listeners_close_is_let_in() {
    let more = format!(
        "--set hub.shards=1 --set limits.connections=1000 {}",
        SLOWLY.join(" ")
    );
    let running = Running::start(&mut dev_after("ulimit -n 80", &more)).await;
    let node = &running.node;
    let (mut there, _) = node.join("1", "").await;
    let mut urls = Vec::new();
    for _ in 0..20 {
        urls.push(node.url("42", "").await);
    }
    // Out of descriptors, it accepts nobody; what it is asked meanwhile goes over connections that are there.
    let failed = async || node.counter("tidings_accept_errors_total").await;
    failed().await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(node.at.public).await.expect("connected"));
    }
    until("it accepts nobody", async || failed().await > 0).await;
    let mut waiting = Vec::new();
    for url in urls {
        let stream = TcpStream::connect(node.at.public).await.expect("connected");
        waiting.push((url, MaybeTlsStream::Plain(stream)));
    }
    running.signal(Signal::TERM);
    running.logged(&["closing sessions"]).await;
    let so_far = failed().await;
    until("it has tried again since", async || {
        failed().await > so_far + 8
    })
    .await;
    drop(idle);
    for (url, stream) in waiting {
        let opening = tokio::time::timeout(DEADLINE, client_async(url, stream)).await;
        let (mut socket, _) = opening.expect("in time").expect("an upgrade");
        assert_eq!(next(&mut socket).await["type"], "welcome");
    }
    assert!(TcpStream::connect(node.at.public).await.is_err());
    running.signal(Signal::TERM);
    assert_eq!(u16::from(closed(&mut there).await.code), 1012);
    assert!(running.ended().await.0.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_sessions_answers_whom_it_finds_waiting_before_it_leaves() {
    let running = Running::start(dev().args(SLOWLY)).await;
    running.signal(Signal::STOP);
    let mut waiting = Vec::new();
    for _ in 0..100 {
        // The kernel takes them, and nobody reads what they ask.
        let at = running.node.at.public;
        let mut stream = TcpStream::connect(at).await.expect("connected");
        let asks = b"GET /v1/tickets HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(asks).await.expect("sent");
        waiting.push(stream);
    }
    running.signal(Signal::TERM);
    running.signal(Signal::CONT);
    for mut stream in waiting {
        let mut answer = String::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await;
        read.expect("in time").expect("no reset");
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer:?}");
    }
    assert!(running.ended().await.0.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_warns_where_the_platform_kills_before_a_drain_is_over() {
    let log_with = async |grace: &str| {
        let grace = format!("drain.termination_grace={grace}");
        let mut command = dev();
        for set in [
            "drain.deregister_delay=5s",
            "drain.spread=30s",
            "drain.grace=5s",
            &grace,
        ] {
            command.args(["--set", set]);
        }
        let running = Running::start(&mut command).await;
        running.signal(Signal::TERM);
        running.ended().await.1
    };
    // Besides those three, a second for those who are told last, and 5 s for the end.
    let (early, late) = tokio::join!(log_with("45s"), log_with("46s"));
    let warned = |log: &str| {
        let mut lines = log.lines().filter(|line| line.contains("WARN"));
        lines.any(|line| line.contains("46s") && line.contains("raise its grace period"))
    };
    assert!(warned(&early), "{early}");
    assert!(!warned(&late), "{late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_signal_of_a_drain_begun_at_the_admin_door_changes_nothing_and_the_second_means_now()
 {
    let running = Running::start(dev().args(["--set", "drain.deregister_delay=1h"])).await;
    let node = &running.node;
    let (mut socket, _) = node.join("42", "").await;
    let drain = node.http.post(format!("http://{}/drain", node.at.admin));
    assert_eq!(drain.send().await.expect("answered").status(), 202);
    running.logged(&["draining"]).await;
    running.signal(Signal::TERM);
    running.logged(&["the drain goes on"]).await;
    // As a hook's drain is meant: who is here is served, and who comes is let in.
    node.push("42", json!("still here")).await;
    assert_eq!(next(&mut socket).await["data"], "still here");
    let (mut late, _) = node.join("43", "").await;
    running.signal(Signal::TERM);
    for socket in [&mut socket, &mut late] {
        assert_eq!(u16::from(closed(socket).await.code), 1012);
    }
    assert!(running.ended().await.0.success());
}
