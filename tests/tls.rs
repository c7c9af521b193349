//! TLS on the public door, and on the others without clients' certificates (tests/mtls.rs has those).

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tidings::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::certs::{BOTH, Ca, der, dial, name, shown, tls};
use crate::support::{DEADLINE, KEY, TestNode, next_message, node_with, say, until};

type Secure = WebSocketStream<TlsStream<TcpStream>>;

/// A node whose public door speaks TLS, with a certificate of this issuer.
async fn secure(ca: &Ca, change: impl FnOnce(&mut Config)) -> TestNode {
    let files = ca.install("public", &ca.issue(&["localhost"]));
    node_with(|c| {
        c.public.tls = Some(tls(files));
        change(c);
    })
    .await
}

async fn frame(socket: &mut Secure) -> Value {
    loop {
        match next_message(socket).await {
            Some(Message::Text(text)) => return serde_json::from_str(&text).expect("JSON"),
            Some(Message::Ping(_)) => {}
            other => panic!("no frame: {other:?}"),
        }
    }
}

async fn upgrade(node: &TestNode, stream: TlsStream<TcpStream>, user: &str) -> Secure {
    let ticket = node.ticket(json!({"user_id": user})).await;
    let url = format!("ws://localhost/ws?ticket={ticket}");
    let upgraded = tokio_tungstenite::client_async(url, stream).await;
    let (mut socket, _) = upgraded.expect("an upgrade");
    let welcome = frame(&mut socket).await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    socket
}

async fn join(node: &TestNode, client: &TlsConnector, user: &str) -> Secure {
    let stream = dial(client, node.at.public).await.expect("TLS");
    upgrade(node, stream, user).await
}

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
        assert_eq!(frame(&mut socket).await["data"], "hello");
        let subscribe = json!({"type": "subscribe", "channel": "chat:7", "ref": 1});
        say(&mut socket, subscribe).await;
        assert_eq!(frame(&mut socket).await["type"], "subscribed");
        let large = "x".repeat(60 << 10);
        for size in [1, 1000, 16 << 10, 60 << 10] {
            let publish = json!({"type": "publish", "channel": "chat:7", "data": large[..size]});
            say(&mut socket, publish).await;
            // It comes back as a message, and is answered, in either order.
            let (first, second) = (frame(&mut socket).await, frame(&mut socket).await);
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
        assert_eq!(frame(&mut socket).await["data"]["number"], number);
    }
    until("all of it is written", async || {
        node.node().outbox_bytes() == 0
    })
    .await;
    push(&node, "42", json!("after"), "VOLATILE").await;
    assert_eq!(frame(&mut socket).await["data"], "after");
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
async fn a_new_certificate_is_shown_to_who_comes_and_who_is_connected_stays() {
    let ca = Ca::new();
    let node = secure(&ca, |c| c.tls.watch_interval = Duration::from_millis(200)).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let mut old = join(&node, &client, "42").await;
    let new = ca.issue(&["localhost"]);
    ca.install("public", &new);
    until("the new one is shown", async || {
        let stream = dial(&client, node.at.public).await.expect("TLS");
        shown(&stream) == der(&new.certificate)
    })
    .await;
    assert_ne!(shown(old.get_ref()), der(&new.certificate));
    push(&node, "42", json!("still here"), "VOLATILE").await;
    assert_eq!(frame(&mut old).await["data"], "still here");
    let metrics = node.metrics().await;
    assert!(
        metrics.contains("tidings_certificate_expiry_seconds{door=\"public\"} 67"),
        "{metrics}"
    );
    let taken = "tidings_certificate_reloads_total{door=\"public\",outcome=\"taken\"} ";
    assert!(metrics.contains(taken), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_file_that_is_not_good_leaves_the_old_certificate() {
    let ca = Ca::new();
    let node = secure(&ca, |c| c.tls.watch_interval = Duration::ZERO).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let first = shown(&dial(&client, node.at.public).await.expect("TLS"));
    let (good, other) = (ca.issue(&["localhost"]), ca.issue(&["localhost"]));
    let expired = ca.issue_with(&["localhost"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let file = name(&ca.path("public.pem"));
    let cases = [
        ("nonsense", &good.key, "there is no certificate"),
        (&good.certificate[..100], &good.key, "cut off"),
        (&good.certificate, &other.key, "is not for the key in"),
        (&expired.certificate, &expired.key, "expired"),
    ];
    for (certificate, key, sentence) in cases {
        ca.write("public.pem", certificate);
        ca.write("public.key", key);
        let told = node.node().reload_certificates().await;
        let told = told.expect_err("not good");
        assert!(told.contains(sentence) && told.contains(&file), "{told}");
        let stream = dial(&client, node.at.public).await.expect("TLS");
        assert_eq!(shown(&stream), first, "{sentence}");
    }
    std::fs::remove_file(ca.path("public.key")).expect("removed");
    let told = node.node().reload_certificates().await;
    let told = told.expect_err("not there");
    assert!(told.contains("public.key cannot be read"), "{told}");
    let refused = "tidings_certificate_reloads_total{door=\"public\",outcome=\"refused\"}";
    assert_eq!(node.counter(refused).await, 5);

    ca.install("public", &good);
    assert_eq!(node.node().reload_certificates().await, Ok(()));
    let stream = dial(&client, node.at.public).await.expect("TLS");
    assert_eq!(shown(&stream), der(&good.certificate));
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
async fn a_refusal_that_is_told_arrives_over_tls() {
    let ca = Ca::new();
    let node = secure(&ca, |_| {}).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let stream = dial(&client, node.at.public).await.expect("TLS");
    let url = format!("ws://localhost/ws?ticket={}&refuse=close", "x".repeat(43));
    let upgraded = tokio_tungstenite::client_async(url, stream).await;
    let (mut socket, _) = upgraded.expect("an upgrade");
    let refused = frame(&mut socket).await;
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
