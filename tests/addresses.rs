//! Whose address a client has, behind proxies and without.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;

use crate::support::certs::{BOTH, Ca, dial};
use crate::support::secure::{secure, upgrade};
use crate::support::{DEADLINE, TestNode, connect_with, next, node_with, refused, until};

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A node behind proxies at 127.0.0.1 and in 10.0.0.0/8.
async fn behind_a_proxy(proxy_protocol: bool) -> TestNode {
    node_with(|c| {
        let trusted = json!(["127.0.0.1", "10.0.0.0/8"]);
        c.public.trusted_proxies = serde_json::from_value(trusted).expect("prefixes");
        c.public.proxy_protocol = proxy_protocol;
    })
    .await
}

/// The address that the node saw a user come from.
async fn seen(node: &TestNode, user: &str) -> String {
    let (status, body) = node.get(&format!("/v1/users/{user}/connections")).await;
    assert_eq!(status, 200, "{body}");
    body["connections"][0]["ip"]
        .as_str()
        .expect("an address")
        .into()
}

/// Opens `/sse` over a connection of one's own, behind some first bytes that are written in these pieces; the answer's
/// first line, and the stream that it came on.
async fn open_raw(
    node: &TestNode,
    first: &[&[u8]],
    user: &str,
    headers: &str,
) -> (String, TcpStream) {
    let ticket = node.ticket(json!({"user_id": user})).await;
    let request = format!("GET /sse?ticket={ticket} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    let mut stream = TcpStream::connect(node.at.public).await.expect("connected");
    stream.set_nodelay(true).expect("set");
    // The last piece and the request leave in one segment.
    let (last, pieces) = first.split_last().expect("something comes first");
    for piece in pieces {
        stream.write_all(piece).await.expect("written");
    }
    let rest = [last, request.as_bytes()].concat();
    stream.write_all(&rest).await.expect("written");
    let mut line = Vec::new();
    let reading = async {
        while !line.ends_with(b"\r\n") {
            match stream.read_u8().await {
                Ok(byte) => line.push(byte),
                Err(_) => break,
            }
        }
    };
    tokio::time::timeout(DEADLINE, reading)
        .await
        .expect("an answer, or an end");
    (String::from_utf8_lossy(&line).trim().to_owned(), stream)
}

fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len()).expect("short").to_be_bytes();
    [V2_SIGNATURE, &[0x20 | command, family], &length, addresses].concat()
}

async fn until_refused(node: &TestNode, reason: &str, count: u32) {
    let line = format!("tidings_refusals_total{{reason=\"{reason}\"}} {count}\n");
    until(&line, async || node.metrics().await.contains(&line)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_trusted_proxies_the_client_is_the_other_end_of_the_connection() {
    let node = node_with(|_| {}).await;
    let url = node.url("42", "").await;
    let lies = [("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4")];
    let _socket = connect_with(&url, &lies).await.expect("an upgrade");
    assert_eq!(seen(&node, "42").await, "127.0.0.1");
    let (line, _) = open_raw(&node, &[b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"], "43", "").await;
    assert!(line.contains(" 400 "), "{line}");
    until_refused(&node, "bad_request", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_says_who_its_client_is() {
    let node = behind_a_proxy(false).await;
    for (user, headers, expected) in [
        (
            "1",
            [("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.0.0.7")],
            "1.2.3.4",
        ),
        (
            "2",
            [(
                "forwarded",
                "for=6.6.6.6, for=\"[2001:db8::7]:443\";proto=https",
            )],
            "2001:db8::7",
        ),
        ("3", [("x-forwarded-for", "1.2.3.4, unknown")], "127.0.0.1"),
        ("4", [("x-real-ip", "1.2.3.4")], "127.0.0.1"),
    ] {
        let url = node.url(user, "").await;
        let _socket = connect_with(&url, &headers).await.expect("an upgrade");
        until("the session is there", async || {
            node.push(user, json!(1)).await["local_connections"] == 1
        })
        .await;
        assert_eq!(seen(&node, user).await, expected, "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ticket_and_the_limit_see_the_client_behind_the_proxy() {
    let node = node_with(|c| {
        c.public.trusted_proxies = serde_json::from_value(json!(["127.0.0.1"])).expect("prefixes");
        c.limits.connections_per_ip = 1;
    })
    .await;
    let ticket = node
        .ticket(json!({"user_id": "42", "ips": ["1.2.3.0/24"]}))
        .await;
    let url = format!("ws://{}/ws?ticket={ticket}", node.at.public);
    let from = |ip| [("x-forwarded-for", ip)];
    assert_eq!(refused(&url, &from("9.9.9.9")).await.1["code"], "ip");
    let _first = connect_with(&url, &from("1.2.3.4"))
        .await
        .expect("its address");
    let again = node.url("42", "").await;
    assert_eq!(
        refused(&again, &from("1.2.3.4")).await.1["code"],
        "overloaded"
    );
    connect_with(&again, &from("1.2.3.5"))
        .await
        .expect("another address");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_header_names_the_client_in_both_versions_and_in_any_pieces() {
    let node = behind_a_proxy(true).await;
    let four = [1, 2, 3, 4, 10, 0, 0, 1, 0x11, 0x5c, 0, 80];
    let mut six = [0; 36];
    six[..16].copy_from_slice(
        &"2001:db8::7"
            .parse::<std::net::Ipv6Addr>()
            .expect("valid")
            .octets(),
    );
    let (v2_four, v2_six) = (v2(1, 0x11, &four), v2(1, 0x21, &six));
    let bytes: Vec<&[u8]> = v2_four.chunks(1).collect();
    let line = b"PROXY TCP4 1.2.3.4 10.0.0.1 4444 80\r\n";
    let line_by_byte: Vec<&[u8]> = line.chunks(1).collect();
    let local = v2(0, 0, &[]);
    let cases: [(&[&[u8]], &str); 7] = [
        (&[line], "1.2.3.4"),
        (&line_by_byte, "1.2.3.4"),
        (
            &[b"PROXY TCP6 2001:db8::7 2001:db8::1 4444 80\r\n"],
            "2001:db8::7",
        ),
        (&bytes, "1.2.3.4"),
        (&[&v2_six], "2001:db8::7"),
        (&[&local], "127.0.0.1"),
        (&[b"PROXY UNKNOWN\r\n"], "127.0.0.1"),
    ];
    for (user, (first, expected)) in cases.iter().enumerate() {
        let user = user.to_string();
        // The client's own header: it is no proxy of ours.
        let (line, _stream) = open_raw(&node, first, &user, "x-forwarded-for: 6.6.6.6\r\n").await;
        assert!(line.contains(" 200 "), "{line}");
        let expected = match *expected {
            // The proxy itself is believed.
            "127.0.0.1" => "6.6.6.6",
            client => client,
        };
        assert_eq!(seen(&node, &user).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_behind_a_proxy_header_works_as_any() {
    let node = behind_a_proxy(true).await;
    let url = node.url("42", "").await;
    let mut stream = TcpStream::connect(node.at.public).await.expect("connected");
    stream
        .write_all(&v2(1, 0x11, &[1, 2, 3, 4, 10, 0, 0, 1, 0, 1, 0, 2]))
        .await
        .expect("written");
    let upgrading = tokio_tungstenite::client_async(url, stream);
    let (mut socket, _) = tokio::time::timeout(DEADLINE, upgrading)
        .await
        .expect("in time")
        .expect("an upgrade");
    node.push("42", json!("hello")).await;
    let (mut texts, mut all) = (0, String::new());
    while texts < 2 {
        if let Some(tokio_tungstenite::tungstenite::Message::Text(text)) =
            crate::support::next_message(&mut socket).await
        {
            texts += 1;
            all.push_str(&text);
        }
    }
    assert!(all.contains("welcome") && all.contains("hello"), "{all}");
    assert_eq!(seen(&node, "42").await, "1.2.3.4");
}

/// A connection through a balancer that says first whose it is, in one piece with the first that comes of the client.
async fn through_a_balancer(to: SocketAddr, header: Vec<u8>) -> DuplexStream {
    let (client, mut balancer) = tokio::io::duplex(64 << 10);
    let mut node = TcpStream::connect(to).await.expect("connected");
    tokio::spawn(async move {
        let mut first = vec![0; 4096];
        let count = balancer.read(&mut first).await.expect("read");
        let first = [&header, &first[..count]].concat();
        node.write_all(&first).await.expect("written");
        // One of the two goes first.
        let _ = tokio::io::copy_bidirectional(&mut balancer, &mut node).await;
    });
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_header_in_front_of_tls_names_the_client_in_both_versions() {
    let ca = Ca::new();
    let node = secure(&ca, |c| {
        c.public.trusted_proxies = serde_json::from_value(json!(["127.0.0.1"])).expect("prefixes");
        c.public.proxy_protocol = true;
    })
    .await;
    let client = ca.client(None, "http/1.1", BOTH);
    let localhost = || "localhost".try_into().expect("a name");
    let (four, line) = (
        [1, 2, 3, 4, 10, 0, 0, 1, 0x11, 0x5c, 0, 80],
        "1.2.3.5 10.0.0.1 4444 80",
    );
    for (user, header, expected) in [
        (
            "1",
            format!("PROXY TCP4 {line}\r\n").into_bytes(),
            "1.2.3.5",
        ),
        ("2", v2(1, 0x11, &four), "1.2.3.4"),
    ] {
        let stream = through_a_balancer(node.at.public, header).await;
        let connecting = client.connect(localhost(), stream);
        let mut socket = upgrade(&node, connecting.await.expect("TLS"), user).await;
        assert_eq!(seen(&node, user).await, expected);
        node.push(user, json!("hello")).await;
        assert_eq!(next(&mut socket).await["data"], "hello");
    }
    // The header belongs before TLS, and comes: a client that could leave it out would have the proxy's address.
    assert!(dial(&client, node.at.public).await.is_err());
    until_refused(&node, "proxy_header", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_without_its_header_is_closed_and_counted() {
    let node = node_with(|c| {
        c.public.trusted_proxies = serde_json::from_value(json!(["127.0.0.1"])).expect("prefixes");
        c.public.proxy_protocol = true;
        c.limits.handshake_timeout = std::time::Duration::from_secs(1);
    })
    .await;
    let first: [&[u8]; 3] = [b"", b"PROXY TCP4 nonsense\r\n", b"\r\n\r\n\0\r\nQUIT\n\x31"];
    for (count, first) in (1..).zip(first) {
        let (line, _) = open_raw(&node, &[first], "42", "").await;
        assert_eq!(line, "");
        until_refused(&node, "proxy_header", count).await;
    }
    // Silence is refused by the handshake's deadline, and a look at the port is nothing.
    let mut silent = TcpStream::connect(node.at.public).await.expect("connected");
    drop(TcpStream::connect(node.at.public).await.expect("connected"));
    let mut nothing = [0; 8];
    let ended = tokio::time::timeout(DEADLINE, silent.read(&mut nothing)).await;
    assert!(!matches!(ended.expect("ended"), Ok(1..)));
    until_refused(&node, "proxy_header", 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_trusted_proxy_sends_no_proxy_header() {
    let node = node_with(|c| {
        c.public.trusted_proxies = serde_json::from_value(json!(["10.0.0.0/8"])).expect("prefixes");
        c.public.proxy_protocol = true;
    })
    .await;
    let (line, _) = open_raw(&node, &[b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"], "42", "").await;
    assert!(line.contains(" 400 "), "{line}");
    let _client = node.join("42", "").await;
    assert_eq!(seen(&node, "42").await, "127.0.0.1");
}
