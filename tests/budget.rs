//! The fleet's handshake budget: who is over it is told a slot, and gets in at it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tidings::config::Config;

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::events::Events;
use crate::support::fleet::{all_ready, node_at};
use crate::support::redis::RedisServer;
use crate::support::{
    Socket, TestNode, closed, connect, connect_with, next, node_with, refused, until,
};

/// The nodes of a fleet with that budget.
async fn fleet(redis: &RedisServer, nodes: usize, per_second: u32) -> Vec<TestNode> {
    let mut fleet = Vec::new();
    for name in ["a", "b", "c"].iter().take(nodes) {
        let budget = |c: &mut Config| c.limits.fleet_handshakes_per_second = per_second;
        fleet.push(node_at(&redis.url(), name, budget).await);
    }
    all_ready(&fleet).await;
    fleet
}

pub fn ws(node: &TestNode, ticket: &str) -> String {
    format!("ws://{}/ws?ticket={ticket}&refuse=close", node.at.public)
}

/// What a handshake comes to.
pub enum Told {
    Welcome(Box<Socket>),
    /// Over the budget: come back in so long.
    Later(Duration),
    Refused(String),
}

pub async fn knock(url: &str) -> Told {
    let mut socket = connect(url).await.expect("accepted, if only to be told");
    let frame = next(&mut socket).await;
    if frame["type"] == "welcome" {
        return Told::Welcome(Box::new(socket));
    }
    let code = u16::from(closed(&mut socket).await.code);
    match (frame["code"].as_str(), frame["after_ms"].as_u64()) {
        (Some("overloaded"), Some(after)) => {
            assert_eq!((&frame["type"], code), (&json!("refused"), 1013));
            Told::Later(Duration::from_millis(after))
        }
        (Some(other), _) => Told::Refused(other.into()),
        _ => panic!("{frame}"),
    }
}

impl Told {
    fn later(self) -> Duration {
        match self {
            Self::Later(after) => after,
            Self::Welcome(_) => panic!("it was let in"),
            Self::Refused(code) => panic!("refused: {code}"),
        }
    }

    fn welcome(self) -> Socket {
        match self {
            Self::Welcome(socket) => *socket,
            Self::Later(after) => panic!("told to come in {after:?}"),
            Self::Refused(code) => panic!("refused: {code}"),
        }
    }
}

/// Uses up what there is, so that the next has to wait for about as long as the interval.
async fn use_up(node: &TestNode) -> Vec<Socket> {
    let mut inside = Vec::new();
    loop {
        let ticket = node.ticket(json!({"user_id": "first"})).await;
        match knock(&ws(node, &ticket)).await {
            Told::Welcome(socket) => inside.push(*socket),
            Told::Later(_) => return inside,
            Told::Refused(code) => panic!("refused: {code}"),
        }
    }
}

/// Some are given slots, so that the next one's is seconds away.
async fn wait_in_line(node: &TestNode) {
    for n in 0..4 {
        let ticket = node.ticket(json!({"user_id": format!("line-{n}")})).await;
        knock(&ws(node, &ticket)).await.later();
    }
}

fn hex(text: &str) -> String {
    let hash = tidings::model::sha256(text.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a ticket says of itself in Redis, and when Redis ends it, in Unix milliseconds.
async fn at_rest(redis: &RedisServer, ticket: &str) -> (Value, i64) {
    let key = format!("tidings:ticket:{}", hex(ticket));
    let value = redis.command(&["GET", &key]).await.text();
    let ends = redis.command(&["PEXPIRETIME", &key]).await.int();
    (serde_json::from_str(&value).expect("JSON"), ends)
}

async fn counted(node: &TestNode, reason: &str) -> u64 {
    let name = format!("tidings_budget_slots_total{{reason=\"{reason}\"}} ");
    let metrics = node.metrics().await;
    let found = metrics.lines().find_map(|line| line.strip_prefix(&name));
    found.map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_three_nodes_is_told_slots_and_each_gets_in_at_its_own() {
    const CROWD: usize = 150;
    const RATE: u32 = 40;
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 3, RATE).await;
    let mut tickets = Vec::new();
    for n in 0..CROWD {
        tickets.push(nodes[n % 3].ticket(json!({"user_id": n.to_string()})).await);
    }
    let began = Instant::now();
    let storm = tickets.iter().enumerate().map(|(n, ticket)| {
        let (url, redis) = (ws(&nodes[n % 3], ticket), &redis);
        async move {
            match knock(&url).await {
                Told::Welcome(socket) => (*socket, None),
                told => {
                    let after = told.later();
                    let (at_rest, ends) = at_rest(redis, ticket).await;
                    let slot = at_rest["slot"].as_u64().expect("a slot");
                    // A ticket lives at least until its room is over; TTL and `expires_at` say the same.
                    let expires = at_rest["expires_at"].as_u64().expect("an end");
                    assert!(expires >= slot + 30_000, "{at_rest}");
                    assert!(ends.abs_diff(expires as i64) < 1_000, "{ends} {at_rest}");
                    tokio::time::sleep(after).await;
                    (knock(&url).await.welcome(), Some(slot))
                }
            }
        }
    });
    let inside = join_all(storm).await;
    let took = began.elapsed();
    let mut slots: Vec<u64> = inside.iter().filter_map(|(_, slot)| *slot).collect();
    slots.sort_unstable();
    let interval = 1_000 / u64::from(RATE);
    assert!(
        slots.windows(2).all(|two| two[1] - two[0] >= interval),
        "{slots:?}"
    );
    assert!(slots.len() > CROWD / 3, "{} of {CROWD}", slots.len());
    // However slow all this is: no more got in than the burst and the rate allow.
    let most = took.as_secs_f64() * f64::from(RATE) + f64::from(RATE) / 10.0 + 2.0;
    assert!(CROWD as f64 <= most, "{CROWD} in {took:?}");
    let (mut given, mut kept) = (0, 0);
    for node in &nodes {
        given += counted(node, "given").await;
        kept += counted(node, "kept").await;
        assert_eq!(counted(node, "missed").await, 0);
    }
    // Some slots are due at once; and behind the end of the line some find a token, and do not need their room.
    assert!(
        given >= slots.len() as u64 && kept <= given,
        "{kept} of {given}, {} told",
        slots.len()
    );
    // What is used stays used.
    let used = knock(&ws(&nodes[0], &tickets[CROWD - 1])).await;
    assert!(matches!(used, Told::Refused(code) if code == "ticket"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_early_is_told_the_rest_and_keeps_its_slot() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 2, 1).await;
    let _inside = use_up(&nodes[0]).await;
    wait_in_line(&nodes[0]).await;
    let ticket = nodes[0].ticket(json!({"user_id": "42"})).await;
    let first = knock(&ws(&nodes[0], &ticket)).await.later();
    let (before, _) = at_rest(&redis, &ticket).await;
    // At another node, too early, and as often as it likes.
    let mut early = 0;
    for _ in 0..3 {
        if let Told::Later(rest) = knock(&ws(&nodes[1], &ticket)).await {
            early += 1;
            assert!(rest <= first, "{rest:?} of {first:?}");
            assert_eq!(at_rest(&redis, &ticket).await.0, before);
        }
    }
    assert!(early > 0, "its slot was there at once: {first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_comer_still_has_its_room_while_others_wait() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 2, 2).await;
    let _inside = use_up(&nodes[0]).await;
    let late = nodes[0].ticket(json!({"user_id": "late"})).await;
    let after = knock(&ws(&nodes[0], &late)).await.later();
    // A line behind it, longer than it will be late.
    for n in 0..30 {
        let ticket = nodes[1].ticket(json!({"user_id": n.to_string()})).await;
        knock(&ws(&nodes[1], &ticket)).await.later();
    }
    tokio::time::sleep(after + Duration::from_secs(3)).await;
    knock(&ws(&nodes[1], &late)).await.welcome();
    assert_eq!(counted(&nodes[1], "kept").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_tickets_spend_neither_tokens_nor_slots() {
    let redis = RedisServer::start().await;
    // Slow enough that nothing is leased ahead.
    let nodes = fleet(&redis, 1, 40).await;
    let unknown = ws(&nodes[0], &"A".repeat(43));
    let began = Instant::now();
    for _ in 0..60 {
        let told = knock(&unknown).await;
        assert!(matches!(told, Told::Refused(code) if code == "ticket"));
    }
    // One token served them all, as long as a token may be held.
    let leased = nodes[0].counter("tidings_budget_leased_total").await;
    let most = began.elapsed().as_millis() / 500 + 1;
    assert!(u128::from(leased) <= most, "{leased} of {most}");

    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 1, 1).await;
    let _inside = use_up(&nodes[0]).await;
    let given = counted(&nodes[0], "given").await;
    let unknown = ws(&nodes[0], &"A".repeat(43));
    for _ in 0..30 {
        let told = knock(&unknown).await;
        assert!(matches!(told, Told::Refused(code) if code == "ticket"));
    }
    assert_eq!(counted(&nodes[0], "given").await, given);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_for_another_address_gets_no_slot() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 1, 1).await;
    let _inside = use_up(&nodes[0]).await;
    let ticket = json!({"user_id": "42", "ips": ["10.0.0.0/8"]});
    let ticket = nodes[0].ticket(ticket).await;
    let told = knock(&ws(&nodes[0], &ticket)).await;
    assert!(matches!(told, Told::Refused(code) if code == "ip"));
    assert!(at_rest(&redis, &ticket).await.0.get("slot").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_statuses_is_told_when_to_retry() {
    let node = node_with(|c| c.limits.fleet_handshakes_per_second = 1).await;
    let _inside = use_up(&node).await;
    wait_in_line(&node).await;
    let url = node.url("42", "").await;
    let (status, body) = refused(&url, &[]).await;
    assert_eq!((status, &body["code"]), (503, &json!("overloaded")));
    let after = body["after_ms"].as_u64().expect("when");
    let own = format!("http://{}", node.at.public);
    // The same slot, as a browser is told it.
    let mut socket = connect_with(&url, &[("origin", &own)]).await.expect("told");
    let frame = next(&mut socket).await;
    assert_eq!(frame["type"], "refused", "{frame}");
    assert!(
        frame["after_ms"].as_u64().is_some_and(|ms| ms <= after),
        "{frame}"
    );
    tokio::time::sleep(Duration::from_millis(after)).await;
    let mut socket = connect(&url).await.expect("at its slot it gets in");
    assert_eq!(next(&mut socket).await["type"], "welcome");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_stream_is_told_its_slot_and_its_ticket_stays_good() {
    let redis = RedisServer::start().await;
    let nodes = fleet(&redis, 2, 1).await;
    let _inside = use_up(&nodes[0]).await;
    let ticket = nodes[0].ticket(json!({"user_id": "42"})).await;
    let query = format!("ticket={ticket}");
    let mut told = Events::open(&nodes[0], &query, &[]).await.expect("a 200");
    assert_eq!(told.try_next().await, None);
    let retry = told.retry.expect("a slot");
    tokio::time::sleep(Duration::from_millis(retry)).await;
    let mut events = Events::open(&nodes[1], &query, &[]).await.expect("a 200");
    assert_eq!(events.next_of("welcome").await["user"], "42");

    // It comes back with what it got, over the budget again: its resume ticket has a slot too.
    let id = events.last_id.clone();
    drop(events);
    let _inside = use_up(&nodes[0]).await;
    let mut told = Events::back(&nodes[0], &query, &id).await.expect("a 200");
    assert_eq!(told.try_next().await, None);
    let mark = format!(
        "tidings:slot:{}",
        hex(id.split('~').next().expect("a ticket"))
    );
    assert_eq!(redis.command(&["EXISTS", &mark]).await.int(), 1);
    tokio::time::sleep(Duration::from_millis(told.retry.expect("a slot"))).await;
    let mut events = Events::back(&nodes[1], &query, &id).await.expect("a 200");
    assert_eq!(events.next_of("welcome").await["user"], "42");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_has_a_slot_for_one_connection() {
    let secret = "0123456789abcdef0123456789abcdef";
    let jwt = json!({"key": secret, "algorithm": "HS256", "audience": "tidings"});
    let node = node_with(|c| {
        c.limits.fleet_handshakes_per_second = 1;
        c.jwt = Some(serde_json::from_value(jwt).expect("valid"));
    })
    .await;
    let now = tidings::model::unix_millis() / 1_000;
    let claims = json!({"sub": "42", "aud": "tidings", "exp": now + 600});
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key);
    let bearer = format!("Bearer {}", token.expect("signed"));
    let url = format!("ws://{}/ws", node.at.public);
    let _inside = use_up(&node).await;
    let (status, body) = refused(&url, &[("authorization", "Bearer x")]).await;
    assert_eq!((status, &body["code"]), (401, &json!("ticket")));
    let (status, body) = refused(&url, &[("authorization", &bearer)]).await;
    assert_eq!(status, 503, "{body}");
    // A line behind it, so that no token is free at its slot.
    for n in 0..20 {
        let ticket = node.ticket(json!({"user_id": n.to_string()})).await;
        knock(&ws(&node, &ticket)).await.later();
    }
    let after = body["after_ms"].as_u64().expect("a slot");
    tokio::time::sleep(Duration::from_millis(after)).await;
    let headers = [("authorization", bearer.as_str())];
    let mut socket = connect_with(&url, &headers).await.expect("at its slot");
    assert_eq!(next(&mut socket).await["user"], "42");
    // Shown again, it has to wait for another.
    assert_eq!(refused(&url, &headers).await.0, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_back_empty_begins_a_new_schedule() {
    let mut redis = RedisServer::start().await;
    let nodes = fleet(&redis, 2, 1).await;
    let _inside = use_up(&nodes[0]).await;
    for n in 0..60 {
        let ticket = nodes[0].ticket(json!({"user_id": n.to_string()})).await;
        knock(&ws(&nodes[n % 2], &ticket)).await.later();
    }
    redis.restart_empty().await;
    all_ready(&nodes).await;
    until(
        "somebody is let in long before the old line would end",
        async || {
            let (status, body) = nodes[1].post("/v1/tickets", json!({"user_id": "42"})).await;
            let Some(ticket) = body["ticket"].as_str().filter(|_| status == 200) else {
                return false;
            };
            matches!(knock(&ws(&nodes[1], ticket)).await, Told::Welcome(_))
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_redis_makes_handshakes_slow_and_refuses_none() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::to(redis.port).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let node = node_at(&url, "a", |c| c.limits.fleet_handshakes_per_second = 100).await;
    all_ready(std::slice::from_ref(&node)).await;
    let mut urls = Vec::new();
    for user in 0..4 {
        let ticket = node.ticket(json!({"user_id": user.to_string()})).await;
        urls.push(ws(&node, &ticket));
    }
    let slow = Fault::Delay(Duration::from_millis(400));
    proxy.set(Whom::All, Way::Down, slow);
    // Those that come while a lease is under way wait for that one too.
    for told in join_all(urls.iter().map(|url| knock(url))).await {
        told.welcome();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_or_is_gone_makes_no_handshake_hang() {
    let mut redis = RedisServer::start().await;
    let nodes = fleet(&redis, 1, 10).await;
    let ticket = nodes[0].ticket(json!({"user_id": "42"})).await;
    redis.pause();
    let told = knock(&ws(&nodes[0], &ticket)).await;
    assert!(matches!(told, Told::Refused(code) if code == "unavailable"));
    redis.kill().await;
    let told = knock(&ws(&nodes[0], &ticket)).await;
    assert!(matches!(told, Told::Refused(code) if code == "unavailable"));
    assert!(
        nodes[0]
            .counter("tidings_budget_lease_failures_total")
            .await
            > 0
    );
}
