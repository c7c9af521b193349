//! Certificates in the configuration: what the doors want to show, and who may call by one.

use std::path::Path;
use std::time::Duration;

use super::Config;
use crate::doors::service::ApiKeys;
use crate::tls::{ClientAuth, ClientCa, TlsConfig, Wanted};

/// The longest that a new certificate may wait to be seen, and the shortest that it is worth looking.
const WATCH: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(86_400));
/// A WebSocket is opened by HTTP/1.1.
const PUBLIC_PROTOCOLS: &[&str] = &["http/1.1"];
const PROTOCOLS: &[&str] = &["h2", "http/1.1"];

impl Config {
    /// What the doors with TLS want to show.
    pub fn certificates(&self) -> Vec<Wanted> {
        let door = |door, tls: &TlsConfig, protocols, resumes| Wanted {
            door,
            cert_file: tls.cert_file.clone(),
            key_file: tls.key_file.clone(),
            clients: None,
            protocols,
            resumes,
        };
        let mut wanted = Vec::new();
        if let Some(tls) = &self.public.tls {
            wanted.push(door("public", tls, PUBLIC_PROTOCOLS, true));
        }
        if let Some(tls) = &self.service.tls {
            wanted.push(Wanted {
                door: "service",
                cert_file: tls.cert_file.clone(),
                key_file: tls.key_file.clone(),
                clients: tls.client_ca_file.clone().map(|file| ClientCa {
                    file,
                    auth: tls.client_auth,
                }),
                protocols: PROTOCOLS,
                resumes: false,
            });
        }
        if let Some(tls) = &self.admin.tls {
            wanted.push(door("admin", tls, PROTOCOLS, false));
        }
        if let Some(tls) = self.probe.as_ref().and_then(|probe| probe.tls.as_ref()) {
            wanted.push(door("probe", tls, PROTOCOLS, false));
        }
        wanted
    }

    /// Who may call the service door, by an API key or by a certificate.
    ///
    /// # Errors
    /// A sentence that names the key or the certificate, and the fix.
    pub fn callers(&self) -> Result<ApiKeys, String> {
        let clients = self.service.tls.as_ref().map(|tls| &tls.clients[..]);
        ApiKeys::new(&self.api_keys)?.with_certificates(clients.unwrap_or_default())
    }

    pub(super) fn check_tls(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let every = self.tls.watch_interval;
        if !every.is_zero() && !(WATCH.0..=WATCH.1).contains(&every) {
            problems.push(
                "[tls] watch_interval must be from \"100ms\" to \"1day\"; \"0s\" = only on SIGHUP"
                    .into(),
            );
        }
        for Wanted {
            door,
            cert_file,
            key_file,
            ..
        } in self.certificates()
        {
            for (key, file) in [("cert_file", &cert_file), ("key_file", &key_file)] {
                if file == Path::new("") {
                    problems.push(format!("[{door}.tls] {key} must name a PEM file"));
                }
            }
        }
        if let Some(tls) = &self.service.tls
            && tls.client_ca_file.is_none()
        {
            if !tls.clients.is_empty() {
                problems.push(
                    "[[service.tls.clients]] are there, and nobody vouches for their certificates; name who does with [service.tls] client_ca_file".into(),
                );
            }
            if tls.client_auth == ClientAuth::Required {
                problems.push(
                    "[service.tls] client_auth = \"required\" needs client_ca_file, the certificates of who vouches for services".into(),
                );
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::doors::config::{ClientConfig, Scope, ServiceTlsConfig};

    fn with(change: impl FnOnce(&mut ServiceTlsConfig)) -> Result<(), String> {
        let mut tls = ServiceTlsConfig {
            cert_file: "cert.pem".into(),
            key_file: "key.pem".into(),
            client_ca_file: Some("ca.pem".into()),
            client_auth: ClientAuth::Required,
            clients: vec![ClientConfig {
                name: "orders.internal".into(),
                scopes: vec![Scope::Push],
                addresses: Vec::new(),
                pushes_per_second: 0,
            }],
        };
        change(&mut tls);
        let mut config = Config::dev();
        config.service.tls = Some(tls);
        config.check(Mode::Dev)
    }

    #[test]
    fn what_is_wrong_with_tls_is_told_with_its_fix() {
        assert_eq!(with(|_| {}), Ok(()));
        type Change = fn(&mut ServiceTlsConfig);
        let cases: [(Change, &str); 6] = [
            (|t| t.key_file = "".into(), "[service.tls] key_file must"),
            (
                |t| {
                    t.client_ca_file = None;
                    t.clients.clear();
                },
                "needs client_ca_file",
            ),
            (
                |t| {
                    t.client_ca_file = None;
                    t.client_auth = ClientAuth::Optional;
                },
                "nobody vouches",
            ),
            (|t| t.clients[0].name.clear(), "needs a name"),
            (|t| t.clients[0].scopes.clear(), "needs scopes"),
            (|t| t.clients.push(t.clients[0].clone()), "is there twice"),
        ];
        for (change, sentence) in cases {
            let told = with(change).expect_err(sentence);
            assert!(
                told.contains(sentence) && told.lines().count() == 1,
                "{told}"
            );
        }
        let mut config = Config::dev();
        config.tls.watch_interval = Duration::from_millis(1);
        assert!(config.check(Mode::Dev).is_err());
    }
}
