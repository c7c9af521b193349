//! What a relay does to the frames that pass it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::body::{self, Stream};
use crate::checker::Fault;
use crate::ledger::{Answer, Ledger};

/// A way to do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Leaves one in so many messages out.
    Drop,
    /// Repeats, to a client that resumes, the message that it resumes after.
    DoubleOnResume,
    /// Lets two messages of a stream trade places.
    Swap,
    /// Gives a user's message to another user too.
    Neighbour,
    /// Changes a letter of a body.
    Flip,
    /// Shows a message that was refused.
    ShowRefused,
    /// Says `recovered: true` where the node says `false`.
    ClaimRecovered,
}

impl Mutant {
    pub(super) const ALL: [Self; 7] = [
        Self::Drop,
        Self::DoubleOnResume,
        Self::Swap,
        Self::Neighbour,
        Self::Flip,
        Self::ShowRefused,
        Self::ClaimRecovered,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop one in many",
            Self::DoubleOnResume => "double on resume",
            Self::Swap => "swap two",
            Self::Neighbour => "deliver to a neighbour",
            Self::Flip => "flip a letter",
            Self::ShowRefused => "show what was refused",
            Self::ClaimRecovered => "claim recovered after a loss",
        }
    }

    /// What the checker must find.
    pub(super) fn faults(self) -> &'static [Fault] {
        match self {
            Self::Drop => &[Fault::LostInSilence],
            // A device that is said to go on where it was does not know the place.
            Self::ClaimRecovered => &[Fault::LostInSilence, Fault::OffTheWire],
            Self::DoubleOnResume => &[Fault::Doubled],
            Self::Swap => &[Fault::OutOfOrder],
            Self::Neighbour => &[Fault::WrongAudience],
            Self::Flip => &[Fault::Corrupt],
            Self::ShowRefused => &[Fault::RefusedButSeen],
        }
    }

    /// A message in so many is changed.
    fn one_in(self) -> u64 {
        match self {
            Self::Drop => 100,
            _ => 20,
        }
    }
}

/// A frame of a node, as far as a relay understands it.
pub(super) struct Said {
    pub(super) kind: String,
    pub(super) stream: Stream,
    pub(super) text: String,
    position: Option<String>,
}

impl Said {
    /// `user` is known once the welcome was read.
    pub(super) fn read(text: &str, user: &mut String) -> Self {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let word = |name: &str| value[name].as_str().map(str::to_owned);
        let kind = word("type").unwrap_or_default();
        if kind == "welcome" {
            *user = word("user").unwrap_or_default();
        }
        let stream = match word("channel") {
            Some(channel) => format!("channel:{channel}"),
            None => format!("user:{user}"),
        };
        Self {
            kind,
            stream: stream.into(),
            text: text.into(),
            position: word("position"),
        }
    }
}

/// What all connections of a relay know.
pub(super) struct Den {
    pub(super) mutant: Option<Mutant>,
    ledger: Arc<Ledger>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Messages that passed.
    passed: u64,
    /// Frames by stream and position.
    frames: HashMap<(Stream, String), String>,
    /// Where the frames of each user's connections go.
    lines: Vec<(String, mpsc::UnboundedSender<String>)>,
    /// How many frames were changed.
    changed: u64,
}

impl Den {
    pub(super) fn new(mutant: Option<Mutant>, ledger: Arc<Ledger>) -> Self {
        Self {
            mutant,
            ledger,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames that were changed so far.
    pub(super) fn changed(&self) -> u64 {
        self.state().changed
    }

    pub(super) fn joined(&self, user: &str, line: mpsc::UnboundedSender<String>) {
        let mut state = self.state();
        state.lines.retain(|(_, line)| !line.is_closed());
        state.lines.push((user.into(), line));
    }

    /// What goes to the client in place of a frame. `asked` is from where it asked for each stream; `held` a message that
    /// waits for the next.
    pub(super) fn mutate(
        &self,
        said: Said,
        asked: &HashMap<Stream, String>,
        held: &mut Option<Said>,
    ) -> Vec<String> {
        let Some(mutant) = self.mutant else {
            return vec![said.text];
        };
        let mut state = self.state();
        let is_message = said.kind == "message";
        let Said { stream, text, .. } = &said;
        if is_message {
            state.passed += 1;
            if let Some(position) = said.position.clone() {
                let at = (stream.clone(), position);
                state.frames.insert(at, text.clone());
            }
        }
        let turn = is_message && state.passed.is_multiple_of(mutant.one_in());
        let (out, changed) = match mutant {
            Mutant::Drop if turn => (Vec::new(), true),
            Mutant::DoubleOnResume if matches!(&*said.kind, "welcome" | "subscribed") => {
                let position = asked.get(asked_as(stream)).cloned().unwrap_or_default();
                let again = state.frames.get(&(stream.clone(), position)).cloned();
                let changed = again.is_some();
                (
                    std::iter::once(text.clone()).chain(again).collect(),
                    changed,
                )
            }
            Mutant::Swap => match held.take() {
                Some(first) if is_message && first.stream == *stream => {
                    (vec![text.clone(), first.text], true)
                }
                Some(first) => (vec![first.text, text.clone()], false),
                None if turn => {
                    *held = Some(said);
                    return Vec::new();
                }
                None => (vec![text.clone()], false),
            },
            Mutant::Neighbour if turn && stream.starts_with("user:") => {
                let mut others = state.lines.iter();
                let other = others.find(|(user, _)| **user != stream["user:".len()..]);
                let sent = other.is_some_and(|(_, line)| line.send(text.clone()).is_ok());
                (vec![text.clone()], sent)
            }
            Mutant::Flip if turn => (vec![flipped(text)], true),
            Mutant::ShowRefused if turn => {
                let shown = self.refused(stream, text);
                let changed = shown.is_some();
                (
                    std::iter::once(text.clone()).chain(shown).collect(),
                    changed,
                )
            }
            Mutant::ClaimRecovered => {
                let claimed = text.replace(r#""recovered":false"#, r#""recovered":true"#);
                let changed = claimed != *text;
                (vec![claimed], changed)
            }
            _ => (vec![text.clone()], false),
        };
        state.changed += u64::from(changed);
        out
    }

    /// A message frame with the body of a push of the same stream that was refused.
    fn refused(&self, stream: &Stream, like: &str) -> Option<String> {
        let pushes = self.ledger.pushes();
        let push = pushes.iter().rev().find(|push| {
            push.key.stream == *stream && matches!(push.answer, Answer::Refused { .. })
        })?;
        let body = body::render(&push.key);
        let from = like.find(r#"{"stream":"#)?;
        let to = from + like[from..].find('}')? + 1;
        let id: Value = serde_json::from_str(like).ok()?;
        let id = id["id"].as_str()?;
        let frame = format!("{}{body}{}", &like[..from], &like[to..]);
        Some(frame.replace(id, "the-id-of-a-refused-one"))
    }
}

/// A query says where to start in the inbox without naming its user.
fn asked_as(stream: &Stream) -> &str {
    match stream.starts_with("user:") {
        true => "",
        false => stream,
    }
}

/// The first letter of the pad is another.
fn flipped(text: &str) -> String {
    let mark = r#""pad":""#;
    let Some(at) = text.find(mark).map(|at| at + mark.len()) else {
        return text.into();
    };
    let letter = if text[at..].starts_with('a') {
        "b"
    } else {
        "a"
    };
    format!("{}{letter}{}", &text[..at], &text[at + 1..])
}
