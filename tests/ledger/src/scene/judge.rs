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

/// How fast clients were welcome: no faster than the budget. What a node was given may be used half a second later, and a
/// tenth of a second's worth may be used at once; a longer time has no more of that than a short one.
/// `strict` = the machine has nothing else to do, so that clients are not late in a bunch.
pub(crate) fn rate(verdict: &mut Verdict, mut welcomes: Vec<Stamp>, budget: u32, strict: bool) {
    for seconds in [1, 5] {
        let most = busiest(&mut welcomes, Duration::from_secs(seconds)) as u64;
        let budget = u64::from(budget) * seconds;
        let slack = budget * 6 / 10 / seconds;
        let name = format!("welcomes in the busiest {seconds} s, of the budget");
        let value = format!("{most} of {budget}");
        match strict || seconds > 1 {
            true => verdict.promise(&name, value, most <= budget + slack),
            false => verdict.figure(&name, value),
        }
    }
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
