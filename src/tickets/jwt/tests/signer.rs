use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::Jwk;
use serde_json::{Value, json};

use super::JwtAlgorithm;

type Sign = dyn Fn(&[u8]) -> Vec<u8> + Send + Sync;

/// Who signs tokens: a fresh key, and what a verifier needs of it.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) algorithm: JwtAlgorithm,
    /// The public key as PEM; for HS256 the secret.
    pub(super) public: String,
    jwk: Value,
    sign: Arc<Sign>,
}

impl Signer {
    pub(super) fn new(algorithm: JwtAlgorithm) -> Self {
        match algorithm {
            JwtAlgorithm::Hs256 => {
                let secret: [u8; 24] = rand::random();
                Self::with_secret(&STANDARD.encode(secret))
            }
            JwtAlgorithm::Rs256 => Self::rsa(),
            JwtAlgorithm::Es256 => Self::ec(),
            JwtAlgorithm::EdDsa => Self::ed(),
        }
    }

    pub(super) fn one_of_each() -> [Self; 4] {
        [
            JwtAlgorithm::Hs256,
            JwtAlgorithm::Rs256,
            JwtAlgorithm::Es256,
            JwtAlgorithm::EdDsa,
        ]
        .map(Self::new)
    }

    pub(super) fn with_secret(secret: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        Self {
            algorithm: JwtAlgorithm::Hs256,
            public: secret.into(),
            jwk: json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(secret)}),
            sign: Arc::new(move |m| hmac::sign(&key, m).as_ref().to_vec()),
        }
    }

    fn rsa() -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
        let public = pem(&key.public_key().as_der().expect("DER"));
        let decoding = DecodingKey::from_rsa_pem(public.as_bytes()).expect("a public key");
        let jwk = Jwk::from_decoding_key(&decoding, None).expect("a public key");
        Self {
            algorithm: JwtAlgorithm::Rs256,
            public,
            jwk: serde_json::to_value(jwk).expect("JSON"),
            sign: Arc::new(move |m| {
                let mut signature = vec![0; key.public_modulus_len()];
                let (how, random) = (&signature::RSA_PKCS1_SHA256, SystemRandom::new());
                key.sign(how, &random, m, &mut signature).expect("signed");
                signature
            }),
        }
    }

    fn ec() -> Self {
        let key = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = key.expect("a key");
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        Self {
            algorithm: JwtAlgorithm::Es256,
            public: pem(&key.public_key().as_der().expect("DER")),
            jwk: json!({
                "kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
            }),
            sign: Arc::new(move |m| {
                let signed = key.sign(&SystemRandom::new(), m).expect("signed");
                signed.as_ref().to_vec()
            }),
        }
    }

    fn ed() -> Self {
        let key = Ed25519KeyPair::generate().expect("a key");
        let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
        Self {
            algorithm: JwtAlgorithm::EdDsa,
            public: pem(&key.public_key().as_der().expect("DER")),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "x": x}),
            sign: Arc::new(move |m| key.sign(m).as_ref().to_vec()),
        }
    }

    /// A token with this key's algorithm in its header, and a `kid` if there is one.
    pub(super) fn token(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = json!({"alg": self.algorithm.name(), "typ": "JWT"});
        if let Some(kid) = kid {
            header["kid"] = json!(kid);
        }
        self.sign(&header, claims)
    }

    /// A token with any header.
    pub(super) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode((self.sign)(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// Its key in a JWKS.
    pub(super) fn jwk(&self, kid: &str) -> Value {
        self.jwk_with(&json!({ "kid": kid }))
    }

    /// Its key in a JWKS, with more members.
    pub(super) fn jwk_with(&self, members: &Value) -> Value {
        let mut jwk = self.jwk.clone();
        for (name, value) in members.as_object().expect("an object") {
            jwk[name] = value.clone();
        }
        jwk
    }
}

/// One part of a token.
pub(super) fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

/// A P-384 key, which ES256 cannot use.
pub(super) fn p384_pem() -> String {
    let key = EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING);
    pem(&key.expect("a key").public_key().as_der().expect("DER"))
}

/// An RSA public key of 1024 bits as PEM, put together by hand since no library makes one any more: its modulus is no
/// product of primes, and need not be.
pub(super) fn small_rsa_pem() -> String {
    let mut modulus = vec![0x00, 0xc5];
    modulus.extend([0x5b; 127]);
    let integers = [der(0x02, &modulus), der(0x02, &[1, 0, 1])].concat();
    let mut bits = vec![0];
    bits.extend(der(0x30, &integers));
    // rsaEncryption, 1.2.840.113549.1.1.1, with NULL parameters (RFC 3279 section 2.3.1).
    let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let algorithm = der(0x30, &[der(0x06, &oid), der(0x05, &[])].concat());
    pem_text(&der(0x30, &[algorithm, der(0x03, &bits)].concat()))
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..128 => out.push(short as u8),
        long => out.extend([0x82, (long >> 8) as u8, long as u8]),
    }
    out.extend(content);
    out
}

fn pem(der: &PublicKeyX509Der<'_>) -> String {
    pem_text(der.as_ref())
}

fn pem_text(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("ASCII"))
        .collect();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----",
        lines.join("\n")
    )
}
