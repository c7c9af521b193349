//! Goes through the logs once and holds them against each other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::follow::{Follow, Start};
use super::report::{Aftermath, Fault, Report};
use super::{Evidence, Index, order};
use crate::body::Stream;
use crate::clock::Stamp;
use crate::ledger::{Answer, Asked, ClientLog, Event, Push, What};

/// What was found in a run.
pub(crate) fn check(evidence: &Evidence) -> Report {
    let mut audit = Audit {
        evidence,
        index: Index::new(&evidence.pushes),
        report: Report::default(),
        follows: BTreeMap::new(),
        seen: HashSet::new(),
        positions: HashMap::new(),
    };
    audit.report.aftermaths = evidence
        .disturbances
        .iter()
        .map(|d| Aftermath {
            name: d.name,
            keeps: d.keeps,
            told: 0,
            recovery: Duration::ZERO,
            settled: d.settled.map(|at| at.after(d.ended)),
        })
        .collect();
    for client in 0..evidence.clients.len() {
        audit.hear(client);
    }
    audit.tally();
    audit.settle();
    audit.compare();
    for disturbance in evidence.disturbances.iter().filter(|d| d.settled.is_none()) {
        audit.report.fault(Fault::Late, || {
            format!(
                "after \"{}\" at {} not everyone had everything in time",
                disturbance.name, disturbance.began
            )
        });
    }
    audit.report
}

struct Audit<'a> {
    evidence: &'a Evidence,
    index: Index<'a>,
    report: Report,
    /// By stream, the clients that follow it.
    follows: BTreeMap<&'a Stream, Vec<(usize, Follow)>>,
    /// Pushes that somebody saw.
    seen: HashSet<usize>,
    /// Which push has a position, by stream.
    positions: HashMap<(&'a Stream, &'a str), usize>,
}

impl<'a> Audit<'a> {
    /// Takes in all that one client saw.
    fn hear(&mut self, client: usize) {
        let log = &self.evidence.clients[client];
        let mut follows: HashMap<&Stream, Follow> = log
            .follows
            .iter()
            .map(|stream| (stream, Follow::default()))
            .collect();
        for event in &log.events {
            match &event.what {
                What::Opened {
                    stream,
                    asked,
                    position,
                    recovered,
                } => {
                    if let Some(follow) = follows.get_mut(stream) {
                        let start = follow.open(event.at, asked, position.as_deref(), *recovered);
                        self.opened(log, event, start);
                    }
                }
                What::Gap { stream, position } => {
                    if let Some(follow) = follows.get_mut(stream) {
                        follow.lose(event.at, position.as_deref());
                        self.report.gaps += 1;
                        self.told(log, event, stream);
                    }
                }
                What::Message { .. } => self.message(log, event, &mut follows),
                What::GoAway | What::Later { .. } => {}
                What::Again => self.report.again += 1,
                What::Closed { code, why } => {
                    self.report.connections += 1;
                    let code = code.map(|code| format!("{code} ")).unwrap_or_default();
                    *self.report.ends.entry(format!("{code}{why}")).or_default() += 1;
                }
                What::Refused { why } => {
                    self.report.refused_connections += 1;
                    *self.report.refusals.entry(why.clone()).or_default() += 1;
                }
                What::Odd { why } => self.report.fault(Fault::OffTheWire, || {
                    format!("{} at {}: {why}", log.name, event.at)
                }),
            }
        }
        for (stream, follow) in follows {
            self.follows
                .entry(stream)
                .or_default()
                .push((client, follow));
        }
    }

    fn opened(&mut self, log: &ClientLog, event: &Event, start: Start) {
        let What::Opened {
            stream,
            asked,
            position,
            recovered,
        } = &event.what
        else {
            return;
        };
        match recovered {
            Some(true) => self.report.recovered_true += 1,
            Some(false) => {
                self.report.recovered_false += 1;
                self.told(log, event, stream);
            }
            None if *asked == Asked::Position => self.report.fault(Fault::OffTheWire, || {
                format!(
                    "{} resumed {stream} at {} and was not told whether all is there",
                    log.name, event.at
                )
            }),
            None => {}
        }
        if position.is_none() {
            self.report.fault(Fault::OffTheWire, || {
                format!(
                    "{} opened {stream} at {} without a position",
                    log.name, event.at
                )
            });
        }
        match start {
            Start::Right | Start::Told => {}
            Start::Anew => self.report.anew += 1,
            Start::Forgotten { since } => {
                self.report.anew += 1;
                if !self.evidence.may_lose(since, event.at) {
                    self.report.fault(Fault::ToldInVain, || {
                        format!(
                            "{} at {}: its cursor in {stream}, there since {since}, is not known",
                            log.name, event.at
                        )
                    });
                }
            }
            Start::Nowhere => self.report.fault(Fault::OffTheWire, || {
                format!(
                    "{} at {}: the cursor in {stream} stands at {position:?}, which it never saw",
                    log.name, event.at
                )
            }),
        }
    }

    /// A loss was told: it belongs to what was done last, and must have been possible.
    fn told(&mut self, log: &ClientLog, event: &Event, stream: &Stream) {
        let disturbance = self.evidence.disturbance(event.at);
        if let Some(at) = disturbance {
            self.report.aftermaths[at].told += 1;
        }
        let keeps = disturbance.is_none_or(|at| self.evidence.disturbances[at].keeps);
        if keeps && !self.evidence.trimmed {
            let after = disturbance.map_or("nothing", |at| self.evidence.disturbances[at].name);
            self.report.fault(Fault::ToldInVain, || {
                format!(
                    "{} in {stream} at {} after {after}: {:?}",
                    log.name, event.at, event.what
                )
            });
        }
    }

    fn message(
        &mut self,
        log: &ClientLog,
        event: &'a Event,
        follows: &mut HashMap<&Stream, Follow>,
    ) {
        let What::Message {
            stream,
            id,
            position,
            key,
            hash,
        } = &event.what
        else {
            return;
        };
        self.report.seen += 1;
        let told = |what: &str| {
            format!(
                "{}, connection {}, at {}: {id} {what}",
                log.name, event.connection, event.at
            )
        };
        let found = self.index.find(id, key.as_ref());
        let Some(at) = found else {
            self.report
                .fault(Fault::Corrupt, || told("was sent by nobody"));
            return;
        };
        let push = &self.evidence.pushes[at];
        let Some(follow) = follows
            .get_mut(stream)
            .filter(|_| push.key.stream == *stream)
        else {
            self.report.fault(Fault::WrongAudience, || {
                told(&format!("({}) came on {stream}", push.key))
            });
            return;
        };
        if !self.index.is_whole(at, id, key.as_ref(), *hash) {
            self.report.fault(Fault::Corrupt, || {
                told(&format!("is not what was sent as {}: {key:?}", push.key))
            });
        }
        self.seen.insert(at);
        if let Answer::Refused { status } = push.answer {
            self.report.fault(Fault::RefusedButSeen, || {
                told(&format!("({}) was refused with {status}", push.key))
            });
            return;
        }
        match position {
            None => self
                .report
                .fault(Fault::OffTheWire, || told("has no position")),
            Some(position) => {
                let other = *self.positions.entry((stream, position)).or_insert(at);
                if other != at {
                    let other = &self.evidence.pushes[other].key;
                    self.report.fault(Fault::OutOfOrder, || {
                        told(&format!(
                            "({}) is at {position}, and so is {other}",
                            push.key
                        ))
                    });
                }
            }
        }
        if !follow.see(event.at, at, position.as_deref()) {
            self.report.fault(Fault::Doubled, || {
                told(&format!("({}) came again", push.key))
            });
        }
    }

    /// Counts what producers were told.
    fn tally(&mut self) {
        for (at, push) in self.evidence.pushes.iter().enumerate() {
            match &push.answer {
                Answer::Accepted {
                    id,
                    position,
                    durability,
                } => {
                    self.report.accepted += 1;
                    if position.is_none() || durability.is_none() {
                        self.report.fault(Fault::OffTheWire, || {
                            format!(
                                "{id} ({}) was accepted as KEPT with position {position:?} and durability {durability:?}",
                                push.key
                            )
                        });
                    }
                }
                Answer::Refused { .. } => self.report.refused += 1,
                Answer::Unknown => {
                    self.report.unknown += 1;
                    self.report.unknown_seen += u64::from(self.seen.contains(&at));
                }
            }
        }
    }

    /// Holds each push against each client that it was due to.
    fn settle(&mut self) {
        let follows = std::mem::take(&mut self.follows);
        for (at, push) in self.evidence.pushes.iter().enumerate() {
            let due = match &push.answer {
                Answer::Accepted { .. } => true,
                Answer::Refused { .. } => false,
                // It is in the stream if anyone saw it there, unless the stream was set back afterwards.
                Answer::Unknown => {
                    self.seen.contains(&at) && !self.evidence.may_lose(push.begun, push.answered)
                }
            };
            if !due {
                continue;
            }
            let of_stream = follows.get(&push.key.stream);
            for (client, follow) in of_stream.into_iter().flatten() {
                if follow.since.is_some_and(|since| since < push.begun) {
                    self.report.due += 1;
                    self.due(at, push, *client, follow);
                }
            }
        }
        self.follows = follows;
    }

    fn due(&mut self, at: usize, push: &Push, client: usize, follow: &Follow) {
        let log = &self.evidence.clients[client];
        let seen = follow.first.get(&at).copied();
        // The first loss that it was told of afterwards is the one that may cover it, if it came in time: that of a later
        // disturbance is no answer to this one.
        let told = follow.told.iter().copied().find(|told| *told > push.begun);
        let over = self.evidence.disturbance(push.begun);
        let over = over.map_or(push.begun, |d| self.evidence.disturbances[d].ended);
        let told = told.filter(|told| told.after(push.begun.max(over)) <= self.evidence.bound);
        let Some(known) = seen.or(told.filter(|told| self.covers(push, follow, *told))) else {
            self.report.fault(Fault::LostInSilence, || {
                let told =
                    told.map(|told| format!("; a loss was told at {told}, after what came later"));
                format!(
                    "{} ({:?}, begun {}, answered {}) at {}{}",
                    push.key,
                    push.answer,
                    push.begun,
                    push.answered,
                    log.name,
                    told.unwrap_or_default()
                )
            });
            return;
        };
        if seen.is_none() {
            self.report.excused += 1;
        }
        let disturbance = self.evidence.disturbance(known);
        let ended = disturbance.map_or(Stamp(0), |d| self.evidence.disturbances[d].ended);
        let late = known.after(push.begun.max(ended));
        if let Some(d) = disturbance.filter(|_| push.begun < ended) {
            let recovery = &mut self.report.aftermaths[d].recovery;
            *recovery = late.max(*recovery);
        }
        self.report.slowest = late.max(self.report.slowest);
        if late > self.evidence.bound {
            self.report.fault(Fault::Late, || {
                format!(
                    "{} (begun {}) at {}: known at {known}",
                    push.key, push.begun, log.name
                )
            });
        }
    }

    /// Whether a loss that was told accounts for a push. Where nothing can have been lost it must have been told before
    /// anything later came; after a loss the nodes may find out a little later, but tell they must.
    fn covers(&self, push: &Push, follow: &Follow, told: Stamp) -> bool {
        if self.evidence.may_lose(push.begun, told) && !self.evidence.trimmed {
            return true;
        }
        let before = follow.sightings.iter().take_while(|(at, _)| *at < told);
        !before.into_iter().any(|(_, seen)| {
            let seen = &self.evidence.pushes[*seen];
            matches!(seen.answer, Answer::Accepted { .. }) && seen.begun > push.answered
        })
    }

    /// Holds what the clients of each stream saw against each other.
    fn compare(&mut self) {
        for (stream, follows) in &self.follows {
            let runs = || follows.iter().flat_map(|(_, follow)| &follow.runs);
            for (client, follow) in follows {
                let name = &self.evidence.clients[*client].name;
                for run in &follow.runs {
                    for (before, after) in order::inversions(&self.evidence.pushes, run) {
                        let (before, after) =
                            (&self.evidence.pushes[before], &self.evidence.pushes[after]);
                        self.report.fault(Fault::OutOfOrder, || {
                            format!("{name} saw {} before {}", before.key, after.key)
                        });
                    }
                }
            }
            for at in order::contradictions(runs().map(Vec::as_slice)) {
                let key = &self.evidence.pushes[at].key;
                self.report.fault(Fault::OutOfOrder, || {
                    format!("clients of {stream} differ in where {key} comes")
                });
            }
        }
    }
}
