//! Names in place of addresses. A library that answers from a file in place of the system's resolver is loaded into the
//! processes: what it is told changes at once.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::process::{FREE, Running};
use crate::support::redis::RedisServer;
use crate::support::{KEY, next_of, node, until};

/// The name, of a domain that is nobody's (RFC 6761).
const NAME: &str = "tidings.test";
/// Where nobody listens.
const NOBODY: &str = "127.0.0.9";

struct Hosts {
    file: PathBuf,
    _folder: TempDir,
}

impl Hosts {
    fn with(addresses: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("hosts");
        std::fs::write(&file, lines(addresses)).expect("written");
        Self {
            file,
            _folder: folder,
        }
    }

    fn set(&self, addresses: &[&str]) {
        std::fs::write(&self.file, lines(addresses)).expect("written");
        // The library reads it again when its time is another, in seconds.
        let later = SystemTime::now() + Duration::from_secs(60);
        let file = std::fs::File::options()
            .append(true)
            .open(&self.file)
            .expect("there");
        file.set_modified(later).expect("set");
    }

    /// The binary, for which the name has these addresses.
    fn tidings(&self) -> Command {
        wrapped(&self.file)
    }
}

fn lines(addresses: &[&str]) -> String {
    addresses
        .iter()
        .map(|address| format!("{address} {NAME}\n"))
        .collect()
}

fn wrapped(hosts: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .env("LD_PRELOAD", "libnss_wrapper.so")
        .env("NSS_WRAPPER_HOSTS", hosts);
    command
}

/// What the test says where the library is missing, since the name then has no address.
const MISSING: &str =
    "is the wrapper there? Install it, as in: sudo apt-get install libnss-wrapper";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_tries_each_address_of_a_name() {
    let node = node().await;
    let hosts = Hosts::with(&[NOBODY, "127.0.0.1"]);
    let server = format!("http://{NAME}:{}", node.at.service.port());
    let (mut socket, _) = node.join("42", "").await;
    let mut push = hosts.tidings();
    push.args(["push", "42", "by name", "--key", KEY, "--server", &server]);
    let pushed = push.output().await.expect("it runs");
    let said = String::from_utf8_lossy(&pushed.stderr);
    assert!(pushed.status.success(), "{said}; {MISSING}");
    assert_eq!(next_of(&mut socket, "message").await["data"], "by name");
    let mut listen = hosts.tidings();
    let url = format!("ws://{NAME}:{}/ws", node.at.public.port());
    listen.args([
        "listen", "--user", "43", "--key", KEY, "--server", &server, "--url", &url,
    ]);
    listen
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let _listening = listen.kill_on_drop(true).spawn().expect("it runs");
    until("it listens", async || node.node().connections() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_redis_is_looked_up_at_each_attempt() {
    let redis = RedisServer::start().await;
    let hosts = Hosts::with(&[NOBODY]);
    let mut command = hosts.tidings();
    let url = format!("backplane.url=redis://{NAME}:{}", redis.port);
    command
        .args(FREE)
        .args(["--set", "backplane.kind=redis", "--set", &url]);
    let running = Running::start(&mut command).await;
    let node = &running.node;
    let (status, _) = node
        .post("/v1/push", json!({"user_id": "42", "message": 1}))
        .await;
    assert_eq!(status, 503, "nobody is there yet");
    hosts.set(&["127.0.0.1"]);
    until("it has found Redis", async || {
        let (status, _) = node
            .post("/v1/push", json!({"user_id": "42", "message": 1}))
            .await;
        status == 200
    })
    .await;
}
