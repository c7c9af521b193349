//! The processes that are measured: starts them, asks the system what they used, ends them.

use std::cell::RefCell;
use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::resp::Resp;
use crate::tls::Certificate;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A running process of ours; it ends with this value.
pub struct Process {
    child: Child,
    output: Option<RefCell<BufReader<ChildStdout>>>,
}

impl Process {
    /// Starts one that says in a line of JSON once it serves.
    fn start(mut command: Command) -> Result<(Self, Value)> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().map(BufReader::new).map(RefCell::new);
        let process = Self { child, output };
        let said = process.says()?;
        Ok((process, said))
    }

    /// The next line of what it says.
    pub fn says(&self) -> Result<Value> {
        let mut line = String::new();
        let output = self.output.as_ref().ok_or("it says nothing")?;
        output.borrow_mut().read_line(&mut line)?;
        serde_json::from_str(&line).map_err(|_| "a measured process ended early".into())
    }

    /// Its CPU time so far.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }

    /// Its resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .ok_or("no VmRSS")?;
        let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only the process that we started, by its handle.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This process's CPU time so far.
pub fn own_cpu() -> Result<Duration> {
    cpu_of("self")
}

/// The sum over its threads of what the scheduler gave them, in nanoseconds (proc(5), schedstat).
fn cpu_of(process: &str) -> Result<Duration> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let spent = stat.split_whitespace().next().ok_or("no schedstat")?;
        total += spent.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

/// What all cores together have done so far (proc(5), the first line of stat, in hundredths of a second), what the
/// host took included.
pub fn system_cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().ok_or("no stat")?.split_whitespace();
    let ticks: Vec<u64> = fields
        .skip(1)
        .take(8)
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    // The fourth and fifth are idle.
    let busy = ticks.iter().sum::<u64>() - ticks[3] - ticks[4];
    Ok(Duration::from_millis(busy * 10))
}

/// On which core a process must run; none = wherever.
pub type Core = Option<u8>;

fn command(program: impl AsRef<std::ffi::OsStr>, core: Core) -> Command {
    match core {
        None => Command::new(program),
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        }
    }
}

fn address(said: &Value, door: &str) -> Result<SocketAddr> {
    let text = said[door].as_str().ok_or("a door is missing")?;
    Ok(text.parse()?)
}

/// A node of `tidings dev` on free ports.
pub struct Node {
    pub process: Process,
    pub public: SocketAddr,
    pub service: SocketAddr,
    pub key: String,
}

impl Node {
    pub fn start(binary: &Path, core: Core, sets: &[String]) -> Result<Self> {
        if !binary.exists() {
            return Err(format!("{} is missing: cargo build --release", binary.display()).into());
        }
        let mut command = command(binary, core);
        command.args(["dev", "--json"]);
        let always = [
            "public.listen=127.0.0.1:0",
            "service.listen=127.0.0.1:0",
            "admin.listen=127.0.0.1:0",
            "limits.handshakes_per_second=0",
            "limits.connections=1000000",
            "log.level=warn",
            "hub.shards=1",
            // The load does not answer pings; a timer is armed for each connection all the same.
            "heartbeat.interval=10m",
        ];
        for set in always.into_iter().chain(sets.iter().map(String::as_str)) {
            command.args(["--set", set]);
        }
        let (process, said) = Process::start(command)?;
        Ok(Self {
            public: address(&said, "public")?,
            service: address(&said, "service")?,
            key: said["key"].as_str().unwrap_or_default().into(),
            process,
        })
    }
}

/// The floor, with TLS if there is a certificate.
pub fn floor(
    core: Core,
    frame_bytes: usize,
    tls: Option<&Certificate>,
) -> Result<(Process, SocketAddr)> {
    let mut command = command(std::env::current_exe()?, core);
    command.args(["floor", "--frame-bytes", &frame_bytes.to_string()]);
    if let Some(tls) = tls {
        command.arg("--tls").args([tls.cert_file(), tls.key_file()]);
    }
    let (process, said) = Process::start(command)?;
    let address = address(&said, "public")?;
    Ok((process, address))
}

/// This program again, for a part that must have a process of its own; it says so once it has begun.
pub fn part(arguments: &[String]) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(Process::start(command)?.0)
}

/// A redis-server that keeps nothing.
pub struct Redis {
    pub process: Process,
    port: u16,
}

impl Redis {
    pub fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|e| {
            format!("redis-server cannot be started ({e}); install the package redis-server, as in: sudo apt-get install redis-server")
        })?;
        let redis = Self {
            process: Process {
                child,
                output: None,
            },
            port,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while redis.connect().and_then(|mut c| c.call(&["PING"])).is_err() {
            if Instant::now() > deadline {
                return Err("redis-server does not answer on its port".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(redis)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn connect(&self) -> std::io::Result<Resp> {
        Resp::connect(self.port)
    }

    /// A node at this Redis.
    pub fn node(&self, binary: &Path, name: &str) -> Result<Node> {
        let sets = [
            format!("node.id={name}"),
            "backplane.kind=redis".into(),
            format!("backplane.url={}", self.url()),
        ];
        Node::start(binary, None, &sets)
    }
}
