//! Resume tickets: what continues a session, at any node, once, until it is revoked.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidings::backplane::redis::Redis;
use tidings::backplane::{
    Arrivals, BackplaneConfig, BackplaneKind, BackplaneUrl, Envelope, Later, Leases as _, NodeLease,
};
use tidings::model::{Address, ChannelName, ConnectionId, Lineage, Secret, UserId};
use tidings::telemetry::Metrics;
use tidings::tickets::{
    MemoryResume, Opening, Pass, Presented, Redemption, RedisResume, ResumeStore, ResumeTickets,
};

use crate::support::fleet::{SECRET, fleet, fleet_with, node_at};
use crate::support::redis::RedisServer;
use crate::support::{
    Socket, TestNode, closed, connect, connect_with, next, next_of, node_with, refused, until,
};

const LIFE: Duration = Duration::from_secs(60);

/// Nothing arrives at a node that is only asked for tickets.
struct Nowhere;

impl Arrivals for Nowhere {
    fn arrive(&self, _: Envelope) -> Later<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn missed(&self, _: Vec<Address>) -> Later<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

async fn redis_at(server: &RedisServer, incarnation: u64) -> Arc<Redis> {
    let config = BackplaneConfig {
        kind: BackplaneKind::Redis,
        url: Some(BackplaneUrl::new(server.url())),
        ..BackplaneConfig::default()
    };
    let metrics = Metrics::new().backplane;
    let redis = Redis::new(&config, incarnation, false, metrics, Arc::new(Nowhere)).expect("valid");
    redis.wait_until_whole().await.expect("fit");
    let lease = NodeLease {
        node: "a".into(),
        incarnation: incarnation.to_string(),
        version: "1".into(),
        connections: 0,
        load: 0.0,
        since: 0,
        draining: false,
        ready: true,
    };
    // By which it learns the time.
    redis.renew(lease).await.expect("Redis is there");
    Arc::new(redis)
}

/// One node's tickets, and its counters.
struct End(ResumeTickets, Metrics);

impl End {
    fn new(store: Arc<dyn ResumeStore>) -> Self {
        let metrics = Metrics::new();
        let secret = Secret::new(SECRET);
        Self(
            ResumeTickets::new(Some(&secret), store, metrics.clone()),
            metrics,
        )
    }

    fn seal(&self, pass: &Pass) -> String {
        let ticket = self.0.seal(pass, LIFE).expect("sealed");
        ticket.expose().to_owned()
    }

    async fn show(&self, ticket: &str, opening: Opening) -> Redemption {
        let redeemed = self.0.redeem(ticket, &anyone(), opening).await;
        redeemed.expect("the store is there")
    }

    /// Shows a ticket that is not good, and sees why it is not.
    async fn assert_refused(&self, ticket: &str, opening: Opening, why: &str) {
        let line = format!("tidings_resume_refusals_total{{reason=\"{why}\"}}");
        let count = || {
            let metrics = self.1.render();
            let found = metrics.lines().find_map(|l| l.strip_prefix(&line));
            found.map_or(0, |count| count.trim().parse().expect("a number"))
        };
        let before: u64 = count();
        assert_eq!(self.show(ticket, opening).await, Redemption::Unknown);
        assert_eq!(count(), before + 1, "{why}: {}", self.1.render());
    }
}

/// Two nodes in memory (which are one), and two at a Redis.
async fn ends(redis: &RedisServer) -> Vec<(&'static str, [End; 2])> {
    let memory = Arc::new(MemoryResume::new(10_000));
    let at = async |incarnation| {
        let redis = redis_at(redis, incarnation).await;
        End::new(Arc::new(RedisResume::new(redis)))
    };
    vec![
        ("memory", [End::new(memory.clone()), End::new(memory)]),
        ("redis", [at(1).await, at(2).await]),
    ]
}

fn anyone() -> Presented {
    Presented {
        origin: None,
        ip: [127, 0, 0, 1].into(),
    }
}

fn connection(n: u32) -> ConnectionId {
    ConnectionId {
        incarnation: 7,
        shard: 1,
        slot: n,
        generation: 0,
    }
}

fn once(n: u32) -> Opening {
    Opening {
        connection: connection(n),
        again: false,
    }
}

fn again(n: u32) -> Opening {
    Opening {
        again: true,
        ..once(n)
    }
}

/// A session of a user, begun now, in the form of its ticket.
fn pass(user: &str, n: u32, now: u64) -> Pass {
    Pass {
        user: UserId::parse(user).expect("a user"),
        device: None,
        claims: None,
        origin: None,
        granted: Vec::new(),
        subscribed: Vec::new(),
        connection: connection(n),
        lineage: Lineage {
            first: connection(n),
            since: now,
            ends: None,
        },
    }
}

fn replaced(redemption: Redemption) -> Vec<ConnectionId> {
    match redemption {
        Redemption::Granted(grant) => grant.resumes.expect("it continues a session").replaces,
        other => panic!("not granted: {other:?}"),
    }
}

/// Waits until a clock shows another time.
async fn a_moment(end: &End) {
    let before = end.0.now();
    until("time passes", async || end.0.now() > before + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_ticket_opens_one_connection_at_any_node() {
    let redis = RedisServer::start().await;
    for (kind, [a, b]) in ends(&redis).await {
        let ticket = a.seal(&pass("42", 1, a.0.now()));
        let replaces = replaced(b.show(&ticket, once(2)).await);
        assert_eq!(replaces, [connection(1)], "{kind}");
        a.assert_refused(&ticket, once(3), "used").await;
        b.assert_refused(&ticket, once(4), "used").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_it_may_be_shown_again_it_names_the_connection_that_it_opened() {
    let redis = RedisServer::start().await;
    for (kind, [a, b]) in ends(&redis).await {
        let ticket = a.seal(&pass("42", 1, a.0.now()));
        assert_eq!(
            replaced(a.show(&ticket, again(2)).await),
            [connection(1)],
            "{kind}"
        );
        for n in 3..6 {
            let replaces = replaced(b.show(&ticket, again(n)).await);
            assert_eq!(replaces, [connection(1), connection(n - 1)], "{kind}");
        }
        a.assert_refused(&ticket, once(9), "used").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_ticket_dies_with_its_life_and_with_its_session() {
    let redis = RedisServer::start().await;
    for (_, [a, b]) in ends(&redis).await {
        let short = pass("42", 1, a.0.now());
        let mut ending = short.clone();
        ending.lineage.ends = Some(a.0.now() + 20);
        let expiring = a.0.seal(&short, Duration::from_millis(20)).expect("sealed");
        let ending = a.seal(&ending);
        let over = a.0.now() + 20;
        until("its life is over", async || {
            a.0.now() > over && b.0.now() > over
        })
        .await;
        b.assert_refused(expiring.expose(), once(2), "expired")
            .await;
        b.assert_refused(&ending, again(3), "expired").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnected_user_comes_back_with_no_ticket_from_before() {
    let redis = RedisServer::start().await;
    for (_, [a, b]) in ends(&redis).await {
        let (user, began) = (UserId::parse("42").expect("a user"), a.0.now());
        let ticket = a.seal(&pass("42", 1, began));
        let used = a.seal(&pass("42", 2, began));
        let neighbour = a.seal(&pass("43", 3, began));
        replaced(a.show(&used, again(4)).await);
        a_moment(&a).await;
        b.0.revoke_user(&user).await.expect("revoked");
        // Also what one of those sessions sealed later.
        let late = a.seal(&pass("42", 5, began));
        for ticket in [&ticket, &used, &late] {
            a.assert_refused(ticket, again(6), "user_revoked").await;
        }
        replaced(a.show(&neighbour, once(7)).await);
        a_moment(&a).await;
        let new = a.seal(&pass("42", 8, a.0.now()));
        replaced(b.show(&new, once(9)).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnected_connection_ends_what_continues_it_and_nothing_else() {
    let redis = RedisServer::start().await;
    for (_, [a, b]) in ends(&redis).await {
        let first = pass("42", 1, a.0.now());
        let continued = Pass {
            connection: connection(2),
            ..first.clone()
        };
        let tickets = [a.seal(&first), a.seal(&continued)];
        let other = a.seal(&pass("42", 3, a.0.now()));
        let revoked = b.0.revoke_line(&continued.user, &continued.lineage).await;
        revoked.expect("revoked");
        for ticket in &tickets {
            a.assert_refused(ticket, again(4), "connection_revoked")
                .await;
        }
        replaced(a.show(&other, once(5)).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_secret_sealed_is_refused() {
    let redis = RedisServer::start().await;
    for (_, [a, _]) in ends(&redis).await {
        let store = Arc::new(MemoryResume::new(10));
        let other = ResumeTickets::new(Some(&Secret::new("another")), store, Metrics::new());
        let forged = other.seal(&pass("42", 1, other.now()), LIFE);
        let forged = forged.expect("sealed");
        a.assert_refused(forged.expose(), once(2), "seal").await;
        let long = format!("r1.{}", "A".repeat(4_094));
        a.assert_refused(&long, once(2), "malformed").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_racers_at_two_nodes_one_wins() {
    let redis = RedisServer::start().await;
    for (kind, ends) in ends(&redis).await {
        let ticket = ends[0].seal(&pass("42", 1, ends[0].0.now()));
        let race = (0..1000).map(|n| ends[n % 2].show(&ticket, once(n as u32 + 2)));
        let outcomes = join_all(race).await;
        let won = |o: &&Redemption| matches!(o, Redemption::Granted(_));
        assert_eq!(outcomes.iter().filter(won).count(), 1, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_who_may_show_it_again_each_takes_the_place_of_one() {
    let redis = RedisServer::start().await;
    for (kind, ends) in ends(&redis).await {
        let ticket = ends[0].seal(&pass("42", 1, ends[0].0.now()));
        let race = (0..1000).map(|n| ends[n % 2].show(&ticket, again(n as u32 + 2)));
        let outcomes = join_all(race).await;
        let mut displaced: Vec<_> = outcomes
            .into_iter()
            .filter_map(|outcome| replaced(outcome).get(1).map(|c| c.slot))
            .collect();
        displaced.sort_unstable();
        displaced.dedup();
        assert_eq!(displaced.len(), 999, "{kind}: one is left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_without_a_secret_share_the_one_that_the_first_put_into_redis() {
    let redis = RedisServer::start().await;
    let mut nodes = Vec::new();
    for n in 1..4 {
        let store = Arc::new(RedisResume::new(redis_at(&redis, n).await));
        nodes.push(ResumeTickets::new(None, store, Metrics::new()));
    }
    let together = join_all(nodes.iter().map(ResumeTickets::refresh)).await;
    assert!(together.iter().all(Result::is_ok), "{together:?}");
    for (n, sealed_by) in nodes.iter().enumerate() {
        let pass = pass("42", n as u32, sealed_by.now());
        for redeemed_by in &nodes {
            let ticket = sealed_by.seal(&pass, LIFE).expect("sealed");
            let redeemed = redeemed_by
                .redeem(ticket.expose(), &anyone(), once(9))
                .await;
            replaced(redeemed.expect("Redis is there"));
        }
    }
    // A Redis that lost it gets it back.
    let pass = pass("42", 1, nodes[0].now());
    let ticket = nodes[0].seal(&pass, LIFE).expect("sealed");
    redis.command(&["FLUSHALL"]).await;
    nodes[1].refresh().await.expect("Redis is there");
    nodes[2].refresh().await.expect("Redis is there");
    let redeemed = nodes[2].redeem(ticket.expose(), &anyone(), once(9)).await;
    replaced(redeemed.expect("Redis is there"));
}

/// A resume ticket for a connection, sealed by who knows the cluster's secret.
fn ticket_for(welcome: &Value, change: impl FnOnce(&mut Pass)) -> String {
    let text = welcome["connection"].as_str().expect("an id");
    let id = ConnectionId::parse(text).expect("an id");
    let end = End::new(Arc::new(MemoryResume::new(10)));
    let mut pass = pass(welcome["user"].as_str().expect("a user"), 0, end.0.now());
    pass.connection = id;
    pass.lineage.first = id;
    change(&mut pass);
    end.seal(&pass)
}

async fn resume(node: &TestNode, ticket: &str) -> (Socket, Value) {
    let mut socket = connect(&url(node, ticket)).await.expect("a good ticket");
    let welcome = next(&mut socket).await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    (socket, welcome)
}

fn url(node: &TestNode, ticket: &str) -> String {
    format!("ws://{}/ws?ticket={ticket}", node.at.public)
}

/// One node with a secret, in memory.
async fn alone() -> TestNode {
    node_with(|c| c.backplane.secret = Some(Secret::new(SECRET))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_is_the_old_one_and_takes_its_place() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    for to in [0, 1] {
        let (mut old, welcome) = nodes[0].join("42", "&device=phone").await;
        let ticket = ticket_for(&welcome, |pass| {
            pass.device = Some(tidings::model::DeviceName::parse("phone").expect("a device"));
            pass.subscribed = vec![ChannelName::parse("orders:eu").expect("a channel")];
            pass.claims = Some(r#"{"plan":"pro"}"#.into());
        });
        let (mut new, welcome) = resume(&nodes[to], &ticket).await;
        assert_eq!(
            (&welcome["user"], &welcome["device"]),
            (&json!("42"), &json!("phone"))
        );
        assert_eq!(
            next_of(&mut new, "subscribed").await["channel"],
            "orders:eu"
        );
        let close = closed(&mut old).await;
        assert_eq!((u16::from(close.code), &*close.reason), (1000, "resumed"));
        nodes[2].push("42", json!("hello")).await;
        assert_eq!(next_of(&mut new, "message").await["data"], "hello");
        let (_, found) = nodes[2].get("/v1/users/42/connections").await;
        let found = found["connections"].as_array().expect("a list").clone();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["claims"], json!({"plan": "pro"}));
        assert_eq!(refused(&url(&nodes[to], &ticket), &[]).await.0, 401);
        drop(new);
        until("it has gone", async || {
            let (_, found) = nodes[2].get("/v1/users/42/connections").await;
            found["connections"].as_array().is_none_or(Vec::is_empty)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnect_ends_resume_tickets_too() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis.url()).await;
    for by_user in [true, false] {
        let (mut old, welcome) = nodes[0].join("42", "").await;
        let ticket = ticket_for(&welcome, |_| {});
        let whom = match by_user {
            true => json!({"user_id": "42"}),
            false => json!({"connection": welcome["connection"]}),
        };
        let (status, answer) = nodes[1].post("/v1/disconnect", whom).await;
        assert_eq!((status, &answer["applied"]), (200, &json!(1)), "{answer}");
        assert_eq!(u16::from(closed(&mut old).await.code), 4501);
        for node in &nodes {
            assert_eq!(refused(&url(node, &ticket), &[]).await.0, 401);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_ends_when_the_first_one_would_have() {
    let node = alone().await;
    let (_old, welcome) = node.join("42", "").await;
    let ticket = ticket_for(&welcome, |pass| {
        pass.lineage.ends = Some(pass.lineage.since + 1_500);
    });
    let (mut new, _) = resume(&node, &ticket).await;
    assert_eq!(u16::from(closed(&mut new).await.code), 4001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_page_may_not_resume_and_does_not_spend_the_ticket() {
    let node = alone().await;
    let (_old, welcome) = node.join("42", "").await;
    let ours = format!("http://{}", node.at.public);
    let ticket = ticket_for(&welcome, |pass| {
        let origin = tidings::model::Origin::parse(&ours);
        pass.origin = Some(origin.expect("an origin"));
    });
    let url = url(&node, &ticket);
    let other = format!("http://{}:1", node.at.public.ip());
    assert_eq!(refused(&url, &[("origin", &other)]).await.0, 403);
    connect_with(&url, &[("origin", &ours)])
        .await
        .expect("a good ticket");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_its_successor_a_session_counts_once() {
    let node = node_with(|c| {
        c.backplane.secret = Some(Secret::new(SECRET));
        c.limits.connections_per_user = 1;
        c.limits.user_limit = tidings::hub::UserLimit::Refuse;
    })
    .await;
    let (mut old, welcome) = node.join("42", "").await;
    let (mut new, _) = resume(&node, &ticket_for(&welcome, |_| {})).await;
    assert_eq!(u16::from(closed(&mut old).await.code), 1000);
    node.push("42", json!("hello")).await;
    assert_eq!(next_of(&mut new, "message").await["data"], "hello");
    until("there is no room for a second", async || {
        refused(&node.url("42", "").await, &[]).await.0 == 429
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_ticket_that_cannot_be_asked_for_is_later() {
    let mut redis = RedisServer::start().await;
    let node = node_at(&redis.url(), "a", |_| {}).await;
    let (_old, welcome) = node.join("42", "").await;
    let ticket = ticket_for(&welcome, |_| {});
    redis.kill().await;
    let wrong = format!("r1.{}", "A".repeat(80));
    until("the node knows", async || {
        refused(&url(&node, &ticket), &[]).await.0 == 503
    })
    .await;
    // What is not genuine is refused without asking.
    assert_eq!(refused(&url(&node, &wrong), &[]).await.0, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_beyond_the_users_limit_does_not_come_back_by_its_ticket() {
    let redis = RedisServer::start().await;
    let nodes = fleet_with(&redis.url(), |c| c.limits.connections_per_user = 1).await;
    let (mut old, welcome) = nodes[0].join("42", "").await;
    let ticket = ticket_for(&welcome, |_| {});
    let (_new, _) = nodes[0].join("42", "").await;
    assert_eq!(u16::from(closed(&mut old).await.code), 4502);
    assert_eq!(refused(&url(&nodes[1], &ticket), &[]).await.0, 401);
}
