use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    ProtocolVersion, PushInfo, RedisConnectionInfo, TlsCertificates, Value, cmd,
};

use super::keys::SLOTS;
use crate::backplane::{BackplaneConfig, BackplaneUrl};

/// How long a connection may take to be made, and a command to be answered. The library's own limit on answers is
/// 500 ms, which a Redis that writes a snapshot exceeds.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

const DEFAULT_PORT: u16 = 6379;

/// Where Redis is, by configuration.
#[derive(Clone)]
pub struct Place {
    kind: Kind,
    /// Given hosts, in turn the server, the sentinels or some of a cluster's nodes.
    hosts: Vec<(String, u16)>,
    login: RedisConnectionInfo,
    tls: Option<TlsCertificates>,
}

#[derive(Clone)]
enum Kind {
    Single,
    Sentinel { primary: String },
    Cluster,
}

/// One Redis primary: whom to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Endpoint {
    /// Whoever is the primary when a connection is made.
    Primary,
    /// A node of a cluster.
    Node(String, u16),
}

/// The primaries that there are, and which of them has a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Topology {
    pub(super) endpoints: Vec<Endpoint>,
    /// By slot, in a cluster.
    slots: Option<Vec<u16>>,
}

impl Topology {
    /// The endpoint that has a key.
    pub(super) fn endpoint_of(&self, key: &str) -> usize {
        self.slots.as_ref().map_or(0, |slots| {
            usize::from(slots[usize::from(super::keys::slot(key))])
        })
    }
}

impl Place {
    /// Parses `[backplane] url` and reads `ca_file`.
    ///
    /// # Errors
    /// A sentence with the key and the fix.
    pub fn of(config: &BackplaneConfig) -> Result<Self, String> {
        let url = config.url.as_ref().ok_or(
            "[backplane] url is missing: say where Redis is, as in \"redis://127.0.0.1:6379\"",
        )?;
        Self::parse("[backplane] url", url, config.ca_file.as_deref())
    }

    /// Parses a URL of `[backplane]`'s forms and reads the certificates that vouch for a `rediss` server; `key` names it in
    /// errors.
    ///
    /// # Errors
    /// A sentence with the key and the fix.
    pub fn parse(key: &str, url: &BackplaneUrl, ca_file: Option<&Path>) -> Result<Self, String> {
        let wrong = |problem: &str| format!("{key} {url}: {problem}");
        let forms = "begin with redis://, rediss://, redis+sentinel:// or redis+cluster://";
        let (scheme, rest) = url.expose().split_once("://").ok_or_else(|| wrong(forms))?;
        let (scheme, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match (scheme, ca_file) {
            ("redis", _) => None,
            ("rediss", None) => Some(TlsCertificates {
                client_tls: None,
                root_cert: None,
            }),
            ("rediss", Some(path)) => Some(TlsCertificates {
                client_tls: None,
                root_cert: Some(
                    std::fs::read(path)
                        .map_err(|e| format!("[backplane] ca_file {}: {e}", path.display()))?,
                ),
            }),
            _ => return Err(wrong(forms)),
        };
        let (user_info, rest) = match rest.rsplit_once('@') {
            Some((user_info, rest)) => (Some(user_info), rest),
            None => (None, rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut login = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("tidings", env!("CARGO_PKG_VERSION"));
        if let Some(user_info) = user_info {
            // A password alone may stand without its colon.
            let (user, password) = user_info.split_once(':').unwrap_or(("", user_info));
            if !user.is_empty() {
                login = login.set_username(decode(user));
            }
            login = login.set_password(decode(password));
        }
        let kind = match kind {
            "" | "cluster" => {
                if !path.is_empty() {
                    let db = path
                        .parse::<u8>()
                        .map_err(|_| wrong("the path is a database's number"))?;
                    if kind == "cluster" && db > 0 {
                        return Err(wrong("a cluster has no database but 0"));
                    }
                    login = login.set_db(db.into());
                }
                if kind.is_empty() {
                    Kind::Single
                } else {
                    Kind::Cluster
                }
            }
            "sentinel" if path.is_empty() => {
                return Err(wrong("name the primary behind the hosts, as in /mymaster"));
            }
            "sentinel" => Kind::Sentinel {
                primary: decode(path),
            },
            _ => return Err(wrong(forms)),
        };
        let hosts: Vec<_> = hosts
            .split(',')
            .map(|host| host_and_port(host).map_err(|problem| wrong(&problem)))
            .collect::<Result<_, _>>()?;
        if matches!(kind, Kind::Single) && hosts.len() > 1 {
            return Err(wrong(
                "several hosts are a cluster (redis+cluster://) or sentinels (redis+sentinel://)",
            ));
        }
        Ok(Self {
            kind,
            hosts,
            login,
            tls,
        })
    }

    /// Any server that hears what is published by plain Pub/Sub: in a cluster every node does, so each attempt asks another
    /// one of those given.
    pub(super) fn hearing(&self, attempt: usize) -> Endpoint {
        match self.kind {
            Kind::Cluster => {
                let (host, port) = &self.hosts[attempt % self.hosts.len()];
                Endpoint::Node(host.clone(), *port)
            }
            Kind::Single | Kind::Sentinel { .. } => Endpoint::Primary,
        }
    }

    /// Whether messages go by sharded Pub/Sub.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster)
    }

    /// Asks which primaries there are.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(super) async fn topology(&self) -> Result<Topology, String> {
        if !self.is_cluster() {
            return Ok(Topology {
                endpoints: vec![Endpoint::Primary],
                slots: None,
            });
        }
        let mut problem = String::from("no hosts");
        for (host, port) in &self.hosts {
            let asked = async {
                let mut connection = self.open(host, *port, &self.login, None).await?;
                let slots: Value = cmd("CLUSTER")
                    .arg("SLOTS")
                    .query_async(&mut connection)
                    .await
                    .map_err(|e| format!("{host}:{port}: {e}"))?;
                cluster(&slots, host)
                    .ok_or_else(|| format!("{host}:{port}: the cluster does not serve all slots"))
            };
            match asked.await {
                Ok(topology) => return Ok(topology),
                Err(error) => problem = error,
            }
        }
        Err(problem)
    }

    /// Connects to a primary.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        pushes: Option<Box<dyn Fn(PushInfo) + Send + Sync>>,
    ) -> Result<MultiplexedConnection, String> {
        let (host, port) = match (endpoint, &self.kind) {
            (Endpoint::Node(host, port), _) => (host.clone(), *port),
            (Endpoint::Primary, Kind::Sentinel { primary }) => self.ask_sentinels(primary).await?,
            (Endpoint::Primary, _) => self.hosts[0].clone(),
        };
        let mut connection = self.open(&host, port, &self.login, pushes).await?;
        if !self.is_cluster() {
            // A sentinel may not know yet, and a replica refuses each write. Who must not ask is believed.
            let role: Result<Vec<Value>, _> = cmd("ROLE").query_async(&mut connection).await;
            let role = role.unwrap_or_default();
            if matches!(role.first(), Some(Value::BulkString(name)) if name == b"slave") {
                return Err(format!("{host}:{port} is a replica, not the primary"));
            }
        }
        Ok(connection)
    }

    async fn ask_sentinels(&self, primary: &str) -> Result<(String, u16), String> {
        let plain = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2);
        let mut problem = String::new();
        for (host, port) in &self.hosts {
            let asked = async {
                let mut connection = self.open(host, *port, &plain, None).await?;
                let at: Option<(String, u16)> = cmd("SENTINEL")
                    .arg("get-master-addr-by-name")
                    .arg(primary)
                    .query_async(&mut connection)
                    .await
                    .map_err(|e| format!("sentinel {host}:{port}: {e}"))?;
                at.ok_or_else(|| format!("sentinel {host}:{port} knows no primary {primary:?}"))
            };
            match asked.await {
                Ok(at) => return Ok(at),
                Err(error) => problem = error,
            }
        }
        Err(problem)
    }

    async fn open(
        &self,
        host: &str,
        port: u16,
        login: &RedisConnectionInfo,
        pushes: Option<Box<dyn Fn(PushInfo) + Send + Sync>>,
    ) -> Result<MultiplexedConnection, String> {
        let error = |e: redis::RedisError| match e.is_timeout() {
            true => format!("{host}:{port} does not answer"),
            false => format!("{host}:{port}: {e}"),
        };
        let addr = match &self.tls {
            None => ConnectionAddr::Tcp(host.to_owned(), port),
            Some(_) => ConnectionAddr::TcpTls {
                host: host.to_owned(),
                port,
                insecure: false,
                tls_params: None,
            },
        };
        let info: ConnectionInfo = addr.into_connection_info().map_err(error)?;
        let info = info.set_redis_settings(login.clone());
        let client = match &self.tls {
            None => Client::open(info),
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        };
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        if let Some(pushes) = pushes {
            config = config.set_push_sender(move |push| {
                pushes(push);
                Ok::<(), ()>(())
            });
        }
        let client = client.map_err(error)?;
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        // The library's limits are for parts of it; a server that accepts and says nothing must not hold us.
        tokio::time::timeout(TIMEOUT * 2, connecting)
            .await
            .map_err(|_| format!("{host}:{port} does not answer"))?
            .map_err(error)
    }
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err("a host is missing".into());
    }
    let port = port.map_or(Ok(DEFAULT_PORT), str::parse);
    let port = port.map_err(|_| format!("{text} does not end with a port's number"))?;
    Ok((host.to_owned(), port))
}

/// What stands for itself in a URL, and what is written as `%40`.
fn decode(text: &str) -> String {
    // A plus sign is a space only in forms.
    let text = text.replace('+', "%2B");
    form_urlencoded::parse(format!("x={}", text.replace('&', "%26")).as_bytes())
        .next()
        .map_or_else(String::new, |(_, value)| value.into_owned())
}

/// Reads the answer to `CLUSTER SLOTS`; `None` if it is not one, or some slot is nobody's.
fn cluster(slots: &Value, asked: &str) -> Option<Topology> {
    const NOBODY: u16 = u16::MAX;
    let mut endpoints = Vec::new();
    let mut owners = vec![NOBODY; usize::from(SLOTS)];
    let Value::Array(ranges) = slots else {
        return None;
    };
    for range in ranges {
        let Value::Array(range) = range else {
            return None;
        };
        let [
            Value::Int(first),
            Value::Int(last),
            Value::Array(primary),
            ..,
        ] = range.as_slice()
        else {
            return None;
        };
        let [host, Value::Int(port), ..] = primary.as_slice() else {
            return None;
        };
        let host = match host {
            Value::BulkString(host) if !host.is_empty() => String::from_utf8(host.clone()).ok()?,
            // A node that does not know its own name is the one that was asked.
            _ => asked.to_owned(),
        };
        let endpoint = Endpoint::Node(host, u16::try_from(*port).ok()?);
        let index = endpoints
            .iter()
            .position(|e| *e == endpoint)
            .unwrap_or_else(|| {
                endpoints.push(endpoint);
                endpoints.len() - 1
            });
        let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
        owners
            .get_mut(first..=last)?
            .fill(u16::try_from(index).ok()?);
    }
    (!owners.contains(&NOBODY)).then_some(Topology {
        endpoints,
        slots: Some(owners),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_pubsub_is_heard_at_any_node_of_a_cluster_and_else_at_the_primary() {
        let hearing = |url: &str, attempt| {
            let url = BackplaneUrl::new(url);
            Place::parse("url", &url, None)
                .expect("a place")
                .hearing(attempt)
        };
        let node = |host: &str, port| Endpoint::Node(host.into(), port);
        let cluster = "redis+cluster://a:7000,b:7001";
        assert_eq!(hearing(cluster, 0), node("a", 7000));
        assert_eq!(hearing(cluster, 1), node("b", 7001));
        assert_eq!(hearing(cluster, 2), node("a", 7000));
        assert_eq!(hearing("redis://a", 1), Endpoint::Primary);
        assert_eq!(hearing("redis+sentinel://a,b/x", 1), Endpoint::Primary);
    }
}
