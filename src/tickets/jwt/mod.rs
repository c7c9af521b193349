//! JWTs (RFC 7519): who shows a good one may swap it for a ticket, or open a connection with it. A key pins its one
//! algorithm; the token's header must name that one and never chooses. Keys come from the configuration, a file, or a
//! JWKS (RFC 7517) file or URL that is cached and rotates.

mod claims;
mod config;
mod fetch;
mod jwks;
mod keys;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::Clock;
use crate::model::{Grant, unix_millis};
use config::Source;
use jwks::Jwks;
use keys::{Header, Keys, NotOpened};

pub use config::{JwtAlgorithm, JwtConfig};

/// Checks JWTs and reads the grant in them. Share it: it holds the cached keys.
pub struct JwtVerifier {
    config: JwtConfig,
    keys: KeySource,
}

enum KeySource {
    Fixed(Keys),
    Jwks(Jwks),
}

/// Why a JWT is worth nothing. A client is told 401 and no more; the label is for metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JwtRefusal {
    /// It is not a signed JWT, or one of its claims has the wrong type.
    Malformed,
    /// Its header does not name the algorithm of the key.
    Algorithm,
    /// None of the keys signed it.
    UnknownKey,
    /// Its signature is not that of its key.
    Signature,
    /// It has no `exp`.
    NoExpiry,
    /// It is past `exp`.
    Expired,
    /// It is before `nbf`.
    NotYet,
    /// It is for another audience, or for none.
    Audience,
    /// It is from another issuer, or from none.
    Issuer,
    /// The claim that names the user is not there, or is no user id.
    NoUser,
    /// `channels` is not a list of channel names within the limits.
    Channels,
}

impl JwtRefusal {
    /// Its stable name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::NoExpiry => "no_expiry",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::Audience => "audience",
            Self::Issuer => "issuer",
            Self::NoUser => "no_user",
            Self::Channels => "channels",
        }
    }
}

/// Why a JWT was not accepted. It never holds any of the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtError {
    /// The token is worth nothing: 401.
    Invalid(JwtRefusal),
    /// The keys could not be fetched, so nobody knows what the token is worth: 503. A sentence for the operator.
    Unavailable(String),
}

impl fmt::Display for JwtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(refusal) => write!(f, "the JWT was refused: {}", refusal.label()),
            Self::Unavailable(why) => write!(f, "the keys for JWTs are not available: {why}"),
        }
    }
}

impl std::error::Error for JwtError {}

impl From<JwtRefusal> for JwtError {
    fn from(refusal: JwtRefusal) -> Self {
        Self::Invalid(refusal)
    }
}

impl JwtVerifier {
    /// Reads the keys that are at hand. A JWKS URL is fetched at the first use, so that a node starts without it.
    ///
    /// # Errors
    /// A key of `[jwt]` is missing, is not what its algorithm needs, or its file cannot be read; a sentence with the fix.
    pub fn new(config: &JwtConfig) -> Result<Self, String> {
        Self::with_clock(config, Arc::new(Instant::now))
    }

    fn with_clock(config: &JwtConfig, clock: Clock) -> Result<Self, String> {
        let keys = match config.source()? {
            Source::Fixed(key, algorithm) => KeySource::Fixed(Keys::fixed(&key, algorithm)?),
            Source::JwksFile(path) => KeySource::Jwks(Jwks::file(path, config, clock)?),
            Source::JwksUrl(url) => KeySource::Jwks(Jwks::url(url, config, clock)?),
        };
        Ok(Self {
            config: config.clone(),
            keys,
        })
    }

    /// Whether it was made from the same section.
    pub fn is_by(&self, config: &JwtConfig) -> bool {
        self.config == *config
    }

    /// Checks a token and reads its grant: the user, and `channels`. `device` and `since` are not a token's to say.
    ///
    /// The grant's `session_seconds` stays none: a JWT opens a session, and the session outlives it. Who must end one
    /// earlier disconnects the user.
    ///
    /// # Errors
    /// The token is worth nothing, or the keys are not there.
    pub async fn verify(&self, token: &str) -> Result<Grant, JwtError> {
        let header = Header::read(token)?;
        let opened = match &self.keys {
            KeySource::Fixed(keys) => keys.open(token, &header),
            KeySource::Jwks(jwks) => {
                let keys = jwks.current().await.map_err(JwtError::Unavailable)?;
                match keys.open(token, &header) {
                    Err(NotOpened::UnknownKey) => {
                        let newer = jwks.newer_than(&keys).await;
                        match newer.map_err(JwtError::Unavailable)? {
                            Some(newer) => newer.open(token, &header),
                            None => Err(NotOpened::UnknownKey),
                        }
                    }
                    opened => opened,
                }
            }
        };
        let claims = opened.map_err(|e| match e {
            NotOpened::UnknownKey => JwtRefusal::UnknownKey,
            NotOpened::Refused(refusal) => refusal,
        })?;
        Ok(claims::grant(&claims, &self.config, unix_millis())?)
    }
}
