//! The balancer in front of the nodes: HAProxy, with its health checks on their probe doors.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::process::Process;
use super::{Node, Result, free_address};

/// How long it may take to see what is so.
const PATIENCE: Duration = Duration::from_secs(30);

/// A HAProxy before some nodes.
#[derive(Debug)]
pub(crate) struct HaProxy {
    /// Where clients come.
    pub(crate) public: SocketAddr,
    control: PathBuf,
    folder: PathBuf,
    process: Process,
}

impl HaProxy {
    /// Starts one and waits until it sees all nodes.
    pub(crate) async fn start(folder: &Path, nodes: &[Node]) -> Result<Self> {
        let public = free_address()?;
        let control = folder.join("haproxy.sock");
        let config = folder.join("haproxy.cfg");
        std::fs::write(&config, configuration(public, &control, nodes))?;
        let mut command = Command::new("haproxy");
        // In the foreground, so that it ends with its handle.
        command.arg("-db").arg("-f").arg(&config);
        let process =
            Process::start(&mut command, &folder.join("haproxy.log")).map_err(|error| {
                format!("{error}; install the package haproxy, as in: sudo apt-get install haproxy")
            })?;
        let mut haproxy = Self {
            public,
            control,
            folder: folder.into(),
            process,
        };
        for node in nodes {
            haproxy.until(&node.name, true).await?;
        }
        Ok(haproxy)
    }

    /// Waits until it sees a node as up, or as down; how long that took.
    pub(crate) async fn until(&mut self, node: &str, up: bool) -> Result<Duration> {
        let began = Instant::now();
        loop {
            // It may just be starting.
            if self.sees(node).await.is_ok_and(|sees| sees == up) {
                return Ok(began.elapsed());
            }
            if self.process.has_ended()? || began.elapsed() > PATIENCE {
                let state = if up { "up" } else { "down" };
                let folder = self.folder.display();
                return Err(format!(
                    "HAProxy does not see node {node} as {state}; see haproxy.log in {folder}"
                )
                .into());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn sees(&self, node: &str) -> Result<bool> {
        let mut control = UnixStream::connect(&self.control).await?;
        control.write_all(b"show stat\n").await?;
        let mut said = String::new();
        control.read_to_string(&mut said).await?;
        let mut lines = said.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let head = lines.next().ok_or("HAProxy said nothing")?;
        let column = |name| head.iter().position(|column| *column == name);
        let (server, status) = (column("svname"), column("status"));
        let (server, status) = server.zip(status).ok_or("HAProxy has other columns")?;
        let row = lines.find(|row| row.get(server) == Some(&node));
        let row = row.ok_or("HAProxy does not know the node")?;
        Ok(row.get(status).is_some_and(|status| *status == "UP"))
    }
}

fn configuration(public: SocketAddr, control: &Path, nodes: &[Node]) -> String {
    let servers: String = nodes
        .iter()
        .map(|node| {
            let (name, doors) = (&node.name, &node.doors);
            format!(
                "  server {name} {} check port {}\n",
                doors.public,
                doors.probe.port()
            )
        })
        .collect();
    format!(
        r"global
  stats socket {control} mode 600 level operator
  # Two descriptors each, of 20,000 or so.
  maxconn 9900
defaults
  mode http
  timeout connect 5s
  timeout http-request 15s
  timeout client 60s
  timeout server 60s
  timeout tunnel 1h
  option redispatch
  retries 3
frontend public
  bind {public} backlog 4096
  default_backend nodes
backend nodes
  # Connections live for hours: who just came back gets the next ones.
  balance leastconn
  option httpchk
  http-check send meth GET uri /readyz
  http-check expect status 200
  # A node that goes red keeps what it has: without `on-marked-down shutdown-sessions` nothing is cut.
  default-server inter 500ms fall 2 rise 2
{servers}",
        control = control.display(),
    )
}
