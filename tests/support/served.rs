//! A `tidings serve` in a process of its own, with a file that the test writes and a log that it reads.

use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;
use tidings::doors::config::ApiKeyConfig;
use tidings::model::sha256;

use super::process::{Running, serve};

/// `[[api_keys]]` in a configuration that is made in code.
pub fn key(name: &str, text: &str, scopes: &[&str]) -> ApiKeyConfig {
    let hash = sha256(text.as_bytes());
    let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    let key = json!({"name": name, "sha256": hash, "scopes": scopes});
    serde_json::from_value(key).expect("a key")
}

/// A `tidings serve` of its own, with a file that the test writes.
pub struct Served {
    pub running: Running,
    pub file: PathBuf,
    _folder: TempDir,
}

impl Served {
    pub async fn start(rest: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("tidings.toml");
        std::fs::write(&file, toml(rest)).expect("written");
        Self {
            running: Running::start(&mut serve(&file)).await,
            file,
            _folder: folder,
        }
    }

    pub fn write(&self, rest: &str) {
        std::fs::write(&self.file, toml(rest)).expect("written");
    }

    /// The status of a push to user 42 with a key.
    pub async fn push(&self, key: &str) -> u16 {
        let push = json!({"user_id": "42", "message": 1});
        self.running.node.post_as(key, "/v1/push", push).await.0
    }

    /// A ticket for user 42, with the key k1.
    pub async fn ticket(&self) -> String {
        let ticket = json!({"user_id": "42"});
        let node = &self.running.node;
        let (_, issued) = node.post_as("k1", "/v1/tickets", ticket).await;
        issued["ticket"].as_str().expect("a ticket").into()
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
