//! Real redis-servers of the tests' own: alone, with Sentinels, as a Cluster. Each lives in a folder of its own and ends
//! when it is dropped, frozen or not.

use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::ports::free_port;
use super::resp::{Reply, Resp};
use super::until;

const MISSING: &str =
    "redis-server does not start; install it, as in: sudo apt-get install redis-server";

/// Options for a start that loads a key in 20 ms and answers LOADING meanwhile.
pub const SLOW_LOAD: &[&str] = &[
    "--key-load-delay",
    "20000",
    "--loading-process-events-interval-bytes",
    "1024",
];

pub struct RedisServer {
    pub port: u16,
    folder: TempDir,
    arguments: Vec<String>,
    /// What [`RedisServer::command`] logs in with.
    password: Option<String>,
    child: Child,
}

impl RedisServer {
    /// An empty one that keeps nothing on disk.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more of redis-server's own options, as in `["--maxmemory", "1mb"]`. `--appendonly yes` is what lets it come
    /// back with its data.
    pub async fn start_with(options: &[&str]) -> Self {
        let port = free_port();
        let folder = TempDir::new().expect("a folder");
        let mut arguments: Vec<String> = Vec::new();
        let port_text = port.to_string();
        let base = [
            "--port",
            &port_text,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--daemonize",
            "no",
        ];
        // `DEBUG` and the settings behind it, for faults on demand.
        let debug = ["--enable-debug-command", "local"];
        for word in base.iter().chain(&debug).chain(options) {
            arguments.push((*word).into());
        }
        let after = |name: &str| {
            let at = options.iter().position(|option| *option == name)?;
            options.get(at + 1).map(|value| (*value).to_owned())
        };
        let server = Self {
            port,
            child: spawn(folder.path(), &arguments),
            folder,
            arguments,
            password: after("--requirepass"),
        };
        server.wait_until_it_answers().await;
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A connection that is logged in.
    pub async fn connect(&self) -> std::io::Result<Resp> {
        let mut connection = Resp::connect(self.port).await?;
        if let Some(password) = &self.password {
            connection.command(&["AUTH", password]).await?;
        }
        Ok(connection)
    }

    /// One command over a connection of its own.
    pub async fn try_command<A: AsRef<[u8]>>(&self, words: &[A]) -> std::io::Result<Reply> {
        self.connect().await?.command(words).await
    }

    /// One command that must succeed.
    pub async fn command<A: AsRef<[u8]>>(&self, words: &[A]) -> Reply {
        let reply = self.try_command(words).await.expect("Redis answers");
        assert!(!matches!(reply, Reply::Error(_)), "{reply:?}");
        reply
    }

    /// Sets the password that new connections need; empty = none.
    pub async fn require_password(&mut self, password: &str) {
        self.command(&["CONFIG", "SET", "requirepass", password])
            .await;
        self.password = (!password.is_empty()).then(|| password.into());
    }

    /// How many connections listen on a Pub/Sub channel.
    pub async fn listeners(&self, channel: &str) -> i64 {
        let reply = self.command(&["PUBSUB", "NUMSUB", channel]).await;
        reply.items()[1].int()
    }

    /// Ends it without a word (SIGKILL).
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Freezes it (SIGSTOP): connections stay open, and nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        let id = Pid::from_raw(i32::try_from(id).expect("a pid")).expect("not zero");
        kill_process(id, signal).expect("signalled");
    }

    /// Starts it again where it was, with what is on disk. One that still runs is killed.
    pub async fn restart(&mut self) {
        self.restart_loading(&[]).await;
        self.wait_until_it_answers().await;
    }

    /// Starts it again where it was, empty.
    pub async fn restart_empty(&mut self) {
        self.kill().await;
        for entry in std::fs::read_dir(self.folder()).expect("a folder") {
            let path = entry.expect("an entry").path();
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            removed.expect("removed");
        }
        self.restart().await;
    }

    /// Starts it again with further options, and does not wait until it has loaded what it kept.
    pub async fn restart_loading(&mut self, options: &[&str]) {
        self.kill().await;
        let more = options.iter().map(|option| (*option).to_owned());
        let arguments: Vec<_> = self.arguments.iter().cloned().chain(more).collect();
        self.child = spawn(self.folder.path(), &arguments);
        until("redis-server says something", async || {
            let ended = self.child.try_wait().expect("it can be asked");
            assert_eq!(ended, None, "redis-server ended: {:?}", self.arguments);
            Resp::connect(self.port).await.is_ok()
        })
        .await;
    }

    /// Writes so many keys to disk, to be loaded when it comes back.
    pub async fn fill(&self, keys: usize) {
        let mut connection = self.connect().await.expect("connected");
        for n in 0..keys {
            let key = format!("filler:{n}");
            let value = "x".repeat(1024);
            connection
                .command(&["SET", &key, &value])
                .await
                .expect("set");
        }
        // A server that loads looks up from it once in so many bytes of the file.
        self.command(&["CONFIG", "SET", "rdbcompression", "no"])
            .await;
        self.command(&["SAVE"]).await;
    }

    /// Ends the load that [`SLOW_LOAD`] makes slow.
    pub async fn finish_loading(&self) {
        self.command(&["CONFIG", "SET", "key-load-delay", "0"])
            .await;
        until("redis-server has loaded", async || {
            let reply = self.command(&["INFO", "persistence"]).await;
            reply.text().contains("\nloading:0")
        })
        .await;
    }

    async fn wait_until_it_answers(&self) {
        until("redis-server answers", async || {
            matches!(self.try_command(&["PING"]).await, Ok(reply) if reply.text() == "PONG")
        })
        .await;
    }
}

fn spawn(folder: &Path, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(arguments)
        .arg("--dir")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{MISSING} ({error})"))
}

/// A redis-server with TLS on a second port, and the certificate that vouches for it.
pub struct TlsRedis {
    pub redis: RedisServer,
    pub tls_port: u16,
    pub certificate: std::path::PathBuf,
    _folder: TempDir,
}

impl TlsRedis {
    pub async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let (key, certificate) = (
            folder.path().join("key.pem"),
            folder.path().join("cert.pem"),
        );
        let made = Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=tests".split(' '))
            .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .await
            .expect("openssl is missing; install it, as in: sudo apt-get install openssl");
        assert!(made.status.success(), "{made:?}");
        let tls_port = free_port();
        let (port, key, file) = (
            tls_port.to_string(),
            key.display().to_string(),
            certificate.display().to_string(),
        );
        let options = [
            "--tls-port",
            &port,
            "--tls-key-file",
            &key,
            "--tls-cert-file",
            &file,
            "--tls-ca-cert-file",
            &file,
            "--tls-auth-clients",
            "no",
        ];
        Self {
            redis: RedisServer::start_with(&options).await,
            tls_port,
            certificate,
            _folder: folder,
        }
    }

    pub fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.tls_port)
    }
}

/// What the Sentinels call the primary.
pub const PRIMARY: &str = "tidings-primary";

/// A primary, its replica, and three Sentinels that need half a second to call the primary down.
pub struct Sentinels {
    pub primary: RedisServer,
    pub replica: RedisServer,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    port: u16,
    _folder: TempDir,
    _child: Child,
}

impl Sentinels {
    pub async fn start() -> Self {
        let primary = RedisServer::start().await;
        let of = primary.port.to_string();
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &of]).await;
        until("the replica follows", async || {
            let reply = replica.command(&["INFO", "replication"]).await;
            reply.text().contains("master_link_status:up")
        })
        .await;
        let sentinels: Vec<_> = (0..3).map(|_| Sentinel::start(primary.port)).collect();
        for sentinel in &sentinels {
            sentinel.wait_until_it_knows_the_others().await;
        }
        Self {
            primary,
            replica,
            sentinels,
        }
    }

    pub fn url(&self) -> String {
        let hosts: Vec<_> = self
            .sentinels
            .iter()
            .map(|s| format!("127.0.0.1:{}", s.port))
            .collect();
        format!("redis+sentinel://{}/{PRIMARY}", hosts.join(","))
    }

    /// Waits until the replica is the primary, and every Sentinel says so.
    pub async fn wait_for_failover(&self) {
        let port = self.replica.port.to_string();
        for sentinel in &self.sentinels {
            until("the Sentinels have failed over", async || {
                let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY];
                sentinel
                    .ask(&words)
                    .await
                    .is_some_and(|reply| reply.text().ends_with(&port))
            })
            .await;
        }
        until("the replica takes writes", async || {
            let reply = self.replica.command(&["ROLE"]).await;
            reply.text().starts_with("master")
        })
        .await;
    }
}

impl Sentinel {
    fn start(primary: u16) -> Self {
        let (port, folder) = (free_port(), TempDir::new().expect("a folder"));
        let path = folder.path().join("sentinel.conf");
        let lines = format!(
            "port {port}\nbind 127.0.0.1\n\
             sentinel monitor {PRIMARY} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {PRIMARY} 500\n\
             sentinel failover-timeout {PRIMARY} 5000\n"
        );
        std::fs::write(&path, lines).expect("written");
        let arguments = [path.display().to_string(), "--sentinel".into()];
        let child = spawn(folder.path(), &arguments);
        Self {
            port,
            _folder: folder,
            _child: child,
        }
    }

    async fn ask(&self, words: &[&str]) -> Option<Reply> {
        Resp::connect(self.port)
            .await
            .ok()?
            .command(words)
            .await
            .ok()
    }

    async fn wait_until_it_knows_the_others(&self) {
        until(
            "the Sentinels know each other and the replica",
            async || {
                let Some(reply) = self.ask(&["SENTINEL", "MASTER", PRIMARY]).await else {
                    return false;
                };
                let text = reply.text();
                [
                    "num-slaves\n1\n",
                    "num-other-sentinels\n2\n",
                    "flags\nmaster\n",
                ]
                .iter()
                .all(|part| text.contains(part))
            },
        )
        .await;
    }
}

/// Three primaries that share the slots in equal parts.
pub struct RedisCluster {
    pub primaries: Vec<RedisServer>,
}

const SLOTS: u32 = 16_384;

impl RedisCluster {
    pub async fn start() -> Self {
        let mut primaries = Vec::new();
        let mut buses = Vec::new();
        for _ in 0..3 {
            let bus = free_port().to_string();
            let options = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "2000",
                "--cluster-announce-ip",
                "127.0.0.1",
            ];
            primaries.push(RedisServer::start_with(&options).await);
            buses.push(bus);
        }
        for (n, primary) in (0..3).zip(&primaries) {
            let (first, last) = (SLOTS * n / 3, SLOTS * (n + 1) / 3 - 1);
            let epoch = (n + 1).to_string();
            primary
                .command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch])
                .await;
            let range = [
                "CLUSTER",
                "ADDSLOTSRANGE",
                &first.to_string(),
                &last.to_string(),
            ];
            primary.command(&range).await;
            let port = primary.port.to_string();
            primaries[0]
                .command(&["CLUSTER", "MEET", "127.0.0.1", &port, &buses[n as usize]])
                .await;
        }
        let cluster = Self { primaries };
        cluster.wait_until_ok().await;
        cluster
    }

    pub fn url(&self) -> String {
        let hosts: Vec<_> = self
            .primaries
            .iter()
            .map(|p| format!("127.0.0.1:{}", p.port))
            .collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    pub async fn wait_until_ok(&self) {
        for primary in &self.primaries {
            until("cluster_state:ok on every primary", async || {
                let Ok(reply) = primary.try_command(&["CLUSTER", "INFO"]).await else {
                    return false;
                };
                let text = reply.text();
                text.contains("cluster_state:ok") && text.contains("cluster_size:3")
            })
            .await;
        }
    }

    /// Which primary has a key's slot, and the slot.
    pub async fn owner(&self, key: &str) -> (usize, u16) {
        let slot = self.primaries[0]
            .command(&["CLUSTER", "KEYSLOT", key])
            .await
            .int();
        let slot = u16::try_from(slot).expect("a slot");
        for (n, primary) in self.primaries.iter().enumerate() {
            let slots = primary.command(&["CLUSTER", "SHARDS"]).await;
            if owns(slots, primary.port, slot) {
                return (n, slot);
            }
        }
        panic!("nobody has slot {slot}");
    }

    /// Gives a slot with its keys to another primary, as resharding does.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let id = async |n: usize| {
            let id = self.primaries[n].command(&["CLUSTER", "MYID"]).await;
            id.text()
        };
        let (source, id) = (id(from).await, id(to).await);
        let slot = slot.to_string();
        let begin = ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source];
        self.primaries[to].command(&begin).await;
        let begin = ["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id];
        self.primaries[from].command(&begin).await;
        let port = self.primaries[to].port.to_string();
        loop {
            // From now on no new key comes: whoever asks for one is sent to the other primary.
            let get = ["CLUSTER", "GETKEYSINSLOT", &slot, "100"];
            let keys = self.primaries[from].command(&get).await.items();
            if keys.is_empty() {
                break;
            }
            for key in keys {
                let key = key.text();
                let migrate = ["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"];
                self.primaries[from].command(&migrate).await;
            }
        }
        let words = ["CLUSTER", "SETSLOT", &slot, "NODE", &id];
        self.primaries[to].command(&words).await;
        for primary in &self.primaries {
            primary.command(&words).await;
        }
    }
}

/// Whether the shard of a port, as `CLUSTER SHARDS` tells it, has a slot.
fn owns(shards: Reply, port: u16, slot: u16) -> bool {
    shards.items().into_iter().any(|shard| {
        let [_, slots, _, nodes] = <[Reply; 4]>::try_from(shard.items()).expect("slots and nodes");
        let bounds: Vec<_> = slots.items().iter().map(Reply::int).collect();
        let within = bounds
            .chunks(2)
            .any(|pair| (pair[0]..=pair[1]).contains(&i64::from(slot)));
        within && nodes.text().contains(&format!("port\n{port}\n"))
    })
}
