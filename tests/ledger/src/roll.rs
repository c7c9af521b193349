//! The roll: three nodes behind a HAProxy are replaced one after the other, under load, and nobody notices.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fleet::Result;
use crate::scene::{Folder, Load, Outcome, Scene, millis, pushes, seconds, three};
use crate::spans::{Span, Step, busiest, ends, quantile, steps};
use crate::verdict::Verdict;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Roll {
    load: Load,
    /// Handshakes a second, of all nodes together.
    budget: u32,
    deregister_delay: Duration,
    spread: Duration,
    grace: Duration,
    /// Before the first, between two and after the last.
    calm: Duration,
}

impl Roll {
    /// The long form.
    pub(crate) fn long(seed: u64, obeying: usize, stubborn: usize) -> Self {
        Self {
            load: Load {
                seed,
                obeying,
                stubborn,
                pushes_per_second: 500,
                arrivals_per_second: 150,
            },
            budget: 200,
            deregister_delay: Duration::from_secs(5),
            spread: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            calm: Duration::from_secs(5),
        }
    }

    /// A minute at most, with few clients.
    pub(crate) fn short(seed: u64) -> Self {
        Self {
            load: Load {
                seed,
                obeying: 500,
                stubborn: 50,
                pushes_per_second: 100,
                arrivals_per_second: 80,
            },
            budget: 100,
            deregister_delay: Duration::from_millis(1500),
            spread: Duration::from_secs(5),
            grace: Duration::from_secs(2),
            calm: Duration::from_secs(1),
        }
    }

    fn configuration(&self) -> String {
        let ms = |duration: Duration| duration.as_millis();
        format!(
            r#"[limits]
handshakes_per_second = {}
[drain]
deregister_delay = "{}ms"
spread = "{}ms"
grace = "{}ms"
"#,
            self.budget,
            ms(self.deregister_delay),
            ms(self.spread),
            ms(self.grace),
        )
    }

    /// How long a node may take to leave: what is configured, and time for calls in flight.
    fn most(&self) -> Duration {
        self.deregister_delay + self.spread + self.grace + Duration::from_secs(30)
    }
}

/// Runs it and prints the table; false if a promise was broken.
pub(crate) async fn run(binary: &Path, roll: Roll) -> Result<bool> {
    let folder = Folder::new()?;
    let result = within(binary, &folder.path(), roll).await;
    folder.keep_unless(matches!(result, Ok(true)), roll.load.seed);
    result
}

async fn within(binary: &Path, folder: &Path, roll: Roll) -> Result<bool> {
    let began = Instant::now();
    let nodes = ["a", "b", "c"].map(|name| (name, binary));
    let mut scene = Scene::build(&nodes, folder, roll.load, roll.configuration()).await?;
    println!(
        "{:>9}  3 nodes behind HAProxy, {} clients that obey and {} that do not are connected",
        scene.now().to_string(),
        roll.load.obeying,
        roll.load.stubborn,
    );
    scene.publish();
    sleep(roll.calm).await;
    let mut left = Vec::new();
    for at in 0..scene.nodes.len() {
        left.push(replace(&mut scene, at, &roll).await?);
        sleep(roll.calm).await;
    }
    let outcome = scene.finish().await;
    let mut verdict = judge(&outcome, &roll);
    for (node, took) in left {
        verdict.figure(&format!("node {node} left within"), seconds(took));
    }
    verdict.figure("the whole run took", seconds(began.elapsed()));
    Ok(verdict.tell(&outcome.report, roll.load.seed))
}

/// As a deploy does it: SIGTERM, wait for the end, start the successor, wait until the balancer sends clients there.
async fn replace(scene: &mut Scene, at: usize, roll: &Roll) -> Result<(String, Duration)> {
    let name = scene.nodes[at].name.clone();
    println!(
        "{:>9}  node {name} is told to leave",
        scene.now().to_string()
    );
    let took = scene.nodes[at].leave(roll.most()).await?;
    println!("{:>9}  node {name} has left", scene.now().to_string());
    scene.nodes[at].restart().await?;
    scene.haproxy.until(&name, true).await?;
    println!("{:>9}  its successor is up", scene.now().to_string());
    Ok((name, took))
}

fn judge(outcome: &Outcome, roll: &Roll) -> Verdict {
    let mut verdict = Verdict::default();
    pushes(&mut verdict, outcome);
    let all = || outcome.clients.iter().flat_map(|(_, spans)| spans);
    let cut = all().filter(|span| span.end.is_some() && span.code.is_none());
    verdict.nothing("closes with 1006", cut.count() as u64);
    obeying(&mut verdict, outcome);
    stubborn(&mut verdict, outcome);
    let mut welcomes: Vec<_> = all().map(|span| span.welcome).collect();
    let busiest = busiest(&mut welcomes, Duration::from_secs(1));
    verdict.promise(
        "welcomes in the busiest second",
        format!("{busiest} of {}", roll.budget),
        busiest <= roll.budget as usize,
    );
    for (end, count) in ends(all()) {
        verdict.figure(&format!("  ended: {end:.40}"), count);
    }
    verdict
}

fn obeying(verdict: &mut Verdict, outcome: &Outcome) {
    let clients = || outcome.clients.iter().filter(|(obeys, _)| *obeys);
    let spans = || clients().flat_map(|(_, spans)| spans);
    let unasked = spans().filter(|span| span.end.is_some() && !span.told);
    let still = clients().filter(|(_, spans)| !spans.iter().any(|span| span.told));
    let mut overlaps = Vec::new();
    let mut blackouts = Vec::new();
    for step in clients().flat_map(|(_, spans)| steps(spans, outcome.over)) {
        match step {
            Step::Overlap(time) => overlaps.push(time),
            Step::Blackout(time) => blackouts.push(time),
        }
    }
    verdict.figure(
        "moves of clients that obey",
        overlaps.len() + blackouts.len(),
    );
    // Every node is replaced, so everyone has to move: else the rest proves nothing.
    verdict.nothing("clients that obey and never moved", still.count() as u64);
    verdict.nothing(
        "their connections that ended unasked",
        unasked.count() as u64,
    );
    verdict.nothing("moves with a blackout", blackouts.len() as u64);
    verdict.promise(
        "longest blackout of a client that obeys",
        millis(quantile(&mut blackouts, 1.0)),
        blackouts.is_empty(),
    );
    verdict.figure(
        "both connections open, p50, p99, most",
        three(&mut overlaps),
    );
}

fn stubborn(verdict: &mut Verdict, outcome: &Outcome) {
    let clients = outcome.clients.iter().filter(|(obeys, _)| !*obeys);
    let steps = clients.flat_map(|(_, spans): &(bool, Vec<Span>)| steps(spans, outcome.over));
    let mut blackouts: Vec<_> = steps
        .map(|step| match step {
            Step::Overlap(_) => Duration::ZERO,
            Step::Blackout(time) => time,
        })
        .collect();
    verdict.figure("moves of clients that do not obey", blackouts.len());
    verdict.figure(
        "  without a connection, p50, p99, most",
        three(&mut blackouts),
    );
}
