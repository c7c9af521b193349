//! What others publish where nodes listen: it is dropped and counted, and nothing else happens.

use serde_json::json;
use tidings::backplane::{Answer, Envelope, Question, Sealer};
use tidings::model::{
    Address, Ask, Body, Message, MessageId, Said, Secret, Sessions, Target, UserId,
};

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::fleet::{SECRET, USER, devices, fleet, node_at, reunited};
use crate::support::heard::Heard;
use crate::support::redis::RedisServer;
use crate::support::until;

const CHANNEL: &str = "tidings:m:{user:42}";
const DROPPED: &str = "tidings_backplane_dropped_total";

fn user(text: &str) -> UserId {
    UserId::parse(text).expect("a user")
}

fn message(target: Target) -> Envelope {
    Envelope::Message(Message::new(
        MessageId::new(1_764_000_000_000),
        target,
        Body::Text("forged".into()),
        1_764_000_000_000,
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_dropped_and_counted() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    let mut garbage: Vec<Vec<u8>> = vec![
        b"hello".into(),
        br#"{"user_id":"42","message":"hello"}"#.into(),
        vec![0],
        vec![1],
        vec![1, 0],
        vec![1, 1],
        vec![255; 10_000],
        vec![1; 1_000_000],
    ];
    garbage.extend((0..=255_u8).map(|byte| vec![1, byte, byte, byte ^ 1, byte]));
    for bytes in &garbage {
        let heard = redis
            .command(&[b"PUBLISH".as_slice(), CHANNEL.as_bytes(), bytes])
            .await;
        assert_eq!(heard.int(), 3);
    }
    for node in &nodes {
        until("all of it is counted", async || {
            node.counter(DROPPED).await == garbage.len() as u64
        })
        .await;
    }
    assert!(devices.iter().all(|device| device.count() == 0));
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_publication_costs_no_message() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    let mut forger = redis.connect().await.expect("connected");
    for n in 0..100 {
        forger
            .command(&["PUBLISH", CHANNEL, ""])
            .await
            .expect("published");
        let answer = nodes[n % 3].push(USER, json!(n)).await;
        for device in &devices {
            device.until_it_has(&answer).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_that_no_node_of_the_fleet_signed_for_this_address_is_dropped() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    let here = Address::User(user(USER));
    let question = |ask| {
        Envelope::Question(Question {
            id: 1,
            from: 2,
            within: std::time::Duration::from_secs(4),
            ask,
        })
    };
    let envelopes = [
        message(Target::One(here.clone())),
        message(Target::Users([user(USER)].into())),
        question(Ask::Disconnect(
            Sessions::OfUser(user(USER)),
            "forged".into(),
        )),
        question(Ask::WhereIs(user(USER))),
        Envelope::Answer(Answer {
            to: 1,
            from: 1,
            said: Said::Applied(1),
        }),
    ];
    let mut forged = Vec::new();
    for envelope in &envelopes {
        // Not signed; by another secret; by ours for another address.
        forged.push(Sealer::new(None).seal(&here, envelope));
        forged.push(Sealer::new(Some(&Secret::new("guessed"))).seal(&here, envelope));
        let ours = Sealer::new(Some(&Secret::new(SECRET)));
        forged.push(ours.seal(&Address::User(user("43")), envelope));
        let mut changed = ours.seal(&here, envelope);
        *changed.last_mut().expect("bytes") ^= 1;
        forged.push(changed);
    }
    for bytes in &forged {
        redis
            .command(&[b"PUBLISH".as_slice(), CHANNEL.as_bytes(), bytes])
            .await;
    }
    for node in &nodes {
        until("all of it is counted", async || {
            node.counter(DROPPED).await == forged.len() as u64
        })
        .await;
    }
    assert!(devices.iter().all(|device| device.count() == 0));
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_that_was_overheard_is_good_for_no_other_address() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let devices = devices(&nodes).await;
    let (_other, _) = nodes[0].join("43", "").await;
    let mut ear = redis.connect().await.expect("connected");
    let other = "tidings:m:{user:43}";
    ear.command(&["SUBSCRIBE", other]).await.expect("listening");
    nodes[1].push("43", json!("for 43 alone")).await;
    let overheard = ear
        .receive()
        .await
        .expect("overheard")
        .items()
        .remove(2)
        .bytes();
    redis
        .command(&[b"PUBLISH".as_slice(), CHANNEL.as_bytes(), &overheard])
        .await;
    for channel in ["tidings:m:{everyone}", "tidings:m:{channel:orders:eu}"] {
        redis
            .command(&[b"PUBLISH".as_slice(), channel.as_bytes(), &overheard])
            .await;
    }
    for node in &nodes {
        // For the user and for everyone; nobody listens to the channel.
        until("it is counted", async || node.counter(DROPPED).await == 2).await;
    }
    assert!(devices.iter().all(|device| device.count() == 0));
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_probe_does_not_hide_a_deaf_link() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let node = node_at(&url, "a", |_| {}).await;
    let probes = redis
        .command(&["PUBSUB", "CHANNELS", "tidings:probe:*"])
        .await;
    for channel in probes.items() {
        let largest = u64::MAX.to_string();
        redis.command(&["PUBLISH", &channel.text(), &largest]).await;
    }
    // They are behind what was forged.
    let device = Heard::on(node.join(USER, "").await.0);
    device
        .until_it_has(&node.push(USER, json!("heard")).await)
        .await;
    proxy.set(Whom::Marked, Way::Down, Fault::Cut);
    until("the deaf node is not ready", async || {
        node.readyz().await.0 == 503
    })
    .await;
}
