use std::time::Duration;

use super::{Config, Mode};
use crate::doors::config::{ApiKeyConfig, DEVELOPMENT_KEY, Scope};
use crate::doors::service::ApiKeys;
use crate::model::{Secret, sha256};

impl Config {
    /// The configuration of `tidings dev`, before anything is overridden.
    pub fn dev() -> Self {
        let mut config = Self::default();
        config.public.listen.set_ip([127, 0, 0, 1].into());
        config.service.reflection = true;
        config.drain.deregister_delay = Duration::ZERO;
        config.drain.spread = Duration::ZERO;
        config.drain.grace = Duration::from_secs(1);
        let hash = sha256(DEVELOPMENT_KEY.as_bytes());
        config.api_keys = vec![ApiKeyConfig {
            name: "development".into(),
            sha256: Secret::new(hash.iter().map(|b| format!("{b:02x}")).collect::<String>()),
            scopes: vec![
                Scope::Push,
                Scope::Publish,
                Scope::Ticket,
                Scope::Read,
                Scope::Admin,
            ],
            addresses: Vec::new(),
            pushes_per_second: 0,
        }];
        config
    }

    /// What no type can check.
    ///
    /// # Errors
    /// A sentence with the fix, for the first problem.
    pub fn check(&self, mode: Mode) -> Result<(), String> {
        let rules = [
            (self.hub.shards > 128, "[hub] shards must be at most 128"),
            (
                self.hub.coalesce > Duration::from_millis(100),
                "[hub] coalesce must be at most \"100ms\"",
            ),
            (self.hub.queue == 0, "[hub] queue must be at least 1"),
            (
                self.limits.header_bytes < 8 << 10,
                "[limits] header_bytes must be at least \"8KiB\"",
            ),
            (
                self.limits.message_bytes < 1 << 10,
                "[limits] message_bytes must be at least \"1KiB\"",
            ),
            (
                self.limits.fragments == 0,
                "[limits] fragments must be at least 1",
            ),
            (
                self.limits.outbox_bytes < self.limits.message_bytes,
                "[limits] outbox_bytes must be at least message_bytes, or no message would ever fit",
            ),
            (
                self.limits.handshake_timeout.is_zero(),
                "[limits] handshake_timeout must be more than \"0s\"",
            ),
            (
                !self.heartbeat.interval.is_zero() && self.heartbeat.pong_timeout.is_zero(),
                "[heartbeat] pong_timeout must be more than \"0s\"; interval = \"0s\" turns heartbeats off",
            ),
            (
                self.service.stream_window == 0,
                "[service] stream_window must be at least 1",
            ),
        ];
        if let Some((_, problem)) = rules.iter().find(|(broken, _)| *broken) {
            return Err((*problem).into());
        }
        self.tickets.check()?;
        for (index, namespace) in self.namespaces.iter().enumerate() {
            let name = &namespace.name;
            if name.as_str().contains(':') {
                return Err(format!(
                    "[[namespaces]] name {name:?}: leave out the \":\" and what follows"
                ));
            }
            if self.namespaces[..index]
                .iter()
                .any(|other| other.name == *name)
            {
                return Err(format!("[[namespaces]] {name:?} is there twice"));
            }
        }
        let keys = ApiKeys::new(&self.api_keys)?;
        match mode {
            Mode::Dev => self.check_dev(),
            Mode::Production => self.check_production(&keys),
        }
    }

    fn check_dev(&self) -> Result<(), String> {
        let mut listens = vec![self.public.listen, self.service.listen, self.admin.listen];
        listens.extend(self.probe.as_ref().map(|probe| probe.listen));
        match listens.iter().find(|address| !address.ip().is_loopback()) {
            Some(open) => Err(format!(
                "`tidings dev` binds loopback alone, not {open}: its key is known to everybody; use `tidings serve`"
            )),
            None => Ok(()),
        }
    }

    fn check_production(&self, keys: &ApiKeys) -> Result<(), String> {
        if keys.is_empty() {
            return Err("there are no [[api_keys]], so no service could call; `tidings config key` makes one".into());
        }
        if keys.has_development_key() {
            return Err("one of [[api_keys]] is the development key, which everybody knows; `tidings config key` makes another".into());
        }
        if self.public.allowed_origins.is_empty() {
            return Err("[public] allowed_origins is empty, so no browser could connect; name your pages' origins, as in [\"https://app.example.com\"]".into());
        }
        if !self.service.listen.ip().is_loopback() && !self.service.insecure {
            return Err(format!(
                "[service] listen = \"{}\" is open to the network without TLS; listen on loopback, or say insecure = true if that network is private",
                self.service.listen
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let cases: [(Change, &str); 6] = [
            (|c| c.api_keys.clear(), "no [[api_keys]]"),
            (|c| c.api_keys = Config::dev().api_keys, "development key"),
            (
                |c| c.public.allowed_origins.clear(),
                "allowed_origins is empty",
            ),
            (
                |c| c.service.listen.set_ip([0, 0, 0, 0].into()),
                "without TLS",
            ),
            (|c| c.tickets.ttl = Duration::from_secs(301), "ttl"),
            (|c| c.limits.outbox_bytes = 1, "outbox_bytes"),
        ];
        for (change, sentence) in cases {
            let mut config = production();
            change(&mut config);
            let error = config.check(Mode::Production).expect_err(sentence);
            assert!(error.contains(sentence), "{error}");
        }
    }

    #[test]
    fn dev_stays_on_loopback() {
        assert_eq!(Config::dev().check(Mode::Dev), Ok(()));
        let mut config = Config::dev();
        config.public.listen.set_ip([0, 0, 0, 0].into());
        assert!(
            config
                .check(Mode::Dev)
                .is_err_and(|e| e.contains("loopback alone"))
        );
    }
}
