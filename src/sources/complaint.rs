use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much of an event is shown.
const SHOWN_CHARS: usize = 200;
/// The least time between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells of malformed events in the log, and not of each: whoever publishes them decides how many there are.
#[derive(Default)]
pub(super) struct Complaints(Mutex<State>);

#[derive(Default)]
struct State {
    latest: Option<Instant>,
    untold: u64,
}

impl Complaints {
    /// A line about an event, unless there was one within the last second.
    pub(super) fn of(&self, topic: &str, reason: &'static str, event: &[u8]) {
        if let Some(untold) = self.due(Instant::now()) {
            let event = shown(event);
            tracing::warn!(topic, reason, untold, %event, "an event is malformed");
        }
    }

    /// Whether a line is due: then, how many events were passed over since the last.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.latest.is_some_and(|latest| now < latest + PAUSE) {
            state.untold += 1;
            return None;
        }
        state.latest = Some(now);
        Some(std::mem::take(&mut state.untold))
    }
}

/// Its beginning, in which nothing can end a line or move a terminal's cursor.
fn shown(event: &[u8]) -> String {
    let most = &event[..event.len().min(SHOWN_CHARS * 4)];
    let text = String::from_utf8_lossy(most);
    let mut shown: String = text.chars().take(SHOWN_CHARS).flat_map(escaped).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() || event.len() > most.len() {
        shown.push('…');
    }
    shown
}

/// JSON is full of quotes; they stay as they are.
fn escaped(c: char) -> Vec<char> {
    match c {
        '"' | '\'' => vec![c],
        _ => c.escape_debug().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_one_line_a_second_and_it_tells_how_many_there_were() {
        let complaints = Complaints::default();
        let begin = Instant::now();
        let due = |ms| complaints.due(begin + Duration::from_millis(ms));
        assert_eq!(due(0), Some(0));
        assert_eq!([due(1), due(500), due(999)], [None; 3]);
        assert_eq!(due(1000), Some(3));
        assert_eq!(due(1500), None);
        assert_eq!(due(9000), Some(1));
    }

    #[test]
    fn an_event_is_cut_and_escaped() {
        assert_eq!(shown(b"{\"a\":\"'\"}"), "{\"a\":\"'\"}");
        assert_eq!(shown(b"a\nb\x1b[2J\0"), "a\\nb\\u{1b}[2J\\0");
        assert_eq!(shown("ü\u{202e}".as_bytes()), "ü\\u{202e}");
        assert_eq!(shown(b"\xff"), "\u{fffd}");
        assert_eq!(shown("ü".repeat(200).as_bytes()), "ü".repeat(200));
        for long in ["x".repeat(201), "x".repeat(1 << 20), "🦀".repeat(300)] {
            let shown = shown(long.as_bytes());
            assert_eq!(shown.chars().count(), 201);
            assert!(shown.ends_with('…'));
        }
    }
}
