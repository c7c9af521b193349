//! A node that stands still for seconds, as a machine that is paused does, and the fleet's handshake budget.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::json;

use crate::budget::{Told, knock, ws};
use crate::support::process::{Running, dev};
use crate::support::redis::RedisServer;
use crate::support::{TestNode, until};

/// Handshakes a second, of both nodes.
const RATE: u32 = 100;
/// How long one stands still.
const FROZEN: Duration = Duration::from_secs(3);

async fn node(redis: &RedisServer, name: &str) -> Running {
    let mut command = dev();
    for set in [
        format!("node.id={name}"),
        "backplane.kind=redis".into(),
        format!("backplane.url={}", redis.url()),
        "limits.handshakes_per_second=0".into(),
        format!("limits.fleet_handshakes_per_second={RATE}"),
    ] {
        command.args(["--set", &set]);
    }
    let running = Running::start(&mut command).await;
    until("it is ready", async || running.node.readyz().await.0 == 200).await;
    running
}

/// Tokens that a node holds for handshakes to come.
async fn held(node: &TestNode) -> u64 {
    let used = node.counter("tidings_handshakes_total").await;
    let expired = node.counter("tidings_budget_expired_total").await;
    let leased = node.counter("tidings_budget_leased_total").await;
    leased - expired - used
}

/// When it was let in, if it was.
async fn let_in(node: &TestNode, ticket: &str) -> Option<Instant> {
    match knock(&ws(node, ticket)).await {
        Told::Welcome(_) => Some(Instant::now()),
        Told::Later(_) => None,
        // A lease that came too late for it.
        Told::Refused(code) if code == "unavailable" => None,
        Told::Refused(code) => panic!("refused: {code}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stood_still_for_seconds_has_saved_no_tokens_up() {
    let redis = RedisServer::start().await;
    let (frozen, awake) = (node(&redis, "frozen").await, node(&redis, "awake").await);
    let ticket = async || awake.node.ticket(json!({"user_id": "42"})).await;
    // Where handshakes keep coming a node leases a few tokens ahead. At half of the rate: who is told a slot takes from what
    // there is later.
    let pause = Duration::from_secs(2) / RATE;
    let mut ahead = 0;
    until("it holds some", async || {
        for _ in 0..5 {
            let_in(&frozen.node, &ticket().await).await;
            tokio::time::sleep(pause).await;
        }
        ahead = held(&frozen.node).await;
        ahead > 0
    })
    .await;
    let expired = async || frozen.node.counter("tidings_budget_expired_total").await;
    let before = expired().await;
    frozen.signal(Signal::STOP);
    let stood = Instant::now();
    // As many wait for it as it could have saved up for, and more. Tickets that last, as none comes for long.
    let crowd = (RATE * FROZEN.as_secs() as u32 + 100) as usize;
    let mut tickets = Vec::new();
    for _ in 0..crowd {
        tickets.push(ticket().await);
    }
    let waiting = tickets.iter().map(|ticket| let_in(&frozen.node, ticket));
    let thawing = async {
        // The other one goes on meanwhile.
        while stood.elapsed() < FROZEN {
            let_in(&awake.node, &ticket().await).await;
            tokio::time::sleep(pause).await;
        }
        let thawed = Instant::now();
        frozen.signal(Signal::CONT);
        let late: Vec<_> = join_all((0..20).map(async |_| ticket().await)).await;
        let late = late.iter().map(|ticket| let_in(&awake.node, ticket));
        (thawed, join_all(late).await)
    };
    let (crowd, (thawed, late)) = tokio::join!(join_all(waiting), thawing);
    let mut times: Vec<Instant> = crowd.into_iter().chain(late).flatten().collect();
    times.sort_unstable();
    // A tenth of a second's worth may come at once, and the other one holds some of its own.
    let at_once = f64::from(RATE) / 10.0 + f64::from(RATE) / 50.0 + 1.0;
    for (nth, at) in times.iter().enumerate() {
        // However late it was seen: no more got in by then than the budget allows.
        let most = (*at - thawed).as_secs_f64() * f64::from(RATE) + at_once;
        assert!(
            (nth as f64) < most,
            "{nth} of {} in {:?}",
            times.len(),
            *at - thawed
        );
    }
    let lost = expired().await - before;
    assert!(
        lost >= ahead,
        "it used {ahead} that it held when it stood still: {lost} expired"
    );
}
