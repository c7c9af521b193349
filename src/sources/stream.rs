use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use super::complaint::Complaints;
use super::event::{Malformed, Reading};
use crate::backplane::Once;
use crate::backplane::redis::{Backoff, Log, LogEntry, Taken};
use crate::hub::{ACCEPT_TIMEOUT, Draft, Refusal, Router};
use crate::model::{Address, Body, MessageId, Target};
use crate::telemetry::SourceMetrics;

/// Takes events from one stream to the router, and confirms each once it was accepted, or is among the dead letters.
///
/// Order: what is for one address is pushed one after the other, and nothing new is taken while something taken before was
/// not accepted.
pub(super) struct StreamReader {
    pub(super) topic: String,
    pub(super) log: Log,
    pub(super) readings: Vec<StreamReading>,
    pub(super) router: Arc<Router>,
    pub(super) complaints: Arc<Complaints>,
    pub(super) metrics: SourceMetrics,
    /// Turns true when nothing more is to be taken.
    pub(super) stop: watch::Receiver<bool>,
}

/// One source's way to read the entries of a stream.
pub(super) struct StreamReading {
    /// The field that the event is in; empty = the fields together are the event.
    pub(super) field: String,
    pub(super) reading: Reading,
}

/// An entry that is not confirmed.
struct Unconfirmed {
    entry: LogEntry,
    /// What it is to be pushed as, and was not yet.
    pushes: Vec<Push>,
    /// Why it belongs among the dead letters.
    dead: Option<&'static str>,
}

#[derive(Clone)]
struct Push {
    id: MessageId,
    address: Address,
    body: Body,
    once: Once,
}

/// What became of a push.
enum Fate {
    Accepted,
    /// It never will be.
    Dead(&'static str),
    /// It is not known, or not now.
    Later(String),
}

/// Why there is a pause.
enum Trouble {
    /// The stream cannot be reached.
    Log(String),
    /// What was taken is not accepted.
    Push(String),
}

impl StreamReader {
    /// Until it is told to stop.
    pub(super) async fn run(mut self) {
        let (mut of_log, mut of_push) = (Backoff::default(), Backoff::default());
        let mut work = Work::default();
        while !*self.stop.borrow() {
            let turned = work.turn(&mut self).await;
            let topic = &self.topic;
            let pause = match turned {
                Ok(()) => {
                    of_log.reset();
                    of_push.reset();
                    continue;
                }
                Err(Trouble::Log(problem)) => {
                    // What was taken is taken again.
                    work.unconfirmed.clear();
                    let pause = of_log.next();
                    tracing::warn!(%topic, %problem, "a stream is not read; trying again in {pause:.1?}");
                    pause
                }
                Err(Trouble::Push(problem)) => {
                    of_log.reset();
                    let pause = of_push.next();
                    self.metrics
                        .of_stream(topic, "retried", work.unconfirmed.len());
                    tracing::warn!(%topic, %problem, "events of a stream are not accepted; trying again in {pause:.1?}");
                    pause
                }
            };
            // An error means that the node is gone.
            let stopped = self.stop.wait_for(|stop| *stop);
            let _ = tokio::time::timeout(pause, stopped).await;
        }
    }

    fn read(&self, entry: LogEntry) -> Unconfirmed {
        let mut unconfirmed = Unconfirmed {
            entry,
            pushes: Vec::new(),
            dead: None,
        };
        for StreamReading { field, reading } in &self.readings {
            let entry = &unconfirmed.entry;
            let event = event(entry, field);
            let bytes = event.as_deref().unwrap_or_default();
            let read = match &event {
                Ok(bytes) => reading.read_logged(bytes, &entry.id),
                Err(malformed) => Err(*malformed),
            };
            match read {
                Ok((message, once)) => {
                    if let Target::One(address) = message.target {
                        unconfirmed.pushes.push(Push {
                            id: message.id,
                            address,
                            body: message.body,
                            once,
                        });
                    }
                }
                Err(malformed) => {
                    self.metrics.malformed(malformed.name());
                    self.complaints.of(&self.topic, malformed.name(), bytes);
                    unconfirmed.dead = Some(malformed.name());
                }
            }
        }
        unconfirmed
    }

    async fn push(&self, push: Push) -> Fate {
        let Push {
            id,
            address,
            body,
            once,
        } = push;
        let mut draft = Draft::new(body, Instant::now() + ACCEPT_TIMEOUT);
        draft.once = Some(once);
        match self.router.bring(id, address, draft).await {
            Ok(_) => Fate::Accepted,
            Err(Refusal::Conflict) => Fate::Dead("conflict"),
            Err(Refusal::Invalid { .. }) => Fate::Dead("refused"),
            Err(Refusal::Busy { .. }) => Fate::Later("this node is too busy".into()),
            Err(Refusal::Unavailable(problem)) => Fate::Later(problem),
            Err(Refusal::Unknown { problem, .. }) => Fate::Later(problem),
        }
    }

    /// What is for one address, in order, until something is not accepted now.
    async fn push_all(&self, pushes: Vec<(usize, Push)>) -> Vec<(usize, Once, Fate)> {
        let mut fates = Vec::with_capacity(pushes.len());
        for (n, push) in pushes {
            let once = push.once;
            let fate = self.push(push).await;
            let later = matches!(fate, Fate::Later(_));
            fates.push((n, once, fate));
            if later {
                break;
            }
        }
        fates
    }
}

/// What a reader has in hand.
#[derive(Default)]
struct Work {
    /// At most what is taken at once.
    unconfirmed: Vec<Unconfirmed>,
    /// Done with: they are confirmed before anything is taken, also after the connection was lost.
    done: Vec<String>,
}

impl Work {
    /// Takes, if there is nothing in hand, pushes, buries and confirms.
    async fn turn(&mut self, reader: &mut StreamReader) -> Result<(), Trouble> {
        self.confirm(reader).await?;
        if self.unconfirmed.is_empty() {
            let taken = reader.log.next().await.map_err(Trouble::Log)?;
            self.take(taken, reader);
        }
        let trouble = self.push(reader).await;
        let buried = self.bury(reader).await;
        self.confirm(reader).await?;
        buried?;
        trouble.map_or(Ok(()), |problem| Err(Trouble::Push(problem)))
    }

    fn take(&mut self, taken: Taken, reader: &StreamReader) {
        let Taken {
            entries,
            claimed,
            trimmed,
        } = taken;
        reader.metrics.events.inc_by(entries.len() as u64);
        let of_stream = |outcome, count| reader.metrics.of_stream(&reader.topic, outcome, count);
        of_stream("trimmed", trimmed);
        if claimed {
            of_stream("claimed", entries.len());
        }
        let read = entries.into_iter().map(|entry| reader.read(entry));
        self.unconfirmed.extend(read);
    }

    /// Pushes what is in hand, addresses side by side; answers why something was not accepted.
    async fn push(&mut self, reader: &StreamReader) -> Option<String> {
        let mut by_address: HashMap<&Address, Vec<(usize, Push)>> = HashMap::new();
        for (n, unconfirmed) in self.unconfirmed.iter().enumerate() {
            for push in &unconfirmed.pushes {
                let of_address = by_address.entry(&push.address).or_default();
                of_address.push((n, push.clone()));
            }
        }
        let pushing = by_address.into_values().map(|some| reader.push_all(some));
        let fates = join_all(pushing).await;
        let mut trouble = None;
        for (n, once, fate) in fates.into_iter().flatten() {
            let unconfirmed = &mut self.unconfirmed[n];
            match fate {
                Fate::Later(problem) => {
                    trouble = Some(problem);
                    continue;
                }
                Fate::Accepted => {}
                Fate::Dead(reason) => unconfirmed.dead = Some(reason),
            }
            let at = unconfirmed.pushes.iter().position(|push| push.once == once);
            at.map(|at| unconfirmed.pushes.remove(at));
        }
        trouble
    }

    /// Puts what never can be delivered among the dead letters, once the rest of it was.
    async fn bury(&mut self, reader: &mut StreamReader) -> Result<(), Trouble> {
        let (mut accepted, mut dead) = (0, 0);
        let (mut left, mut trouble) = (Vec::new(), None);
        for unconfirmed in self.unconfirmed.drain(..) {
            if !unconfirmed.pushes.is_empty() {
                left.push(unconfirmed);
                continue;
            }
            match unconfirmed.dead {
                None => accepted += 1,
                // One that cannot be buried stays, and keeps no other from being confirmed.
                Some(reason) => match reader.log.bury(&unconfirmed.entry, reason).await {
                    Ok(()) => dead += 1,
                    Err(problem) => {
                        trouble = Some(Trouble::Log(problem));
                        left.push(unconfirmed);
                        continue;
                    }
                },
            }
            self.done.push(unconfirmed.entry.id);
        }
        self.unconfirmed = left;
        reader
            .metrics
            .of_stream(&reader.topic, "accepted", accepted);
        reader.metrics.of_stream(&reader.topic, "dead", dead);
        trouble.map_or(Ok(()), Err)
    }

    async fn confirm(&mut self, reader: &mut StreamReader) -> Result<(), Trouble> {
        let confirmed = reader.log.confirm(&self.done).await;
        confirmed.map_err(Trouble::Log)?;
        self.done.clear();
        Ok(())
    }
}

/// The event in an entry: the bytes of a field, or all fields as a JSON object of texts.
fn event(entry: &LogEntry, field: &str) -> Result<Vec<u8>, Malformed> {
    if !field.is_empty() {
        let mut fields = entry.fields.iter();
        let found = fields.find(|(name, _)| name == field.as_bytes());
        return found
            .map(|(_, value)| value.clone())
            .ok_or(Malformed::NoField);
    }
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).map_err(|_| Malformed::NotJson);
    let mut object = Map::new();
    for (name, value) in &entry.fields {
        object.insert(text(name)?, Value::String(text(value)?));
    }
    Ok(Value::Object(object).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_field_or_all_of_them() {
        let entry = |fields: &[(&str, &[u8])]| LogEntry {
            id: "1-0".into(),
            fields: fields
                .iter()
                .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()))
                .collect(),
        };
        let one = entry(&[("n", b"1"), ("data", b"{\"a\": 1.50}"), ("data", b"2")]);
        assert_eq!(event(&one, "data"), Ok(b"{\"a\": 1.50}".to_vec()));
        assert_eq!(event(&one, "json"), Err(Malformed::NoField));
        let flat = entry(&[("user_id", b"42"), ("message", b"say \"hi\"")]);
        let text = br#"{"message":"say \"hi\"","user_id":"42"}"#;
        assert_eq!(event(&flat, ""), Ok(text.to_vec()));
        let binary = entry(&[("user_id", b"\xff")]);
        assert_eq!(event(&binary, ""), Err(Malformed::NotJson));
        assert_eq!(event(&binary, "user_id"), Ok(b"\xff".to_vec()));
    }
}
