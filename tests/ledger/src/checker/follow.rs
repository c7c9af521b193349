//! One client on one stream: what it saw, between one loss that it was told of and the next.

use std::collections::{HashMap, HashSet};

use crate::clock::Stamp;
use crate::ledger::Asked;

/// Where a connection starts in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Where the client was.
    Right,
    /// After a loss, which was told.
    Told,
    /// Where anyone would: its device has no cursor, and by the absence of `recovered` it knows.
    Anew,
    /// The same, and yet it had come back by its cursor before.
    Forgotten { since: Stamp },
    /// At a position that the client never saw.
    Nowhere,
}

/// A client that follows a stream.
#[derive(Debug, Default)]
pub(super) struct Follow {
    /// When it was first told that the stream is open: what is pushed later is due to it.
    pub(super) since: Option<Stamp>,
    /// When it first saw each push.
    pub(super) first: HashMap<usize, Stamp>,
    /// Every sighting, in order of time.
    pub(super) sightings: Vec<(Stamp, usize)>,
    /// When it was told of a loss.
    pub(super) told: Vec<Stamp>,
    /// Pushes in the order in which they were seen, without a loss or a step back in between.
    pub(super) runs: Vec<Vec<usize>>,
    /// The messages since the last loss that was told, with their positions.
    segment: Vec<(usize, Option<Box<str>>)>,
    /// The same as a set, without what may come again.
    seen: HashSet<usize>,
    /// When it first came back by its cursor.
    has_cursor: Option<Stamp>,
    /// Positions that the node named in this segment, and how many of its messages came before.
    named: Vec<(Box<str>, usize)>,
}

impl Follow {
    /// A `welcome` or `subscribed`.
    pub(super) fn open(
        &mut self,
        at: Stamp,
        asked: &Asked,
        position: Option<&str>,
        recovered: Option<bool>,
    ) -> Start {
        let first = self.since.is_none();
        self.since.get_or_insert(at);
        if recovered == Some(false) {
            self.lose(at, position);
            return Start::Told;
        }
        let by_cursor = !first && *asked == Asked::Cursor;
        if by_cursor && recovered.is_none() {
            self.lose(at, position);
            return match self.has_cursor.take() {
                None => Start::Anew,
                Some(since) => Start::Forgotten { since },
            };
        }
        if by_cursor {
            self.has_cursor.get_or_insert(at);
        }
        let known = !by_cursor || self.step_back(position);
        self.name(position);
        match known {
            true => Start::Right,
            false => Start::Nowhere,
        }
    }

    /// A loss was told: what comes now begins anew.
    pub(super) fn lose(&mut self, at: Stamp, position: Option<&str>) {
        self.told.push(at);
        self.segment.clear();
        self.seen.clear();
        self.named.clear();
        self.runs.push(Vec::new());
        self.name(position);
    }

    /// A message. False if this client has it already.
    pub(super) fn see(&mut self, at: Stamp, push: usize, position: Option<&str>) -> bool {
        self.first.entry(push).or_insert(at);
        self.sightings.push((at, push));
        if !self.seen.insert(push) {
            return false;
        }
        self.segment.push((push, position.map(Into::into)));
        match self.runs.last_mut() {
            Some(run) => run.push(push),
            None => self.runs.push(vec![push]),
        }
        true
    }

    /// A cursor stands where the client has acknowledged, which may be before the last that it saw: the rest comes again.
    fn step_back(&mut self, position: Option<&str>) -> bool {
        let Some(position) = position else {
            return false;
        };
        let seen = self
            .segment
            .iter()
            .rposition(|(_, p)| p.as_deref() == Some(position))
            .map(|at| at + 1);
        let named = self.named.iter().rev().find(|(p, _)| **p == *position);
        let Some(keep) = seen.or(named.map(|(_, count)| *count)) else {
            return false;
        };
        if keep < self.segment.len() {
            for (push, _) in self.segment.drain(keep..) {
                self.seen.remove(&push);
            }
            self.named.retain(|(_, count)| *count <= keep);
            let anchor = self.segment.last().map(|(push, _)| *push);
            self.runs.push(anchor.into_iter().collect());
        }
        true
    }

    fn name(&mut self, position: Option<&str>) {
        if let Some(position) = position {
            self.named.push((position.into(), self.segment.len()));
        }
    }
}
