//! A real Consul agent in dev mode, which keeps nothing: ended and started again, it is empty.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use reqwest::{Client, Method};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::config::Config;
use tidings::fleet::ConsulConfig;
use tokio::process::{Child, Command};

use super::dns::{self, Answer};
use super::ports::free_port;
use super::until;

/// What may do everything at an agent with ACLs.
pub const MASTER: &str = "6b1c6c3f-0f0e-4d2a-9f5e-1f2d3c4b5a69";

pub struct ConsulAgent {
    http: u16,
    https: Option<u16>,
    dns: u16,
    folder: TempDir,
    child: Option<Child>,
    client: Client,
}

/// Where the scripts put tools.
pub fn tools() -> PathBuf {
    match std::env::var_os("TIDINGS_TOOLS") {
        Some(place) => place.into(),
        None => PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache/tidings"),
    }
}

impl ConsulAgent {
    pub async fn start() -> Self {
        Self::start_with(json!({})).await
    }

    /// Where nobody may do anything without a token.
    pub async fn start_with_acl() -> Self {
        let acl = json!({"enabled": true, "default_policy": "deny", "tokens": {"master": MASTER}});
        Self::start_with(json!({"acl": acl})).await
    }

    /// With TLS, and only for clients that show a certificate of the folder's authority.
    pub async fn start_with_tls(certificates: &Certificates) -> Self {
        let mut tls = certificates.of_agent();
        tls["verify_incoming_https"] = true.into();
        Self::start_with(tls).await
    }

    async fn start_with(mut options: Value) -> Self {
        let folder = TempDir::new().expect("a folder");
        let (http, dns) = (free_port(), free_port());
        let https = options.get("key_file").map(|_| free_port());
        options["ports"] = json!({
            "http": http, "https": https.map_or(-1, i32::from), "dns": dns, "grpc": -1,
            "server": free_port(), "serf_lan": free_port(), "serf_wan": free_port(),
        });
        let file = folder.path().join("consul.json");
        std::fs::write(file, options.to_string()).expect("written");
        let mut agent = Self {
            http,
            https,
            dns,
            folder,
            child: None,
            client: Client::new(),
        };
        agent.run().await;
        agent
    }

    /// Starts it, again and empty if it ran before.
    pub async fn run(&mut self) {
        let child = Command::new(tools().join("bin/consul"))
            .args([
                "agent",
                "-dev",
                "-bind",
                "127.0.0.1",
                "-log-level",
                "err",
                "-config-file",
            ])
            .arg(self.folder.path().join("consul.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Consul does not start; install it with scripts/install-consul");
        self.child = Some(child);
        until("Consul has a leader", async || {
            let leader = self
                .ask(Method::GET, "/v1/status/leader", Value::Null)
                .await;
            leader.is_some_and(|leader| leader.as_str().is_some_and(|leader| !leader.is_empty()))
        })
        .await;
    }

    /// Ends it without a word.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.expect("killed");
        }
    }

    /// Freezes it (SIGSTOP): it accepts connections, and answers nothing.
    pub fn pause(&self) {
        let id = self.child.as_ref().and_then(Child::id).expect("it runs");
        let id = Pid::from_raw(i32::try_from(id).expect("a pid")).expect("not zero");
        kill_process(id, Signal::STOP).expect("signalled");
    }

    pub fn url(&self) -> String {
        match self.https {
            Some(https) => format!("https://127.0.0.1:{https}"),
            None => format!("http://127.0.0.1:{}", self.http),
        }
    }

    /// `[consul]` for this agent, which looks often.
    pub fn config(&self) -> ConsulConfig {
        ConsulConfig {
            url: self.url(),
            check_interval: Duration::from_secs(1),
            ..ConsulConfig::default()
        }
    }

    /// Has a node register here.
    pub fn register(&self, config: &mut Config) {
        config.consul = Some(self.config());
    }

    /// A call of its API as one who may do everything; `None` = it does not answer well.
    pub async fn ask(&self, method: Method, path: &str, body: Value) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}{path}", self.http);
        let mut request = self
            .client
            .request(method, url)
            .header("X-Consul-Token", MASTER);
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        let response = request.send().await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let text = response.text().await.ok()?;
        Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A token with the rules of a policy.
    pub async fn token(&self, name: &str, rules: &str) -> String {
        let policy = json!({"Name": name, "Rules": rules});
        self.ask(Method::PUT, "/v1/acl/policy", policy)
            .await
            .expect("a policy");
        let token = json!({"Policies": [{"Name": name}]});
        let token = self
            .ask(Method::PUT, "/v1/acl/token", token)
            .await
            .expect("a token");
        token["SecretID"].as_str().expect("a secret").into()
    }

    /// What the agent itself has of a service, with the states of its checks.
    pub async fn services(&self, name: &str) -> Vec<(Value, Vec<String>)> {
        let path = format!("/v1/agent/health/service/name/{name}?format=json");
        let url = format!("http://127.0.0.1:{}{path}", self.http);
        // 404 = none, 503 = there are some, and one is critical.
        let asked = self
            .client
            .get(url)
            .header("X-Consul-Token", MASTER)
            .send()
            .await;
        let Ok(response) = asked else {
            return Vec::new();
        };
        let Ok(text) = response.text().await else {
            return Vec::new();
        };
        let Ok(Value::Array(found)) = serde_json::from_str(&text) else {
            return Vec::new();
        };
        let each = found.into_iter().map(|entry| {
            let checks = entry["Checks"].as_array().cloned().unwrap_or_default();
            let states = checks
                .iter()
                .filter_map(|check| check["Status"].as_str().map(Into::into));
            (entry["Service"].clone(), states.collect())
        });
        each.collect()
    }

    /// Waits until a service is there once, and every check of it passes.
    pub async fn passing(&self, name: &str) -> Value {
        let mut seen = Vec::new();
        until(&format!("{name} passes at Consul"), async || {
            seen = self.services(name).await;
            seen.len() == 1 && seen[0].1.iter().all(|state| state == "passing")
        })
        .await;
        seen.remove(0).0
    }

    /// Waits until nothing of that name is there.
    pub async fn gone(&self, name: &str) {
        until(&format!("{name} is gone from Consul"), async || {
            self.services(name).await.is_empty()
        })
        .await;
    }

    pub fn dns_port(&self) -> u16 {
        self.dns
    }

    /// What its DNS interface answers.
    pub async fn dns(&self, name: &str, kind: dns::Kind) -> Vec<Answer> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, self.dns));
        dns::ask(server, name, kind).await
    }
}

/// An authority of the tests' own, a certificate for the agent and one for a client of it.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    pub fn make() -> Self {
        use rcgen::{
            BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        };
        let folder = TempDir::new().expect("a folder");
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        let key = || KeyPair::generate().expect("a key");
        let authority_key = key();
        let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&authority_key).expect("signed");
        write("ca.pem", certificate.pem());
        let issuer = Issuer::new(authority, authority_key);
        for name in ["agent", "client"] {
            let key = key();
            let mut params = CertificateParams::new(["127.0.0.1".into()]).expect("parameters");
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let certificate = params.signed_by(&key, &issuer).expect("signed");
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn of_agent(&self) -> Value {
        json!({"ca_file": self.path("ca.pem"), "cert_file": self.path("agent.pem"), "key_file": self.path("agent.key")})
    }
}
