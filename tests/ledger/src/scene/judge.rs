//! What every run on a scene is held to: each push is answered, and what was accepted is what was seen.

use std::time::Duration;

use super::Outcome;
use crate::checker::Fault;
use crate::clock::Stamp;
use crate::spans::{busiest, quantile};
use crate::verdict::Verdict;

/// What became of the pushes.
pub(crate) fn pushes(verdict: &mut Verdict, outcome: &Outcome) {
    let report = &outcome.report;
    verdict.figure("pushes accepted", report.accepted);
    for (said, calls) in &outcome.answers.calls {
        verdict.figure(&format!("  calls answered: {said}"), calls);
    }
    verdict.nothing("pushes refused", report.refused);
    verdict.nothing("pushes that nobody answered", report.unknown);
    // Of nothing, nothing can be lost.
    verdict.promise("due to clients", report.due, report.due > 0);
    verdict.figure("dropped by clients by the id", report.again);
    for fault in Fault::ALL {
        verdict.nothing(&fault.to_string(), report.count(fault));
    }
    let all = if outcome.settled { "yes" } else { "no" };
    verdict.promise("everyone had everything in the end", all, outcome.settled);
    let told = report.gaps + report.recovered_false;
    verdict.nothing("told of a loss", told);
}

/// A tenth of a second's worth may come at once, a node may hold a fiftieth of a second's, and a handshake goes on for a
/// while after it got its token; a longer time has no more of that than a short one.
const SLACK: Duration = Duration::from_millis(600);

/// How many handshakes a budget has for a time.
fn most(budget: u32, time: Duration) -> f64 {
    f64::from(budget) * (time + SLACK).as_secs_f64()
}

/// How fast clients were let in: no faster than the budget. On a machine that does other things clients may be `late` for
/// their welcomes, in a bunch; where they are not, a second decides too.
pub(crate) fn rate(verdict: &mut Verdict, mut entries: Vec<Stamp>, budget: u32, late: Duration) {
    for seconds in [1, 5] {
        let time = Duration::from_secs(seconds);
        let count = busiest(&mut entries, time);
        let name = format!("let in, in the busiest {seconds} s, of the budget");
        let value = format!("{count} of {}", u64::from(budget) * seconds);
        match late.is_zero() || seconds > 1 {
            true => verdict.promise(&name, value, count as f64 <= most(budget, time + late)),
            false => verdict.figure(&name, value),
        }
    }
}

/// However late some are in a bunch: none of those who were welcome since then may be there before the budget has come to it.
pub(crate) fn in_line(verdict: &mut Verdict, welcomes: &[Stamp], since: Stamp, budget: u32) {
    let mut welcomes: Vec<Stamp> = welcomes.iter().copied().filter(|at| *at > since).collect();
    welcomes.sort_unstable();
    let early = welcomes.iter().zip(1_u32..);
    let early = early.filter(|(at, nth)| f64::from(*nth) > most(budget, at.after(since)));
    let name = "welcomes before the budget came to them";
    verdict.nothing(name, early.count() as u64);
}

/// The middle one, one in a hundred, and the longest.
pub(crate) fn three(times: &mut [Duration]) -> String {
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|part| millis(quantile(times, part)));
    format!("{p50}, {p99}, {most}")
}

pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
