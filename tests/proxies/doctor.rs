use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidings::config::Config;
use tokio::process::Command;

use super::{behind, behind_with, through};
use crate::support::chaos::{ChaosProxy, Fault, Whom};
use crate::support::proxy::{Kind, Proxy, Setup};
use crate::support::{KEY, TestNode, next_of, node, node_with, until};

through!(
    a_proxy_as_it_ships_is_fine,
    what_drops_upgrades_is_named,
    what_holds_events_back_is_named,
);

/// What the doctor said, and its exit code.
pub(super) async fn doctor(url: &str, more: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["doctor", url, "--json"])
        .args(more)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let said = serde_json::from_str(&said).unwrap_or_else(|_| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        json!({"said": said, "complaint": complaint})
    });
    (output.status.code().unwrap_or(-1), said)
}

/// The same, at a proxy in front of a node, which gives the tickets.
async fn at(proxy: &Proxy, node: &TestNode, more: &[&str]) -> (i32, Value) {
    let url = format!("wss://localhost:{}/ws", proxy.clients);
    let server = format!("http://{}", node.at.service);
    let ca = proxy.certificate();
    let ca = ca.to_str().expect("a path");
    let mut words = vec!["--server", &server, "--key", KEY, "--cacert", ca];
    words.extend(more);
    doctor(&url, &words).await
}

/// The finding of a check: its level, and all that is said.
fn finding(said: &Value, check: &str) -> (String, String) {
    let checks = said["checks"]
        .as_array()
        .unwrap_or_else(|| panic!("{said}"));
    let mut found = checks.iter().filter(|found| found["check"] == check);
    let found = found.next().unwrap_or_else(|| panic!("no {check}: {said}"));
    (
        found["level"].as_str().expect("a level").into(),
        found.to_string(),
    )
}

#[track_caller]
pub(super) fn assert_finding(said: &Value, check: &str, level: &str, words: &[&str]) {
    let (found, all) = finding(said, check);
    assert_eq!(found, level, "{check}: {said}");
    for word in words {
        assert!(all.contains(word), "{word:?} is not in {all}");
    }
}

pub(super) fn often(config: &mut Config) {
    config.heartbeat.interval = Duration::from_secs(1);
}

async fn a_proxy_as_it_ships_is_fine(kind: Kind) {
    let (node, proxy) = behind(kind, |c| {
        often(c);
        c.public.trusted_proxies = serde_json::from_value(json!(["127.0.0.1"])).expect("one");
    })
    .await;
    let (code, said) = at(&proxy, &node, &["--for", "4s", "--from", "127.0.0.7"]).await;
    assert_eq!(code, 0, "{said}");
    assert_finding(&said, "address", "ok", &["127.0.0.7"]);
    let name = match kind {
        Kind::Nginx => "nginx",
        Kind::Haproxy => "HAProxy",
        Kind::Traefik => "Traefik",
        Kind::Envoy => "Envoy",
    };
    assert_finding(&said, "hop", "ok", &[name]);
    for check in [
        "dns",
        "tcp",
        "tls",
        "upgrade",
        "heartbeats",
        "silence",
        "events",
    ] {
        assert_finding(&said, check, "ok", &[]);
    }
    assert_finding(&said, "close codes", "ok", &["4500"]);
}

async fn what_drops_upgrades_is_named(kind: Kind) {
    let (words, setting): (&[&str], _) = match kind {
        Kind::Nginx => (
            &["proxy_set_header Upgrade $http_upgrade;="],
            "proxy_set_header Upgrade",
        ),
        Kind::Haproxy => (
            &["http-request del-header Forwarded=http-request del-header Upgrade"],
            "deletes Upgrade",
        ),
        Kind::Traefik => (
            &[
                "routers:=middlewares:\n    drop: {headers: {customRequestHeaders: {Upgrade: \"\"}}}\n  routers:",
                "service: tidings-public=service: tidings-public\n      middlewares: [drop]",
            ],
            "headers middleware",
        ),
        Kind::Envoy => (
            &["upgrade_configs: [{upgrade_type: websocket}]="],
            "upgrade_configs: [{upgrade_type: websocket}]",
        ),
    };
    let setup = Setup {
        words,
        ..Default::default()
    };
    let (node, proxy) = behind_with(kind, setup, often).await;
    let (code, said) = at(&proxy, &node, &["--for", "1s"]).await;
    assert_eq!(code, 1, "{said}");
    assert_finding(&said, "upgrade", "fail", &[setting]);
    // What does not need it is looked at all the same.
    assert_finding(&said, "events", "ok", &[]);
}

async fn what_holds_events_back_is_named(kind: Kind) {
    let (words, level, setting): (&[&str], _, _) = match kind {
        Kind::Nginx => (
            &["proxy_buffering off;=proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"],
            "fail",
            "proxy_buffering off",
        ),
        Kind::Haproxy => (
            &["http-request del-header Forwarded=http-response wait-for-body time 60s"],
            "fail",
            "wait-for-body",
        ),
        Kind::Traefik => (
            &[
                "routers:=middlewares:\n    hold: {buffering: {maxResponseBodyBytes: 1000000}}\n  routers:",
                "service: tidings-public=service: tidings-public\n      middlewares: [hold]",
            ],
            "fail",
            "buffering middleware",
        ),
        Kind::Envoy => (
            &[concat!(
                "http_filters: &router=http_filters: &router\n",
                "          - name: compressor\n            typed_config:\n",
                "              \"@type\": type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor\n",
                "              response_direction_config: {common_config: {content_type: [text/event-stream]}}\n",
                "              compressor_library:\n                name: gzip\n                typed_config:\n",
                "                  \"@type\": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip",
            )],
            // Held back by a little, so it is only a warning.
            "warn",
            "compressor",
        ),
    };
    let setup = Setup {
        words,
        ..Default::default()
    };
    let (node, proxy) = behind_with(kind, setup, |_| {}).await;
    let (code, said) = at(&proxy, &node, &["--for", "1s", "--timeout", "5s"]).await;
    assert_eq!(code, i32::from(level == "fail"), "{said}");
    assert_finding(&said, "events", level, &[setting]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_timeout_below_the_heartbeat_is_named() {
    let cases = [
        (Kind::Nginx, "75s=3s", "silence", "proxy_read_timeout"),
        (Kind::Haproxy, "75s=3s", "silence", "timeout tunnel"),
        (Kind::Envoy, "75s=3s", "silence", "stream_idle_timeout"),
        // It has none for WebSockets.
        (
            Kind::Traefik,
            "writeTimeout: 0s=writeTimeout: 3s",
            "events",
            "respondingTimeouts.writeTimeout",
        ),
    ];
    let each = cases.map(|(kind, word, check, setting)| async move {
        let setup = Setup {
            words: &[word],
            ..Default::default()
        };
        // Traefik notices at the next heartbeat, the others cut before there is one.
        let every = match kind {
            Kind::Traefik => 1,
            _ => 25,
        };
        let (node, proxy) = behind_with(kind, setup, |c| {
            c.heartbeat.interval = Duration::from_secs(every);
        })
        .await;
        let (code, said) = at(&proxy, &node, &["--for", "9s"]).await;
        assert_eq!(code, 1, "{said}");
        assert_finding(&said, check, "fail", &[setting]);
        let (level, _) = finding(&said, "heartbeats");
        assert_eq!(level == "ok", kind == Kind::Traefik, "{said}");
    });
    join_all(each).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_timeout_above_the_heartbeat_is_told_and_fine() {
    let setup = Setup {
        words: &["75s=5s"],
        ..Default::default()
    };
    let (node, proxy) = behind_with(Kind::Nginx, setup, often).await;
    let (code, said) = at(&proxy, &node, &["--for", "9s"]).await;
    assert_eq!(code, 0, "{said}");
    assert_finding(
        &said,
        "silence",
        "ok",
        &["is cut after", "heartbeats every 1 s keep it"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_not_handed_on_is_named() {
    let setup = Setup {
        words: &["proxy_set_header X-Forwarded-For $remote_addr;="],
        ..Default::default()
    };
    let (node, proxy) = behind_with(Kind::Nginx, setup, often).await;
    let (code, said) = at(&proxy, &node, &["--for", "1s", "--from", "127.0.0.7"]).await;
    assert_eq!(code, 1, "{said}");
    let words = [
        "127.0.0.1 and not",
        "proxy_set_header X-Forwarded-For",
        "trusted_proxies",
    ];
    assert_finding(&said, "address", "fail", &words);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_proxy_is_fine_and_tickets_may_be_given() {
    let node = node_with(often).await;
    let url = format!("ws://{}", node.at.public);
    let mut words = vec!["--for".to_owned(), "2s".into()];
    for _ in 0..5 {
        let ticket = node.ticket(json!({"user_id": "42"})).await;
        words.extend(["--ticket".into(), ticket]);
    }
    let all: Vec<_> = words.iter().map(String::as_str).collect();
    let (code, said) = doctor(&url, &all).await;
    assert_eq!(code, 0, "{said}");
    assert_finding(&said, "hop", "ok", &["Tidings itself"]);
    for check in ["upgrade", "heartbeats", "silence", "events", "close codes"] {
        assert_finding(&said, check, "ok", &[]);
    }
    assert_finding(&said, "address", "skipped", &["--server"]);
    // Each opened one connection: they are spent.
    let (code, said) = doctor(&url, &all).await;
    assert_eq!(code, 3, "{said}");
    assert_finding(&said, "upgrade", "fail", &["unknown, used or expired"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_dies_without_a_word_is_found() {
    let node = node().await;
    let nat = ChaosProxy::marking(node.at.public.port(), b"HEARTBEAT=OFF").await;
    let url = format!("ws://127.0.0.1:{}/ws", nat.port);
    let server = format!("http://{}", node.at.service);
    let words = ["--server", &server, "--for", "6s", "--timeout", "2s"];
    let forgets = async {
        until("three links are silent", async || {
            node.counter("tidings_silent_connections_total").await == 3
        })
        .await;
        nat.set_both(Whom::Marked, Fault::Cut);
    };
    let ((code, said), ()) = tokio::join!(doctor(&url, &words), forgets);
    assert_eq!(code, 1, "{said}");
    assert_finding(
        &said,
        "silence",
        "fail",
        &["without a word", "proxy_read_timeout"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_leaves_what_is_kept_to_whom_it_is_for() {
    let node = node_with(often).await;
    node.push("42", json!("for you")).await;
    let (url, server) = (
        format!("ws://{}", node.at.public),
        format!("http://{}", node.at.service),
    );
    let words = ["--server", &server, "--user", "42", "--for", "1s"];
    let (code, said) = doctor(&url, &words).await;
    assert_eq!(code, 0, "{said}");
    let (mut socket, _) = node.join("42", "").await;
    assert_eq!(next_of(&mut socket, "message").await["data"], "for you");
}

#[tokio::test]
async fn who_is_not_there_or_not_trusted_is_said_plainly() {
    let (_node, proxy) = behind(Kind::Haproxy, |_| {}).await;
    let other = format!("wss://localhost:{}/ws", proxy.clients);
    let (code, said) = doctor(&other, &["--ticket", "T"]).await;
    // The system's certificates, or none at all.
    match said["checks"].is_array() {
        true => assert_finding(&said, "tls", "fail", &["is not trusted", "--ca-file"]),
        false => assert!(said.to_string().contains("ca-certificates"), "{said}"),
    }
    assert_eq!(code, 1, "{said}");
    let ca = proxy.certificate();
    let ca = ca.to_str().expect("a path");
    let by_number = format!("wss://127.0.0.1:{}/ws", proxy.clients);
    let (code, said) = doctor(&by_number, &["--ticket", "T", "--cacert", ca]).await;
    assert_eq!(code, 1, "{said}");
    assert_finding(&said, "tls", "fail", &["another name's"]);
    let free = crate::support::ports::free_port();
    let (code, said) = doctor(&format!("ws://127.0.0.1:{free}"), &["--ticket", "T"]).await;
    assert_eq!(code, 4, "{said}");
    assert_finding(&said, "tcp", "fail", &["nobody takes connections"]);
    let node = node().await;
    let (code, said) = doctor(&format!("wss://{}", node.at.public), &["--ticket", "T"]).await;
    assert!([1, 4].contains(&code), "{said}");
    for (url, word) in [
        ("127.0.0.1:1", "must begin with ws:// or wss://"),
        ("ws://127.0.0.1/ws?ticket=T", "--ticket"),
    ] {
        let (code, said) = doctor(url, &[]).await;
        assert_eq!(code, 2, "{said}");
        assert!(
            said["complaint"].as_str().is_some_and(|c| c.contains(word)),
            "{said}"
        );
    }
}
