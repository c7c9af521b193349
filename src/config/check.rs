use std::time::Duration;

use super::{Config, Mode};
use crate::doors::service::ApiKeys;
use crate::model::UserId;
use crate::tickets::RESUME_LIFE_MAX;

/// The most that a queue may hold: far beyond use, and far below what its semaphore can count.
const QUEUE_MAX: usize = 1_000_000;
/// The most that a time may be.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Config {
    /// What no type can check.
    ///
    /// # Errors
    /// A sentence with the fix for each problem, a line each.
    pub fn check(&self, mode: Mode) -> Result<(), String> {
        let mut problems: Vec<String> = self.broken_limits().map(String::from).collect();
        problems.extend(self.too_long());
        problems.extend(self.backplane.check().err());
        problems.extend(self.tickets.check().err());
        problems.extend(self.jwt.as_ref().and_then(|jwt| jwt.check().err()));
        problems.extend(self.check_consul().err());
        let sources = self.sources.iter();
        problems.extend(sources.filter_map(|source| source.check(&self.backplane).err()));
        problems.extend(self.check_names());
        problems.extend(self.check_keys(mode));
        problems.extend(match mode {
            Mode::Dev => self.check_dev(),
            Mode::Production => self.check_production(),
        });
        match problems.is_empty() {
            true => Ok(()),
            false => Err(problems.join("\n")),
        }
    }

    fn broken_limits(&self) -> impl Iterator<Item = &'static str> {
        let Self {
            hub,
            limits,
            heartbeat,
            public,
            service,
            ..
        } = self;
        let rules = [
            (
                public.proxy_protocol && public.trusted_proxies.is_empty(),
                "[public] proxy_protocol needs trusted_proxies: name the proxies that send the header, as in [\"10.0.0.0/8\"]",
            ),
            (hub.shards > 128, "[hub] shards must be at most 128"),
            (
                hub.coalesce > Duration::from_millis(100),
                "[hub] coalesce must be at most \"100ms\"",
            ),
            (
                !(1..=QUEUE_MAX).contains(&hub.queue),
                "[hub] queue must be from 1 to 1000000",
            ),
            (
                limits.header_bytes < 8 << 10,
                "[limits] header_bytes must be at least \"8KiB\"",
            ),
            (
                limits.message_bytes < 1 << 10,
                "[limits] message_bytes must be at least \"1KiB\"",
            ),
            (
                limits.fragments == 0,
                "[limits] fragments must be at least 1",
            ),
            (
                limits.outbox_bytes < limits.message_bytes,
                "[limits] outbox_bytes must be at least message_bytes, or no message would ever fit",
            ),
            (
                (1..limits.outbox_bytes).contains(&limits.node_outbox_bytes),
                "[limits] node_outbox_bytes must be at least outbox_bytes; \"0B\" = a quarter of the memory",
            ),
            (
                limits.fleet_handshakes_per_second > 1_000_000,
                "[limits] fleet_handshakes_per_second must be at most 1000000; 0 = off",
            ),
            (
                limits.handshake_timeout.is_zero(),
                "[limits] handshake_timeout must be more than \"0s\"",
            ),
            (
                limits.message_timeout.is_zero(),
                "[limits] message_timeout must be more than \"0s\"",
            ),
            (
                !heartbeat.interval.is_zero() && heartbeat.pong_timeout.is_zero(),
                "[heartbeat] pong_timeout must be more than \"0s\"; interval = \"0s\" turns heartbeats off",
            ),
            (
                heartbeat.renewal.is_zero() || heartbeat.renewal > RESUME_LIFE_MAX / 2,
                "[heartbeat] renewal must be more than \"0s\" and at most \"12h\": resume tickets live 24 h",
            ),
            (
                !(1..=QUEUE_MAX).contains(&service.stream_window),
                "[service] stream_window must be from 1 to 1000000",
            ),
        ];
        rules
            .into_iter()
            .filter_map(|(broken, problem)| broken.then_some(problem))
    }

    /// A time that is added to the clock has to stay on it.
    fn too_long(&self) -> impl Iterator<Item = String> {
        let Self {
            drain,
            heartbeat,
            limits,
            ..
        } = self;
        let times = [
            ("[heartbeat] interval", heartbeat.interval),
            ("[heartbeat] pong_timeout", heartbeat.pong_timeout),
            ("[limits] handshake_timeout", limits.handshake_timeout),
            ("[limits] message_timeout", limits.message_timeout),
            ("[drain] deregister_delay", drain.deregister_delay),
            ("[drain] spread", drain.spread),
            ("[drain] grace", drain.grace),
        ];
        times
            .into_iter()
            .filter(|(_, time)| *time > TIME_MAX)
            .map(|(key, _)| format!("{key} must be at most \"1day\""))
    }

    fn check_consul(&self) -> Result<(), String> {
        let Some(consul) = &self.consul else {
            return Ok(());
        };
        let probe = self.probe.as_ref().map(|probe| probe.listen);
        consul.check(probe.unwrap_or(self.admin.listen).ip())
    }

    fn check_names(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(Err(rule)) = self.node.id.as_deref().map(UserId::parse) {
            problems.push(format!("[node] id {rule}"));
        }
        if let Some(url) = &self.public.url
            && !is_socket_url(url)
        {
            problems.push(format!(
                "[public] url {url:?} is not where a WebSocket opens; write it as in \"wss://push.example.com/ws\""
            ));
        }
        for (index, namespace) in self.namespaces.iter().enumerate() {
            let name = &namespace.name;
            if name.as_str().contains(':') {
                problems.push(format!(
                    "[[namespaces]] name {name:?}: leave out the \":\" and what follows"
                ));
            }
            let before = &self.namespaces[..index];
            if before.iter().any(|other| other.name == *name) {
                problems.push(format!("[[namespaces]] {name:?} is there twice"));
            }
        }
        problems
    }

    fn check_keys(&self, mode: Mode) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, key) in self.api_keys.iter().enumerate() {
            let before = &self.api_keys[..index];
            if let Some(other) = before.iter().find(|other| other.sha256 == key.sha256) {
                problems.push(format!(
                    "[[api_keys]] {:?} and {:?} are the same key; `tidings config key` makes another",
                    other.name, key.name
                ));
            }
        }
        match ApiKeys::new(&self.api_keys) {
            Err(problem) => problems.push(problem),
            Ok(_) if mode == Mode::Dev => {}
            Ok(keys) if keys.is_empty() => problems.push(
                "there are no [[api_keys]], so no service could call; `tidings config key` makes one".into(),
            ),
            Ok(keys) if keys.has_development_key() => problems.push(
                "one of [[api_keys]] is the development key, which everybody knows; `tidings config key` makes another".into(),
            ),
            Ok(_) => {}
        }
        problems
    }

    fn check_dev(&self) -> Vec<String> {
        let probe = self.probe.as_ref().map(|probe| probe.listen);
        [self.public.listen, self.service.listen, self.admin.listen]
            .into_iter()
            .chain(probe)
            .filter(|address| !address.ip().is_loopback())
            .map(|open| {
                format!(
                    "`tidings dev` binds loopback alone, not {open}: its key is known to everybody; use `tidings serve`"
                )
            })
            .collect()
    }

    fn check_production(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.public.allowed_origins.is_empty() {
            problems.push("[public] allowed_origins is empty, so no browser could connect; name your pages' origins, as in [\"https://app.example.com\"]".into());
        }
        if !self.service.listen.ip().is_loopback() && !self.service.insecure {
            problems.push(format!(
                "[service] listen = \"{}\" is open to the network without TLS, which this version does not have yet; listen on loopback, or say insecure = true if that network is private",
                self.service.listen
            ));
        }
        problems
    }
}

fn is_socket_url(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("ws" | "wss")) && uri.authority().is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Secret;

    fn production() -> Config {
        let mut config = Config::default();
        config.public.allowed_origins =
            vec![crate::model::Origin::parse("https://a.b").expect("valid")];
        let mut key = Config::dev().api_keys.remove(0);
        key.sha256 = Secret::new("ab".repeat(32));
        config.api_keys = vec![key];
        config
    }

    #[test]
    fn production_refuses_what_is_not_safe() {
        assert_eq!(production().check(Mode::Production), Ok(()));
        type Change = fn(&mut Config);
        let cases: [(Change, &str); 24] = [
            (
                |c| c.api_keys.clear(),
                "there are no [[api_keys]], so no service could call; `tidings config key` makes one",
            ),
            (
                |c| c.api_keys = Config::dev().api_keys,
                "one of [[api_keys]] is the development key, which everybody knows; `tidings config key` makes another",
            ),
            (
                |c| {
                    let mut other = c.api_keys[0].clone();
                    other.name = "other".into();
                    c.api_keys.push(other);
                },
                "[[api_keys]] \"development\" and \"other\" are the same key; `tidings config key` makes another",
            ),
            (
                |c| c.public.allowed_origins.clear(),
                "[public] allowed_origins is empty, so no browser could connect; name your pages' origins, as in [\"https://app.example.com\"]",
            ),
            (
                |c| c.public.url = Some("push.example.com".into()),
                "[public] url \"push.example.com\" is not where a WebSocket opens; write it as in \"wss://push.example.com/ws\"",
            ),
            (
                |c| c.public.proxy_protocol = true,
                "[public] proxy_protocol needs trusted_proxies: name the proxies that send the header, as in [\"10.0.0.0/8\"]",
            ),
            (
                |c| c.service.listen.set_ip([0, 0, 0, 0].into()),
                "[service] listen = \"0.0.0.0:8081\" is open to the network without TLS, which this version does not have yet; listen on loopback, or say insecure = true if that network is private",
            ),
            (
                |c| c.service.stream_window = 0,
                "[service] stream_window must be from 1 to 1000000",
            ),
            (
                |c| c.tickets.ttl = Duration::from_secs(301),
                "[tickets] ttl must be from \"5s\" to \"300s\"",
            ),
            (
                |c| c.limits.message_bytes = 1023,
                "[limits] message_bytes must be at least \"1KiB\"",
            ),
            (
                |c| c.limits.outbox_bytes = (64 << 10) - 1,
                "[limits] outbox_bytes must be at least message_bytes, or no message would ever fit",
            ),
            (
                |c| c.limits.node_outbox_bytes = 1,
                "[limits] node_outbox_bytes must be at least outbox_bytes; \"0B\" = a quarter of the memory",
            ),
            (
                |c| c.limits.header_bytes = 8191,
                "[limits] header_bytes must be at least \"8KiB\"",
            ),
            (
                |c| c.limits.fragments = 0,
                "[limits] fragments must be at least 1",
            ),
            (
                |c| c.limits.handshake_timeout = Duration::ZERO,
                "[limits] handshake_timeout must be more than \"0s\"",
            ),
            (
                |c| c.limits.message_timeout = Duration::ZERO,
                "[limits] message_timeout must be more than \"0s\"",
            ),
            (|c| c.hub.shards = 129, "[hub] shards must be at most 128"),
            (
                |c| c.hub.coalesce = Duration::from_millis(101),
                "[hub] coalesce must be at most \"100ms\"",
            ),
            (
                |c| c.hub.queue = usize::MAX,
                "[hub] queue must be from 1 to 1000000",
            ),
            (
                |c| c.heartbeat.pong_timeout = Duration::ZERO,
                "[heartbeat] pong_timeout must be more than \"0s\"; interval = \"0s\" turns heartbeats off",
            ),
            (
                |c| c.drain.spread = Duration::MAX,
                "[drain] spread must be at most \"1day\"",
            ),
            (
                |c| c.node.id = Some("a b".into()),
                "[node] id must not contain spaces",
            ),
            (
                |c| c.namespaces = vec![namespace("orders:eu")],
                "[[namespaces]] name \"orders:eu\": leave out the \":\" and what follows",
            ),
            (
                |c| c.namespaces = vec![namespace("orders"), namespace("orders")],
                "[[namespaces]] \"orders\" is there twice",
            ),
        ];
        for (change, sentence) in cases {
            let mut config = production();
            change(&mut config);
            assert_eq!(config.check(Mode::Production), Err(sentence.into()));
        }
    }

    fn namespace(name: &str) -> crate::hub::Namespace {
        toml::from_str(&format!("name = {name:?}")).expect("a namespace")
    }

    #[test]
    fn every_problem_is_told_and_a_jwt_section_is_checked() {
        let config = Config {
            jwt: Some(Default::default()),
            ..Config::default()
        };
        let told = config.check(Mode::Production).expect_err("three problems");
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 3, "{told}");
        for (line, word) in lines
            .iter()
            .zip(["[jwt]", "[[api_keys]]", "allowed_origins"])
        {
            assert!(line.contains(word), "{line}");
        }
    }

    #[test]
    fn without_heartbeats_no_pong_is_awaited() {
        let mut config = production();
        config.heartbeat.interval = Duration::ZERO;
        config.heartbeat.pong_timeout = Duration::ZERO;
        assert_eq!(config.check(Mode::Production), Ok(()));
    }

    #[test]
    fn dev_stays_on_loopback() {
        assert_eq!(Config::dev().check(Mode::Dev), Ok(()));
        let open = "0.0.0.0:9".parse().expect("an address");
        type Change = fn(&mut Config, std::net::SocketAddr);
        let doors: [Change; 4] = [
            |c, open| c.public.listen = open,
            |c, open| c.service.listen = open,
            |c, open| c.admin.listen = open,
            |c, open| c.probe = Some(crate::doors::config::ProbeConfig { listen: open }),
        ];
        for change in doors {
            let mut config = Config::dev();
            change(&mut config, open);
            assert_eq!(
                config.check(Mode::Dev),
                Err("`tidings dev` binds loopback alone, not 0.0.0.0:9: its key is known to everybody; use `tidings serve`".into())
            );
        }
    }
}
