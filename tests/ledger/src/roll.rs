//! The roll: three nodes behind a HAProxy are replaced one after the other, under load, and nobody notices.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::clock::Stamp;
use crate::fleet::Result;
use crate::scene::{
    Client, Folder, Load, Outcome, Scene, in_line, millis, pushes, rate, seconds, three,
};
use crate::spans::{Span, Step, ends, quantile, steps};
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
    /// Whether it begins when a third of the clients is there, and the rest is coming.
    early: bool,
    /// How long Redis stands still while each node's clients go.
    pub(crate) freeze: Duration,
    /// How late clients may be for their welcomes, in a bunch, on a machine that does other things.
    late: Duration,
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
                stands_back: false,
                arrivals_per_second: 150,
            },
            budget: 200,
            deregister_delay: Duration::from_secs(5),
            spread: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            calm: Duration::from_secs(5),
            early: false,
            freeze: Duration::ZERO,
            late: Duration::ZERO,
        }
    }

    /// A minute and a half, with few clients.
    pub(crate) fn short(seed: u64) -> Self {
        Self {
            load: Load {
                seed,
                obeying: 500,
                stubborn: 50,
                pushes_per_second: 100,
                // Twice of what is let in: else the budget would be kept without anybody who keeps it.
                stands_back: false,
                arrivals_per_second: 120,
            },
            budget: 60,
            // HAProxy looks each second, and believes the second look.
            deregister_delay: Duration::from_secs(3),
            spread: Duration::from_secs(4),
            // Who is told to come later is told 1 to 5 s, and has a second try.
            grace: Duration::from_secs(6),
            calm: Duration::from_secs(1),
            early: false,
            freeze: Duration::ZERO,
            late: Duration::from_millis(1400),
        }
    }

    /// Begins when a third of the clients is there. The others come so slowly that there is room for who moves.
    pub(crate) fn early(mut self) -> Self {
        let room = self.budget * 3 / 4;
        self.load.arrivals_per_second = self.load.arrivals_per_second.min(room);
        self.early = true;
        self
    }

    fn configuration(&self) -> String {
        let ms = |duration: Duration| duration.as_millis();
        format!(
            r#"[limits]
fleet_handshakes_per_second = {}
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
    match roll.early {
        true => sleep(roll.load.arriving() / 3).await,
        false => scene.gather().await?,
    }
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
    let pause = async {
        if !roll.freeze.is_zero() {
            sleep(roll.deregister_delay + roll.spread / 2).await;
            scene.redis.freeze()?;
            sleep(roll.freeze).await;
            scene.redis.thaw()?;
        }
        Result::Ok(())
    };
    let (took, paused) = tokio::join!(scene.nodes[at].leave(roll.most()), pause);
    paused?;
    let took = took?;
    println!("{:>9}  node {name} has left", scene.now().to_string());
    scene.nodes[at].restart().await?;
    scene.haproxy.until(&name, true).await?;
    println!("{:>9}  its successor is up", scene.now().to_string());
    Ok((name, took))
}

fn judge(outcome: &Outcome, roll: &Roll) -> Verdict {
    let mut verdict = Verdict::default();
    let report = &outcome.report;
    pushes(&mut verdict, outcome);
    let all = || outcome.clients.iter().flat_map(|client| &client.spans);
    let cut = all().filter(|span| span.end.is_some() && span.code.is_none());
    verdict.nothing("closes with 1006", cut.count() as u64);
    obeying(&mut verdict, outcome, roll.freeze.is_zero());
    stubborn(&mut verdict, outcome);
    let welcomes: Vec<_> = all().map(|span| span.welcome).collect();
    // The clock begins when the first sets out.
    in_line(&mut verdict, &welcomes, Stamp(0), roll.budget);
    rate(&mut verdict, welcomes, roll.budget, roll.late);
    for (end, count) in ends(all()) {
        verdict.figure(&format!("  ended: {end:.40}"), count);
    }
    verdict.figure(
        "connections that could not be had",
        report.refused_connections,
    );
    for (why, count) in &report.refusals {
        verdict.figure(&format!("  {why:.46}"), count);
    }
    verdict
}

/// `open` = while Redis stands still no ticket can be redeemed, and a node that leaves does not wait for ever: then a client
/// may be without a connection for a while.
fn obeying(verdict: &mut Verdict, outcome: &Outcome, open: bool) {
    let clients = || outcome.clients.iter().filter(|client| client.obeys);
    let spans = || clients().flat_map(|client| client.spans.iter().map(move |span| (client, span)));
    let still = clients().filter(|client| !client.spans.iter().any(|span| span.told));
    let mut overlaps = Vec::new();
    let mut blackouts = Vec::new();
    let mut dark = Vec::new();
    for client in clients() {
        for (span, step) in steps(&client.spans, outcome.over) {
            match step {
                Step::Overlap(time) => overlaps.push(time),
                Step::Blackout(time) => {
                    blackouts.push(time);
                    dark.push(format!(
                        "{}: {span}, then {} without",
                        client.name,
                        millis(time)
                    ));
                }
            }
        }
    }
    let moves = overlaps.len() + blackouts.len();
    verdict.figure("moves of clients that obey", moves);
    // Every node is replaced, so everyone has to move: else the rest proves nothing.
    verdict.nothing("clients that obey and never moved", still.count() as u64);
    let unasked = || spans().filter(|(_, span)| span.end.is_some() && !span.told);
    let name = "their connections that ended unasked";
    verdict.nothing(name, unasked().count() as u64);
    let told = |(client, span): (&Client, &Span)| format!("{}: {span}", client.name);
    verdict.examples(name, unasked().map(told));
    let none = blackouts.is_empty() || !open;
    verdict.promise("moves with a blackout", blackouts.len(), none);
    let longest = millis(quantile(&mut blackouts, 1.0));
    verdict.promise("longest blackout of a client that obeys", longest, none);
    if !none {
        verdict.examples("moves with a blackout", dark.into_iter());
    }
    verdict.figure(
        "both connections open, p50, p99, most",
        three(&mut overlaps),
    );
}

fn stubborn(verdict: &mut Verdict, outcome: &Outcome) {
    let clients = outcome.clients.iter().filter(|client| !client.obeys);
    let steps = clients.flat_map(|client| steps(&client.spans, outcome.over));
    let mut blackouts: Vec<_> = steps
        .map(|(_, step)| match step {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Report;
    use crate::publisher::Answers;

    fn at(ms: u64) -> Stamp {
        Stamp(ms * 1000)
    }

    fn span(welcome: u64, end: Option<u64>, code: Option<u16>, told: bool) -> Span {
        Span {
            slot: None,
            welcome: at(welcome),
            end: end.map(at),
            code,
            why: String::new(),
            told,
        }
    }

    /// What is broken in a roll in which a client that obeys had these connections.
    fn broken(spans: Vec<Span>) -> Vec<String> {
        let mut report = Report::default();
        report.due = 1;
        let outcome = Outcome {
            report,
            clients: vec![Client {
                name: "u0".into(),
                obeys: true,
                spans,
                told_later: Vec::new(),
            }],
            answers: Answers::default(),
            over: at(100_000),
            settled: true,
        };
        judge(&outcome, &Roll::long(1, 1, 0)).broken()
    }

    #[test]
    fn a_client_that_moved_before_its_old_connection_ended_is_as_promised() {
        let moved = vec![
            span(0, Some(5_010), Some(1000), true),
            span(5_000, None, None, false),
        ];
        assert_eq!(broken(moved), Vec::<String>::new());
    }

    #[test]
    fn a_node_that_closes_without_a_goaway_is_found() {
        let closed = vec![
            span(0, Some(5_000), Some(1012), false),
            span(5_001, None, None, false),
        ];
        let found = [
            "clients that obey and never moved",
            "their connections that ended unasked",
            "moves with a blackout",
            "longest blackout of a client that obeys",
        ];
        assert_eq!(broken(closed), found);
    }

    #[test]
    fn a_connection_that_was_cut_is_found_though_the_client_had_another() {
        let cut = vec![
            span(0, Some(5_010), None, true),
            span(5_000, None, None, false),
        ];
        assert_eq!(broken(cut), ["closes with 1006"]);
    }

    #[test]
    fn a_crowd_that_comes_faster_than_the_budget_is_found() {
        let mut crowd: Vec<Span> = (0..2_000)
            .map(|n| span(n, Some(n + 1_000), Some(1000), true))
            .collect();
        crowd.push(span(500, None, None, false));
        assert_eq!(
            broken(crowd),
            [
                "welcomes before the budget came to them",
                "let in, in the busiest 1 s, of the budget",
                "let in, in the busiest 5 s, of the budget"
            ]
        );
    }
}
