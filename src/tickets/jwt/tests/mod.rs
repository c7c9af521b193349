//! Tokens are signed here with aws-lc-rs itself, so that nothing vouches for itself.

mod jwks;
mod server;
mod signer;

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::Secret;
use signer::{Signer, part};

fn config() -> JwtConfig {
    JwtConfig {
        audience: "tidings".into(),
        ..JwtConfig::default()
    }
}

/// The configuration of a verifier with this signer's one key.
fn trusting(signer: &Signer) -> JwtConfig {
    let secret = signer.algorithm == JwtAlgorithm::Hs256;
    JwtConfig {
        key: secret.then(|| Secret::new(signer.public.clone())),
        public_key: (!secret).then(|| signer.public.clone()),
        algorithm: Some(signer.algorithm),
        ..config()
    }
}

/// Claims that every verifier here accepts, for a while.
fn claims(user: &str) -> Value {
    json!({"sub": user, "aud": "tidings", "exp": unix_millis() / 1_000 + 3_600})
}

async fn user_of(verifier: &JwtVerifier, token: &str) -> Result<String, JwtError> {
    let grant = verifier.verify(token).await?;
    Ok(grant.user.to_string())
}

fn refused(refusal: JwtRefusal) -> Result<String, JwtError> {
    Err(JwtError::Invalid(refusal))
}

#[tokio::test]
async fn a_token_of_each_algorithm_is_good_with_its_key_and_with_its_key_file() {
    for signer in Signer::one_of_each() {
        let token = signer.token(None, &claims("42"));
        let verifier = JwtVerifier::new(&trusting(&signer)).expect("a good key");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("{}\n", signer.public)).expect("written");
        let from_file = JwtVerifier::new(&JwtConfig {
            key_file: Some(file.path().into()),
            algorithm: Some(signer.algorithm),
            ..config()
        });
        let from_file = from_file.expect("a good file");
        for verifier in [verifier, from_file] {
            assert_eq!(user_of(&verifier, &token).await, Ok("42".into()));
        }
    }
}

#[tokio::test]
async fn a_token_of_another_key_or_with_other_claims_is_refused() {
    for signer in Signer::one_of_each() {
        let verifier = JwtVerifier::new(&trusting(&signer)).expect("a good key");
        let stranger = Signer::new(signer.algorithm);
        let forged = stranger.token(None, &claims("42"));
        assert_eq!(
            user_of(&verifier, &forged).await,
            refused(JwtRefusal::Signature)
        );
        let good = signer.token(None, &claims("42"));
        let mut parts: Vec<&str> = good.split('.').collect();
        let other = part(&claims("1"));
        parts[1] = &other;
        assert_eq!(
            user_of(&verifier, &parts.join(".")).await,
            refused(JwtRefusal::Signature)
        );
    }
}

#[tokio::test]
async fn the_algorithm_is_the_keys_and_never_the_headers() {
    let [hmac, rsa, ec, ed] = Signer::one_of_each();
    let verifier = JwtVerifier::new(&trusting(&rsa)).expect("a good key");
    // The public key is known to all: as an HS256 secret it would let anybody sign.
    let confused = Signer::with_secret(&rsa.public).token(None, &claims("42"));
    let signed = |header: Value| rsa.sign(&header, &claims("42"));
    let unsigned = format!("{}.{}.", part(&json!({"alg": "none"})), part(&claims("42")));
    let tokens = [
        confused,
        unsigned,
        hmac.token(None, &claims("42")),
        ec.token(None, &claims("42")),
        ed.token(None, &claims("42")),
        signed(json!({"alg": "none"})),
        signed(json!({"alg": "RS512"})),
        signed(json!({"alg": "PS256"})),
        signed(json!({"alg": "rs256"})),
    ];
    for token in tokens {
        assert_eq!(
            user_of(&verifier, &token).await,
            refused(JwtRefusal::Algorithm),
            "{token}"
        );
    }
    assert_eq!(
        user_of(&verifier, &signed(json!({"alg": "RS256"}))).await,
        Ok("42".into())
    );
}

#[tokio::test]
async fn what_is_no_signed_jwt_is_malformed() {
    let signer = Signer::new(JwtAlgorithm::EdDsa);
    let verifier = JwtVerifier::new(&trusting(&signer)).expect("a good key");
    let good = signer.token(None, &claims("42"));
    let mut long = claims("42");
    long["x"] = json!("x".repeat(20_000));
    let tokens = [
        String::new(),
        "..".into(),
        "a.b.c".into(),
        good.replace('.', ","),
        format!("{good}."),
        format!("{good}="),
        format!(" {good}"),
        good.rsplit_once('.').expect("three parts").0.into(),
        signer.token(None, &json!(["a list"])),
        signer.token(None, &long),
        signer.sign(&json!({"typ": "JWT"}), &claims("42")),
        signer.sign(&json!({"alg": "EdDSA", "kid": 7}), &claims("42")),
        signer.sign(
            &json!({"alg": "EdDSA", "crit": ["b64"], "b64": false}),
            &claims("42"),
        ),
    ];
    for token in tokens {
        let got = user_of(&verifier, &token).await;
        assert_eq!(got, refused(JwtRefusal::Malformed), "{token}");
    }
    assert_eq!(user_of(&verifier, &good).await, Ok("42".into()));
}

#[tokio::test]
async fn good_signatures_do_not_excuse_bad_claims() {
    let signer = Signer::new(JwtAlgorithm::Es256);
    let verifier = JwtVerifier::new(&JwtConfig {
        issuer: Some("https://auth.example".into()),
        ..trusting(&signer)
    });
    let verifier = verifier.expect("a good key");
    let with = |name: &str, value: Value| {
        let mut claims = claims("42");
        claims["iss"] = json!("https://auth.example");
        claims[name] = value;
        signer.token(None, &claims)
    };
    let now = unix_millis() / 1_000;
    let cases = [
        (with("exp", json!(now - 3_600)), JwtRefusal::Expired),
        (with("exp", json!(null)), JwtRefusal::NoExpiry),
        (with("nbf", json!(now + 3_600)), JwtRefusal::NotYet),
        (with("aud", json!("other")), JwtRefusal::Audience),
        (
            with("iss", json!("https://other.example")),
            JwtRefusal::Issuer,
        ),
        (with("sub", json!("a b")), JwtRefusal::NoUser),
        (with("channels", json!("a")), JwtRefusal::Channels),
    ];
    for (token, refusal) in cases {
        assert_eq!(user_of(&verifier, &token).await, refused(refusal));
    }
    let channels = with("channels", json!(["orders:eu"]));
    let grant = verifier.verify(&channels).await.expect("good");
    assert_eq!(grant.channels[0].as_str(), "orders:eu");
    assert_eq!(grant.session_seconds, None);
}

#[test]
fn a_wrong_configuration_is_a_sentence_with_the_key() {
    let [hmac, rsa, ec, ed] = Signer::one_of_each();
    let with_pem = |pem: &str, algorithm| JwtConfig {
        public_key: Some(pem.into()),
        algorithm: Some(algorithm),
        ..config()
    };
    let url = |url: &str| JwtConfig {
        jwks_url: Some(url.into()),
        ..config()
    };
    let cases = [
        (config(), "has no keys"),
        (
            JwtConfig {
                audience: String::new(),
                ..trusting(&ec)
            },
            "audience",
        ),
        (
            JwtConfig {
                algorithm: None,
                ..trusting(&ec)
            },
            "algorithm",
        ),
        (
            JwtConfig {
                jwks_url: Some("https://a.b".into()),
                ..trusting(&ec)
            },
            "several",
        ),
        (
            JwtConfig {
                algorithm: Some(JwtAlgorithm::Rs256),
                ..trusting(&hmac)
            },
            "public_key",
        ),
        (
            JwtConfig {
                key: Some(Secret::new("x".repeat(31))),
                ..trusting(&hmac)
            },
            "32 bytes",
        ),
        (
            JwtConfig {
                leeway: Duration::from_secs(301),
                ..trusting(&ec)
            },
            "leeway",
        ),
        (
            JwtConfig {
                jwks_min_refresh: Duration::ZERO,
                ..trusting(&ec)
            },
            "jwks_min_refresh",
        ),
        (
            JwtConfig {
                jwks_refresh: Duration::from_secs(5),
                ..trusting(&ec)
            },
            "jwks_refresh",
        ),
        (
            JwtConfig {
                jwks_refresh: Duration::MAX,
                ..trusting(&ec)
            },
            "jwks_refresh",
        ),
        (with_pem(&rsa.public, JwtAlgorithm::Hs256), "use key"),
        (with_pem(&rsa.public, JwtAlgorithm::Es256), "P-256"),
        (with_pem(&ec.public, JwtAlgorithm::Rs256), "RSA"),
        (with_pem(&ed.public, JwtAlgorithm::Es256), "P-256"),
        (with_pem(&ec.public, JwtAlgorithm::EdDsa), "Ed25519"),
        (
            with_pem(&signer::small_rsa_pem(), JwtAlgorithm::Rs256),
            "2048",
        ),
        (with_pem(&signer::p384_pem(), JwtAlgorithm::Es256), "P-256"),
        (
            with_pem("-----BEGIN PRIVATE KEY-----\n", JwtAlgorithm::EdDsa),
            "is a private key",
        ),
        (with_pem("", JwtAlgorithm::EdDsa), "Ed25519"),
        (
            JwtConfig {
                key_file: Some("/no/such/file".into()),
                algorithm: Some(JwtAlgorithm::Rs256),
                ..config()
            },
            "/no/such/file",
        ),
        (
            JwtConfig {
                jwks_file: Some("/no/such/file".into()),
                ..config()
            },
            "/no/such/file",
        ),
        (url("auth.example"), "jwks_url"),
        (url("file:///etc/passwd"), "jwks_url"),
        (url("http://u:p@127.0.0.1/"), "jwks_url"),
    ];
    for (config, word) in cases {
        let error = JwtVerifier::new(&config).err().expect(word);
        assert!(
            error.starts_with("[jwt] ") && error.contains(word),
            "{error}"
        );
    }
}

#[test]
fn the_section_reads_as_documented_and_hides_its_secret() {
    let text = "key = \"0123456789abcdef0123456789abcdef\"\nalgorithm = \"HS256\"\naudience = \"tidings\"\nleeway = \"0s\"";
    let config: JwtConfig = toml::from_str(text).expect("it reads");
    assert!(JwtVerifier::new(&config).is_ok());
    for shown in [
        format!("{config:?}"),
        toml::to_string(&config).expect("it writes"),
    ] {
        assert!(
            shown.contains("***") && !shown.contains("0123456789abcdef"),
            "{shown}"
        );
    }
    assert!(toml::from_str::<JwtConfig>("algorithm = \"none\"").is_err());
}

proptest! {
    #[test]
    fn any_text_is_refused_in_peace(text in prop_oneof![any::<String>(), "[A-Za-z0-9_.-]{0,80}"]) {
        let signer = Signer::with_secret(&"k".repeat(32));
        let verifier = JwtVerifier::new(&trusting(&signer)).expect("a good key");
        let got = futures_util::FutureExt::now_or_never(verifier.verify(&text));
        prop_assert!(matches!(got, Some(Err(JwtError::Invalid(_)))));
    }
}
