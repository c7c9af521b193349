//! The process that is measured: starts it, asks the system what it used, ends it.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A running process and what it bound.
pub struct Measured {
    child: Child,
    input: Option<ChildStdin>,
    pub public: SocketAddr,
    pub service: Option<SocketAddr>,
    pub key: String,
}

impl Measured {
    /// A node of `tidings dev` on free ports, on the first core.
    pub fn node(binary: &Path, shards: usize) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new("taskset");
        command
            .args(["-c", "0"])
            .arg(binary)
            .args(["dev", "--json"]);
        for set in [
            "public.listen=127.0.0.1:0",
            "service.listen=127.0.0.1:0",
            "admin.listen=127.0.0.1:0",
            "limits.handshakes_per_second=0",
            "limits.connections=1000000",
            "log.level=warn",
        ] {
            command.args(["--set", set]);
        }
        command.args(["--set", &format!("hub.shards={shards}")]);
        Self::start(command)
    }

    /// The floor, on the first core.
    pub fn floor() -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new("taskset");
        command
            .args(["-c", "0"])
            .arg(std::env::current_exe()?)
            .arg("floor");
        Self::start(command)
    }

    fn start(mut command: Command) -> Result<Self, Box<dyn Error>> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().ok_or("no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let bound: Value = serde_json::from_str(&line)?;
        let address = |door: &str| bound[door].as_str().and_then(|text| text.parse().ok());
        Ok(Self {
            public: address("public").ok_or("the process did not say what it bound")?,
            service: address("service"),
            key: bound["key"].as_str().unwrap_or_default().into(),
            input: child.stdin.take(),
            child,
        })
    }

    /// A line to the floor.
    pub fn tell(&mut self, line: &str) -> std::io::Result<()> {
        match &mut self.input {
            Some(input) => writeln!(input, "{line}"),
            None => Ok(()),
        }
    }

    /// Its CPU time so far, user and system (proc(5), fields 14 and 15 of stat, in hundredths of a second).
    pub fn cpu(&self) -> Result<Duration, Box<dyn Error>> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let rest = stat.rsplit_once(')').ok_or("no stat")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Its resident memory in bytes.
    pub fn resident(&self) -> Result<u64, Box<dyn Error>> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .ok_or("no VmRSS")?;
        let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        // Only the process that we started, by its handle.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
