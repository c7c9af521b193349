use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Secret, units};

/// The most `leeway`.
const LEEWAY_MAX: Duration = Duration::from_secs(300);
/// The least `jwks_min_refresh`, so that forged tokens cannot turn this node against the one that serves the keys.
const MIN_REFRESH_LEAST: Duration = Duration::from_secs(1);
/// The most `jwks_refresh`: so long may a key that was taken away still be good.
const REFRESH_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The least bytes of an HS256 secret: as many as its hash has (RFC 7518 section 3.2).
pub(super) const SECRET_MIN_BYTES: usize = 32;

/// `[jwt]`: who may swap a JWT for a ticket. The keys come from exactly one of `key`, `public_key`, `key_file`,
/// `jwks_file` and `jwks_url`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JwtConfig {
    /// An HS256 secret of at least 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
    /// A public key as PEM text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// A file with a public key as PEM or, for HS256, with the secret. Read at start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// A file with a JWKS. Read again while it is used, at most every two seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// Where a JWKS is served. Plain `http` only where the network itself is private: who can change the answer can
    /// sign tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// The one algorithm of the key. With a JWKS each key has its own; this then leaves the others out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<JwtAlgorithm>,
    /// What `aud` must be or hold. Required.
    pub audience: String,
    /// What `iss` must be; none = not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The claim that names the user: a text or a whole number.
    pub user_claim: String,
    /// By how much clocks may differ at `exp` and `nbf`; at most 5 minutes.
    #[serde(with = "units::duration")]
    pub leeway: Duration,
    /// How old a JWKS from a URL may be before it is fetched again. Where that fails the old keys go on.
    #[serde(with = "units::duration")]
    pub jwks_refresh: Duration,
    /// The least time between two fetches because of a token with an unknown key; at least 1 s.
    #[serde(with = "units::duration")]
    pub jwks_min_refresh: Duration,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            key: None,
            public_key: None,
            key_file: None,
            jwks_file: None,
            jwks_url: None,
            algorithm: None,
            audience: String::new(),
            issuer: None,
            user_claim: "sub".into(),
            leeway: Duration::from_secs(5),
            jwks_refresh: Duration::from_secs(600),
            jwks_min_refresh: Duration::from_secs(10),
        }
    }
}

/// The algorithms that are verified (RFC 7518, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256: a secret that both sides share.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl JwtAlgorithm {
    /// Its name in a header and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The one of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Hs256, Self::Rs256, Self::Es256, Self::EdDsa]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }
}

/// Where the keys come from.
pub(super) enum Source<'a> {
    Fixed(FixedKey<'a>, JwtAlgorithm),
    JwksFile(&'a Path),
    JwksUrl(&'a str),
}

/// A key that is written, or in a file, and lasts as long as the process.
pub(super) enum FixedKey<'a> {
    Secret(&'a Secret),
    Pem(&'a str),
    File(&'a Path),
}

impl JwtConfig {
    /// Checks what the types do not. [`JwtVerifier::new`](super::JwtVerifier::new) does so too, and reads the keys.
    ///
    /// # Errors
    /// A sentence with the key and the fix.
    pub fn check(&self) -> Result<(), String> {
        self.source().map(|_| ())
    }

    /// The same, and where the keys come from.
    pub(super) fn source(&self) -> Result<Source<'_>, String> {
        self.check_claims()?;
        self.check_times()?;
        let fixed = [
            self.key.as_ref().map(FixedKey::Secret),
            self.public_key.as_deref().map(FixedKey::Pem),
            self.key_file.as_deref().map(FixedKey::File),
        ];
        let jwks = [
            self.jwks_file.as_deref().map(Source::JwksFile),
            self.jwks_url.as_deref().map(Source::JwksUrl),
        ];
        let one_of = "one of key, public_key, key_file, jwks_file and jwks_url";
        if fixed.iter().flatten().count() + jwks.iter().flatten().count() > 1 {
            return Err(format!("[jwt] has several sources of keys; keep {one_of}"));
        }
        if let Some(source) = jwks.into_iter().flatten().next() {
            return Ok(source);
        }
        let key = fixed.into_iter().flatten().next();
        let key = key.ok_or_else(|| format!("[jwt] has no keys; write {one_of}"))?;
        let algorithm = self.algorithm.ok_or(
            "[jwt] algorithm is missing; write the one that the key is for: \"HS256\", \"RS256\", \"ES256\" or \"EdDSA\"",
        )?;
        match (&key, algorithm) {
            (FixedKey::Pem(_), JwtAlgorithm::Hs256) => Err(
                "[jwt] public_key cannot be used with HS256, whose key is a secret; use key".into(),
            ),
            (FixedKey::Secret(_), JwtAlgorithm::Hs256)
            | (FixedKey::Pem(_) | FixedKey::File(_), _) => Ok(Source::Fixed(key, algorithm)),
            (FixedKey::Secret(_), other) => Err(format!(
                "[jwt] key is an HS256 secret and algorithm is {}; use public_key",
                other.name()
            )),
        }
    }

    fn check_claims(&self) -> Result<(), String> {
        if self.audience.is_empty() {
            return Err(
                "[jwt] audience is missing; write the value that `aud` must hold, as in audience = \"tidings\"".into(),
            );
        }
        if self.user_claim.is_empty() {
            return Err("[jwt] user_claim must not be empty; leave it out for \"sub\"".into());
        }
        if self.issuer.as_deref() == Some("") {
            return Err("[jwt] issuer must not be empty; leave it out to accept any".into());
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), String> {
        if self.leeway > LEEWAY_MAX {
            return Err("[jwt] leeway must be at most \"5m\"".into());
        }
        if self.jwks_min_refresh < MIN_REFRESH_LEAST {
            return Err("[jwt] jwks_min_refresh must be at least \"1s\"".into());
        }
        if self.jwks_refresh < self.jwks_min_refresh || self.jwks_refresh > REFRESH_MAX {
            return Err(
                "[jwt] jwks_refresh must be at least jwks_min_refresh and at most \"24h\"".into(),
            );
        }
        Ok(())
    }
}
