//! The balancer in front of the nodes: HAProxy as it ships in deploy/, with its health checks on their probe doors.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::process::Process;
use super::{Node, Result, free_address};
use crate::machines;

/// The configuration that ships.
const SHIPPED: &str = include_str!("../../../../deploy/haproxy/haproxy.cfg");

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
    /// Starts one and waits until it sees all nodes. `stands_back` = it takes what others leave of the cores.
    pub(crate) async fn start(folder: &Path, nodes: &[Node], stands_back: bool) -> Result<Self> {
        let public = free_address()?;
        let control = folder.join("haproxy.sock");
        let config = folder.join("haproxy.cfg");
        std::fs::write(&config, configuration(public, &control, nodes)?)?;
        let mut command = Command::new("haproxy");
        // In the foreground, so that it ends with its handle.
        command.arg("-db").arg("-f").arg(&config);
        let log = folder.join("haproxy.log");
        let process = match stands_back {
            true => machines::standing_back(|| Process::start(&mut command, &log)),
            false => Process::start(&mut command, &log),
        };
        let process = process.map_err(|error| {
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

/// What ships in deploy/, as far as it is about clients, with the addresses of this run. TLS is tried elsewhere: here it
/// would only be the load.
fn configuration(public: SocketAddr, control: &Path, nodes: &[Node]) -> Result<String> {
    let (clients, _) = SHIPPED
        .split_once("# Services:")
        .ok_or("deploy/haproxy/haproxy.cfg has no part for services any more")?;
    let mut config = String::new();
    let (mut bound, mut limited, mut listed) = (false, false, false);
    for line in clients.lines() {
        match line.trim_start() {
            bind if bind.starts_with("bind ") => {
                bound = true;
                config.push_str(&format!("    bind {public} backlog 4096\n"));
            }
            most if most.starts_with("maxconn ") => {
                limited = true;
                // Two descriptors each, of 20,000 or so.
                let control = control.display();
                config.push_str(&format!(
                    "    maxconn 9900\n    stats socket {control} mode 600 level operator\n"
                ));
            }
            server if server.starts_with("server ") => {
                for node in nodes.iter().filter(|_| !listed) {
                    let (name, doors) = (&node.name, &node.doors);
                    let (at, probe) = (doors.public, doors.probe.port());
                    config.push_str(&format!("    server {name} {at} check port {probe}\n"));
                }
                listed = true;
            }
            _ => config.push_str(&format!("{line}\n")),
        }
    }
    match bound && limited && listed {
        true => Ok(config),
        false => Err("deploy/haproxy/haproxy.cfg is not as it is expected here".into()),
    }
}
