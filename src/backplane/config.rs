use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::redis::Place;
use crate::model::{Secret, units};

/// `[backplane]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct BackplaneConfig {
    /// What links the nodes.
    pub kind: BackplaneKind,
    /// Where Redis is: `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS,
    /// `redis+sentinel://host:port,…/primary`, `redis+cluster://host:port,…`, and both with `rediss+`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<BackplaneUrl>,
    /// What all keys and Pub/Sub channels begin with.
    pub prefix: String,
    /// Signs envelopes; the same on every node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// Replicas that must have a redemption before it counts.
    pub min_replicas: u32,
    /// How long a node stays ready while the backplane cannot be reached at all.
    #[serde(with = "units::duration")]
    pub readiness_grace: Duration,
    /// Connections on which a node listens, per Redis primary.
    pub subscriber_links: usize,
    /// How many addresses a node remembers at least of which it knows where their streams stand: the latest that it appended
    /// to, at 100 to 200 bytes each. A Redis that comes back with older data than these had is told by them.
    pub remembered_addresses: usize,
    /// The certificates (PEM) that vouch for a `rediss` server; left out = those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// The kinds of backplane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackplaneKind {
    /// Within this process: one node alone.
    #[default]
    Memory,
    /// Through Redis.
    Redis,
}

/// A URL that may hold a password, which is shown as `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct BackplaneUrl(String);

impl BackplaneUrl {
    /// Wraps a URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// With its password, for the one place that connects.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackplaneUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return f.write_str("***");
        };
        match rest.rsplit_once('@') {
            None => f.write_str(&self.0),
            Some((login, rest)) => {
                let user = login.split_once(':').map_or("", |(user, _)| user);
                write!(f, "{scheme}://{user}:***@{rest}")
            }
        }
    }
}

impl fmt::Debug for BackplaneUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for BackplaneUrl {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Default for BackplaneConfig {
    fn default() -> Self {
        Self {
            kind: BackplaneKind::default(),
            url: None,
            prefix: "tidings:".into(),
            secret: None,
            min_replicas: 0,
            readiness_grace: Duration::from_secs(10),
            subscriber_links: 2,
            remembered_addresses: 100_000,
            ca_file: None,
        }
    }
}

impl BackplaneConfig {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// A sentence with the key and the fix.
    pub fn check(&self) -> Result<(), String> {
        if self.kind == BackplaneKind::Memory {
            return Ok(());
        }
        if self.prefix.contains(['{', '}']) {
            return Err("[backplane] prefix must not contain { or }: they mark what a Redis Cluster keeps together".into());
        }
        if !(1..=64).contains(&self.subscriber_links) {
            return Err("[backplane] subscriber_links must be from 1 to 64".into());
        }
        if !(1..=10_000_000).contains(&self.remembered_addresses) {
            return Err("[backplane] remembered_addresses must be from 1 to 10000000".into());
        }
        Place::of(self).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(url: &str) -> BackplaneConfig {
        BackplaneConfig {
            kind: BackplaneKind::Redis,
            url: Some(BackplaneUrl::new(url)),
            ..BackplaneConfig::default()
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = |url: &str| BackplaneUrl::new(url).to_string();
        assert_eq!(shown("redis://127.0.0.1"), "redis://127.0.0.1");
        assert_eq!(shown("redis://me:pass@h/1"), "redis://me:***@h/1");
        assert_eq!(shown("redis://:p@ss@h"), "redis://:***@h");
        assert_eq!(shown("redis://pass@h"), "redis://:***@h");
        assert_eq!(shown("pass"), "***");
        assert_eq!(
            format!("{:?}", BackplaneUrl::new("redis://:p@h")),
            "redis://:***@h"
        );
    }

    #[test]
    fn every_form_of_url_is_accepted_and_a_wrong_one_is_explained() {
        for good in [
            "redis://127.0.0.1:6379",
            "redis://user:pass@redis.internal/2",
            "redis+sentinel://:pass@a:26379,b:26379/mymaster",
            "redis+cluster://a:7000,b:7001,[::1]:7002",
            "rediss://redis.internal",
            "rediss+cluster://a",
        ] {
            assert_eq!(redis(good).check(), Ok(()), "{good}");
        }
        for (bad, says) in [
            ("http://a", "redis://"),
            ("127.0.0.1:6379", "redis://"),
            ("redis://", "host"),
            ("redis://a,b", "redis+cluster"),
            ("redis://a:port", "port"),
            ("redis://a/x", "database"),
            ("redis+sentinel://a", "primary"),
            ("redis+cluster://a/1", "database"),
        ] {
            let error = redis(bad).check().expect_err(bad);
            assert!(error.contains(says), "{bad}: {error}");
        }
        let none = BackplaneConfig {
            url: None,
            ..redis("")
        };
        assert!(none.check().is_err_and(|e| e.contains("[backplane] url")));
    }
}
