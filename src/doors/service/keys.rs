use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::error::{ApiError, Code};
use crate::doors::config::{ApiKeyConfig, DEVELOPMENT_KEY, Scope};
use crate::hub::Bucket;
use crate::model::{Address, sha256};

/// The API keys of a node. Only their hashes are known.
pub struct ApiKeys(Vec<Arc<ApiKey>>);

/// One key: who calls and what it may.
pub struct ApiKey {
    name: String,
    hash: [u8; 32],
    scopes: Vec<Scope>,
    patterns: Vec<Pattern>,
    pushes_per_second: u32,
    rate: Option<Mutex<Bucket>>,
    /// A reload removed or changed it.
    over: AtomicBool,
}

/// An address, or the beginning of some.
#[derive(PartialEq)]
struct Pattern {
    start: String,
    open: bool,
}

impl ApiKeys {
    /// Checks the configured keys.
    ///
    /// # Errors
    /// A sentence that names the key and the fix.
    pub fn new(configured: &[ApiKeyConfig]) -> Result<Self, String> {
        let mut keys: Vec<Arc<ApiKey>> = Vec::new();
        for config in configured {
            let key = ApiKey::new(config)
                .map_err(|why| format!("the API key {:?} {why}", config.name))?;
            if keys.iter().any(|other| other.name == key.name) {
                return Err(format!(
                    "two API keys are named {:?}; names are for telling them apart",
                    key.name
                ));
            }
            keys.push(Arc::new(key));
        }
        Ok(Self(keys))
    }

    /// Goes on with those of the ones before that are the same; the others are over.
    pub(super) fn take_over(&mut self, before: &Self) {
        for old in &before.0 {
            match self.0.iter_mut().find(|new| new.allows_the_same_as(old)) {
                Some(new) => *new = old.clone(),
                None => old.over.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Whether the well-known key of `tidings dev` is among them.
    pub fn has_development_key(&self) -> bool {
        let development = sha256(DEVELOPMENT_KEY.as_bytes());
        self.0.iter().any(|key| key.hash == development)
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who shows `Authorization: Bearer <key>`. Every key is compared, in constant time.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<ApiKey>, ApiError> {
        let refused = |detail| Err(ApiError::new(Code::Unauthenticated, detail));
        let shown = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let Some(shown) = shown else {
            return refused("show an API key: authorization: Bearer <key>");
        };
        let key = match shown.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
            _ => return refused("the authorization must be: Bearer <key>"),
        };
        let hash = sha256(key.as_bytes());
        let mut found = None;
        for key in &self.0 {
            if verify_slices_are_equal(&key.hash, &hash).is_ok() {
                found = Some(key.clone());
            }
        }
        found.map_or_else(|| refused("the API key is not known to this node"), Ok)
    }
}

impl ApiKey {
    fn new(config: &ApiKeyConfig) -> Result<Self, String> {
        if config.name.is_empty() {
            return Err("needs a name".into());
        }
        let hash = parse_hash(config.sha256.expose())
            .ok_or("needs sha256 = 64 lower-case hex digits; `tidings config key` makes a pair")?;
        if config.scopes.is_empty() {
            return Err("needs scopes: some of push, publish, ticket, read, admin".into());
        }
        let rate = config.pushes_per_second;
        Ok(Self {
            name: config.name.clone(),
            hash,
            scopes: config.scopes.clone(),
            patterns: config
                .addresses
                .iter()
                .map(|p| Pattern::parse(p))
                .collect::<Result<_, _>>()?,
            pushes_per_second: rate,
            rate: (rate > 0).then(|| Mutex::new(Bucket::new(rate, Instant::now()))),
            over: AtomicBool::new(false),
        })
    }

    /// Demands that it still counts: a stream that it opened may outlive it.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`.
    pub fn require_current(&self) -> Result<(), ApiError> {
        match self.over.load(Ordering::Relaxed) {
            false => Ok(()),
            true => {
                let detail = "the API key was removed or changed; begin the stream again";
                Err(ApiError::new(Code::Unauthenticated, detail))
            }
        }
    }

    fn allows_the_same_as(&self, other: &Self) -> bool {
        self.name == other.name
            && self.hash == other.hash
            && self.scopes == other.scopes
            && self.patterns == other.patterns
            && self.pushes_per_second == other.pushes_per_second
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Demands a scope.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` that names it.
    pub fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scopes.contains(&scope) {
            return Ok(());
        }
        let detail = format!(
            "the API key {:?} lacks the scope {:?}",
            self.name,
            scope.name()
        );
        Err(ApiError::new(Code::PermissionDenied, detail))
    }

    /// Demands that it may push or publish to an address, or read what is kept of it.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` that names it.
    pub fn require_address(&self, address: &Address) -> Result<(), ApiError> {
        let text = address.to_string();
        if self.patterns.is_empty() || self.patterns.iter().any(|p| p.matches(&text)) {
            return Ok(());
        }
        let detail = format!(
            "the API key {:?} is not for {text} (its addresses in [[api_keys]])",
            self.name
        );
        Err(ApiError::new(Code::PermissionDenied, detail))
    }

    /// Takes one call from its rate; a broadcast is one call too.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` with when to retry.
    pub fn spend(&self) -> Result<(), ApiError> {
        let Some(bucket) = &self.rate else {
            return Ok(());
        };
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if bucket.take(1.0, Instant::now()) {
            return Ok(());
        }
        let detail = format!(
            "the API key {:?} pushes more a second than it may",
            self.name
        );
        let mut error = ApiError::new(Code::ResourceExhausted, detail);
        error.retry_after = Some(Duration::from_secs(1));
        Err(error)
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let start = text.strip_suffix('*').unwrap_or(text);
        let kind = ["user:", "channel:"]
            .iter()
            .any(|kind| start.starts_with(kind));
        if (kind || text == "everyone") && !start.contains('*') {
            return Ok(Self {
                start: start.into(),
                open: start.len() < text.len(),
            });
        }
        Err(format!(
            "has the address pattern {text:?}; write user:<id>, channel:<name> or everyone, with a * at the end for all that begin so"
        ))
    }

    fn matches(&self, address: &str) -> bool {
        if self.open {
            address.starts_with(&self.start)
        } else {
            address == self.start
        }
    }
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let lower = |c: &u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 64 || !digits.iter().all(lower) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChannelName, Secret, UserId};

    fn config(key: &str, change: impl FnOnce(&mut ApiKeyConfig)) -> ApiKeyConfig {
        let hash = sha256(key.as_bytes())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>();
        let mut config = ApiKeyConfig {
            name: "orders".into(),
            sha256: Secret::new(hash),
            scopes: vec![Scope::Push],
            addresses: Vec::new(),
            pushes_per_second: 0,
        };
        change(&mut config);
        config
    }

    fn shown(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().expect("a header value"));
        headers
    }

    #[test]
    fn a_key_is_known_by_its_hash_and_allows_its_scopes() {
        let keys = ApiKeys::new(&[config("k1", |_| {})]).expect("valid");
        let caller = keys
            .authenticate(&shown("Bearer k1"))
            .unwrap_or_else(|_| panic!("known"));
        assert!(caller.require(Scope::Push).is_ok());
        let denied = caller.require(Scope::Admin).expect_err("not allowed");
        assert!(denied.detail.contains("admin") && denied.detail.contains("orders"));
        for wrong in ["Bearer k2", "Basic k1", "k1", "Bearer "] {
            assert!(keys.authenticate(&shown(wrong)).is_err(), "{wrong}");
        }
        assert!(keys.authenticate(&HeaderMap::new()).is_err());
    }

    #[test]
    fn patterns_bound_the_addresses() {
        let keys = ApiKeys::new(&[config("k1", |c| {
            c.addresses = vec!["user:*".into(), "channel:orders:*".into()]
        })]);
        let keys = keys.expect("valid");
        let caller = keys
            .authenticate(&shown("bearer k1"))
            .unwrap_or_else(|_| panic!("known"));
        let channel = |name| Address::Channel(ChannelName::parse(name).expect("valid"));
        assert!(
            caller
                .require_address(&Address::User(UserId::parse("42").expect("valid")))
                .is_ok()
        );
        assert!(caller.require_address(&channel("orders:eu")).is_ok());
        assert!(caller.require_address(&channel("orders")).is_err());
        assert!(caller.require_address(&Address::Everyone).is_err());
    }

    #[test]
    fn a_wrong_key_configuration_is_told_with_its_fix() {
        type Change = fn(&mut ApiKeyConfig);
        let cases: [(Change, &str); 4] = [
            (|c| c.sha256 = Secret::new("ABC"), "tidings config key"),
            (|c| c.scopes.clear(), "needs scopes"),
            (|c| c.name.clear(), "needs a name"),
            (|c| c.addresses = vec!["orders*".into()], "address pattern"),
        ];
        for (change, sentence) in cases {
            let error = ApiKeys::new(&[config("k", change)]).err().expect("refused");
            assert!(error.contains(sentence), "{error}");
        }
        assert!(ApiKeys::new(&[config("a", |_| {}), config("b", |_| {})]).is_err());
    }

    #[test]
    fn the_rate_refuses_with_when_to_retry() {
        let keys = ApiKeys::new(&[config("k1", |c| c.pushes_per_second = 1)]).expect("valid");
        let caller = keys
            .authenticate(&shown("Bearer k1"))
            .unwrap_or_else(|_| panic!("known"));
        assert!(caller.spend().is_ok());
        let error = caller.spend().expect_err("spent");
        assert_eq!(
            (error.code, error.retry_after),
            (Code::ResourceExhausted, Some(Duration::from_secs(1)))
        );
    }
}
