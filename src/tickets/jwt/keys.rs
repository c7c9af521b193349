use std::path::Path;

use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::config::{FixedKey, SECRET_MIN_BYTES};
use super::{JwtAlgorithm, JwtRefusal};

/// The most bytes of a token. A door's limit on headers is the same by default.
const TOKEN_MAX_BYTES: usize = 16 << 10;
/// The most keys used of one set: a token that names none is tried with all of its algorithm.
const KEYS_MAX: usize = 64;
/// The bytes of the modulus of an RSA key that is accepted: 2048 to 8192 bits.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// What a token's header says (RFC 7515 section 4.1).
pub(super) struct Header {
    algorithm: JwtAlgorithm,
    kid: Option<String>,
}

impl Header {
    /// Reads it, before anything is verified.
    pub(super) fn read(token: &str) -> Result<Self, JwtRefusal> {
        #[derive(Deserialize)]
        struct Written {
            alg: String,
            kid: Option<String>,
            crit: Option<IgnoredAny>,
        }
        if token.len() > TOKEN_MAX_BYTES {
            return Err(JwtRefusal::Malformed);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(_), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtRefusal::Malformed);
        };
        let json = URL_SAFE_NO_PAD.decode(header);
        let written: Written = json
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or(JwtRefusal::Malformed)?;
        // We know no extension, so whatever is critical we do not understand (RFC 7515 section 4.1.11).
        if written.crit.is_some() {
            return Err(JwtRefusal::Malformed);
        }
        Ok(Self {
            algorithm: JwtAlgorithm::named(&written.alg).ok_or(JwtRefusal::Algorithm)?,
            kid: written.kid,
        })
    }
}

/// Keys that tokens may be signed with.
pub(super) enum Keys {
    /// The one of the configuration, whatever `kid` a token names.
    One(Key),
    /// Those of a JWKS.
    Set(Vec<Key>),
}

/// A key with the one algorithm that it is good for.
pub(super) struct Key {
    kid: Option<String>,
    algorithm: JwtAlgorithm,
    decoding: DecodingKey,
}

/// Why keys did not open a token.
pub(super) enum NotOpened {
    /// No key of these fits; a newer set may have one.
    UnknownKey,
    /// It is worth nothing, whatever other keys there are.
    Refused(JwtRefusal),
}

impl Keys {
    /// The one key of the configuration.
    pub(super) fn fixed(key: &FixedKey<'_>, algorithm: JwtAlgorithm) -> Result<Self, String> {
        let (from, key) = match key {
            FixedKey::Secret(secret) => ("key".into(), Key::secret(secret.expose().as_bytes())),
            FixedKey::Pem(pem) => ("public_key".into(), Key::pem(pem.as_bytes(), algorithm)),
            FixedKey::File(path) => (
                format!("key_file {}", path.display()),
                Key::file(path, algorithm),
            ),
        };
        key.map(Self::One).map_err(|e| format!("[jwt] {from} {e}"))
    }

    /// The keys of a JWKS (RFC 7517) that are for signatures and of an algorithm that we know; the others are left out,
    /// as its section 5 asks. `secrets`: whether it may hold HS256 keys. `only`: the one algorithm that is wanted.
    pub(super) fn jwks(
        json: &[u8],
        secrets: bool,
        only: Option<JwtAlgorithm>,
    ) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set =
            serde_json::from_slice(json).map_err(|e| format!("it is not a JWKS: {e}"))?;
        let keys = set
            .keys
            .into_iter()
            .filter_map(|value| Key::from_jwk(&serde_json::from_value(value).ok()?))
            .filter(|key| secrets || key.algorithm != JwtAlgorithm::Hs256)
            .filter(|key| only.is_none_or(|only| key.algorithm == only))
            .take(KEYS_MAX);
        Ok(Self::Set(keys.collect()))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Set(keys) => keys.len(),
        }
    }

    /// Verifies the token's signature and gives its claims, which nobody has checked yet.
    pub(super) fn open(
        &self,
        token: &str,
        header: &Header,
    ) -> Result<Map<String, Value>, NotOpened> {
        match self {
            Self::One(key) => key.open(token, header).map_err(NotOpened::Refused),
            Self::Set(keys) => match &header.kid {
                Some(kid) => open_named(keys, kid, token, header),
                None => open_unnamed(keys, token, header),
            },
        }
    }
}

/// A token that names its key: that key, and no other.
fn open_named(
    keys: &[Key],
    kid: &str,
    token: &str,
    header: &Header,
) -> Result<Map<String, Value>, NotOpened> {
    let mut refusal = NotOpened::UnknownKey;
    for key in keys.iter().filter(|key| key.kid.as_deref() == Some(kid)) {
        match key.open(token, header) {
            Ok(claims) => return Ok(claims),
            Err(e) => refusal = NotOpened::Refused(e),
        }
    }
    Err(refusal)
}

/// A token that names no key: any key of its algorithm. Each is trusted for exactly that, so the header chooses nothing.
fn open_unnamed(
    keys: &[Key],
    token: &str,
    header: &Header,
) -> Result<Map<String, Value>, NotOpened> {
    for key in keys.iter().filter(|key| key.algorithm == header.algorithm) {
        match key.open(token, header) {
            Err(JwtRefusal::Signature) => {}
            opened => return opened.map_err(NotOpened::Refused),
        }
    }
    Err(NotOpened::UnknownKey)
}

impl Key {
    fn open(&self, token: &str, header: &Header) -> Result<Map<String, Value>, JwtRefusal> {
        if header.algorithm != self.algorithm {
            return Err(JwtRefusal::Algorithm);
        }
        let mut validation = Validation::new(match self.algorithm {
            JwtAlgorithm::Hs256 => Algorithm::HS256,
            JwtAlgorithm::Rs256 => Algorithm::RS256,
            JwtAlgorithm::Es256 => Algorithm::ES256,
            JwtAlgorithm::EdDsa => Algorithm::EdDSA,
        });
        // The claims are checked in one place, ours: this library accepts a token at the very second of its `exp`, and an
        // `aud` of the wrong type that was not required.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        jsonwebtoken::decode::<Map<String, Value>>(token, &self.decoding, &validation)
            .map(|data| data.claims)
            .map_err(|e| match e.kind() {
                ErrorKind::InvalidSignature => JwtRefusal::Signature,
                ErrorKind::InvalidAlgorithm => JwtRefusal::Algorithm,
                _ => JwtRefusal::Malformed,
            })
    }

    /// An HS256 secret.
    fn secret(secret: &[u8]) -> Result<Self, String> {
        Self::checked(None, JwtAlgorithm::Hs256, DecodingKey::from_secret(secret))
    }

    /// A public key as PEM.
    fn pem(pem: &[u8], algorithm: JwtAlgorithm) -> Result<Self, String> {
        if String::from_utf8_lossy(pem).contains("PRIVATE KEY-----") {
            return Err(
                "is a private key; keep that where tokens are signed, and write the public key here"
                    .into(),
            );
        }
        let decoding = match algorithm {
            // A PEM is public: as a secret it would let anybody sign.
            JwtAlgorithm::Hs256 => return Err(unfit(algorithm)),
            JwtAlgorithm::Rs256 => DecodingKey::from_rsa_pem(pem).and_then(|der| {
                // By its modulus, like the keys of a set, so that its size is checked.
                DecodingKey::from_jwk(&Jwk::from_decoding_key(&der, Some(Algorithm::RS256))?)
            }),
            JwtAlgorithm::Es256 => DecodingKey::from_ec_pem(pem),
            JwtAlgorithm::EdDsa => DecodingKey::from_ed_pem(pem),
        };
        Self::checked(None, algorithm, decoding.map_err(|_| unfit(algorithm))?)
    }

    /// A file with a public key as PEM, or with an HS256 secret; one line break at its end is not part of it.
    fn file(path: &Path, algorithm: JwtAlgorithm) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("cannot be read: {e}"))?;
        if algorithm != JwtAlgorithm::Hs256 {
            return Self::pem(&bytes, algorithm);
        }
        if bytes.starts_with(b"-----BEGIN") {
            return Err(unfit(algorithm));
        }
        let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        Self::secret(secret.strip_suffix(b"\r").unwrap_or(secret))
    }

    fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let is_for_signatures = common
            .public_key_use
            .as_ref()
            .is_none_or(|is| *is == PublicKeyUse::Signature)
            && common
                .key_operations
                .as_ref()
                .is_none_or(|ops| ops.contains(&KeyOperations::Verify));
        if !is_for_signatures {
            return None;
        }
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKey(_) => JwtAlgorithm::Hs256,
            AlgorithmParameters::RSA(_) => JwtAlgorithm::Rs256,
            AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => {
                JwtAlgorithm::Es256
            }
            AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
                JwtAlgorithm::EdDsa
            }
            _ => return None,
        };
        let says_another =
            |alg: jsonwebtoken::jwk::KeyAlgorithm| alg.to_string() != algorithm.name();
        if common.key_algorithm.is_some_and(says_another) {
            return None;
        }
        let decoding = DecodingKey::from_jwk(jwk).ok()?;
        Self::checked(common.key_id.clone(), algorithm, decoding).ok()
    }

    /// A key that its algorithm can use, so that a bad one is found when it is read and not with the first token.
    fn checked(
        kid: Option<String>,
        algorithm: JwtAlgorithm,
        decoding: DecodingKey,
    ) -> Result<Self, String> {
        let is_fit = match (algorithm, decoding.kind()) {
            (JwtAlgorithm::Hs256, DecodingKeyKind::SecretOrDer(secret)) => {
                if secret.len() < SECRET_MIN_BYTES {
                    return Err(format!(
                        "must be at least {SECRET_MIN_BYTES} bytes for HS256"
                    ));
                }
                true
            }
            (JwtAlgorithm::Rs256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let length = n.iter().skip_while(|&&byte| byte == 0).count();
                RSA_MODULUS_BYTES.contains(&length)
                    && RsaPublicKeyComponents { n, e }
                        .to_parsed_public_key(&signature::RSA_PKCS1_2048_8192_SHA256)
                        .is_ok()
            }
            (JwtAlgorithm::Es256, DecodingKeyKind::SecretOrDer(point)) => {
                ParsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).is_ok()
            }
            (JwtAlgorithm::EdDsa, DecodingKeyKind::SecretOrDer(point)) => {
                ParsedPublicKey::new(&signature::ED25519, point).is_ok()
            }
            (_, DecodingKeyKind::RsaModulusExponent { .. })
            | (JwtAlgorithm::Rs256, DecodingKeyKind::SecretOrDer(_)) => false,
        };
        if !is_fit {
            return Err(unfit(algorithm));
        }
        Ok(Self {
            kid,
            algorithm,
            decoding,
        })
    }
}

fn unfit(algorithm: JwtAlgorithm) -> String {
    let what = match algorithm {
        JwtAlgorithm::Hs256 => "a secret that only the signer knows, never a public key",
        JwtAlgorithm::Rs256 => {
            "an RSA public key of 2048 to 8192 bits as PEM (\"-----BEGIN PUBLIC KEY-----\")"
        }
        JwtAlgorithm::Es256 => "a P-256 public key as PEM (\"-----BEGIN PUBLIC KEY-----\")",
        JwtAlgorithm::EdDsa => "an Ed25519 public key as PEM (\"-----BEGIN PUBLIC KEY-----\")",
    };
    format!("is not what {} needs: {what}", algorithm.name())
}
