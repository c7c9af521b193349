use serde_json::{Map, Value};

use super::super::fields::parse_channels;
use super::{JwtConfig, JwtRefusal};
use crate::model::{Grant, UserId};

/// Checks the claims of a token whose signature is good (RFC 7519 section 4.1) and reads the grant in them.
pub(super) fn grant(
    claims: &Map<String, Value>,
    config: &JwtConfig,
    now_millis: u64,
) -> Result<Grant, JwtRefusal> {
    check_times(claims, config.leeway.as_secs_f64(), seconds(now_millis))?;
    check_audience(claims, &config.audience)?;
    if let Some(issuer) = &config.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err(JwtRefusal::Issuer);
    }
    let user = match claims.get(&config.user_claim) {
        Some(Value::String(text)) => UserId::parse(text),
        Some(Value::Number(n)) if n.is_u64() || n.is_i64() => UserId::parse(&n.to_string()),
        _ => return Err(JwtRefusal::NoUser),
    };
    let mut grant = Grant::of(user.map_err(|_| JwtRefusal::NoUser)?);
    if let Some(channels) = present(claims, "channels") {
        let channels = channels.as_array().ok_or(JwtRefusal::Channels)?;
        let names: Option<Vec<&str>> = channels.iter().map(Value::as_str).collect();
        let names = names.ok_or(JwtRefusal::Channels)?;
        grant.channels = parse_channels("channels", &names).map_err(|_| JwtRefusal::Channels)?;
    }
    Ok(grant)
}

/// `exp` must be there and ahead, `nbf` behind where it is there.
fn check_times(claims: &Map<String, Value>, leeway: f64, now: f64) -> Result<(), JwtRefusal> {
    let date = |name| match present(claims, name) {
        // A NumericDate is any JSON number of seconds since the epoch (RFC 7519 section 2).
        Some(value) => value.as_f64().map(Some).ok_or(JwtRefusal::Malformed),
        None => Ok(None),
    };
    let expires = date("exp")?.ok_or(JwtRefusal::NoExpiry)?;
    if now >= expires + leeway {
        return Err(JwtRefusal::Expired);
    }
    if date("nbf")?.is_some_and(|begins| now < begins - leeway) {
        return Err(JwtRefusal::NotYet);
    }
    Ok(())
}

/// `aud` is a text or a list of texts.
fn check_audience(claims: &Map<String, Value>, audience: &str) -> Result<(), JwtRefusal> {
    let is_ours = match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(several)) => several.iter().any(|one| one == audience),
        _ => false,
    };
    is_ours.then_some(()).ok_or(JwtRefusal::Audience)
}

fn present<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).filter(|value| !value.is_null())
}

/// Seconds since the epoch; a double holds them to well below a millisecond.
fn seconds(millis: u64) -> f64 {
    std::time::Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_764_000_000;

    fn config(leeway: u64) -> JwtConfig {
        JwtConfig {
            audience: "tidings".into(),
            leeway: Duration::from_secs(leeway),
            ..JwtConfig::default()
        }
    }

    /// A good token's claims, with some of them changed; `null` takes one away.
    fn with(changes: Value) -> Map<String, Value> {
        let good = json!({"sub": "42", "aud": "tidings", "exp": NOW + 60});
        let mut claims = good.as_object().expect("an object").clone();
        for (name, value) in changes.as_object().expect("an object") {
            match value {
                Value::Null => drop(claims.remove(name)),
                value => drop(claims.insert(name.clone(), value.clone())),
            }
        }
        claims
    }

    fn read(changes: Value, config: &JwtConfig) -> Result<Grant, JwtRefusal> {
        grant(&with(changes), config, NOW * 1_000)
    }

    #[test]
    fn a_token_ends_at_the_second_of_its_exp_and_begins_at_that_of_its_nbf() {
        let cases = [
            (json!({"exp": NOW + 1}), 0, None),
            (json!({"exp": NOW}), 0, Some(JwtRefusal::Expired)),
            (json!({"exp": NOW as f64 + 0.5}), 0, None),
            (
                json!({"exp": NOW as f64 - 0.5}),
                0,
                Some(JwtRefusal::Expired),
            ),
            (json!({"exp": NOW - 4}), 5, None),
            (json!({"exp": NOW - 5}), 5, Some(JwtRefusal::Expired)),
            (json!({"exp": -1}), 0, Some(JwtRefusal::Expired)),
            (json!({"exp": u64::MAX}), 0, None),
            (json!({"exp": null}), 5, Some(JwtRefusal::NoExpiry)),
            (json!({"exp": "tomorrow"}), 5, Some(JwtRefusal::Malformed)),
            (json!({"nbf": NOW}), 0, None),
            (json!({"nbf": NOW + 1}), 0, Some(JwtRefusal::NotYet)),
            (json!({"nbf": NOW + 5}), 5, None),
            (json!({"nbf": NOW + 6}), 5, Some(JwtRefusal::NotYet)),
            (json!({"nbf": "now"}), 5, Some(JwtRefusal::Malformed)),
        ];
        for (changes, leeway, refusal) in cases {
            let got = read(changes.clone(), &config(leeway)).err();
            assert_eq!(got, refusal, "{changes} with {leeway} s");
        }
    }

    #[test]
    fn the_audience_must_be_ours() {
        let audience = |aud: Value| read(json!({ "aud": aud }), &config(0)).err();
        assert_eq!(audience(json!("tidings")), None);
        assert_eq!(audience(json!(["other", "tidings"])), None);
        for bad in [
            json!("other"),
            json!(["other"]),
            json!([]),
            json!(7),
            json!({"tidings": 1}),
            json!(null),
        ] {
            assert_eq!(audience(bad.clone()), Some(JwtRefusal::Audience), "{bad}");
        }
    }

    #[test]
    fn the_issuer_must_be_ours_where_one_is_configured() {
        assert_eq!(read(json!({"iss": "x"}), &config(0)).err(), None);
        let config = JwtConfig {
            issuer: Some("https://auth.example".into()),
            ..config(0)
        };
        let issuer = |iss: Value| read(json!({ "iss": iss }), &config).err();
        assert_eq!(issuer(json!("https://auth.example")), None);
        for bad in [
            json!("https://auth.example/"),
            json!(["https://auth.example"]),
            json!(null),
        ] {
            assert_eq!(issuer(bad.clone()), Some(JwtRefusal::Issuer), "{bad}");
        }
    }

    #[test]
    fn the_user_is_a_text_or_a_whole_number() {
        let user = |sub: Value| {
            read(json!({ "sub": sub }), &config(0)).map(|grant| grant.user.to_string())
        };
        assert_eq!(user(json!("a@b.c")), Ok("a@b.c".into()));
        assert_eq!(user(json!(42)), Ok("42".into()));
        assert_eq!(user(json!(u64::MAX)), Ok(u64::MAX.to_string()));
        assert_eq!(user(json!(-7)), Ok("-7".into()));
        for bad in [
            json!(4.2),
            json!(""),
            json!("a b"),
            json!(true),
            json!(["42"]),
            json!(null),
        ] {
            assert_eq!(user(bad.clone()), Err(JwtRefusal::NoUser), "{bad}");
        }
        let config = JwtConfig {
            user_claim: "uid".into(),
            ..config(0)
        };
        let grant = read(json!({"uid": 7}), &config).expect("uid is there");
        assert_eq!(grant.user.as_str(), "7");
        assert_eq!(read(json!({}), &config), Err(JwtRefusal::NoUser));
    }

    #[test]
    fn a_token_names_channels_and_nothing_more() {
        let changes = json!({
            "channels": ["a", "b:1", "a"], "device": "phone", "claims": {"x": 1}, "session_seconds": 60,
        });
        let grant = read(changes, &config(0)).expect("valid");
        let user = Grant::of(UserId::parse("42").expect("a user"));
        let channels: Vec<_> = grant.channels.iter().map(|c| c.as_str()).collect();
        assert_eq!(channels, ["a", "b:1"]);
        assert_eq!(
            Grant {
                channels: user.channels.clone(),
                ..grant
            },
            user
        );
        let many = vec!["a"; Grant::LIST_MAX + 1];
        for bad in [
            json!("a"),
            json!([1]),
            json!(["a b"]),
            json!(many),
            json!({}),
        ] {
            let got = read(json!({ "channels": bad }), &config(0));
            assert_eq!(got, Err(JwtRefusal::Channels), "{bad}");
        }
    }
}
