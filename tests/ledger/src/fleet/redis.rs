//! A redis-server, and what can befall it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::process::Process;
use super::{Result, free_address};

/// Longer than any command that is sent from here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a redis-server starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// Its append-only file: all that it answered.
    Everything,
    /// The last snapshot, and nothing of what came after it.
    Snapshot,
    /// Nothing.
    Nothing,
}

/// A redis-server that keeps an append-only file.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) port: u16,
    folder: PathBuf,
    process: Process,
}

impl Redis {
    /// Starts an empty one in a folder of its own.
    pub(crate) async fn start(folder: &Path, name: &str) -> Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let port = free_address()?.port();
        let process = spawn(&folder, port, true)?;
        let mut redis = Self {
            port,
            folder,
            process,
        };
        redis.until_it_answers().await?;
        Ok(redis)
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        self.process.freeze()
    }

    pub(crate) fn thaw(&self) -> Result<()> {
        self.process.thaw()
    }

    /// Starts it again at its port, after [`Redis::kill`].
    pub(crate) async fn restart(&mut self, load: Load) -> Result<()> {
        if load != Load::Everything {
            remove(&self.folder.join("appendonlydir"))?;
        }
        if load == Load::Nothing {
            remove(&self.folder.join("dump.rdb"))?;
        }
        // With an append-only file asked for, Redis 7 does not look at a snapshot.
        self.process = spawn(&self.folder, self.port, load != Load::Snapshot)?;
        self.until_it_answers().await?;
        if load == Load::Snapshot {
            self.command("CONFIG SET appendonly yes").await?;
            self.until_info("persistence", "aof_rewrite_in_progress:0")
                .await?;
        }
        Ok(())
    }

    /// Writes a snapshot.
    pub(crate) async fn snapshot(&self) -> Result<()> {
        self.command("BGSAVE").await?;
        self.until_info("persistence", "rdb_bgsave_in_progress:0")
            .await
    }

    /// Follows another, through a port, until it has what that one has.
    pub(crate) async fn follow(&self, port: u16) -> Result<()> {
        self.command(&format!("REPLICAOF 127.0.0.1 {port}")).await?;
        self.until_info("replication", "master_link_status:up")
            .await
    }

    /// One command without spaces in its words; an error reply is an error.
    pub(crate) async fn command(&self, command: &str) -> Result<String> {
        let call = call(self.port, command);
        let answer = timeout(PATIENCE, call).await;
        answer.map_err(|_| format!("redis-server did not answer to {command}"))?
    }

    async fn until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !matches!(call(self.port, "PING").await.as_deref(), Ok("PONG")) {
            if self.process.has_ended()? || Instant::now() > deadline {
                return Err(format!(
                    "redis-server does not answer; see {}",
                    self.folder.display()
                )
                .into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn until_info(&self, section: &str, line: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.command(&format!("INFO {section}")).await?;
            if said.lines().any(|said| said == line) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("redis-server never said {line}:\n{said}").into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn spawn(folder: &Path, port: u16, append_only: bool) -> Result<Process> {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--daemonize", "no"])
        .args(["--appendonly", if append_only { "yes" } else { "no" }])
        .args(["--appendfsync", "always", "--repl-diskless-sync-delay", "0"])
        .arg("--dir")
        .arg(folder);
    let started = Process::start(&mut command, &folder.join("redis.log"));
    started.map_err(|error| {
        format!(
            "{error}; install the package redis-server, as in: sudo apt-get install redis-server"
        )
        .into()
    })
}

fn remove(path: &Path) -> Result<()> {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// One command on a connection of its own. Answers are a line or a bulk string; nothing else is asked for.
async fn call(port: u16, command: &str) -> Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    stream
        .write_all(format!("{command}\r\n").as_bytes())
        .await?;
    stream.flush().await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let line = line.trim_end();
    match line.split_at_checked(1) {
        Some(("+" | ":", text)) => Ok(text.into()),
        Some(("$", length)) => {
            let mut text = vec![0; length.parse()?];
            stream.read_exact(&mut text).await?;
            Ok(String::from_utf8(text)?)
        }
        _ => Err(format!("redis-server answered {line:?} to {command}").into()),
    }
}
