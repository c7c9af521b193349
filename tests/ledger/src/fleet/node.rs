//! A node: `tidings serve` with a configuration of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::process::Process;
use super::{API_KEY, API_KEY_SHA256, Doors, Result, free_address};
use crate::http::Http;

/// How long a node may take until it is ready.
const READY: Duration = Duration::from_secs(30);

/// What a node with all of its subscriber links says of them.
const LINKS: &str = "\ntidings_backplane_links 2\n";

/// How many messages a stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept(pub(crate) u32);

/// What a run asks of its nodes.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The port of the backplane; none = in memory.
    pub(crate) redis: Option<u16>,
    pub(crate) kept: Kept,
    /// Further sections of the configuration.
    pub(crate) more: String,
}

/// A node, running or killed.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) doors: Doors,
    binary: PathBuf,
    config: PathBuf,
    log: PathBuf,
    setup: Setup,
    process: Process,
}

impl Node {
    /// Starts one and waits until it is ready.
    pub(crate) async fn start(
        binary: &Path,
        folder: &Path,
        name: &str,
        setup: Setup,
    ) -> Result<Self> {
        let doors = Doors {
            public: free_address()?,
            service: free_address()?,
            admin: free_address()?,
            probe: free_address()?,
        };
        let config = folder.join(format!("{name}.toml"));
        std::fs::write(&config, configuration(name, &doors, &setup))?;
        let log = folder.join(format!("{name}.log"));
        let process = spawn(binary, &config, &log)?;
        let mut node = Self {
            name: name.into(),
            doors,
            binary: binary.into(),
            config,
            log,
            setup,
            process,
        };
        node.until_ready().await?;
        Ok(node)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM, and waits until it has gone; how long that took.
    pub(crate) async fn leave(&mut self, most: Duration) -> Result<Duration> {
        let began = Instant::now();
        self.process.terminate()?;
        while !self.process.has_ended()? {
            if began.elapsed() > most {
                return Err(self.trouble("has not left in time"));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(began.elapsed())
    }

    /// Starts it again where it was, and waits until it is ready.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.binary, &self.config, &self.log)?;
        self.until_ready().await
    }

    /// Waits until it is whole: its commands and its links reach Redis, and it has caught up. While Redis cannot be
    /// reached at all a node stays ready for a grace, so that `/readyz` alone does not say it.
    pub(crate) async fn until_ready(&mut self) -> Result<()> {
        let mut admin = Http::new(self.doors.admin, API_KEY);
        let mut service = Http::new(self.doors.service, API_KEY);
        let deadline = Instant::now() + READY;
        // A link that was made whole begins to catch up a moment later.
        let mut times = 0;
        loop {
            let reaches = self.setup.redis.is_none()
                || matches!(service.get("/v1/nodes").await, Ok((200, _)))
                    && matches!(admin.get("/metrics").await, Ok((200, said)) if said.contains(LINKS));
            times = match reaches && matches!(admin.get("/readyz").await, Ok((200, _))) {
                true => times + 1,
                false => 0,
            };
            if times == 3 {
                return Ok(());
            }
            let ended = self.process.has_ended()?;
            if ended || Instant::now() > deadline {
                return Err(self.trouble("is not ready"));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// With the last that it said.
    fn trouble(&self, what: &str) -> Box<dyn std::error::Error + Send + Sync> {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(10).collect();
        format!("node {} {what}:\n{}", self.name, last.join("\n")).into()
    }
}

fn spawn(binary: &Path, config: &Path, log: &Path) -> Result<Process> {
    let mut command = Command::new(binary);
    Process::start(command.arg("serve").arg("--config").arg(config), log)
}

fn configuration(name: &str, doors: &Doors, setup: &Setup) -> String {
    let backplane = match setup.redis {
        None => "kind = \"memory\"".into(),
        Some(port) => format!(
            "kind = \"redis\"\nurl = \"redis://127.0.0.1:{port}\"\nsecret = \"the secret of one run\""
        ),
    };
    format!(
        r#"[node]
id = "{name}"
[public]
listen = "{public}"
allowed_origins = ["http://127.0.0.1"]
[service]
listen = "{service}"
[admin]
listen = "{admin}"
[probe]
listen = "{probe}"
[backplane]
{backplane}
[[api_keys]]
name = "ledger"
sha256 = "{API_KEY_SHA256}"
scopes = ["push", "publish", "ticket", "read", "admin"]
[inbox]
max_messages = {kept}
max_bytes = "64MiB"
[[namespaces]]
name = "kept"
subscribe = "any"
max_messages = {kept}
[heartbeat]
interval = "5s"
pong_timeout = "5s"
[log]
format = "json"
{more}"#,
        public = doors.public,
        service = doors.service,
        admin = doors.admin,
        probe = doors.probe,
        kept = setup.kept.0,
        more = setup.more,
    )
}
