use std::time::Duration;

use serde_json::json;

use super::super::fetch::Fetch;
use super::server::Server;
use super::*;
use crate::tickets::tests::ManualClock;

fn verifier_of(server: &Server, clock: &ManualClock) -> JwtVerifier {
    let config = JwtConfig {
        jwks_url: Some(server.url()),
        ..config()
    };
    JwtVerifier::with_clock(&config, clock.clock()).expect("a good URL")
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, wait).await;
    assert!(in_time.is_ok(), "in time: {what}");
}

fn ed() -> Signer {
    Signer::new(JwtAlgorithm::EdDsa)
}

fn good() -> Result<String, JwtError> {
    Ok("42".into())
}

fn is_unavailable(got: &Result<String, JwtError>) -> bool {
    matches!(got, Err(JwtError::Unavailable(_)))
}

const REFRESH: Duration = Duration::from_secs(600);
const MIN_REFRESH: Duration = Duration::from_secs(10);
/// How long a condition is waited for: less than a fetch may take, so that no fetch ends by itself meanwhile.
const DEADLINE: Duration = Duration::from_secs(3);
/// Longer than any pause after one failed fetch.
const PAUSE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_crowd_at_an_empty_cache_is_one_fetch() {
    let (signer, clock) = (ed(), ManualClock::default());
    let server = Server::start(&[signer.jwk("a")]).await;
    server.hold_answers(true);
    let verifier = Arc::new(verifier_of(&server, &clock));
    let token: Arc<str> = signer.token(Some("a"), &claims("42")).into();
    let crowd: Vec<_> = (0..50)
        .map(|_| {
            let (verifier, token) = (verifier.clone(), token.clone());
            tokio::spawn(async move { user_of(&verifier, &token).await })
        })
        .collect();
    eventually("the fetch began", async || server.requests() > 0).await;
    server.hold_answers(false);
    for one in crowd {
        assert_eq!(one.await.expect("no panic"), good());
    }
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn every_kind_of_key_is_found_by_its_id() {
    let [hmac, rsa, ec, ed] = Signer::one_of_each();
    let keys = [hmac.jwk("hmac"), rsa.jwk("rsa"), ec.jwk("ec"), ed.jwk("ed")];
    let server = Server::start(&keys).await;
    let verifier = verifier_of(&server, &ManualClock::default());
    for (signer, kid) in [(&rsa, "rsa"), (&ec, "ec"), (&ed, "ed")] {
        let named = signer.token(Some(kid), &claims("42"));
        assert_eq!(user_of(&verifier, &named).await, good());
        let unnamed = signer.token(None, &claims("42"));
        assert_eq!(user_of(&verifier, &unnamed).await, good());
    }
    // The header may not pair a key with another algorithm, nor with another key's id.
    let public_as_secret = Signer::with_secret(&rsa.public).token(Some("rsa"), &claims("42"));
    let got = user_of(&verifier, &public_as_secret).await;
    assert_eq!(got, refused(JwtRefusal::Algorithm));
    let stranger = Signer::new(JwtAlgorithm::EdDsa).token(Some("ed"), &claims("42"));
    assert_eq!(
        user_of(&verifier, &stranger).await,
        refused(JwtRefusal::Signature)
    );
    // A secret that is served to whoever asks is none.
    let published = hmac.token(Some("hmac"), &claims("42"));
    assert_eq!(
        user_of(&verifier, &published).await,
        refused(JwtRefusal::UnknownKey)
    );
}

#[tokio::test]
async fn keys_that_are_not_for_this_are_left_out_and_harm_nothing() {
    let (good_one, other) = (ed(), ed());
    let rsa = Signer::new(JwtAlgorithm::Rs256);
    let keys = [
        json!("no object"),
        json!({"kty": "RSA", "kid": "broken", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "EC", "crv": "secp256k1", "kid": "curve", "x": "AA", "y": "AA"}),
        json!({"kty": "new", "kid": "new"}),
        other.jwk_with(&json!({"kid": "enc", "use": "enc"})),
        other.jwk_with(&json!({"kid": "ops", "key_ops": ["sign"]})),
        rsa.jwk_with(&json!({"kid": "pss", "alg": "PS256"})),
        good_one
            .jwk_with(&json!({"kid": "a", "use": "sig", "alg": "EdDSA", "key_ops": ["verify"]})),
    ];
    let server = Server::start(&keys).await;
    let verifier = verifier_of(&server, &ManualClock::default());
    for (signer, kid) in [(&other, "enc"), (&other, "ops"), (&rsa, "pss")] {
        let got = user_of(&verifier, &signer.token(Some(kid), &claims("42"))).await;
        assert_eq!(got, refused(JwtRefusal::UnknownKey), "{kid}");
    }
    let token = good_one.token(Some("a"), &claims("42"));
    assert_eq!(user_of(&verifier, &token).await, good());
}

#[tokio::test]
async fn a_new_key_is_found_at_once_and_a_forger_causes_no_flood() {
    let (old, new, clock) = (ed(), ed(), ManualClock::default());
    let server = Server::start(&[old.jwk("old")]).await;
    let verifier = verifier_of(&server, &clock);
    let old_token = old.token(Some("old"), &claims("42"));
    let new_token = new.token(Some("new"), &claims("42"));
    assert_eq!(user_of(&verifier, &old_token).await, good());
    assert_eq!(server.requests(), 1);

    // Within the least time nobody asks again, whatever is shown.
    server.serve(&[old.jwk("old"), new.jwk("new")]);
    for _ in 0..20 {
        assert_eq!(
            user_of(&verifier, &new_token).await,
            refused(JwtRefusal::UnknownKey)
        );
    }
    assert_eq!(server.requests(), 1);

    clock.advance(MIN_REFRESH);
    assert_eq!(user_of(&verifier, &new_token).await, good());
    assert_eq!(user_of(&verifier, &old_token).await, good());
    assert_eq!(server.requests(), 2);

    clock.advance(MIN_REFRESH);
    for n in 0..20 {
        let forged = ed().token(Some(&format!("forged-{n}")), &claims("42"));
        assert_eq!(
            user_of(&verifier, &forged).await,
            refused(JwtRefusal::UnknownKey)
        );
    }
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn a_key_that_was_taken_away_ends_with_the_refresh() {
    let (old, new, clock) = (ed(), ed(), ManualClock::default());
    let server = Server::start(&[old.jwk("old")]).await;
    let verifier = verifier_of(&server, &clock);
    let token = old.token(Some("old"), &claims("42"));
    assert_eq!(user_of(&verifier, &token).await, good());
    server.serve(&[new.jwk("new")]);
    assert_eq!(user_of(&verifier, &token).await, good());
    // Also for the first who comes after a long silence.
    clock.advance(REFRESH * 100);
    assert_eq!(
        user_of(&verifier, &token).await,
        refused(JwtRefusal::UnknownKey)
    );
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_refresh_that_is_nearly_due_keeps_nobody_waiting() {
    let (old, new, clock) = (ed(), ed(), ManualClock::default());
    let server = Server::start(&[old.jwk("old")]).await;
    let verifier = verifier_of(&server, &clock);
    let token = old.token(Some("old"), &claims("42"));
    assert_eq!(user_of(&verifier, &token).await, good());
    server.serve(&[new.jwk("new")]);
    server.hold_answers(true);
    clock.advance(REFRESH.mul_f64(0.95));
    // The server does not answer yet, and this returns.
    assert_eq!(user_of(&verifier, &token).await, good());
    eventually("the fetch began", async || server.requests() == 2).await;
    server.hold_answers(false);
    eventually("the old key ends", async || {
        user_of(&verifier, &token).await == refused(JwtRefusal::UnknownKey)
    })
    .await;
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn the_keys_go_on_while_their_server_is_away() {
    let (old, new, clock) = (ed(), ed(), ManualClock::default());
    let mut server = Server::start(&[old.jwk("old")]).await;
    let verifier = verifier_of(&server, &clock);
    let old_token = old.token(Some("old"), &claims("42"));
    let new_token = new.token(Some("new"), &claims("42"));
    assert_eq!(user_of(&verifier, &old_token).await, good());

    server.stop().await;
    clock.advance(REFRESH);
    assert_eq!(user_of(&verifier, &old_token).await, good());
    // Nobody knows whether this key is new or forged.
    assert!(is_unavailable(&user_of(&verifier, &new_token).await));

    server.serve(&[new.jwk("new")]);
    server.come_back().await;
    clock.advance(PAUSE);
    assert_eq!(user_of(&verifier, &new_token).await, good());
    assert_eq!(
        user_of(&verifier, &old_token).await,
        refused(JwtRefusal::UnknownKey)
    );
}

#[tokio::test]
async fn without_any_keys_a_token_is_neither_good_nor_bad() {
    let (signer, clock) = (ed(), ManualClock::default());
    let mut server = Server::start(&[signer.jwk("a")]).await;
    let verifier = verifier_of(&server, &clock);
    let token = signer.token(Some("a"), &claims("42"));
    server.stop().await;
    assert!(is_unavailable(&user_of(&verifier, &token).await));
    // What is no token at all is bad without any key.
    assert_eq!(
        user_of(&verifier, "a.b.c").await,
        refused(JwtRefusal::Malformed)
    );
    server.come_back().await;
    // The pause after a failure holds, so that a server that is getting up is not run over.
    assert!(is_unavailable(&user_of(&verifier, &token).await));
    assert_eq!(server.requests(), 0);
    clock.advance(PAUSE);
    assert_eq!(user_of(&verifier, &token).await, good());
}

#[tokio::test]
async fn an_answer_that_is_no_jwks_is_a_failure_that_says_why() {
    let (signer, clock) = (ed(), ManualClock::default());
    let server = Server::start(&[]).await;
    let verifier = verifier_of(&server, &clock);
    let token = signer.token(Some("a"), &claims("42"));
    let mut long = json!({"keys": [signer.jwk("a")]});
    long["padding"] = json!("x".repeat(300_000));
    let keys = json!({"keys": [signer.jwk("a")]}).to_string();
    let answers = [
        (500, keys.as_str(), "500"),
        (302, keys.as_str(), "the address that it leads to"),
        (200, "<html>", "not a JWKS"),
        (200, "{}", "not a JWKS"),
        (200, &long.to_string(), "larger than 256 KiB"),
    ];
    for (status, body, word) in answers {
        server.say(status, body);
        clock.advance(Duration::from_secs(100));
        match user_of(&verifier, &token).await {
            Err(JwtError::Unavailable(why)) => assert!(why.contains(word), "{why}"),
            other => panic!("{word}: {other:?}"),
        }
    }
    server.say(200, &keys);
    clock.advance(Duration::from_secs(100));
    assert_eq!(user_of(&verifier, &token).await, good());
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up() {
    let server = Server::start(&[]).await;
    server.hold_answers(true);
    let url = server.url();
    let fetch = Fetch::url(&url, Duration::from_millis(50)).expect("a good URL");
    let problem = fetch.read().await.expect_err("no answer");
    assert!(problem.contains("timed out"), "{problem}");
}

#[tokio::test]
async fn the_fetch_under_way_ends_with_its_verifier() {
    let signer = ed();
    let server = Server::start(&[signer.jwk("a")]).await;
    server.hold_answers(true);
    let verifier = verifier_of(&server, &ManualClock::default());
    let KeySource::Jwks(jwks) = &verifier.keys else {
        panic!("a JWKS");
    };
    let alive = jwks.watch();
    let token = signer.token(Some("a"), &claims("42"));
    tokio::select! {
        answered = verifier.verify(&token) => panic!("{answered:?}"),
        () = eventually("the fetch began", async || server.requests() > 0) => {}
    }
    assert!(alive.upgrade().is_some());
    drop(verifier);
    eventually("the task is gone", async || alive.upgrade().is_none()).await;
}

#[tokio::test]
async fn a_file_is_read_again_and_a_broken_one_changes_nothing() {
    let [hmac, _, ec, new] = Signer::one_of_each();
    let clock = ManualClock::default();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let write = |text: String| std::fs::write(file.path(), text).expect("written");
    let config = JwtConfig {
        jwks_file: Some(file.path().into()),
        ..config()
    };
    write("{".into());
    let error = JwtVerifier::new(&config).err().expect("no JWKS");
    assert!(
        error.contains("jwks_file") && error.contains("not a JWKS"),
        "{error}"
    );

    write(json!({"keys": [ec.jwk("ec"), hmac.jwk("hmac")]}).to_string());
    let verifier = JwtVerifier::with_clock(&config, clock.clock()).expect("a JWKS");
    let ec_token = ec.token(Some("ec"), &claims("42"));
    let new_token = new.token(Some("new"), &claims("42"));
    assert_eq!(user_of(&verifier, &ec_token).await, good());
    // A file, unlike a URL, may hold secrets.
    let secret = hmac.token(Some("hmac"), &claims("42"));
    assert_eq!(user_of(&verifier, &secret).await, good());
    assert_eq!(
        user_of(&verifier, &new_token).await,
        refused(JwtRefusal::UnknownKey)
    );

    write("{".into());
    clock.advance(PAUSE);
    assert_eq!(user_of(&verifier, &ec_token).await, good());
    write(json!({"keys": [new.jwk("new")]}).to_string());
    clock.advance(PAUSE);
    assert_eq!(user_of(&verifier, &new_token).await, good());
    assert_eq!(
        user_of(&verifier, &ec_token).await,
        refused(JwtRefusal::UnknownKey)
    );
}

#[tokio::test]
async fn an_algorithm_beside_a_jwks_leaves_the_others_out() {
    let [_, rsa, ec, _] = Signer::one_of_each();
    let server = Server::start(&[rsa.jwk("rsa"), ec.jwk("ec")]).await;
    let config = JwtConfig {
        jwks_url: Some(server.url()),
        algorithm: Some(JwtAlgorithm::Es256),
        ..config()
    };
    let verifier = JwtVerifier::new(&config).expect("a good URL");
    assert_eq!(
        user_of(&verifier, &ec.token(Some("ec"), &claims("42"))).await,
        good()
    );
    let got = user_of(&verifier, &rsa.token(Some("rsa"), &claims("42"))).await;
    assert_eq!(got, refused(JwtRefusal::UnknownKey));
}

/// One crypto provider is compiled in, so nobody has to install it first.
#[test]
fn an_https_url_needs_root_certificates_and_nothing_else() {
    let config = JwtConfig {
        jwks_url: Some("https://auth.example/keys".into()),
        ..config()
    };
    if let Err(why) = JwtVerifier::new(&config) {
        assert!(why.contains("ca-certificates"), "{why}");
    }
}
