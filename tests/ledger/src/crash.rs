//! The crash: one of three nodes is killed. Nobody told its clients to go, so the fleet's budget decides when each of
//! them is back.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::clock::Stamp;
use crate::fleet::Result;
use crate::scene::{Folder, Load, Outcome, Scene, in_line, millis, pushes, rate, seconds, three};
use crate::spans::{Span, quantile};
use crate::verdict::Verdict;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crash {
    load: Load,
    /// Handshakes a second, of all nodes together.
    budget: u32,
    /// How long publishers are watched before the blow.
    calm: Duration,
    /// How late clients may be for their welcomes, in a bunch, on a machine that does other things. Where they may not, all
    /// figures of time decide.
    late: Duration,
}

/// Which of the nodes is killed.
const KILLED: usize = 1;

impl Crash {
    /// The long form.
    pub(crate) fn long(seed: u64, clients: usize) -> Self {
        Self {
            load: Load {
                seed,
                obeying: clients,
                stubborn: 0,
                pushes_per_second: 300,
                stands_back: true,
                arrivals_per_second: 250,
            },
            budget: 300,
            calm: Duration::from_secs(15),
            late: Duration::ZERO,
        }
    }

    /// Half a minute, with few clients.
    pub(crate) fn short(seed: u64) -> Self {
        Self {
            load: Load {
                seed,
                obeying: 300,
                stubborn: 0,
                pushes_per_second: 100,
                stands_back: false,
                arrivals_per_second: 14,
            },
            // So few that the third that is cut cannot be back at once.
            budget: 15,
            calm: Duration::from_secs(3),
            late: Duration::from_millis(400),
        }
    }
}

/// Runs it and prints the table; false if a promise was broken.
pub(crate) async fn run(binary: &Path, crash: Crash) -> Result<bool> {
    let folder = Folder::new()?;
    let result = within(binary, &folder.path(), crash).await;
    folder.keep_unless(matches!(result, Ok(true)), crash.load.seed);
    result
}

/// When it came.
#[derive(Debug, Clone, Copy)]
struct Blow {
    calm_from: Stamp,
    at: Stamp,
    /// Everyone was back, and had everything.
    settled: Stamp,
}

async fn within(binary: &Path, folder: &Path, crash: Crash) -> Result<bool> {
    let began = Instant::now();
    let nodes = ["a", "b", "c"].map(|name| (name, binary));
    let limits = format!("[limits]\nfleet_handshakes_per_second = {}\n", crash.budget);
    let mut scene = Scene::build(&nodes, folder, crash.load, limits).await?;
    scene.gather().await?;
    scene.publish();
    // The first calls make the connections.
    sleep(Duration::from_secs(1)).await;
    let calm_from = scene.now();
    sleep(crash.calm).await;
    let at = scene.now();
    scene.nodes[KILLED].kill()?;
    println!(
        "{:>9}  node {} is killed",
        at.to_string(),
        scene.nodes[KILLED].name
    );
    let due = Duration::from_secs(crash.load.clients() as u64 / u64::from(crash.budget));
    let settled = scene.settle(due * 4 + Duration::from_secs(60)).await?;
    println!("{:>9}  everyone is back", settled.to_string());
    let blow = Blow {
        calm_from,
        at,
        settled,
    };
    // As long as it was watched before, if they were back sooner.
    sleep(crash.calm.saturating_sub(settled.after(at))).await;
    let outcome = scene.finish().await;
    let mut verdict = judge(&outcome, &crash, blow);
    verdict.figure("the whole run took", seconds(began.elapsed()));
    Ok(verdict.tell(&outcome.report, crash.load.seed))
}

fn judge(outcome: &Outcome, crash: &Crash, blow: Blow) -> Verdict {
    let mut verdict = Verdict::default();
    pushes(&mut verdict, outcome);
    let spans = || outcome.clients.iter().flat_map(|client| &client.spans);
    let cut = spans().filter(|span| span.end.is_some_and(|end| end >= blow.at));
    let cut = cut.count();
    verdict.promise("connections that were cut", cut, cut > 0);
    verdict.nothing(
        "refused at their slot, as the ticket was gone",
        refused(outcome, "ticket"),
    );
    let later = outcome.clients.iter().flat_map(|client| &client.told_later);
    let later = later.filter(|at| **at >= blow.at).count();
    // Else there was no crowd, and nothing proves that the budget held.
    verdict.promise("told to come later", later, later > 0);

    let all = spans().map(|span| span.welcome);
    let mut back: Vec<Stamp> = all.filter(|at| *at > blow.at).collect();
    back.sort_unstable();
    in_line(&mut verdict, &back, blow.at, crash.budget);
    // How late clients come is theirs, on a machine that is busy with them: the line is when the fleet has them come.
    let returned = || spans().filter(|span| span.welcome > blow.at);
    let due = returned().map(Span::due).collect();
    rate(&mut verdict, due, crash.budget, crash.late);
    let late = returned().filter_map(|span| Some(span.welcome.after(span.slot?)));
    let mut late: Vec<_> = late.collect();
    verdict.figure("later than their slots, p50, p99, most", three(&mut late));
    verdict.figure("welcomes by second", by_second(&back, blow.at));
    let took = back
        .last()
        .map_or(Duration::ZERO, |last| last.after(blow.at));
    let due = Duration::from_secs_f64(cut as f64 / f64::from(crash.budget));
    verdict.figure("all were back after", seconds(took));
    let ratio = took.as_secs_f64() / due.as_secs_f64().max(f64::EPSILON);
    timed(
        &mut verdict,
        crash,
        "  of clients / budget",
        format!("{} x {ratio:.2}", seconds(due)),
        ratio <= 1.5,
    );
    verdict.figure(
        "everyone had everything after",
        seconds(blow.settled.after(blow.at)),
    );

    let took = |from: Stamp, to: Stamp| {
        let paid = outcome.answers.paid.iter();
        let paid = paid.filter(|paid| (from..to).contains(&paid.due));
        paid.map(|paid| paid.took).collect::<Vec<_>>()
    };
    let mut calm = took(blow.calm_from, blow.at);
    let watched = blow
        .settled
        .max(Stamp(blow.at.0 + crash.calm.as_micros() as u64));
    let mut after = took(blow.at, watched);
    let [calm, after] = [&mut calm, &mut after].map(|times| quantile(times, 0.99));
    verdict.figure("publishers' p99, calm", millis(calm));
    let ratio = after.as_secs_f64() / calm.as_secs_f64().max(f64::EPSILON);
    timed(
        &mut verdict,
        crash,
        "publishers' p99, from the blow on",
        format!("{} x {ratio:.2}", millis(after)),
        ratio < 2.0,
    );
    let by_second = (0..watched.after(blow.at).as_secs()).map(|second| {
        let [from, to] = [second, second + 1].map(|at| Stamp(blow.at.0 + at * 1_000_000));
        format!(
            "{:.0}",
            quantile(&mut took(from, to), 0.99).as_secs_f64() * 1e3
        )
    });
    let by_second: Vec<_> = by_second.collect();
    verdict.figure("  by second, in ms", by_second.join(" "));
    verdict
}

/// A figure of time, which is a promise only where nothing else takes the machine's time.
fn timed(verdict: &mut Verdict, crash: &Crash, name: &str, value: String, kept: bool) {
    match crash.late.is_zero() {
        true => verdict.promise(name, value, kept),
        false => verdict.figure(name, value),
    }
}

/// How many handshakes were refused with a code.
fn refused(outcome: &Outcome, code: &str) -> u64 {
    let refusals = &outcome.report.refusals;
    refusals
        .get(&format!("refused: {code}"))
        .copied()
        .unwrap_or_default()
}

fn by_second(welcomes: &[Stamp], from: Stamp) -> String {
    let mut counts: Vec<usize> = Vec::new();
    for at in welcomes {
        let second = at.after(from).as_secs() as usize;
        counts.resize(counts.len().max(second + 1), 0);
        counts[second] += 1;
    }
    let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
    counts.join(" ")
}
