//! A node in a process of its own, for what only a process has: limits, variables, signals, a log.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidings::node::Addresses;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::{DEADLINE, TestNode, until};

/// What makes `tidings dev` take free ports and say which.
pub const FREE: [&str; 8] = [
    "dev",
    "--json",
    "--set",
    "public.listen=127.0.0.1:0",
    "--set",
    "service.listen=127.0.0.1:0",
    "--set",
    "admin.listen=127.0.0.1:0",
];

/// `tidings dev` on free ports, in a shell that does something first, as in `ulimit -n 80`.
pub fn dev_after(first: &str, more: &str) -> Command {
    let (tidings, free) = (env!("CARGO_BIN_EXE_tidings"), FREE.join(" "));
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first}; exec {tidings} {free} {more}")]);
    command
}

/// `tidings dev` on free ports.
pub fn dev() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(FREE);
    command
}

/// `tidings serve` on free ports, with a file.
pub fn serve(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.arg("serve").args(&FREE[1..]);
    command.arg("--config").arg(file);
    command
}

/// A node that runs; it is killed on drop.
pub struct Running {
    pub node: TestNode,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reading: JoinHandle<()>,
}

impl Running {
    /// Runs one of the commands above, until it serves.
    pub async fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let into = log.clone();
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                into.lock().expect("not poisoned").push(line);
            }
        });
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut said).await.expect("a line");
        let bound: Value = serde_json::from_str(&said).unwrap_or_else(|_| {
            let log = log.lock().expect("not poisoned").join("\n");
            panic!("it does not serve: {said}{log}")
        });
        let address = |door: &str| {
            let address = bound[door].as_str().expect("there");
            address.parse().expect("an address")
        };
        let node = TestNode {
            at: Addresses {
                public: address("public"),
                service: address("service"),
                admin: address("admin"),
                probe: None,
            },
            node: None,
            http: reqwest::Client::new(),
        };
        Self {
            node,
            child,
            log,
            reading,
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        kill_process(pid.expect("it runs"), signal).expect("sent");
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("not poisoned").join("\n")
    }

    /// Waits for a line of the log that has all these words; gives it.
    pub async fn logged(&self, words: &[&str]) -> String {
        let mut found = None;
        until(&format!("a line with {words:?}"), async || {
            let log = self.log.lock().expect("not poisoned");
            let mut lines = log.iter();
            found = lines
                .find(|line| words.iter().all(|word| line.contains(word)))
                .cloned();
            found.is_some()
        })
        .await;
        found.expect("just found")
    }

    /// Waits for its end: how, and all that it logged.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        let status = ended.expect("it ends in time").expect("a status");
        let read = tokio::time::timeout(DEADLINE, &mut self.reading).await;
        read.expect("its log ends").expect("it was read");
        (status, self.log())
    }
}
