use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::model::{Secret, is_loopback, units};

/// The least `deregister_after` that Consul takes.
const DEREGISTER_MIN: Duration = Duration::from_secs(60);
/// The most of both times: a day.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Consul's limits on what is said of a service.
const META_MAX: usize = 62;
const META_KEY_BYTES: usize = 128;
const META_VALUE_BYTES: usize = 512;

/// `[consul]`: registers the node at a Consul agent. Left out = off.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsulConfig {
    /// Where the agent's HTTP API is.
    pub url: String,
    /// The ACL token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// A file with the ACL token, read at each use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// PEM certificates that vouch for an `https` agent; none = those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A PEM certificate to show to the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The public door's name as a service.
    pub service: String,
    /// The service door's; empty = it is not registered.
    pub service_door: String,
    /// The address to advertise for both doors; none = where they listen, or the agent's own address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How often the agent looks at `/readyz`.
    #[serde(with = "units::duration")]
    pub check_interval: Duration,
    /// When the agent gives up a node that stays red; at least a minute.
    #[serde(with = "units::duration")]
    pub deregister_after: Duration,
    /// Tags of both services.
    pub tags: Vec<String>,
    /// Metadata of both services; `node` and `version` are added.
    pub meta: BTreeMap<String, String>,
}

impl Default for ConsulConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8500".into(),
            token: None,
            token_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            service: "tidings".into(),
            service_door: "tidings-service".into(),
            address: None,
            check_interval: Duration::from_secs(5),
            deregister_after: Duration::from_secs(120),
            tags: Vec::new(),
            meta: BTreeMap::new(),
        }
    }
}

impl ConsulConfig {
    /// What no type can check. `probe` is where the agent finds `/readyz`: the probe door, else the admin door.
    ///
    /// # Errors
    /// A sentence with the fix for the first problem.
    pub fn check(&self, probe: IpAddr) -> Result<(), String> {
        let agent = self.agent()?;
        if self.token.is_some() && self.token_file.is_some() {
            return Err("[consul] has both token and token_file; take one out".into());
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err("[consul] cert_file and key_file go together; name both".into());
        }
        if !is_local(&agent) && probe.is_loopback() {
            return Err(format!(
                "[consul] the agent at {agent} could not look at /readyz on this machine's loopback; set [probe] listen to an address that it reaches"
            ));
        }
        self.check_names()?;
        self.check_meta()?;
        if !(Duration::from_secs(1)..=TIME_MAX).contains(&self.check_interval) {
            return Err("[consul] check_interval must be from \"1s\" to \"1day\"".into());
        }
        if !(DEREGISTER_MIN..=TIME_MAX).contains(&self.deregister_after) {
            return Err(
                "[consul] deregister_after must be from \"1m\", the least that Consul takes, to \"1day\"".into(),
            );
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), String> {
        for (key, name) in [
            ("service", &self.service),
            ("service_door", &self.service_door),
        ] {
            let off = key == "service_door" && name.is_empty();
            if !off && !is_dns_label(name) {
                return Err(format!(
                    "[consul] {key} {name:?} is no name that DNS can ask for; use letters, digits and \"-\", at most 63"
                ));
            }
        }
        if self.service == self.service_door {
            return Err(format!(
                "[consul] service and service_door are both {:?}; clients and services would find each other's door",
                self.service
            ));
        }
        match &self.address {
            Some(address) if address.is_empty() || !address.bytes().all(is_host_byte) => {
                Err(format!(
                    "[consul] address {address:?} is not an address or a host name; write it without scheme and port"
                ))
            }
            _ => Ok(()),
        }
    }

    fn check_meta(&self) -> Result<(), String> {
        if self.meta.len() > META_MAX {
            return Err(format!("[consul] meta has more than {META_MAX} keys"));
        }
        for (key, value) in &self.meta {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            if key.is_empty() || key.len() > META_KEY_BYTES || !key.bytes().all(plain) {
                return Err(format!(
                    "[consul] meta {key:?}: Consul takes keys of letters, digits, \"-\" and \"_\", at most {META_KEY_BYTES}"
                ));
            }
            if ["node", "version"].contains(&key.as_str()) {
                return Err(format!(
                    "[consul] meta {key:?} is the node's own; choose another key"
                ));
            }
            if value.len() > META_VALUE_BYTES {
                return Err(format!(
                    "[consul] meta {key:?} is longer than the {META_VALUE_BYTES} bytes that Consul takes"
                ));
            }
        }
        Ok(())
    }

    /// Where the agent is.
    pub(super) fn agent(&self) -> Result<Url, String> {
        let fix =
            |what: &str| format!("[consul] url {what}; write it as in \"http://127.0.0.1:8500\"");
        let url = Url::parse(&self.url).map_err(|e| fix(&format!("is not a URL ({e})")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(fix("is neither http nor https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(fix(
                "must not hold a user or a password, since it is shown in logs: the token goes to token or token_file",
            ));
        }
        Ok(url)
    }
}

/// Whether an agent is on this machine.
pub(super) fn is_local(agent: &Url) -> bool {
    agent.host_str().is_some_and(is_loopback)
}

/// RFC 1123 section 2.1.
fn is_dns_label(name: &str) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inside)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_wrong_section_is_told_with_the_fix() {
        type Change = fn(&mut ConsulConfig);
        let cases: [(Change, &str); 14] = [
            (
                |c| c.url = "8500".into(),
                "write it as in \"http://127.0.0.1:8500\"",
            ),
            (
                |c| c.url = "tcp://127.0.0.1:8500".into(),
                "is neither http nor https",
            ),
            (
                |c| c.url = "http://a:b@127.0.0.1:8500".into(),
                "the token goes to token or token_file",
            ),
            (
                |c| c.url = "http://10.0.0.1:8500".into(),
                "set [probe] listen to an address that it reaches",
            ),
            (
                |c| {
                    c.token = Some(Secret::new("a"));
                    c.token_file = Some("b".into());
                },
                "take one out",
            ),
            (|c| c.cert_file = Some("a".into()), "name both"),
            (
                |c| c.service = "ti dings".into(),
                "is no name that DNS can ask for",
            ),
            (
                |c| c.service = String::new(),
                "is no name that DNS can ask for",
            ),
            (
                |c| c.service_door = "tidings".into(),
                "would find each other's door",
            ),
            (
                |c| c.address = Some("http://a".into()),
                "write it without scheme and port",
            ),
            (
                |c| drop(c.meta.insert("a b".into(), String::new())),
                "Consul takes keys of letters",
            ),
            (
                |c| drop(c.meta.insert("node".into(), String::new())),
                "is the node's own",
            ),
            (
                |c| c.check_interval = Duration::ZERO,
                "check_interval must be from",
            ),
            (
                |c| c.deregister_after = Duration::from_secs(59),
                "deregister_after must be from \"1m\"",
            ),
        ];
        assert_eq!(ConsulConfig::default().check(LOOPBACK), Ok(()));
        for (change, sentence) in cases {
            let mut config = ConsulConfig::default();
            change(&mut config);
            let problem = config.check(LOOPBACK).expect_err("wrong");
            assert!(problem.contains(sentence), "{problem}");
        }
    }

    #[test]
    fn the_service_door_may_stay_unregistered() {
        let config = ConsulConfig {
            service_door: String::new(),
            ..ConsulConfig::default()
        };
        assert_eq!(config.check(LOOPBACK), Ok(()));
    }
}
