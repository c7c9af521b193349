//! TLS on the public door, and on the others without clients' certificates (tests/mtls.rs has those).

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_tungstenite::tungstenite::Message;

use crate::support::certs::{BOTH, Ca, dial, tls};
use crate::support::fleet::{all_known, all_ready, node_at};
use crate::support::redis::RedisServer;
use crate::support::secure::{join, open, secure, upgrade};
use crate::support::{
    DEADLINE, KEY, TestNode, closed, next, next_message, next_of, node_with, say, until,
};

async fn refusals(node: &TestNode, reason: &str) -> u64 {
    let line = format!("tidings_refusals_total{{reason=\"{reason}\"}}");
    node.counter(&line).await
}

async fn push(node: &TestNode, user: &str, message: Value, class: &str) {
    let asked = json!({"user_id": user, "message": message, "class": class});
    let (status, body) = node.post("/v1/push", asked).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_large_and_small_go_both_ways_over_tls_1_2_and_1_3() {
    let ca = Ca::new();
    let node = secure(&ca, |_| {}).await;
    for version in [&TLS12, &TLS13] {
        let client = ca.client(None, "http/1.1", &[version]);
        let mut socket = join(&node, &client, "42").await;
        push(&node, "42", json!("hello"), "VOLATILE").await;
        assert_eq!(next(&mut socket).await["data"], "hello");
        let subscribe = json!({"type": "subscribe", "channel": "chat:7", "ref": 1});
        say(&mut socket, subscribe).await;
        assert_eq!(next(&mut socket).await["type"], "subscribed");
        let large = "x".repeat(60 << 10);
        for size in [1, 1000, 16 << 10, 60 << 10] {
            let publish = json!({"type": "publish", "channel": "chat:7", "data": large[..size]});
            say(&mut socket, publish).await;
            // It comes back as a message, and is answered, in either order.
            let (first, second) = (next(&mut socket).await, next(&mut socket).await);
            let kinds = [&first["type"], &second["type"]];
            assert!(kinds.contains(&&json!("published")), "{kinds:?}");
            let message = [&first, &second]
                .into_iter()
                .find(|frame| frame["type"] == "message");
            let data = message.expect("a message")["data"].as_str();
            assert_eq!(data.map(str::len), Some(size));
        }
        socket.close(None).await.expect("sent");
        while let Some(Ok(_)) = socket.next().await {}
    }
    until("nobody is left", async || node.node().connections() == 0).await;
    assert_eq!(node.counter("tidings_outbox_bytes").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_over_tls_gets_everything_in_order() {
    let ca = Ca::new();
    let node = secure(&ca, |c| c.limits.outbox_bytes = 32 << 20).await;
    let small = TcpSocket::new_v4().expect("a socket");
    small.set_recv_buffer_size(16 << 10).expect("set");
    let stream = small.connect(node.at.public).await.expect("connected");
    let client = ca.client(None, "http/1.1", BOTH);
    let connecting = client.connect("localhost".try_into().expect("a name"), stream);
    let mut socket = upgrade(&node, connecting.await.expect("TLS"), "42").await;
    let filler = "x".repeat(60_000);
    let count = 150;
    for number in 0..count {
        let message = json!({"number": number, "filler": filler});
        push(&node, "42", message, "VOLATILE").await;
    }
    assert!(node.node().outbox_bytes() > 0, "the kernel took it all");
    for number in 0..count {
        assert_eq!(next(&mut socket).await["data"]["number"], number);
    }
    until("all of it is written", async || {
        node.node().outbox_bytes() == 0
    })
    .await;
    push(&node, "42", json!("after"), "VOLATILE").await;
    assert_eq!(next(&mut socket).await["data"], "after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_over_tls_is_dropped_and_leaves_nothing() {
    let ca = Ca::new();
    let node = secure(&ca, |c| c.limits.outbox_bytes = 128 << 10).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let _socket = join(&node, &client, "42").await;
    let filler = "x".repeat(60_000);
    until("it is too slow", async || {
        push(&node, "42", json!(filler), "VOLATILE").await;
        node.counter("tidings_slow_consumers_total").await == 1
    })
    .await;
    until("it is gone", async || node.node().connections() == 0).await;
    assert_eq!(node.node().outbox_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_with_a_certificate_that_it_cannot_show() {
    let ca = Ca::new();
    let (pair, other) = (ca.issue(&["localhost"]), ca.issue(&["localhost"]));
    ca.write("public.key", &other.key);
    let mut config = crate::support::config();
    config.public.tls = Some(tls((
        ca.write("public.pem", &pair.certificate),
        ca.path("public.key"),
    )));
    let started = tidings::node::Node::start(config, tidings::config::Mode::Dev).await;
    let told = started.err().expect("refused");
    assert!(
        told.starts_with("[public.tls] ") && told.contains("is not for the key"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_in_the_tls_handshake_is_cut_at_the_deadline() {
    let ca = Ca::new();
    let node = secure(&ca, |c| {
        c.limits.handshake_timeout = Duration::from_millis(500);
    })
    .await;
    let mut silent = TcpStream::connect(node.at.public).await.expect("connected");
    let read = tokio::time::timeout(DEADLINE, silent.read(&mut [0; 16])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    until("it is counted", async || {
        refusals(&node, "too_slow").await == 1
    })
    .await;
    // After the handshake the same deadline is over the request.
    let client = ca.client(None, "http/1.1", BOTH);
    let mut stream = dial(&client, node.at.public).await.expect("TLS");
    let read = tokio::time::timeout(DEADLINE, stream.read(&mut [0; 16])).await;
    assert!(read.is_ok());
    until("it is counted", async || {
        refusals(&node, "too_slow").await == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_at_a_tls_port_is_cut_and_counted() {
    let ca = Ca::new();
    let node = secure(&ca, |_| {}).await;
    let mut plain = TcpStream::connect(node.at.public).await.expect("connected");
    let request = b"GET /ws HTTP/1.1\r\nhost: localhost\r\n\r\n";
    plain.write_all(request).await.expect("sent");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "it was left open");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    until("it is counted", async || refusals(&node, "tls").await == 1).await;
    // Who opens a connection and closes it, as a balancer's check does, was not refused.
    drop(TcpStream::connect(node.at.public).await.expect("connected"));
    let client = ca.client(None, "http/1.1", BOTH);
    join(&node, &client, "42").await;
    assert_eq!(refusals(&node, "tls").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_trust_the_issuer_or_wants_http_2_gets_no_connection() {
    let ca = Ca::new();
    let node = secure(&ca, |_| {}).await;
    for client in [
        Ca::new().client(None, "http/1.1", BOTH),
        ca.client(None, "h2", BOTH),
    ] {
        let stream = dial(&client, node.at.public).await;
        assert!(stream.is_err(), "{stream:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_secure_connections_with_their_close_frames() {
    let ca = Ca::new();
    let mut node = secure(&ca, |_| {}).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let mut socket = join(&node, &client, "42").await;
    let leaving = node.node.take().expect("it runs");
    let leaving = tokio::spawn(leaving.leave(std::future::pending()));
    let code = loop {
        match next_message(&mut socket).await {
            Some(Message::Close(Some(frame))) => break frame.code,
            Some(_) => {}
            None => panic!("closed without a frame"),
        }
    };
    assert_eq!(u16::from(code), 1012);
    // The end of TLS itself comes behind it: without it a client would see an error here.
    while let Some(frame) = socket.next().await {
        frame.expect("a clean end");
    }
    leaving.await.expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_to_go_resumes_at_another_node_over_tls_and_misses_nothing() {
    let (ca, redis) = (Ca::new(), RedisServer::start().await);
    let files = ca.install("public", &ca.issue(&["localhost"]));
    let (url, mut nodes) = (redis.url(), Vec::new());
    for name in ["a", "b"] {
        let node = node_at(&url, name, |c| {
            c.public.tls = Some(tls(files.clone()));
            let kept = json!([{"name": "orders", "subscribe": "any", "max_messages": 10}]);
            c.namespaces = serde_json::from_value(kept).expect("namespaces");
            c.drain.grace = Duration::from_secs(3600);
        });
        nodes.push(node.await);
    }
    all_ready(&nodes).await;
    all_known(&nodes).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let at = async |node: &TestNode, query: &str| {
        let stream = dial(&client, node.at.public).await.expect("TLS");
        open(stream, query).await
    };
    let ticket = nodes[0].ticket(json!({"user_id": "42"})).await;
    let mut old = at(&nodes[0], &format!("ticket={ticket}&channels=orders:eu")).await;
    next_of(&mut old, "subscribed").await;
    nodes[1].push("42", json!("before")).await;
    let inbox = next_of(&mut old, "message").await["position"].clone();
    nodes[1].publish("orders:eu", json!("before")).await;
    let channel = next_of(&mut old, "message").await["position"].clone();

    let leaving = nodes[0].node.take().expect("it runs");
    let leaving = tokio::spawn(leaving.leave(std::future::pending()));
    let goaway = next_of(&mut old, "goaway").await;
    // The client, busy with its move, takes no more of the old connection.
    nodes[1].push("42", json!("between")).await;
    nodes[1].publish("orders:eu", json!("between")).await;
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let (ticket, inbox, channel) = (text(&goaway["ticket"]), text(&inbox), text(&channel));
    let query = format!("ticket={ticket}&since={inbox}&channels=orders:eu@{channel}");
    let mut new = at(&nodes[1], &query).await;
    let welcome = next(&mut new).await;
    assert_eq!(
        (&welcome["type"], &welcome["node"], &welcome["recovered"]),
        (&json!("welcome"), &json!("b"), &json!(true))
    );
    let subscribed = next(&mut new).await;
    assert_eq!(
        (&subscribed["channel"], &subscribed["recovered"]),
        (&json!("orders:eu"), &json!(true))
    );
    let missed = [next(&mut new).await, next(&mut new).await];
    assert!(missed.iter().all(|frame| frame["data"] == "between"));
    assert!(missed.iter().any(|frame| frame["channel"] == "orders:eu"));

    let end = closed(&mut old).await;
    assert_eq!(
        (u16::from(end.code), end.reason.as_str()),
        (1000, "resumed")
    );
    while let Some(frame) = old.next().await {
        frame.expect("a clean end");
    }
    let left = tokio::time::timeout(DEADLINE, leaving).await;
    left.expect("in time").expect("it left");
    nodes[1].push("42", json!("after")).await;
    assert_eq!(next(&mut new).await["data"], "after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_is_told_arrives_over_tls() {
    let ca = Ca::new();
    let node = secure(&ca, |_| {}).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let stream = dial(&client, node.at.public).await.expect("TLS");
    let query = format!("ticket={}&refuse=close", "x".repeat(43));
    let mut socket = open(stream, &query).await;
    let refused = next(&mut socket).await;
    assert_eq!(refused["type"], "refused", "{refused}");
    assert_eq!(refused["code"], "ticket", "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_stream_over_tls() {
    let ca = Ca::new();
    let node = secure(&ca, |_| {}).await;
    let ticket = node.ticket(json!({"user_id": "42"})).await;
    let port = node.at.public.port();
    let url = format!("https://localhost:{port}/sse?ticket={ticket}");
    let response = ca.https(None).get(url).send().await.expect("answered");
    assert_eq!(response.status(), 200);
    push(&node, "42", json!("over tls"), "VOLATILE").await;
    let mut chunks = response;
    let mut text = String::new();
    while !text.contains("over tls") {
        let chunk = tokio::time::timeout(DEADLINE, chunks.chunk()).await;
        let chunk = chunk.expect("in time").expect("read").expect("more");
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_trusts_what_the_door_shows() {
    let ca = Ca::new();
    let node = secure(&ca, |_| {}).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let mut child = tokio::process::Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", version])
            .args(["-alpn", "h2,http/1.1", "-servername", "localhost"])
            .args(["-verify_hostname", "localhost", "-connect"])
            .arg(node.at.public.to_string())
            .arg("-CAfile")
            .arg(ca.file())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl runs; apt-get install openssl");
        let mut input = child.stdin.take().expect("piped");
        let request = b"GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        input.write_all(request).await.expect("sent");
        let mut answer = [0; 12];
        let mut output = child.stdout.take().expect("piped");
        let read = tokio::time::timeout(DEADLINE, output.read_exact(&mut answer)).await;
        read.expect("in time").expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 404", "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_other_door_speaks_tls_too() {
    let ca = Ca::new();
    let files = ca.install("inside", &ca.issue(&["localhost"]));
    let node = node_with(|c| {
        c.service.tls = Some(tidings::doors::config::ServiceTlsConfig {
            cert_file: files.0.clone(),
            key_file: files.1.clone(),
            client_ca_file: None,
            client_auth: Default::default(),
            clients: Vec::new(),
        });
        c.admin.tls = Some(tls(files.clone()));
        c.probe = Some(tidings::doors::config::ProbeConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: Some(tls(files)),
        });
    })
    .await;
    let https = ca.https(None);
    let get = async |address: SocketAddr, path: &str| {
        let url = format!("https://localhost:{}{path}", address.port());
        let answered = https.get(url).bearer_auth(KEY).send().await;
        answered.expect("answered").status().as_u16()
    };
    let probe = node.at.probe.expect("bound");
    assert_eq!(get(probe, "/readyz").await, 200);
    assert_eq!(get(node.at.admin, "/metrics").await, 200);
    assert_eq!(get(node.at.service, "/v1/nodes").await, 200);
    // A client that does not speak TLS is cut, and the door serves on.
    let plain = reqwest::get(format!("http://{}/livez", node.at.admin)).await;
    assert!(plain.is_err(), "{plain:?}");
    assert_eq!(get(node.at.admin, "/livez").await, 200);
}
