//! The four proxies as they ship in `deploy/`, each a real process in front of nodes of the test.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use tidings::config::Config;
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::ports::free_port;
use super::{DEADLINE, TestNode, until};

/// A WebSocket through a proxy.
pub type Proxied = WebSocketStream<TlsStream<TcpStream>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Haproxy,
    Traefik,
    Envoy,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Nginx, Self::Haproxy, Self::Traefik, Self::Envoy];

    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Traefik => "traefik",
            Self::Envoy => "envoy",
        }
    }

    /// What is smaller on a test's machine, and Envoy's own port.
    fn own_words(self) -> Vec<String> {
        match self {
            Self::Nginx => vec!["65536=4096".into(), "16384=1024".into()],
            Self::Haproxy => vec!["100000=1000".into()],
            Self::Traefik => Vec::new(),
            Self::Envoy => vec![format!("9901={}", free_port())],
        }
    }
}

/// Where the nodes of a test are: each has an address of its own, and their doors the same ports, as in a fleet.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    public: u16,
    service: u16,
    probe: u16,
}

impl Place {
    pub fn new() -> Self {
        Self {
            public: free_port(),
            service: free_port(),
            probe: free_port(),
        }
    }

    /// Puts the doors of node 1 or 2 there.
    pub fn take(self, config: &mut Config, node: u8) {
        let at = |port| SocketAddr::from((Ipv4Addr::new(127, 0, 0, 10 + node), port));
        config.public.listen = at(self.public);
        config.service.listen = at(self.service);
        let probe = serde_json::json!({"listen": at(self.probe)});
        config.probe = Some(serde_json::from_value(probe).expect("a door"));
    }

    /// The words that say where it is, of these nodes alone.
    fn words(self, nodes: &[u8]) -> Vec<String> {
        let mut words = vec![
            format!("8080={}", self.public),
            format!("8081={}", self.service),
            format!("8083={}", self.probe),
        ];
        for node in [1_u8, 2] {
            words.push(match nodes.contains(&node) {
                true => format!("10.0.0.1{node}=127.0.0.{}", 10 + node),
                false => format!("10.0.0.1{node}="),
            });
        }
        words
    }
}

/// What of a proxy's files differs from what ships.
#[derive(Default, Clone, Copy)]
pub struct Setup<'a> {
    /// The files that speak the PROXY protocol.
    pub proxy_protocol: bool,
    /// `WORD=ELSE`, as for `scripts/proxy`.
    pub words: &'a [&'a str],
}

/// A proxy in front of nodes 1 and 2. Ends when it is dropped.
pub struct Proxy {
    kind: Kind,
    place: Place,
    arguments: Vec<String>,
    /// Where clients come in.
    pub clients: u16,
    /// Where services come in.
    pub services: u16,
    certificate: CertificateDer<'static>,
    folder: TempDir,
    child: Child,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Its workers are of its group.
        let group = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

/// The script, told about one proxy.
fn script(kind: Kind, folder: &Path, flags: &[&str], words: &[String]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/proxy"));
    command
        .args(flags)
        .arg(kind.name())
        .arg(folder)
        .args(words)
        .stdin(Stdio::null());
    command
}

impl Proxy {
    pub async fn start(kind: Kind, place: Place, nodes: &[u8]) -> Self {
        Self::start_with(kind, place, nodes, Setup::default()).await
    }

    pub async fn start_with(kind: Kind, place: Place, nodes: &[u8], setup: Setup<'_>) -> Self {
        let folder = TempDir::new().expect("a folder");
        let certificate = certify(folder.path());
        let (clients, services) = (free_port(), free_port());
        let mut arguments = vec![
            format!("443={clients}"),
            format!("8443={services}"),
            "0.0.0.0=127.0.0.1".into(),
            "push.example.com=localhost".into(),
        ];
        arguments.extend(setup.words.iter().map(ToString::to_string));
        arguments.extend(kind.own_words());
        let flags: &[&str] = match setup.proxy_protocol {
            true => &["--proxy-protocol"],
            false => &[],
        };
        let log = File::create(folder.path().join("log")).expect("a log");
        let words = [place.words(nodes), arguments.clone()].concat();
        let child = script(kind, folder.path(), flags, &words)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("scripts/proxy runs");
        let mut proxy = Self {
            kind,
            place,
            arguments,
            clients,
            services,
            certificate,
            folder,
            child,
        };
        proxy.until_it_listens().await;
        proxy
    }

    async fn until_it_listens(&mut self) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while self.dial(Ipv4Addr::LOCALHOST).await.is_err() {
            let ended = self.child.try_wait().expect("a child of ours");
            let late = tokio::time::Instant::now() > deadline;
            assert!(
                ended.is_none() && !late,
                "{:?} {ended:?}; scripts/install-proxies installs it: {}",
                self.kind,
                self.log()
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// The file of its certificate.
    pub fn certificate(&self) -> std::path::PathBuf {
        self.folder.path().join("fullchain.pem")
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        ["log", "access.log", "error.log"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.folder.path().join(name)).ok())
            .collect()
    }

    /// Tells it that there are these nodes and no others, as an operator does; returns once newcomers see it.
    pub async fn now_knows(&self, nodes: &[u8]) {
        let words = [self.place.words(nodes), self.arguments.clone()].concat();
        let written = script(self.kind, self.folder.path(), &["--write"], &words)
            .status()
            .await;
        assert!(written.expect("scripts/proxy runs").success());
        let signal = match self.kind {
            Kind::Nginx => Signal::HUP,
            Kind::Haproxy => Signal::USR2,
            // They watch their files.
            Kind::Traefik | Kind::Envoy => return,
        };
        let process = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        rustix::process::kill_process(process.expect("it runs"), signal).expect("it runs");
    }

    /// TLS to where clients come in, from an address of loopback.
    pub async fn dial(&self, from: Ipv4Addr) -> std::io::Result<TlsStream<TcpStream>> {
        self.dial_port(self.clients, from, b"http/1.1").await
    }

    /// TLS to where services come in.
    pub async fn dial_service(&self) -> std::io::Result<TlsStream<TcpStream>> {
        self.dial_port(self.services, Ipv4Addr::LOCALHOST, b"h2")
            .await
    }

    async fn dial_port(
        &self,
        port: u16,
        from: Ipv4Addr,
        protocol: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a certificate");
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// A WebSocket with a query, from an address of loopback and with more headers.
    pub async fn open(
        &self,
        query: &str,
        from: Ipv4Addr,
        headers: &[(&'static str, &str)],
    ) -> Result<Proxied, Error> {
        let mut request = format!("wss://localhost:{}/ws?{query}", self.clients)
            .into_client_request()
            .expect("a request");
        for (name, value) in headers {
            let value = value.parse().expect("a header value");
            request.headers_mut().insert(*name, value);
        }
        let stream = self.dial(from).await.map_err(Error::Io)?;
        let opening = tokio_tungstenite::client_async(request, stream);
        let opened = tokio::time::timeout(DEADLINE, opening).await;
        opened.expect("in time").map(|(socket, _)| socket)
    }

    /// A WebSocket of a user, with a ticket of this node's.
    pub async fn join(&self, node: &TestNode, user: &str) -> Proxied {
        let ticket = node.ticket(serde_json::json!({"user_id": user})).await;
        let query = format!("ticket={ticket}");
        self.open(&query, Ipv4Addr::LOCALHOST, &[])
            .await
            .expect("an upgrade")
    }

    /// A client for events and JSON, from an address of loopback.
    pub fn http(&self, from: Ipv4Addr) -> reqwest::Client {
        let certificate = reqwest::Certificate::from_der(&self.certificate).expect("a certificate");
        reqwest::Client::builder()
            .tls_certs_only([certificate])
            .local_address(IpAddr::V4(from))
            .build()
            .expect("a client")
    }

    /// Waits until a newcomer is welcomed by this node, and no other is any more.
    pub async fn until_newcomers_are_at(&self, issuer: &TestNode, name: &str) {
        until("newcomers are at the node", async || {
            for _ in 0..4 {
                let mut socket = self.join(issuer, "newcomer").await;
                if super::next(&mut socket).await["node"] != name {
                    return false;
                }
            }
            true
        })
        .await;
    }
}

/// A certificate for localhost with its key, in a folder.
fn certify(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let at = |name| folder.join(name);
    std::fs::write(at("fullchain.pem"), made.cert.pem()).expect("written");
    let key = made.signing_key.serialize_pem();
    std::fs::write(at("fullchain.pem.key"), key).expect("written");
    made.cert.der().clone()
}
