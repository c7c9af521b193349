//! What the clients' logs say of their connections: when they had one, how they went from one to the next, how they
//! ended, how many were opened in a second. Pure functions of the logs.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::clock::Stamp;
use crate::ledger::{ClientLog, What};

/// One connection, as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its welcome.
    pub(crate) welcome: Stamp,
    /// Its end; none if it still was.
    pub(crate) end: Option<Stamp>,
    /// The code of its close; none = it was cut, which a browser calls 1006.
    pub(crate) code: Option<u16>,
    pub(crate) why: String,
    /// Whether it was told to go away.
    pub(crate) told: bool,
    /// When it was told to come, if it was over the budget before.
    pub(crate) slot: Option<Stamp>,
}

impl Span {
    /// When the fleet had it come: its slot, or its welcome if it had none.
    pub(crate) fn due(&self) -> Stamp {
        self.slot.unwrap_or(self.welcome)
    }
}

/// A client that went from one connection to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It had both for so long.
    Overlap(Duration),
    /// It had none for so long.
    Blackout(Duration),
}

/// All connections of a client, in the order of their welcomes.
pub(crate) fn spans(log: &ClientLog) -> Vec<Span> {
    let inbox = log.follows.first();
    let mut spans: Vec<Span> = Vec::new();
    let mut by_connection: HashMap<u32, usize> = HashMap::new();
    let mut slot = None;
    for event in &log.events {
        let known = by_connection.get(&event.connection).copied();
        match (&event.what, known) {
            (What::Opened { stream, .. }, None) if Some(stream) == inbox => {
                by_connection.insert(event.connection, spans.len());
                spans.push(Span {
                    welcome: event.at,
                    end: None,
                    code: None,
                    why: String::new(),
                    told: false,
                    slot: slot.take(),
                });
            }
            (What::Later { after }, _) => slot = Some(event.at.plus(*after)),
            (What::GoAway, Some(at)) => spans[at].told = true,
            (What::Closed { code, why }, Some(at)) => {
                spans[at].end = Some(event.at);
                spans[at].code = *code;
                spans[at].why.clone_from(why);
            }
            _ => {}
        }
    }
    spans
}

/// When a client was told to come later.
pub(crate) fn told_later(log: &ClientLog) -> Vec<Stamp> {
    let events = log.events.iter();
    let told = events.filter(|event| matches!(event.what, What::Later { .. }));
    told.map(|event| event.at).collect()
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told = if self.told {
            "told to go"
        } else {
            "not told to go"
        };
        write!(f, "welcome at {}, {told}", self.welcome)?;
        match self.end {
            Some(end) => write!(f, ", ended at {end} with {:?} {}", self.code, self.why),
            None => write!(f, ", open"),
        }
    }
}

/// How a client went on after each connection that ended, until `over`.
pub(crate) fn steps(spans: &[Span], over: Stamp) -> Vec<(&Span, Step)> {
    let mut steps = Vec::new();
    for (at, span) in spans.iter().enumerate() {
        let Some(end) = span.end else { continue };
        // Another that was open at its end, or else the next to come.
        let others = spans.iter().enumerate().filter(|(other, _)| *other != at);
        let others = others.map(|(_, other)| other);
        let open = others
            .clone()
            .filter(|other| other.welcome < end && other.end.is_none_or(|its| its > end))
            .map(|other| other.welcome.max(span.welcome))
            .min();
        let step = match open {
            Some(since) => Step::Overlap(end.after(since)),
            None => {
                let next = others
                    .map(|other| other.welcome)
                    .filter(|w| *w >= end)
                    .min();
                Step::Blackout(next.unwrap_or(over).after(end))
            }
        };
        steps.push((span, step));
    }
    steps
}

/// The most stamps within any time of that length.
pub(crate) fn busiest(stamps: &mut [Stamp], window: Duration) -> usize {
    stamps.sort_unstable();
    let mut most = 0;
    let mut first = 0;
    for (last, at) in stamps.iter().enumerate() {
        while at.after(stamps[first]) >= window {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

/// The value below which such a part of all is; nothing of nothing.
pub(crate) fn quantile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let at = (values.len() as f64 * part).ceil() as usize;
    values
        .get(at.clamp(1, values.len().max(1)) - 1)
        .copied()
        .unwrap_or_default()
}

/// How connections ended, by code and reason.
pub(crate) fn ends<'a>(spans: impl Iterator<Item = &'a Span>) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    for span in spans.filter(|span| span.end.is_some()) {
        let code = span.code.unwrap_or(1006);
        *ends.entry(format!("{code} {}", span.why)).or_default() += 1;
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Asked, Event};

    fn at(ms: u64) -> Stamp {
        Stamp(ms * 1000)
    }

    fn log(events: &[(u64, u32, What)]) -> ClientLog {
        let mut log = ClientLog::new("u".into(), vec!["user:u".into()]);
        for (ms, connection, what) in events {
            log.push(Event {
                at: at(*ms),
                connection: *connection,
                what: what.clone(),
            });
        }
        log
    }

    fn welcome() -> What {
        What::Opened {
            stream: "user:u".into(),
            asked: Asked::Nothing,
            position: None,
            recovered: None,
        }
    }

    fn closed(code: Option<u16>) -> What {
        What::Closed {
            code,
            why: String::new(),
        }
    }

    #[test]
    fn who_makes_before_it_breaks_has_no_blackout() {
        let log = log(&[
            (0, 1, welcome()),
            (50, 1, What::GoAway),
            (100, 2, welcome()),
            (103, 1, closed(Some(1000))),
        ]);
        let spans = spans(&log);
        assert!(spans[0].told && !spans[1].told);
        let overlap = Step::Overlap(Duration::from_millis(3));
        assert_eq!(steps(&spans, at(500)), [(&spans[0], overlap)]);
    }

    #[test]
    fn who_breaks_before_it_makes_has_one() {
        let log = log(&[
            (0, 1, welcome()),
            (100, 1, closed(Some(1012))),
            (140, 2, welcome()),
            (200, 2, closed(None)),
        ]);
        let blackout = |ms| Step::Blackout(Duration::from_millis(ms));
        let spans = spans(&log);
        let steps: Vec<Step> = steps(&spans, at(500)).into_iter().map(|s| s.1).collect();
        assert_eq!(steps, [blackout(40), blackout(300)]);
        assert_eq!(
            ends(spans.iter()).into_keys().collect::<Vec<_>>(),
            ["1006 ", "1012 "]
        );
    }

    #[test]
    fn who_was_told_a_slot_was_due_then_however_late_it_came() {
        let later = |ms| What::Later {
            after: Duration::from_millis(ms),
        };
        let log = log(&[
            (0, 1, later(50)),
            (50, 2, later(50)),
            (150, 3, welcome()),
            (160, 3, closed(None)),
            (200, 4, welcome()),
        ]);
        let due: Vec<_> = spans(&log).iter().map(Span::due).collect();
        assert_eq!(due, [at(100), at(200)]);
    }

    #[test]
    fn the_busiest_second_is_found_wherever_it_begins() {
        let mut stamps = [100, 900, 1000, 1099, 1100, 5000].map(at);
        assert_eq!(busiest(&mut stamps, Duration::from_secs(1)), 4);
        assert_eq!(busiest(&mut [], Duration::from_secs(1)), 0);
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let mut values: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut values, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&mut values, 1.0), Duration::from_millis(100));
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }
}
