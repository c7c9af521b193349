//! What differs between two configurations, and what of that a running node takes up.

use toml::{Table, Value};

use super::Config;
use super::table::to_table;

/// What a reload takes up: sections and lists as a whole, and single keys. All else needs a restart.
/// docs/configuration.md says what each means for what is there already.
pub(super) const RELOADED: [&str; 25] = [
    "api_keys",
    "jwt",
    "namespaces",
    "public.allowed_origins",
    "public.trusted_proxies",
    "public.proxy_protocol",
    "service.tls.clients",
    "log.level",
    "limits.connections",
    "limits.connections_per_user",
    "limits.user_limit",
    "limits.connections_per_ip",
    "limits.handshakes_per_second",
    "limits.fleet_handshakes_per_second",
    "limits.handshake_timeout",
    "limits.header_bytes",
    "limits.message_bytes",
    "limits.message_timeout",
    "limits.fragments",
    "limits.subscriptions",
    "limits.outbox_bytes",
    "limits.node_outbox_bytes",
    "limits.client_frames_per_second",
    "limits.max_client_errors",
    "limits.broadcast_users",
];

/// Keys that differ, as a person writes them: `[drain] spread`, `[[api_keys]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is taken up.
    pub applied: Vec<String>,
    /// What takes a restart.
    pub restart: Vec<String>,
}

impl Config {
    /// What differs in another configuration. Secrets are compared and not told.
    ///
    /// # Errors
    /// One of the two cannot be written as TOML.
    pub fn changes(&self, new: &Self) -> Result<Changes, String> {
        let mut changes = Changes::default();
        changes.compare(&to_table(self)?, &to_table(new)?, "");
        Ok(changes)
    }
}

impl Config {
    /// What a node runs with once it has taken up what it can of another configuration.
    pub(crate) fn taking_up(&self, new: &Self) -> Self {
        let mut config = self.clone();
        let Self {
            public,
            service,
            api_keys,
            jwt,
            namespaces,
            limits,
            log,
            ..
        } = new.clone();
        config.public.allowed_origins = public.allowed_origins;
        config.public.trusted_proxies = public.trusted_proxies;
        config.public.proxy_protocol = public.proxy_protocol;
        config.log.level = log.level;
        if let (Some(tls), Some(new)) = (&mut config.service.tls, service.tls) {
            tls.clients = new.clients;
        }
        Self {
            api_keys,
            jwt,
            namespaces,
            limits,
            ..config
        }
    }
}

impl Changes {
    fn compare(&mut self, old: &Table, new: &Table, above: &str) {
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let path = match above {
                "" => key.clone(),
                above => format!("{above}.{key}"),
            };
            match (old.get(key), new.get(key)) {
                (a, b) if a == b => {}
                (Some(Value::Table(a)), Some(Value::Table(b))) if !is_reloaded(&path) => {
                    self.compare(a, b, &path);
                }
                (a, b) => self.note(&path, a.or(b)),
            }
        }
    }

    fn note(&mut self, path: &str, value: Option<&Value>) {
        let written = match (path.rsplit_once('.'), value) {
            (_, Some(Value::Table(_))) => format!("[{path}]"),
            (None, _) => format!("[[{path}]]"),
            (Some((section, key)), _) => format!("[{section}] {key}"),
        };
        match is_reloaded(path) {
            true => self.applied.push(written),
            false => self.restart.push(written),
        }
    }
}

fn is_reloaded(path: &str) -> bool {
    RELOADED.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::super::keys::{filled, known};
    use super::*;
    use crate::backplane::BackplaneUrl;
    use crate::model::Secret;

    fn paths(table: &Table, above: &str, into: &mut Vec<(String, String)>) {
        for (key, value) in table {
            let path = format!("{above}{key}");
            match value {
                Value::Table(section) => paths(section, &format!("{path}."), into),
                Value::Array(items) => items
                    .iter()
                    .filter_map(Value::as_table)
                    .for_each(|section| paths(section, &format!("{path}."), into)),
                value => into.push((path, value.to_string())),
            }
        }
    }

    #[test]
    fn no_secret_is_compared_by_its_stars() {
        let mut config = filled();
        config.backplane.url = Some(BackplaneUrl::new("redis://u:password@127.0.0.1"));
        config.sources[0].url = config.backplane.url.clone();
        let mut found = Vec::new();
        paths(&to_table(&config).expect("a table"), "", &mut found);
        assert!(found.len() > 50, "{found:?}");
        let starred = found.iter().find(|(_, value)| value.contains("***"));
        assert_eq!(starred, None);
    }

    #[test]
    fn the_page_has_each_key_that_a_reload_takes_up_and_no_other() {
        let page = include_str!("../../docs/configuration.md");
        let section = page
            .split("\n## ")
            .find(|part| part.starts_with("Reloading\n"));
        let rows = section.expect("a section").lines();
        let named = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
        let named: Vec<&str> = named.collect();
        assert_eq!(named, RELOADED);
        for key in RELOADED {
            assert!(known().contains_key(key), "{key}");
        }
    }

    #[test]
    fn what_a_reload_takes_up_is_what_the_node_then_runs_with() {
        let old = Config::default();
        let mut new = filled();
        new.limits.fragments = 7;
        new.limits.subscriptions = 7;
        new.log.level = crate::telemetry::LogLevel::Trace;
        new.public.proxy_protocol = true;
        new.drain.grace = std::time::Duration::from_secs(99);
        new.backplane.secret = Some(Secret::new("another"));
        let changes = old.changes(&new).expect("compared");
        assert!(
            changes.applied.contains(&"[limits] fragments".to_owned()),
            "{changes:?}"
        );
        for restart in [
            "[drain] grace",
            "[backplane] secret",
            "[consul]",
            "[node] id",
        ] {
            assert!(changes.restart.contains(&restart.to_owned()), "{changes:?}");
        }
        let running = old.taking_up(&new);
        let left = running.changes(&new).expect("compared");
        assert_eq!((left.applied, left.restart), (Vec::new(), changes.restart));
        assert_eq!(
            old.changes(&running).expect("compared").applied,
            changes.applied
        );
    }
}
