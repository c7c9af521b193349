//! What the checker found, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Examples that are told of each fault.
const EXAMPLES: usize = 8;

/// What must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fault {
    /// Accepted, and a client that followed neither saw it nor was told of a loss.
    LostInSilence,
    /// Seen twice by a client that was told of no loss in between.
    Doubled,
    /// Seen in an order in which it was not accepted, or that another client contradicts.
    OutOfOrder,
    /// Seen on a stream that it was not sent to, or that the client does not follow.
    WrongAudience,
    /// Not as it was sent, or never sent.
    Corrupt,
    /// Refused, and seen.
    RefusedButSeen,
    /// A client was told of a loss where everything was kept.
    ToldInVain,
    /// Seen, but not within the bound.
    Late,
    /// A frame or an answer that breaks the contract.
    OffTheWire,
}

impl Fault {
    pub(crate) const ALL: [Self; 9] = [
        Self::LostInSilence,
        Self::Doubled,
        Self::OutOfOrder,
        Self::WrongAudience,
        Self::Corrupt,
        Self::RefusedButSeen,
        Self::ToldInVain,
        Self::Late,
        Self::OffTheWire,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::LostInSilence => "lost in silence",
            Self::Doubled => "doubled",
            Self::OutOfOrder => "out of order",
            Self::WrongAudience => "wrong audience",
            Self::Corrupt => "corrupt",
            Self::RefusedButSeen => "refused but seen",
            Self::ToldInVain => "told of a loss in vain",
            Self::Late => "late",
            Self::OffTheWire => "off the wire",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What a disturbance did to the clients.
#[derive(Debug, Clone)]
pub(crate) struct Aftermath {
    pub(crate) name: &'static str,
    pub(crate) keeps: bool,
    /// Times that a client was told of a loss in a stream.
    pub(crate) told: u64,
    /// From its end until the last message that waited for it was seen.
    pub(crate) recovery: Duration,
    /// From its end until the run found everyone connected and nothing awaited; none if it did not.
    pub(crate) settled: Option<Duration>,
}

/// What the checker found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    /// Of the unknown: seen by somebody.
    pub(crate) unknown_seen: u64,
    /// Messages that came to a client, of whatever kind.
    pub(crate) seen: u64,
    /// Messages that a client dropped by their id.
    pub(crate) again: u64,
    /// Pairs of a message and a client that had to see it.
    pub(crate) due: u64,
    /// Of those: not seen, and told of.
    pub(crate) excused: u64,
    pub(crate) gaps: u64,
    pub(crate) recovered_false: u64,
    pub(crate) recovered_true: u64,
    /// Times that a device began anew, since it had no cursor yet or lost it with Redis.
    pub(crate) anew: u64,
    pub(crate) connections: u64,
    pub(crate) refused_connections: u64,
    /// How connections ended.
    pub(crate) ends: BTreeMap<String, u64>,
    /// Why they could not be had.
    pub(crate) refusals: BTreeMap<String, u64>,
    pub(crate) slowest: Duration,
    pub(crate) aftermaths: Vec<Aftermath>,
    faults: BTreeMap<Fault, u64>,
    examples: BTreeMap<Fault, Vec<String>>,
}

impl Report {
    /// Counts a fault; an example is made only while few are there.
    pub(super) fn fault(&mut self, fault: Fault, example: impl FnOnce() -> String) {
        *self.faults.entry(fault).or_default() += 1;
        let examples = self.examples.entry(fault).or_default();
        if examples.len() < EXAMPLES {
            examples.push(example());
        }
    }

    pub(crate) fn count(&self, fault: Fault) -> u64 {
        self.faults.get(&fault).copied().unwrap_or_default()
    }

    /// Examples of each kind of fault that there is.
    pub(crate) fn found(&self) -> String {
        let mut found = String::new();
        for (fault, examples) in &self.examples {
            let (few, all) = (examples.len(), self.count(*fault));
            found.push_str(&format!("\n{fault}, {few} of {all}:\n"));
            for example in examples {
                found.push_str(&format!("  {example}\n"));
            }
        }
        found
    }

    /// The kinds of faults that there are.
    pub(crate) fn kinds(&self) -> Vec<Fault> {
        self.faults.keys().copied().collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, count: u64| writeln!(f, "{name:<24} {count:>10}");
        row("accepted", self.accepted)?;
        row("refused", self.refused)?;
        row("unknown", self.unknown)?;
        row("  of those seen", self.unknown_seen)?;
        row("  of those not seen", self.unknown - self.unknown_seen)?;
        row("connections", self.connections)?;
        row("refused connections", self.refused_connections)?;
        row("due to clients", self.due)?;
        row("seen by clients", self.seen)?;
        for fault in Fault::ALL {
            row(fault.label(), self.count(fault))?;
        }
        row("told of a loss", self.gaps + self.recovered_false)?;
        row("  by a gap", self.gaps)?;
        row("  by recovered:false", self.recovered_false)?;
        row("  messages so excused", self.excused)?;
        row("told of none", self.recovered_true)?;
        row("began without a cursor", self.anew)?;
        writeln!(f, "{:<24} {:>8.2} s", "slowest", self.slowest.as_secs_f64())?;
        if !self.aftermaths.is_empty() {
            let head = [
                "disturbance",
                "Redis kept",
                "told",
                "recovered in",
                "settled in",
            ];
            writeln!(
                f,
                "\n{:<28} {:>10} {:>8} {:>13} {:>11}",
                head[0], head[1], head[2], head[3], head[4]
            )?;
        }
        for a in &self.aftermaths {
            let settled = a.settled.map(|s| format!("{:.1} s", s.as_secs_f64()));
            writeln!(
                f,
                "{:<28} {:>10} {:>8} {:>11.1} s {:>11}",
                a.name,
                if a.keeps { "all" } else { "not all" },
                a.told,
                a.recovery.as_secs_f64(),
                settled.as_deref().unwrap_or("never"),
            )?;
        }
        if !self.ends.is_empty() {
            writeln!(f, "\nconnections ended, or could not be had")?;
        }
        for (why, count) in self.ends.iter().chain(&self.refusals) {
            writeln!(f, "{why:<60.60} {count:>10}")?;
        }
        f.write_str(&self.found())?;
        Ok(())
    }
}
