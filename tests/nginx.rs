//! Through a real nginx, whose idle time-out is shorter than people are silent.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;

use crate::support::ports::free_port;
use crate::support::{DEADLINE, TestNode, connect, next_message, next_of, node_with, until};

/// How long a proxy waits for a word of a node, in the test.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the client is silent.
const SILENCE: Duration = Duration::from_secs(30);

/// nginx in front of a node's public door. Ends when it is dropped.
struct Nginx {
    port: u16,
    _child: Child,
    _folder: TempDir,
}

impl Nginx {
    async fn in_front_of(node: &TestNode) -> Self {
        let (port, folder) = (free_port(), TempDir::new().expect("a folder"));
        let at = folder.path().display();
        let mut config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; worker_processes 1;\n"
        );
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        config.push_str("events { worker_connections 128; }\nhttp { access_log off;\n");
        for path in paths {
            let _ = writeln!(config, "{path}_temp_path {at}/{path};");
        }
        let _ = writeln!(
            config,
            "server {{ listen 127.0.0.1:{port}; location / {{
                proxy_pass http://{};
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
                proxy_read_timeout {}s;
            }} }} }}",
            node.at.public,
            READ_TIMEOUT.as_secs()
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config).expect("written");
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nginx does not start; install it, as in: sudo apt-get install nginx-light");
        until("nginx listens", async || {
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

    async fn url(&self, node: &TestNode) -> String {
        let ticket = node.ticket(json!({"user_id": "42"})).await;
        format!("ws://127.0.0.1:{}/ws?ticket={ticket}", self.port)
    }
}

#[tokio::test]
async fn a_heartbeat_keeps_a_silent_connection_through_a_proxy() {
    let node = node_with(|c| c.heartbeat.interval = Duration::from_secs(2)).await;
    let nginx = Nginx::in_front_of(&node).await;
    let mut socket = connect(&nginx.url(&node).await).await.expect("an upgrade");
    next_of(&mut socket, "welcome").await;
    // Pings are answered by the client's library; nothing else is said.
    let silence = tokio::time::sleep(SILENCE);
    tokio::pin!(silence);
    loop {
        tokio::select! {
            () = &mut silence => break,
            message = next_message(&mut socket) => {
                assert!(matches!(message, Some(Message::Ping(_))), "{message:?}");
            }
        }
    }
    node.push("42", json!("still there")).await;
    assert_eq!(next_of(&mut socket, "message").await["data"], "still there");
}

#[tokio::test]
async fn without_a_heartbeat_the_proxy_cuts_it() {
    let node = node_with(|c| c.heartbeat.interval = Duration::ZERO).await;
    let nginx = Nginx::in_front_of(&node).await;
    let mut socket = connect(&nginx.url(&node).await).await.expect("an upgrade");
    next_of(&mut socket, "welcome").await;
    let ended = tokio::time::timeout(DEADLINE, next_message(&mut socket)).await;
    let ended = ended.expect("nginx ends it");
    assert!(!matches!(ended, Some(Message::Ping(_))), "{ended:?}");
    until("the node sees it", async || node.node().connections() == 0).await;
}
