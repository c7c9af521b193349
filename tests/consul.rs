//! A node and a real Consul agent.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tidings::config::Config;
use tidings::model::Secret;

use crate::support::consul::{Certificates, ConsulAgent};
use crate::support::dns::{Answer, Kind};
use crate::support::fleet::node_at;
use crate::support::redis::RedisServer;
use crate::support::{DEADLINE, TestNode, node_with, until};

/// What a node complains of, by reason.
async fn failures(node: &TestNode, reason: &str) -> u64 {
    node.counter(&format!(
        "tidings_consul_failures_total{{reason=\"{reason}\"}}"
    ))
    .await
}

/// Leaves in the background.
fn drain(node: &mut TestNode) -> tokio::task::JoinHandle<()> {
    tokio::spawn(
        node.node
            .take()
            .expect("it runs")
            .leave(std::future::pending()),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_doors_are_registered_and_their_checks_pass() {
    let consul = ConsulAgent::start().await;
    let node = node_with(|c| {
        c.node.id = Some("node-1".into());
        consul.register(c);
        let consul = c.consul.as_mut().expect("set");
        consul.tags = vec!["eu".into()];
        consul.meta.insert("rack".into(), "a1".into());
    })
    .await;
    for (name, door) in [
        ("tidings", node.at.public),
        ("tidings-service", node.at.service),
    ] {
        let service = consul.passing(name).await;
        assert_eq!(service["Address"], door.ip().to_string(), "{service}");
        assert_eq!(service["Port"], door.port(), "{service}");
        assert_eq!(service["Tags"], json!(["eu"]), "{service}");
        let meta = json!({"node": "node-1", "version": env!("CARGO_PKG_VERSION"), "rack": "a1"});
        assert_eq!(service["Meta"], meta);
    }
    until("the metric says so", async || {
        node.counter("tidings_consul_registered").await == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_finds_every_node_by_address_and_by_port() {
    let consul = ConsulAgent::start().await;
    let at = |c: &mut Config, ip: &str| {
        let ip: IpAddr = ip.parse().expect("an address");
        for listen in [
            &mut c.public.listen,
            &mut c.service.listen,
            &mut c.admin.listen,
        ] {
            listen.set_ip(ip);
        }
        consul.register(c);
    };
    let first = node_with(|c| at(c, "127.0.0.2")).await;
    let second = node_with(|c| at(c, "127.0.0.3")).await;
    let mut wanted: Vec<_> = [&first, &second]
        .map(|node| Answer::A(node.at.public.ip()))
        .into();
    until("both have an A record", async || {
        let mut seen = consul.dns("tidings.service.consul", Kind::A).await;
        seen.sort_by_key(|answer| format!("{answer:?}"));
        seen == wanted
    })
    .await;
    let mut ports: Vec<_> = [&first, &second].map(|node| node.at.service.port()).into();
    ports.sort_unstable();
    until("both have an SRV record", async || {
        let seen = consul
            .dns("_tidings-service._tcp.service.consul", Kind::Srv)
            .await;
        let mut seen: Vec<_> = seen
            .iter()
            .filter_map(|answer| match answer {
                Answer::Srv { port, .. } => Some(*port),
                Answer::A(_) => None,
            })
            .collect();
        seen.sort_unstable();
        seen == ports
    })
    .await;
    // A node that drains is not found.
    wanted.truncate(1);
    let mut second = second;
    let leaving = drain(&mut second);
    until("one is left", async || {
        consul.dns("tidings.service.consul", Kind::A).await == wanted
    })
    .await;
    leaving.await.expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_red_node_is_found_by_services_alone() {
    let consul = ConsulAgent::start().await;
    let mut redis = RedisServer::start().await;
    let _node = node_at(&redis.url(), "red", |c| {
        consul.register(c);
        c.backplane.readiness_grace = Duration::from_secs(1);
    })
    .await;
    consul.passing("tidings").await;
    consul.passing("tidings-service").await;
    redis.kill().await;
    until("clients are sent elsewhere", async || {
        let found = consul.dns("tidings.service.consul", Kind::A).await;
        found.is_empty() && consul.services("tidings").await.len() == 1
    })
    .await;
    let door = consul.dns("tidings-service.service.consul", Kind::A).await;
    assert_eq!(door.len(), 1, "it refuses honestly there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_drains_is_out_of_consul_while_its_doors_still_accept() {
    let consul = ConsulAgent::start().await;
    let mut node = node_with(|c| {
        consul.register(c);
        c.drain.deregister_delay = Duration::from_secs(3600);
    })
    .await;
    consul.passing("tidings").await;
    let (_socket, _) = node.join("42", "").await;
    let (now, when) = tokio::sync::oneshot::channel::<()>();
    let leaving = tokio::spawn(node.node.take().expect("it runs").leave(async {
        let _ = when.await;
    }));
    consul.gone("tidings").await;
    consul.gone("tidings-service").await;
    let (_late, _) = node.join("43", "").await;
    now.send(()).expect("it listens");
    leaving.await.expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_sessions_is_out_of_consul_before_its_doors_close() {
    let consul = ConsulAgent::start().await;
    let mut node = node_with(|c| consul.register(c)).await;
    consul.passing("tidings").await;
    drain(&mut node).await.expect("it left");
    assert_eq!(consul.services("tidings").await, []);
    assert_eq!(consul.services("tidings-service").await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_came_back_empty_is_told_again() {
    let mut consul = ConsulAgent::start().await;
    let node = node_with(|c| consul.register(c)).await;
    consul.passing("tidings").await;
    consul.kill().await;
    until("it is missed", async || {
        failures(&node, "unreachable").await > 0
    })
    .await;
    assert_eq!(node.readyz().await.0, 200);
    consul.run().await;
    consul.passing("tidings").await;
    consul.passing("tidings-service").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_without_its_agent_and_registers_once_it_is_there() {
    let mut consul = ConsulAgent::start().await;
    consul.kill().await;
    let node = node_with(|c| consul.register(c)).await;
    until("it is missed", async || {
        failures(&node, "unreachable").await > 0
    })
    .await;
    assert_eq!(node.push("42", json!(1)).await["status"], "STORED");
    consul.run().await;
    consul.passing("tidings").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_away_or_frozen_holds_no_drain_up() {
    let mut consul = ConsulAgent::start().await;
    let mut other = node_with(|c| consul.register(c)).await;
    let mut node = node_with(|c| consul.register(c)).await;
    until("both are registered", async || {
        consul.services("tidings").await.len() == 2
    })
    .await;
    consul.pause();
    tokio::time::timeout(DEADLINE, drain(&mut other))
        .await
        .expect("in time")
        .expect("it left");
    consul.kill().await;
    tokio::time::timeout(DEADLINE, drain(&mut node))
        .await
        .expect("in time")
        .expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_may_not_register_is_counted_and_one_that_may_is_read_from_its_file() {
    let consul = ConsulAgent::start_with_acl().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(
        &file,
        consul
            .token("reader", "service_prefix \"\" { policy = \"read\" }")
            .await,
    )
    .expect("written");
    let node = node_with(|c| {
        consul.register(c);
        c.consul.as_mut().expect("set").token_file = Some(file.clone());
    })
    .await;
    until("it is denied", async || failures(&node, "denied").await > 0).await;
    assert_eq!(node.push("42", json!(1)).await["status"], "STORED");
    assert_eq!(consul.services("tidings").await, []);
    let rules = "service \"tidings\" { policy = \"write\" }\nservice \"tidings-service\" { policy = \"write\" }";
    std::fs::write(&file, format!("{}\n", consul.token("writer", rules).await)).expect("written");
    consul.passing("tidings").await;
    consul.passing("tidings-service").await;
    std::fs::remove_file(&file).expect("removed");
    until("the file is missed", async || {
        failures(&node, "token").await > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_tls_is_shown_a_certificate() {
    let certificates = Certificates::make();
    let consul = ConsulAgent::start_with_tls(&certificates).await;
    let with = |c: &mut Config, shown: bool| {
        consul.register(c);
        let consul = c.consul.as_mut().expect("set");
        consul.ca_file = Some(certificates.path("ca.pem"));
        consul.cert_file = shown.then(|| certificates.path("client.pem"));
        consul.key_file = shown.then(|| certificates.path("client.key"));
    };
    let stranger = node_with(|c| with(c, false)).await;
    until("a stranger is refused", async || {
        failures(&stranger, "unreachable").await > 0
    })
    .await;
    let _node = node_with(|c| with(c, true)).await;
    consul.passing("tidings").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fuller_node_weighs_less() {
    let consul = ConsulAgent::start().await;
    let node = node_with(|c| {
        consul.register(c);
        c.limits.connections = 10;
    })
    .await;
    let weight = async || -> u64 {
        let service: Value = consul.passing("tidings").await;
        service["Weights"]["Passing"].as_u64().expect("a weight")
    };
    let empty = weight().await;
    let mut sockets = Vec::new();
    for user in 0..8 {
        sockets.push(node.join(&format!("u{user}"), "").await);
    }
    until("it weighs less", async || weight().await <= 20).await;
    assert!(empty > 20, "{empty}");
    let srv = consul.dns("_tidings._tcp.service.consul", Kind::Srv).await;
    assert!(
        matches!(srv[..], [Answer::Srv { weight: ..=20, .. }]),
        "{srv:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_maintenance_is_left_alone() {
    let consul = ConsulAgent::start().await;
    let node = node_with(|c| {
        consul.register(c);
        c.limits.connections = 10;
    })
    .await;
    let service = consul.passing("tidings").await;
    let id = service["ID"].as_str().expect("an id");
    let path = format!("/v1/agent/service/maintenance/{id}?enable=true");
    consul
        .ask(Method::PUT, &path, Value::Null)
        .await
        .expect("asked");
    let mut sockets = Vec::new();
    for user in 0..9 {
        sockets.push(node.join(&format!("u{user}"), "").await);
    }
    let light = |service: &Value| {
        service["Weights"]["Passing"]
            .as_u64()
            .is_some_and(|w| w <= 10)
    };
    until("its weight was changed", async || {
        consul
            .services("tidings")
            .await
            .iter()
            .any(|(service, _)| light(service))
    })
    .await;
    let (_, states) = consul.services("tidings").await.remove(0);
    assert!(states.contains(&"critical".into()), "{states:?}");
}

#[tokio::test]
async fn what_to_do_is_said_when_the_token_is_wrong() {
    let consul = ConsulAgent::start_with_acl().await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"));
    let free = ["public", "service", "admin"].map(|door| format!("{door}.listen=127.0.0.1:0"));
    command
        .arg("dev")
        .args(free.iter().flat_map(|set| ["--set", set]));
    let secret = Secret::new("2f0e6d1c-aaaa-4bbb-8ccc-1234567890ab");
    command.args(["--set", &format!("consul.url={}", consul.url())]);
    command.args(["--set", &format!("consul.token={}", secret.expose())]);
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().expect("it starts");
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(
        child.stderr.take().expect("piped"),
    ));
    let wanted = r#"its policy needs the rule service \"tidings\" { policy = \"write\" }"#;
    let said = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            assert!(!line.contains(secret.expose()), "{line}");
            if line.contains(wanted) {
                return;
            }
        }
        panic!("it ended without a word");
    };
    tokio::time::timeout(DEADLINE, said).await.expect("in time");
}
