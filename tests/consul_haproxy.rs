//! A real HAProxy that finds the nodes by a real Consul's SRV records.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tidings::config::Config;
use tokio::process::{Child, Command};

use crate::support::consul::ConsulAgent;
use crate::support::ports::free_port;
use crate::support::{Socket, TestNode, connect, next, until};

const BACKENDS: &str = include_str!("../deploy/haproxy/consul.cfg");

struct Haproxy {
    port: u16,
    _child: Child,
    _folder: TempDir,
}

impl Haproxy {
    /// With the backends that ship, asking this agent.
    async fn asking(consul: &ConsulAgent) -> Self {
        let (port, folder) = (free_port(), TempDir::new().expect("a folder"));
        let front = format!(
            "global\n    maxconn 500\ndefaults\n    mode http\n    timeout connect 2s\n    timeout client 60s\n    timeout server 60s\n\
             frontend clients\n    bind 127.0.0.1:{port}\n    default_backend tidings_public\n"
        );
        let agent = format!("127.0.0.1:{}", consul.dns_port());
        let backends = BACKENDS.replace("127.0.0.1:8600", &agent);
        assert!(backends.contains(&agent));
        let files = [("front.cfg", front), ("consul.cfg", backends)];
        let mut command = Command::new("haproxy");
        command.arg("-db");
        for (name, text) in files {
            let file = folder.path().join(name);
            std::fs::write(&file, text).expect("written");
            command.arg("-f").arg(file);
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("HAProxy does not start; install it, as in: sudo apt-get install haproxy");
        until("HAProxy listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok()
        })
        .await;
        Self {
            port,
            _child: child,
            _folder: folder,
        }
    }

    /// A connection of a user, and the node that it is at.
    async fn join(&self, node: &TestNode, user: &str) -> Option<(Socket, String)> {
        let ticket = node.ticket(json!({"user_id": user})).await;
        let url = format!("ws://127.0.0.1:{}/ws?ticket={ticket}", self.port);
        let mut socket = connect(&url).await.ok()?;
        let welcome = next(&mut socket).await;
        Some((socket, welcome["node"].as_str()?.into()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_finds_nodes_that_come_and_leaves_alone_those_that_go() {
    let consul = ConsulAgent::start().await;
    let redis = crate::support::redis::RedisServer::start().await;
    let named = async |name: &'static str| {
        let change = |c: &mut Config| {
            consul.register(c);
            c.drain.deregister_delay = Duration::from_secs(3600);
        };
        crate::support::fleet::node_at(&redis.url(), name, change).await
    };
    let first = named("first").await;
    let haproxy = Haproxy::asking(&consul).await;
    let at = async |wanted: &str| {
        let mut found = None;
        until(&format!("a connection comes to {wanted}"), async || {
            let joined = haproxy.join(&first, "42").await;
            found = joined
                .filter(|(_, node)| node == wanted)
                .map(|(socket, _)| socket);
            found.is_some()
        })
        .await;
        found.expect("just seen")
    };
    let _at_first = at("first").await;
    let mut second = named("second").await;
    let mut at_second = at("second").await;
    // The second drains: nobody new comes to it, and who is there stays, for it has an hour.
    let (now, when) = tokio::sync::oneshot::channel::<()>();
    let leaving = tokio::spawn(second.node.take().expect("it runs").leave(async {
        let _ = when.await;
    }));
    let mut in_a_row = 0;
    until("nobody new comes to the second", async || {
        match haproxy.join(&first, "43").await {
            Some((_, node)) if node == "first" => in_a_row += 1,
            _ => in_a_row = 0,
        }
        in_a_row >= 10
    })
    .await;
    first.push("42", json!("to both")).await;
    assert_eq!(
        crate::support::next_of(&mut at_second, "message").await["data"],
        "to both"
    );
    now.send(()).expect("it listens");
    leaving.await.expect("it left");
}
