use std::net::{IpAddr, SocketAddr};

use reqwest::Url;
use serde_json::{Value, json};

use super::ConsulConfig;
use super::config::is_local;

/// What is said of one door.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    /// The same for each run of a node at this address, so that one takes the place of what another left when it died.
    pub(super) id: String,
    pub(super) name: String,
    /// None: the agent's own address.
    address: Option<String>,
    port: u16,
    check: String,
}

/// What is the same for both doors.
pub(super) struct About<'a> {
    pub(super) config: &'a ConsulConfig,
    pub(super) agent: &'a Url,
    /// The address of this machine on the way to the agent.
    pub(super) here: Option<IpAddr>,
    /// Where `/readyz` is.
    pub(super) probe: SocketAddr,
}

impl Registration {
    /// Of a door; `query` is what `/readyz` is asked with.
    pub(super) fn new(about: &About<'_>, name: &str, door: SocketAddr, query: &str) -> Self {
        let address = about.advertised(door.ip());
        let port = door.port();
        let id = match &address {
            Some(address) => format!("{name}:{address}:{port}"),
            None => format!("{name}:{port}"),
        };
        Self {
            id,
            name: name.into(),
            address,
            port,
            check: format!("http://{}/readyz{query}", about.probed()),
        }
    }

    /// The body of a registration. `ready` is what the check would find now: without it a node would count as red until the
    /// agent has looked for the first time.
    pub(super) fn body(&self, config: &ConsulConfig, node: &str, weight: u8, ready: bool) -> Value {
        let mut meta: serde_json::Map<String, Value> = config
            .meta
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        meta.insert("node".into(), node.into());
        meta.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        let mut body = json!({
            "ID": self.id,
            "Name": self.name,
            "Port": self.port,
            "Tags": config.tags,
            "Meta": meta,
            "Weights": {"Passing": weight, "Warning": 1},
            "Check": {
                "Name": "Tidings' readiness",
                "HTTP": self.check,
                "Interval": format!("{}ms", config.check_interval.as_millis()),
                "Timeout": "2s",
                "DeregisterCriticalServiceAfter": format!("{}ms", config.deregister_after.as_millis()),
                "Status": if ready { "passing" } else { "critical" },
            },
        });
        if let Some(address) = &self.address {
            body["Address"] = address.as_str().into();
        }
        body
    }
}

impl About<'_> {
    /// What others reach a door at.
    fn advertised(&self, bound: IpAddr) -> Option<String> {
        match &self.config.address {
            Some(address) => Some(address.clone()),
            None if !bound.is_unspecified() => Some(bound.to_string()),
            None if is_local(self.agent) => None,
            None => self.here.map(|here| here.to_string()),
        }
    }

    /// What the agent reaches `/readyz` at.
    fn probed(&self) -> String {
        let (bound, port) = (self.probe.ip(), self.probe.port());
        if !bound.is_unspecified() {
            return self.probe.to_string();
        }
        match (is_local(self.agent), self.here, &self.config.address) {
            (true, _, _) if bound.is_ipv6() => format!("[::1]:{port}"),
            (true, _, _) => format!("127.0.0.1:{port}"),
            (false, _, Some(address)) if address.contains(':') => format!("[{address}]:{port}"),
            (false, _, Some(address)) => format!("{address}:{port}"),
            (false, Some(here), None) => SocketAddr::new(here, port).to_string(),
            (false, None, None) => self.probe.to_string(),
        }
    }

    /// Whether others would be told to call their own loopback.
    pub(super) fn misleads(&self, door: SocketAddr, public: SocketAddr) -> bool {
        let everybody_here = public.ip().is_loopback() && self.config.address.is_none();
        door.ip().is_loopback() && !everybody_here
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(agent: &str, address: Option<&str>, door: &str, probe: &str) -> Registration {
        let config = ConsulConfig {
            address: address.map(Into::into),
            ..ConsulConfig::default()
        };
        let about = About {
            config: &config,
            agent: &agent.parse().expect("a URL"),
            here: Some([10, 0, 0, 7].into()),
            probe: probe.parse().expect("an address"),
        };
        Registration::new(&about, "tidings", door.parse().expect("an address"), "")
    }

    #[test]
    fn a_door_is_advertised_where_others_reach_it() {
        const LOCAL: &str = "http://127.0.0.1:8500";
        const FAR: &str = "http://10.0.0.1:8500";
        // Agent, address, door, probe: id, check.
        for (agent, address, door, probe, id, check) in [
            (
                LOCAL,
                None,
                "0.0.0.0:1",
                "127.0.0.1:2",
                "tidings:1",
                "127.0.0.1:2",
            ),
            (
                LOCAL,
                None,
                "0.0.0.0:1",
                "0.0.0.0:2",
                "tidings:1",
                "127.0.0.1:2",
            ),
            (LOCAL, None, "[::]:1", "[::]:2", "tidings:1", "[::1]:2"),
            (
                LOCAL,
                None,
                "10.0.0.9:1",
                "10.0.0.9:2",
                "tidings:10.0.0.9:1",
                "10.0.0.9:2",
            ),
            (
                LOCAL,
                Some("a.b"),
                "0.0.0.0:1",
                "0.0.0.0:2",
                "tidings:a.b:1",
                "127.0.0.1:2",
            ),
            (
                FAR,
                None,
                "0.0.0.0:1",
                "0.0.0.0:2",
                "tidings:10.0.0.7:1",
                "10.0.0.7:2",
            ),
            (
                FAR,
                Some("a.b"),
                "0.0.0.0:1",
                "0.0.0.0:2",
                "tidings:a.b:1",
                "a.b:2",
            ),
            (
                FAR,
                Some("fd00::1"),
                "[::]:1",
                "[::]:2",
                "tidings:fd00::1:1",
                "[fd00::1]:2",
            ),
        ] {
            let seen = registration(agent, address, door, probe);
            let wanted = (id.to_owned(), format!("http://{check}/readyz"));
            assert_eq!((seen.id, seen.check), wanted, "{agent} {address:?} {door}");
        }
    }
}
