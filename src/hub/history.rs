use std::time::Duration;

use super::{Refusal, Router};
use crate::backplane::{From, Page};
use crate::model::{Address, Body, Message, Position, Since, unix_millis};

/// Messages read from a stream at once.
const PAGE: usize = 100;
/// About how much an answer may weigh: gRPC's clients take 4 MiB unless they are told otherwise. One message is answered
/// whatever it weighs.
const ANSWER_BYTES_MAX: usize = 2 << 20;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// A part of what a stream holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Oldest first, each with its place.
    pub messages: Vec<Message>,
    /// Where it ends: what comes behind it was not looked at.
    pub position: Position,
    /// Whether nothing is missing behind the position that was asked for; none without one.
    pub recovered: Option<bool>,
}

impl Router {
    /// What a kept stream holds behind a position, or from the oldest message on: at most so many messages. What is too old
    /// or has expired is left out.
    ///
    /// # Errors
    /// `Invalid` if nothing is kept of the address, `Unavailable` if the backplane does not answer.
    pub async fn history(
        &self,
        address: &Address,
        since: Option<Position>,
        most: usize,
    ) -> Result<History, Refusal> {
        let reading = self.read_history(address, since, most);
        let read = tokio::time::timeout(PATIENCE, reading).await;
        read.unwrap_or_else(|_| {
            Err(Refusal::Unavailable(
                "the backplane does not answer in time".into(),
            ))
        })
    }

    async fn read_history(
        &self,
        address: &Address,
        since: Option<Position>,
        most: usize,
    ) -> Result<History, Refusal> {
        let Some(keep) = self.keep(address) else {
            return Err(keeps_nothing(address));
        };
        let from = match since {
            Some(position) => From::Since(Since::After(position)),
            None => From::Oldest,
        };
        let opened = self.streams.open(address.clone(), keep.age, from).await;
        let opened = opened.map_err(Refusal::Unavailable)?;
        let mut history = History {
            messages: Vec::new(),
            position: opened.start,
            recovered: opened.recovered,
        };
        let mut bytes = 0;
        loop {
            let after = history.position.offset;
            let page = self.streams.read(address.clone(), after, PAGE).await;
            let Page { messages, .. } = page.map_err(Refusal::Unavailable)?;
            let last = messages.len() < PAGE;
            let now = unix_millis();
            for message in messages {
                let Some(place) = message.place else { continue };
                let expired = message.is_expired(now);
                if !expired {
                    bytes += weight(&message.body);
                    let full = bytes > ANSWER_BYTES_MAX && !history.messages.is_empty();
                    if full || history.messages.len() == most {
                        return Ok(history);
                    }
                }
                // What went meanwhile, or begins another epoch, is missing here.
                if place.before() != history.position {
                    history.recovered = history.recovered.map(|_| false);
                }
                history.position = place.behind(message.id);
                if !expired {
                    history.messages.push(message);
                }
            }
            if last {
                return Ok(history);
            }
        }
    }
}

/// About how many bytes a message has in an answer.
fn weight(body: &Body) -> usize {
    const AROUND: usize = 128;
    AROUND
        + match body {
            // As a JSON string: some characters take two bytes, and few six.
            Body::Text(text) => text.len() * 2,
            Body::Json(text) => text.len(),
            Body::Binary(bytes) => bytes.len() * 4 / 3,
        }
}

fn keeps_nothing(address: &Address) -> Refusal {
    let problem = match address {
        Address::Channel(channel) => format!(
            "keeps nothing: its namespace {:?} has max_messages = 0 in [[namespaces]]",
            channel.namespace()
        ),
        Address::User(_) => "keeps nothing: users have no inbox ([inbox] max_messages = 0)".into(),
        Address::Everyone | Address::Node(_) => {
            "keeps nothing: only users and channels have streams".into()
        }
    };
    Refusal::Invalid {
        field: "address",
        problem,
    }
}
