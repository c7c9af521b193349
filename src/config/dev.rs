use std::time::Duration;

use super::Config;
use crate::doors::config::{ApiKeyConfig, DEVELOPMENT_KEY, Scope};
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
        config.drain.wait = Duration::from_secs(1);
        config.allow_development_key();
        config
    }

    /// Adds the development key, unless it is there: a file of one's own lists other keys, and `tidings dev` still
    /// announces this one.
    pub fn allow_development_key(&mut self) {
        let hash = sha256(DEVELOPMENT_KEY.as_bytes());
        let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        let is_there = |key: &ApiKeyConfig| key.sha256.expose() == hash;
        if self.api_keys.iter().any(is_there) {
            return;
        }
        self.api_keys.push(ApiKeyConfig {
            name: "development".into(),
            sha256: Secret::new(hash),
            scopes: vec![
                Scope::Push,
                Scope::Publish,
                Scope::Ticket,
                Scope::Read,
                Scope::Admin,
            ],
            addresses: Vec::new(),
            pushes_per_second: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev_has_its_key_once_beside_those_of_a_file() {
        let mut config = Config::dev();
        config.allow_development_key();
        assert_eq!(config.api_keys.len(), 1);
        let development = config.api_keys[0].sha256.clone();
        config.api_keys[0].sha256 = Secret::new("ab".repeat(32));
        config.api_keys[0].name = "orders".into();
        config.allow_development_key();
        let hashes: Vec<_> = config.api_keys.iter().map(|key| &key.sha256).collect();
        assert_eq!(hashes, [&Secret::new("ab".repeat(32)), &development]);
    }
}
