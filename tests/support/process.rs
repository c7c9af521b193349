//! A node in a process of its own, for what only a process has: limits, variables, signals.

use std::process::Stdio;

use serde_json::Value;
use tidings::node::Addresses;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::TestNode;

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

/// Runs a command that becomes `tidings dev --json`, until it serves.
pub async fn serving(command: &mut Command) -> (Child, TestNode) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    stdout.read_line(&mut line).await.expect("a line");
    let bound: Value = serde_json::from_str(&line).expect("JSON");
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
    (child, node)
}
