//! A `tidings serve` in a process of its own, with a file that the test writes and a log that it reads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::doors::config::ApiKeyConfig;
use tidings::model::sha256;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::until;

/// `[[api_keys]]` in a configuration that is made in code.
pub fn key(name: &str, text: &str, scopes: &[&str]) -> ApiKeyConfig {
    let hash = sha256(text.as_bytes());
    let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    let key = json!({"name": name, "sha256": hash, "scopes": scopes});
    serde_json::from_value(key).expect("a key")
}

/// A `tidings serve` of its own, with a file that the test writes.
pub struct Served {
    pub child: Child,
    pub bound: Value,
    pub file: PathBuf,
    /// What it has logged.
    pub log: Arc<Mutex<Vec<String>>>,
    _folder: TempDir,
}

impl Served {
    pub async fn start(rest: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("tidings.toml");
        std::fs::write(&file, toml(rest)).expect("written");
        let free = ["public", "service", "admin"].map(|door| format!("{door}.listen=127.0.0.1:0"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(["serve", "--json", "--config"]).arg(&file);
        for free in &free {
            command.args(["--set", free]);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut line).await.expect("a line");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (into, stderr) = (log.clone(), child.stderr.take().expect("piped"));
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                into.lock().expect("not poisoned").push(line);
            }
        });
        let bound = serde_json::from_str(&line).expect("what was bound");
        Self {
            child,
            bound,
            file,
            log,
            _folder: folder,
        }
    }

    pub fn write(&self, rest: &str) {
        std::fs::write(&self.file, toml(rest)).expect("written");
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        kill_process(pid.expect("it runs"), signal).expect("sent");
    }

    /// Waits for a line of the log that has all these words; gives it.
    pub async fn logged(&self, words: &[&str]) -> String {
        let mut found = None;
        until(&format!("a line with {words:?}"), async || {
            let log = self.log.lock().expect("not poisoned");
            found = log
                .iter()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .cloned();
            found.is_some()
        })
        .await;
        found.expect("just found")
    }

    /// What a door bound.
    pub fn at(&self, door: &str) -> SocketAddr {
        let bound = self.bound[door].as_str().expect("there");
        bound.parse().expect("an address")
    }

    /// A call of the HTTP service API with a key.
    async fn post(&self, key: &str, path: &str, body: Value) -> reqwest::Response {
        let url = format!("http://{}{path}", self.at("service"));
        let request = reqwest::Client::new().post(url).bearer_auth(key);
        let request = request.header("content-type", "application/json");
        let request = request.body(body.to_string());
        request.send().await.expect("answered")
    }

    /// The status of a push to user 42 with a key.
    pub async fn push(&self, key: &str) -> u16 {
        let body = json!({"user_id": "42", "message": 1});
        let response = self.post(key, "/v1/push", body).await;
        response.status().as_u16()
    }

    /// A ticket for user 42, with the key k1.
    pub async fn ticket(&self) -> String {
        let response = self.post("k1", "/v1/tickets", json!({"user_id": "42"}));
        let text = response.await.text().await.expect("text");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        answer["ticket"].as_str().expect("a ticket").into()
    }

    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.at("admin"));
        reqwest::get(url)
            .await
            .expect("answered")
            .text()
            .await
            .expect("text")
    }
}

/// A file for `serve` with the key k1 and whatever else.
pub fn toml(rest: &str) -> String {
    format!(
        "[public]\nallowed_origins = [\"https://a.b\"]\n[drain]\nderegister_delay = \"5s\"\n{rest}\n{}",
        key_block("first", "k1")
    )
}

/// `[[api_keys]]` in a file.
pub fn key_block(name: &str, text: &str) -> String {
    let key = key(name, text, &["push", "ticket"]);
    let hash = key.sha256.expose();
    format!(
        "[[api_keys]]\nname = \"{name}\"\nsha256 = \"{hash}\"\nscopes = [\"push\", \"ticket\"]\n"
    )
}
