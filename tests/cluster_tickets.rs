//! Tickets across nodes: issued anywhere, redeemed once.

use futures_util::future::join_all;
use serde_json::json;
use tidings::config::Config;
use tokio_tungstenite::tungstenite::Error;

use crate::support::chaos::{ChaosProxy, Whom};
use crate::support::fleet::{fleet, fleet_with, node_at};
use crate::support::redis::{RedisServer, Sentinels};
use crate::support::{TestNode, connect, next, refused, until};

const RACERS: usize = 64;

/// Rounds of the race: 30, or as many as the environment says.
fn rounds() -> usize {
    let set = std::env::var("TIDINGS_RACE_ROUNDS").ok();
    set.map_or(30, |rounds| {
        rounds.parse().expect("TIDINGS_RACE_ROUNDS is a number")
    })
}

fn url(node: &TestNode, ticket: &str) -> String {
    format!("ws://{}/ws?ticket={ticket}", node.at.public)
}

/// The key under which a ticket waits.
fn key(ticket: &str) -> String {
    let hash = tidings::model::sha256(ticket.as_bytes());
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("tidings:ticket:{hex}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixty_four_racers_on_three_nodes_one_wins_each_round() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    for round in 0..rounds() {
        let ticket = nodes[round % 3].ticket(json!({"user_id": "42"})).await;
        let race = (0..RACERS).map(|n| {
            let url = url(&nodes[n % 3], &ticket);
            async move { connect(&url).await }
        });
        let mut winners = 0;
        for outcome in join_all(race).await {
            match outcome {
                Ok(mut socket) => {
                    winners += 1;
                    assert_eq!(next(&mut socket).await["type"], "welcome");
                }
                Err(Error::Http(response)) => assert_eq!(response.status(), 401, "round {round}"),
                Err(other) => panic!("round {round}: {other:?}"),
            }
        }
        assert_eq!(winners, 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_only_knows_redis_can_issue_a_ticket() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    let ticket = "A".repeat(43);
    let value = json!({"user_id": "42", "device": "phone", "channels": ["orders:eu"]}).to_string();
    redis
        .command(&["SET", &key(&ticket), &value, "EX", "30"])
        .await;
    let mut socket = connect(&url(&nodes[1], &ticket))
        .await
        .expect("a good ticket");
    let welcome = next(&mut socket).await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    assert_eq!(next(&mut socket).await["channel"], "orders:eu");
    nodes[2].push("42", json!("hello")).await;
    assert_eq!(next(&mut socket).await["data"], "hello");
    assert_eq!(refused(&url(&nodes[0], &ticket), &[]).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_ticket_that_breaks_the_format_is_refused() {
    let redis = RedisServer::start().await;
    let node = node_at(&redis.url(), "a", |_| {}).await;
    let good = json!({"user_id": "42"}).to_string();
    let cases: [(&str, String, &[&str]); 7] = [
        ("without a TTL", good.clone(), &[]),
        ("with too long a life", good.clone(), &["EX", "301"]),
        (
            "with an unknown field",
            json!({"user_id": "42", "usr": "43"}).to_string(),
            &["EX", "30"],
        ),
        (
            "for a user that cannot be",
            json!({"user_id": "a b"}).to_string(),
            &["EX", "30"],
        ),
        (
            "that is over by its own clock",
            json!({"user_id": "42", "expires_at": 1000}).to_string(),
            &["EX", "30"],
        ),
        ("that is no JSON", "42".into(), &["EX", "30"]),
        ("that is no object", "[]".into(), &["EX", "30"]),
    ];
    for (n, (what, value, life)) in cases.into_iter().enumerate() {
        let ticket = char::from(b'A' + u8::try_from(n).expect("few"))
            .to_string()
            .repeat(43);
        let key = key(&ticket);
        let words: Vec<_> = ["SET", &key, &value]
            .into_iter()
            .chain(life.iter().copied())
            .collect();
        redis.command(&words).await;
        assert_eq!(
            refused(&url(&node, &ticket), &[]).await.0,
            401,
            "a ticket {what}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_string_under_a_tickets_key_is_no_ticket() {
    let redis = RedisServer::start().await;
    let node = node_at(&redis.url(), "a", |_| {}).await;
    let ticket = "A".repeat(43);
    redis.command(&["LPUSH", &key(&ticket), "x"]).await;
    assert_eq!(refused(&url(&node, &ticket), &[]).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_min_replicas_a_ticket_opens_nothing_that_no_replica_knows_of() {
    let sentinels = Sentinels::start().await;
    let ask_one = |c: &mut Config| c.backplane.min_replicas = 1;
    let nodes = fleet_with(&sentinels.url(), ask_one).await;
    let life = json!({"user_id": "42", "ttl": "300s"});
    let (first, second) = (
        nodes[0].ticket(life.clone()).await,
        nodes[0].ticket(life).await,
    );
    connect(&url(&nodes[1], &first))
        .await
        .expect("a good ticket");
    // The replica stays connected and confirms nothing.
    sentinels.replica.pause();
    assert_eq!(refused(&url(&nodes[2], &second), &[]).await.0, 503);
    sentinels.replica.resume();
    for ticket in [&first, &second] {
        until("it is known to be spent", async || {
            let (status, _) = refused(&url(&nodes[0], ticket), &[]).await;
            assert!([401, 503].contains(&status), "{status}");
            status == 401
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_cannot_be_asked_for_is_later_and_stays_good() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::to(redis.port).await;
    let node = node_at(&format!("redis://127.0.0.1:{}", proxy.port), "a", |_| {}).await;
    let ticket = node.ticket(json!({"user_id": "42", "ttl": "300s"})).await;
    proxy.refuse(true).await;
    proxy.reset(Whom::All);
    // Until the node knows, it may ask for the ticket and lose the answer.
    until("the node knows", async || {
        let (status, answer) = node.post("/v1/tickets", json!({"user_id": "42"})).await;
        assert!(status == 200 || answer["code"] == "UNAVAILABLE", "{answer}");
        status == 503
    })
    .await;
    assert_eq!(refused(&url(&node, &ticket), &[]).await.0, 503);
    proxy.refuse(false).await;
    until("the ticket is redeemed", async || {
        connect(&url(&node, &ticket)).await.is_ok()
    })
    .await;
    assert_eq!(refused(&url(&node, &ticket), &[]).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_outlives_a_redis_that_kept_it_and_a_spent_one_does_not() {
    let mut redis =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let nodes = fleet(&redis.url()).await;
    let life = json!({"user_id": "42", "ttl": "300s"});
    let (spent, kept) = (
        nodes[0].ticket(life.clone()).await,
        nodes[0].ticket(life).await,
    );
    connect(&url(&nodes[1], &spent))
        .await
        .expect("a good ticket");
    redis.restart().await;
    until("the ticket is redeemed", async || {
        connect(&url(&nodes[2], &kept)).await.is_ok()
    })
    .await;
    for node in &nodes {
        for ticket in [&spent, &kept] {
            until("the node has an answer", async || {
                let (status, _) = refused(&url(node, ticket), &[]).await;
                assert!([401, 503].contains(&status), "{status}");
                status == 401
            })
            .await;
        }
    }
}
