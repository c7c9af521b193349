//! A connection that is followed to its end, or to the one that takes its place.

use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until};

use super::dial::Link;
use super::exit::{Failure, say};
use super::listen::{End, PATIENCE, Places};
use crate::wire::codec::{self, CloseCode, Decoder, Event, Limits, Opcode, Role};

/// Messages of a server may be larger than those that it takes.
const LIMITS: Limits = Limits {
    message_bytes: 16 << 20,
    fragments: 1024,
};
/// How long the old connection is read on once the new one is open: the node ends it at the new welcome.
const OVERLAP: Duration = Duration::from_secs(2);

/// What became of a connection.
pub(super) enum Followed {
    Ended(End),
    /// The node left, and this one takes its place.
    Moved(Link),
}

/// On the way to another node.
enum Move<F> {
    No,
    /// At that time, with this ticket; none = with one that is fetched.
    At(Instant, Option<String>),
    Dialing(Pin<Box<F>>),
    /// The new one is open; the old one is read until it ends, or until then.
    Open(Link, Instant),
}

impl<F: Future<Output = Result<Link, End>>> Move<F> {
    /// Waits for the next step, and takes it where that needs nobody else.
    async fn progress(&mut self) {
        match self {
            Self::No => std::future::pending().await,
            Self::At(when, _) | Self::Open(_, when) => sleep_until(*when).await,
            Self::Dialing(dialing) => {
                *self = match dialing.await {
                    Ok(link) => Self::Open(link, Instant::now() + OVERLAP),
                    // The old one goes on until it is closed; then it is an ordinary reconnect.
                    Err(_) => Self::No,
                }
            }
        }
    }

    /// The old connection has ended: what follows it, if anything does.
    async fn rescue(mut self, end: End) -> Followed {
        if matches!(self, Self::Dialing(_)) {
            self.progress().await;
        }
        match self {
            Self::Open(link, _) => Followed::Moved(link),
            _ => Followed::Ended(end),
        }
    }
}

/// Prints every frame until the connection ends. Told to go away, it opens a new one by `open` and reads the old one on.
pub(super) async fn follow<F>(
    mut stream: Link,
    acks: bool,
    places: &mut Places,
    welcomed: &mut bool,
    open: impl Fn(Option<String>, &Places) -> F,
) -> Followed
where
    F: Future<Output = Result<Link, End>>,
{
    let mut reading = Reading {
        decoder: Decoder::new(Role::Client, LIMITS),
        acks,
        after: None,
        silence: None,
        goaway: None,
    };
    let mut buffer = vec![0; 64 << 10];
    let mut moving = Move::No;
    loop {
        let read = tokio::select! {
            read = within(reading.silence, stream.read(&mut buffer)) => read,
            () = moving.progress() => {
                moving = match moving {
                    Move::At(_, ticket) => Move::Dialing(Box::pin(open(ticket, places))),
                    Move::Open(link, until) if until <= Instant::now() => return Followed::Moved(link),
                    other => other,
                };
                continue;
            }
        };
        let end = match read {
            Ok(0) => Some(End::Again("the connection was cut".into(), reading.after)),
            Ok(count) => reading
                .take(&mut buffer[..count], &mut stream, places, welcomed)
                .await
                .err(),
            Err(error) => Some(End::Again(error.to_string(), reading.after)),
        };
        match end {
            Some(End::Stop(failure)) => return Followed::Ended(End::Stop(failure)),
            Some(end) => return moving.rescue(end).await,
            None => {}
        }
        if let Some((after, ticket)) = reading.goaway.take()
            && matches!(moving, Move::No)
        {
            eprintln!("the node goes away; moving in {} ms", after.as_millis());
            moving = Move::At(Instant::now() + after, ticket);
        }
    }
}

/// What is known of a connection while it is read.
struct Reading {
    decoder: Decoder,
    acks: bool,
    /// When to come back, if the node said so.
    after: Option<Duration>,
    /// A node that is gone without a word is noticed by its missing heartbeats.
    silence: Option<Duration>,
    goaway: Option<(Duration, Option<String>)>,
}

impl Reading {
    /// Prints and answers what is in the bytes.
    ///
    /// # Errors
    /// How the connection ended.
    async fn take(
        &mut self,
        mut input: &mut [u8],
        stream: &mut Link,
        places: &mut Places,
        welcomed: &mut bool,
    ) -> Result<(), End> {
        loop {
            let answer = match self.decoder.next(&mut input) {
                Ok(None) => return Ok(()),
                Err(error) => {
                    let why = format!("the server broke RFC 6455: {error}");
                    return Err(End::Again(why, None));
                }
                Ok(Some(Event::Text(text))) => {
                    let told = Told::read(&text);
                    if !places.is_double(&told) {
                        say(&shown(&told, &text)).map_err(End::Stop)?;
                    }
                    if told.kind == "welcome" {
                        *welcomed = true;
                        self.silence = told.silence();
                    }
                    self.after = told.after_ms.map(Duration::from_millis).or(self.after);
                    self.goaway = told.goaway().or(self.goaway.take());
                    places.note(&told);
                    let answer = told.answer(self.acks);
                    answer.map(|answer| (Opcode::Text, answer.into_bytes()))
                }
                Ok(Some(Event::Binary(_) | Event::Pong(_))) => None,
                Ok(Some(Event::Ping(payload))) => Some((Opcode::Pong, payload.to_vec())),
                Ok(Some(Event::Close(close))) => {
                    let code = close.as_ref().map_or(CloseCode::NORMAL, |close| close.code);
                    let reason = close.as_ref().map_or("", |close| &close.reason);
                    let why = format!("closed with {code} {reason}");
                    let payload = codec::close_payload(code, "");
                    // The server has said its last; whether it hears ours does not matter.
                    let _ = write(stream, Opcode::Close, &payload).await;
                    return Err(match code.get() {
                        4500..=4999 => End::Stop(Failure::refused(why)),
                        _ => End::Again(why, self.after),
                    });
                }
            };
            if let Some((opcode, payload)) = answer {
                let written = write(stream, opcode, &payload).await;
                written.map_err(|error| End::Again(error.to_string(), None))?;
            }
        }
    }
}

async fn write(stream: &mut Link, opcode: Opcode, payload: &[u8]) -> std::io::Result<()> {
    let frame = codec::masked_frame(opcode, payload, rand::random());
    stream.write_all(&frame).await?;
    // TLS holds back what it could not write at once.
    stream.flush().await
}

/// A frame as it is printed: a ticket is no business of whoever reads the output.
fn shown(told: &Told, text: &str) -> String {
    match &told.ticket {
        Some(ticket) => text.replace(ticket.as_str(), "…"),
        None => text.to_owned(),
    }
}

/// A read, given up after some silence.
async fn within(
    silence: Option<Duration>,
    read: impl Future<Output = std::io::Result<usize>>,
) -> std::io::Result<usize> {
    let Some(silence) = silence else {
        return read.await;
    };
    let gone = |_| {
        let told = format!(
            "nothing came for {} s, no heartbeat either",
            silence.as_secs()
        );
        std::io::Error::new(std::io::ErrorKind::TimedOut, told)
    };
    tokio::time::timeout(silence, read).await.map_err(gone)?
}

/// What `listen` needs to know of a frame.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Told {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) id: Option<String>,
    after_ms: Option<u64>,
    ticket: Option<String>,
    heartbeat_seconds: u64,
    pub(super) channel: Option<String>,
    pub(super) position: Option<String>,
}

impl Told {
    pub(super) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// What a frame is answered: a ping by a pong, and, with a device, a message of the inbox by its acknowledgement.
    pub(super) fn answer(&self, acks: bool) -> Option<String> {
        let frame = match (self.kind.as_str(), &self.position) {
            ("ping", _) => serde_json::json!({"type": "pong"}),
            ("message", Some(position)) if acks && self.channel.is_none() => {
                serde_json::json!({"type": "ack", "position": position})
            }
            _ => return None,
        };
        Some(frame.to_string())
    }

    /// When to move, and by which ticket; none = by a new one.
    fn goaway(&self) -> Option<(Duration, Option<String>)> {
        let after = Duration::from_millis(self.after_ms.unwrap_or(0));
        (self.kind == "goaway").then(|| (after, self.ticket.clone()))
    }

    /// The longest silence of a node that lives: none without heartbeats.
    fn silence(&self) -> Option<Duration> {
        let heartbeat = Duration::from_secs(self.heartbeat_seconds.min(86_400));
        (!heartbeat.is_zero()).then(|| heartbeat * 2 + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_measured_against_the_heartbeat_of_the_welcome() {
        let silence = |frame| Told::read(frame).silence();
        assert_eq!(
            silence(r#"{"type":"welcome","heartbeat_seconds":25}"#),
            Some(Duration::from_secs(60))
        );
        assert_eq!(silence(r#"{"type":"welcome","heartbeat_seconds":0}"#), None);
        assert_eq!(silence("no JSON"), None);
    }

    #[test]
    fn a_goaway_says_when_and_by_which_ticket_and_the_ticket_is_not_printed() {
        let text = r#"{"type":"goaway","after_ms":7,"ticket":"r1.abc"}"#;
        let told = Told::read(text);
        assert_eq!(
            told.goaway(),
            Some((Duration::from_millis(7), Some("r1.abc".into())))
        );
        assert_eq!(
            shown(&told, text),
            r#"{"type":"goaway","after_ms":7,"ticket":"…"}"#
        );
        assert_eq!(
            Told::read(r#"{"type":"goaway","after_ms":7}"#).goaway(),
            Some((Duration::from_millis(7), None))
        );
        assert_eq!(Told::read(r#"{"type":"ping"}"#).goaway(), None);
    }

    #[tokio::test]
    async fn a_node_that_falls_silent_is_given_up() {
        let never = std::future::pending();
        let given_up = within(Some(Duration::from_millis(1)), never).await;
        assert!(given_up.is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut));
        let cut = within(None, std::future::ready(Ok(0))).await;
        assert_eq!(cut.expect("an end"), 0);
    }
}
