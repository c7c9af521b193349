use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;

use super::error::{ApiError, Code};
use crate::doors::config::{ApiKeyConfig, ClientConfig, DEVELOPMENT_KEY, Scope};
use crate::hub::Bucket;
use crate::model::{Address, sha256};
use crate::tls::ClientNames;

/// Who may call: the API keys of a node, of which only the hashes are known, and the certificates that count as one.
pub struct ApiKeys {
    keys: Vec<Arc<ApiKey>>,
    certificates: Vec<Arc<ApiKey>>,
}

/// One key: who calls and what it may.
pub struct ApiKey {
    name: String,
    proof: Proof,
    scopes: Vec<Scope>,
    patterns: Vec<Pattern>,
    pushes_per_second: u32,
    rate: Option<Mutex<Bucket>>,
    /// A reload removed or changed it.
    over: AtomicBool,
}

/// By what a caller is known.
#[derive(PartialEq)]
enum Proof {
    /// The hash of what it shows.
    Key([u8; 32]),
    /// The name in its certificate.
    Certificate,
}

/// What a call shows of its caller.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    headers: HeaderMap,
    /// Of the certificate that the connection was opened with.
    certificate: Option<Arc<ClientNames>>,
}

impl Shown {
    /// Takes it out of a request.
    pub(super) fn of(headers: HeaderMap, extensions: &http::Extensions) -> Self {
        Self {
            headers,
            certificate: extensions.get::<Arc<ClientNames>>().cloned(),
        }
    }
}

impl std::ops::Deref for Shown {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        &self.headers
    }
}

impl<S: Sync> axum::extract::FromRequestParts<S> for Shown {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::of(parts.headers.clone(), &parts.extensions))
    }
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
        Ok(Self {
            keys,
            certificates: Vec::new(),
        })
    }

    /// Lets certificates count as API keys too.
    ///
    /// # Errors
    /// A sentence that names the certificate and the fix.
    pub fn with_certificates(mut self, configured: &[ClientConfig]) -> Result<Self, String> {
        for config in configured {
            let name = &config.name;
            let key = ApiKey::of_certificate(config)
                .map_err(|why| format!("[[service.tls.clients]] {name:?} {why}"))?;
            if self.certificates.iter().any(|other| other.name == key.name) {
                return Err(format!("[[service.tls.clients]] {name:?} is there twice"));
            }
            self.certificates.push(Arc::new(key));
        }
        Ok(self)
    }

    /// Goes on with those of the ones before that are the same; the others are over.
    pub(super) fn take_over(&mut self, before: &Self) {
        for old in before.keys.iter().chain(&before.certificates) {
            let mut news = self.keys.iter_mut().chain(&mut self.certificates);
            match news.find(|new| new.allows_the_same_as(old)) {
                Some(new) => *new = old.clone(),
                None => old.over.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Whether the well-known key of `tidings dev` is among them.
    pub fn has_development_key(&self) -> bool {
        let development = sha256(DEVELOPMENT_KEY.as_bytes());
        let known =
            |key: &Arc<ApiKey>| matches!(key.proof, Proof::Key(hash) if hash == development);
        self.keys.iter().any(known)
    }

    /// Whether nobody at all could call.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.certificates.is_empty()
    }

    /// Who calls: by its API key if it shows one, else by its certificate.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`; `PERMISSION_DENIED` that names the certificate, if that is good and not listed.
    pub(super) fn caller(&self, shown: &Shown) -> Result<Arc<ApiKey>, ApiError> {
        let certificate = match &shown.certificate {
            Some(names) if !shown.headers.contains_key(AUTHORIZATION) => names,
            _ => return self.authenticate(&shown.headers),
        };
        let listed = |name: &str| self.certificates.iter().find(|known| known.name == name);
        certificate.iter().find_map(listed).cloned().ok_or_else(|| {
            let detail = format!(
                "the client certificate's name is not listed: {certificate} (name in [[service.tls.clients]])"
            );
            ApiError::new(Code::PermissionDenied, detail)
        })
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
        for key in &self.keys {
            if let Proof::Key(known) = &key.proof
                && verify_slices_are_equal(known, &hash).is_ok()
            {
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
        let allowed = (&config.scopes[..], &config.addresses[..]);
        let rate = config.pushes_per_second;
        Self::allowed(config.name.clone(), Proof::Key(hash), allowed, rate)
    }

    fn of_certificate(config: &ClientConfig) -> Result<Self, String> {
        // As it is read out of a certificate: but for a SPIFFE id, without case.
        let name = match config.name.starts_with("spiffe://") {
            true => config.name.clone(),
            false => config.name.to_ascii_lowercase(),
        };
        if name.is_empty() {
            return Err("needs a name: a SPIFFE id, a DNS name or a common name".into());
        }
        let allowed = (&config.scopes[..], &config.addresses[..]);
        Self::allowed(name, Proof::Certificate, allowed, config.pushes_per_second)
    }

    fn allowed(
        name: String,
        proof: Proof,
        (scopes, addresses): (&[Scope], &[String]),
        rate: u32,
    ) -> Result<Self, String> {
        if scopes.is_empty() {
            return Err("needs scopes: some of push, publish, ticket, read, admin".into());
        }
        Ok(Self {
            name,
            proof,
            scopes: scopes.to_vec(),
            patterns: addresses
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
                let detail = format!("the {self} was removed or changed; begin the stream again");
                Err(ApiError::new(Code::Unauthenticated, detail))
            }
        }
    }

    fn allows_the_same_as(&self, other: &Self) -> bool {
        self.name == other.name
            && self.proof == other.proof
            && self.scopes == other.scopes
            && self.patterns == other.patterns
            && self.pushes_per_second == other.pushes_per_second
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its idempotency keys are scoped to: a key and a certificate of one name do not share them. No API key's name
    /// is empty, and none has a zero byte.
    pub(super) fn scope(&self) -> String {
        match self.proof {
            Proof::Key(_) => self.name.clone(),
            Proof::Certificate => format!("\0{}", self.name),
        }
    }

    /// Demands a scope.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` that names it.
    pub fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scopes.contains(&scope) {
            return Ok(());
        }
        let detail = format!("the {self} lacks the scope {:?}", scope.name());
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
            "the {self} is not for {text} (its addresses in {})",
            match self.proof {
                Proof::Key(_) => "[[api_keys]]",
                Proof::Certificate => "[[service.tls.clients]]",
            }
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
        let detail = format!("the {self} pushes more a second than it may");
        let mut error = ApiError::new(Code::ResourceExhausted, detail);
        error.retry_after = Some(Duration::from_secs(1));
        Err(error)
    }
}

impl std::fmt::Display for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.proof {
            Proof::Key(_) => write!(f, "API key {:?}", self.name),
            Proof::Certificate => write!(f, "client certificate {:?}", self.name),
        }
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
