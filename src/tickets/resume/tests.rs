use proptest::prelude::*;

use super::*;
use crate::model::Grant;

fn user() -> UserId {
    UserId::parse("42").expect("a user")
}

fn connection(n: u8) -> ConnectionId {
    ConnectionId::from_bytes([n; 16])
}

fn channels(names: &[&str]) -> Vec<ChannelName> {
    let names = names.iter().map(|name| ChannelName::parse(name));
    names.map(|name| name.expect("a channel")).collect()
}

fn tickets(secret: &str) -> ResumeTickets {
    let store = Arc::new(MemoryResume::new(100));
    ResumeTickets::new(Some(&Secret::new(secret)), store, Metrics::new())
}

fn pass(tickets: &ResumeTickets) -> Pass {
    Pass {
        user: user(),
        device: Some(DeviceName::parse("phone").expect("a device")),
        claims: Some(r#"{"plan":"pro"}"#.into()),
        origin: Some(Origin::parse("https://a.example").expect("an origin")),
        granted: channels(&["a", "b"]),
        subscribed: channels(&["c", "b"]),
        connection: connection(2),
        lineage: Lineage {
            first: connection(1),
            since: tickets.now(),
            ends: None,
        },
    }
}

fn presented(origin: &str) -> Presented {
    Presented {
        origin: Some(Origin::parse(origin).expect("an origin")),
        ip: [127, 0, 0, 1].into(),
    }
}

fn ours() -> Presented {
    presented("https://a.example")
}

fn opening(n: u8) -> Opening {
    Opening {
        connection: connection(n),
        again: false,
    }
}

const LIFE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn all_of_a_session_survives_its_ticket() {
    let tickets = tickets("s");
    let pass = pass(&tickets);
    let ticket = tickets.seal(&pass, LIFE).expect("sealed");
    let redeemed = tickets.redeem(ticket.expose(), &ours(), opening(3)).await;
    let Ok(Redemption::Granted(grant)) = redeemed else {
        panic!("{redeemed:?}");
    };
    let resumes = *grant.resumes.clone().expect("it continues a session");
    assert_eq!(resumes.lineage, pass.lineage);
    assert_eq!(resumes.replaces, [connection(2)]);
    assert_eq!(resumes.subscribed, channels(&["b", "c"]));
    let expected = Grant {
        device: pass.device,
        channels: channels(&["b", "a"]).into(),
        claims: pass.claims,
        origins: pass.origin.into_iter().collect(),
        resumes: grant.resumes.clone(),
        ..Grant::of(user())
    };
    assert_eq!(grant, expected);
}

#[tokio::test]
async fn a_ticket_shows_nothing_of_what_is_in_it() {
    let tickets = tickets("s");
    let pass = pass(&tickets);
    let (one, two) = (tickets.seal(&pass, LIFE), tickets.seal(&pass, LIFE));
    let (one, two) = (one.expect("sealed"), two.expect("sealed"));
    assert_ne!(one, two);
    assert_eq!(format!("{one:?} {one}"), "*** ***");
    let text = one.expose();
    let bytes = URL_SAFE_NO_PAD.decode(&text[3..]).expect("base64url");
    for secret in ["42", "phone", "pro", "a.example"] {
        let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
        assert!(!found, "{secret}");
    }
}

#[tokio::test]
async fn what_was_forged_or_tampered_with_opens_nothing() {
    let mine = tickets("s");
    let pass = pass(&mine);
    let good = mine.seal(&pass, LIFE).expect("sealed");
    let good = good.expose();
    let foreign = tickets("t").seal(&pass, LIFE).expect("sealed");
    let mut bad = vec![
        foreign.expose().to_owned(),
        "r1.".into(),
        "r1.AAAA".into(),
        format!("r1.{}", "A".repeat(60)),
        format!("r2.{}", &good[3..]),
        format!("{good}A"),
        format!("{good}="),
        good[..good.len() - 1].to_owned(),
        format!("r1.{}", "A".repeat(RESUME_MAX_BYTES)),
    ];
    for at in [3, 10, 20, 40, 60, good.len() - 2] {
        let other = if good.as_bytes()[at] == b'A' {
            "B"
        } else {
            "A"
        };
        bad.push(format!("{}{other}{}", &good[..at], &good[at + 1..]));
    }
    for bad in bad {
        let redeemed = mine.redeem(&bad, &ours(), opening(3)).await;
        assert_eq!(redeemed, Ok(Redemption::Unknown), "{bad}");
    }
    let redeemed = mine.redeem(good, &ours(), opening(3)).await;
    assert!(matches!(redeemed, Ok(Redemption::Granted(_))));
}

#[tokio::test]
async fn another_page_may_not_use_it_and_does_not_spend_it() {
    let tickets = tickets("s");
    let ticket = tickets.seal(&pass(&tickets), LIFE).expect("sealed");
    let other = presented("https://b.example");
    let redeemed = tickets.redeem(ticket.expose(), &other, opening(3)).await;
    assert_eq!(redeemed, Ok(Redemption::WrongOrigin));
    let redeemed = tickets.redeem(ticket.expose(), &ours(), opening(3)).await;
    assert!(matches!(redeemed, Ok(Redemption::Granted(_))));
}

#[test]
fn what_does_not_fit_is_said_when_it_is_sealed() {
    let tickets = tickets("s");
    let names: Vec<String> = (0..100).map(|n| format!("{n:040}")).collect();
    let many = Pass {
        granted: names
            .iter()
            .map(|name| ChannelName::parse(name).expect("a channel"))
            .collect(),
        ..pass(&tickets)
    };
    assert_eq!(tickets.seal(&many, LIFE), Err(SealError::TooLarge));
    let few = Pass {
        granted: many.granted[..50].to_vec(),
        ..many
    };
    let ticket = tickets.seal(&few, LIFE).expect("it fits");
    assert!(ticket.expose().len() <= RESUME_MAX_BYTES);
}

#[test]
fn a_session_that_has_ended_gets_none() {
    let tickets = tickets("s");
    let mut ended = pass(&tickets);
    ended.lineage.ends = Some(tickets.now());
    assert_eq!(tickets.seal(&ended, LIFE), Err(SealError::Ended));
}

#[tokio::test]
async fn a_node_that_gets_another_secret_opens_what_the_old_one_sealed() {
    let store = Arc::new(MemoryResume::new(100));
    let tickets = ResumeTickets::new(None, store, Metrics::new());
    let pass = pass(&tickets);
    assert_eq!(tickets.seal(&pass, LIFE), Err(SealError::NoSecret));
    tickets.refresh().await.expect("memory is there");
    let old = tickets.seal(&pass, LIFE).expect("sealed");
    tickets.write().adopt(Secret::new("another"));
    let new = tickets.seal(&pass, LIFE).expect("sealed");
    for (n, ticket) in [(3, old), (4, new)] {
        let redeemed = tickets.redeem(ticket.expose(), &ours(), opening(n)).await;
        assert!(matches!(redeemed, Ok(Redemption::Granted(_))));
    }
}

proptest! {
    #[test]
    fn any_text_is_no_ticket_and_no_panic(text in prop_oneof![any::<String>(), "r1\\.[A-Za-z0-9_-]{0,100}"]) {
        if let Some(sealed) = Sealed::parse(&text) {
            prop_assert!(Sealing::new(&Secret::new("s")).open(&sealed).is_none());
        }
    }
}
