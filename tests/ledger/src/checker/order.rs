//! Whether what clients saw of one stream is one order, and that in which it was accepted.

use std::collections::{HashMap, HashSet};

use crate::ledger::{Answer, Push};

/// Pairs in one run of sightings that were accepted one after the other and seen the other way round: the later was begun
/// when the earlier had been answered. A producer's own numbers are such pairs, since it waits for each answer.
pub(super) fn inversions(pushes: &[Push], run: &[usize]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut latest: Option<usize> = None;
    for at in run {
        let push = &pushes[*at];
        if !matches!(push.answer, Answer::Accepted { .. }) {
            continue;
        }
        match latest {
            Some(before) if pushes[before].begun > push.answered => found.push((before, *at)),
            _ => {}
        }
        if latest.is_none_or(|before| pushes[before].begun < push.begun) {
            latest = Some(*at);
        }
    }
    found
}

/// Pushes that no single order can hold: each is in, or between, circles of "one client saw this before that".
pub(super) fn contradictions<'a>(runs: impl Iterator<Item = &'a [usize]>) -> Vec<usize> {
    let mut after: HashMap<usize, HashSet<usize>> = HashMap::new();
    for run in runs {
        for pair in run.windows(2) {
            after.entry(pair[0]).or_default().insert(pair[1]);
        }
    }
    // What nothing comes before, and then what nothing comes after, is in no circle.
    for _ in 0..2 {
        after = reversed(&without_firsts(after));
    }
    let mut left: Vec<usize> = after.into_keys().collect();
    left.sort_unstable();
    left
}

/// Takes away, again and again, what nothing comes before.
fn without_firsts(mut after: HashMap<usize, HashSet<usize>>) -> HashMap<usize, HashSet<usize>> {
    let mut before: HashMap<usize, usize> = HashMap::new();
    for next in after.values().flatten() {
        *before.entry(*next).or_default() += 1;
    }
    let mut firsts: Vec<usize> = after
        .keys()
        .filter(|at| !before.contains_key(at))
        .copied()
        .collect();
    while let Some(first) = firsts.pop() {
        for next in after.remove(&first).into_iter().flatten() {
            if let Some(count) = before.get_mut(&next) {
                *count -= 1;
                if *count == 0 {
                    before.remove(&next);
                    firsts.push(next);
                }
            }
        }
    }
    after
}

fn reversed(after: &HashMap<usize, HashSet<usize>>) -> HashMap<usize, HashSet<usize>> {
    let mut before: HashMap<usize, HashSet<usize>> = HashMap::new();
    for (at, nexts) in after {
        for next in nexts {
            before.entry(*next).or_default().insert(*at);
        }
    }
    before
}
