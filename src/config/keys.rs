//! Every key there is, derived from the types themselves, and the one that somebody may have meant.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use toml::{Table, Value};

use super::{Config, NodeConfig};
use crate::backplane::{BackplaneConfig, BackplaneUrl};
use crate::doors::config::{ApiKeyConfig, ProbeConfig, PublicConfig, Scope};
use crate::fleet::ConsulConfig;
use crate::hub::{Namespace, PublishRule, SubscribeRule};
use crate::model::{ChannelName, Secret};
use crate::sources::{Patience, Pointer, SourceConfig, SourceKind};
use crate::tickets::JwtConfig;
use crate::tickets::jwt::JwtAlgorithm;

/// What a key holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Other keys: `[heartbeat]`.
    Section,
    /// Sections: `[[api_keys]]`.
    List,
    /// A value, as in the filled example.
    Value(Value),
    /// A value in one of a list's sections.
    InList(Value),
}

/// Every key by its dotted path; lists have no index in it.
pub(crate) fn known() -> &'static BTreeMap<String, Kind> {
    static KNOWN: LazyLock<BTreeMap<String, Kind>> = LazyLock::new(|| {
        let mut keys = BTreeMap::new();
        let filled = Table::try_from(filled()).expect("each section is a table of plain values");
        collect(&filled, "", false, &mut keys);
        keys
    });
    &KNOWN
}

fn collect(table: &Table, above: &str, in_list: bool, keys: &mut BTreeMap<String, Kind>) {
    for (key, value) in table {
        let path = match above {
            "" => key.clone(),
            above => format!("{above}.{key}"),
        };
        let kind = match value {
            Value::Table(section) => {
                collect(section, &path, in_list, keys);
                Kind::Section
            }
            Value::Array(items) if items.iter().any(Value::is_table) => {
                for section in items.iter().filter_map(Value::as_table) {
                    collect(section, &path, true, keys);
                }
                Kind::List
            }
            value if in_list => Kind::InList(value.clone()),
            value => Kind::Value(value.clone()),
        };
        keys.insert(path, kind);
    }
}

/// A configuration in which nothing is left out. What has optional parts is written in full, without `..`, so that a
/// new one does not compile until it is here.
pub(super) fn filled() -> Config {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let text = || Some(String::from("x"));
    Config {
        node: NodeConfig { id: text() },
        public: PublicConfig {
            listen,
            url: text(),
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
        },
        probe: Some(ProbeConfig { listen }),
        api_keys: vec![ApiKeyConfig {
            name: String::new(),
            sha256: Secret::new(""),
            scopes: vec![Scope::Push],
            addresses: Vec::new(),
            pushes_per_second: 0,
        }],
        jwt: Some(JwtConfig {
            key: Some(Secret::new("")),
            public_key: text(),
            key_file: Some("x".into()),
            jwks_file: Some("x".into()),
            jwks_url: text(),
            algorithm: Some(JwtAlgorithm::EdDsa),
            audience: String::new(),
            issuer: text(),
            user_claim: String::new(),
            leeway: Duration::ZERO,
            jwks_refresh: Duration::ZERO,
            jwks_min_refresh: Duration::ZERO,
        }),
        namespaces: vec![Namespace {
            name: ChannelName::parse("x").expect("a letter is a name"),
            subscribe: SubscribeRule::default(),
            publish: PublishRule::default(),
            max_messages: 0,
            max_age: Duration::ZERO,
            max_bytes: 0,
        }],
        sources: vec![SourceConfig {
            kind: SourceKind::RedisStream,
            topic: String::new(),
            url: Some(BackplaneUrl::new("redis://127.0.0.1:6379")),
            user: Some(Pointer::default()),
            channel: Some(Pointer::default()),
            message: Some(Pointer::default()),
            id: Some(Pointer::default()),
            field: text(),
            group: text(),
            claim_after: Some(Patience(Duration::ZERO)),
        }],
        service: Default::default(),
        admin: Default::default(),
        backplane: BackplaneConfig {
            url: Some(BackplaneUrl::new("redis://127.0.0.1:6379")),
            secret: Some(Secret::new("")),
            ca_file: Some(PathBuf::from("x")),
            ..BackplaneConfig::default()
        },
        tickets: Default::default(),
        inbox: Default::default(),
        heartbeat: Default::default(),
        drain: Default::default(),
        consul: Some(ConsulConfig {
            url: String::new(),
            token: Some(Secret::new("")),
            token_file: Some("x".into()),
            ca_file: Some("x".into()),
            cert_file: Some("x".into()),
            key_file: Some("x".into()),
            service: String::new(),
            service_door: String::new(),
            address: text(),
            check_interval: Duration::ZERO,
            deregister_after: Duration::ZERO,
            tags: Vec::new(),
            meta: BTreeMap::new(),
        }),
        limits: Default::default(),
        hub: Default::default(),
        log: Default::default(),
    }
}

/// Whether what stands there must not be shown, in an error either.
pub(super) fn is_secret(path: &str) -> bool {
    // A secret serializes as stars.
    let value = known().get(path).and_then(|kind| match kind {
        Kind::Value(value) | Kind::InList(value) => value.as_str(),
        Kind::Section | Kind::List => None,
    });
    value == Some("***")
}

/// The key that a wrong one was meant to be: a few letters off.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let allowed = (path.chars().count() / 4).max(1);
    known()
        .keys()
        .map(|key| (strsim::damerau_levenshtein(path, key), key.as_str()))
        .filter(|(letters, _)| *letters <= allowed)
        .min()
        .map(|(_, key)| key)
}

/// The names of the keys of a section.
pub(super) fn of_section(section: &str) -> Vec<&'static str> {
    known()
        .keys()
        .filter_map(|key| key.strip_prefix(section)?.strip_prefix('.'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_one_that_could_have_been_meant() {
        let cases = [
            ("heartbeat.intervall", Some("heartbeat.interval")),
            ("hearbeat", Some("heartbeat")),
            ("api_keys.adress", Some("api_keys.addresses")),
            ("probe.listn", Some("probe.listen")),
            ("jwt.audiences", Some("jwt.audience")),
            ("namespace", Some("namespaces")),
            ("server.listen", Some("service.listen")),
            ("limits.shards", None),
            ("source", Some("sources")),
            ("sources.chanel", Some("sources.channel")),
            ("brokers", None),
            ("", None),
        ];
        for (wrong, right) in cases {
            assert_eq!(nearest(wrong), right, "{wrong}");
        }
    }

    #[test]
    fn optional_parts_and_lists_are_known() {
        for (key, kind) in [
            ("probe", Kind::Section),
            ("api_keys", Kind::List),
            ("namespaces.max_messages", Kind::InList(0.into())),
        ] {
            assert_eq!(known().get(key), Some(&kind), "{key}");
        }
        assert!(known().contains_key("node.id") && known().contains_key("public.url"));
        assert!(is_secret("jwt.key") && is_secret("api_keys.sha256") && !is_secret("public.url"));
    }
}
