use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::call::{Server, issue};
use super::dial::{Link, dial};
use super::exit::{Failure, block_on, say};
use crate::proto::tidings::v1 as pb;
use crate::wire::codec::{self, CloseCode, Decoder, Event, Limits, Opcode, Role};

/// The first wait before a reconnect, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long a connection and its handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages of a server may be larger than those that it takes.
const LIMITS: Limits = Limits {
    message_bytes: 16 << 20,
    fragments: 1024,
};

#[derive(Debug, Args)]
pub(super) struct ListenArgs {
    /// As whom.
    #[arg(long)]
    user: String,
    /// Which of the user's ends this is; what is printed is acknowledged for it.
    #[arg(long)]
    device: Option<String>,
    /// Where the inbox begins: a position, or "now"; unless given, where the device or the user stopped.
    #[arg(long)]
    since: Option<String>,
    /// A channel to subscribe to; may be repeated.
    #[arg(long = "channel")]
    channels: Vec<String>,
    /// Where clients connect; from the ticket's answer unless given.
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// How a connection ended.
pub(super) enum End {
    /// Come back after the backoff, or exactly then.
    Again(String, Option<Duration>),
    /// Do not come back.
    Stop(Failure),
}

pub(super) fn listen(args: ListenArgs) -> Result<(), Failure> {
    block_on(async {
        let mut wait = BACKOFF.0;
        let mut places = Places {
            inbox: args.since.clone(),
            channels: BTreeMap::new(),
        };
        loop {
            let mut welcomed = false;
            let (why, after) = match connect(&args, &mut places, &mut welcomed).await {
                End::Stop(failure) => return Err(failure),
                End::Again(why, after) => (why, after),
            };
            if welcomed {
                wait = BACKOFF.0;
            }
            // Full jitter, so that a crowd comes back spread.
            let pause = after.unwrap_or_else(|| wait.mul_f64(rand::random_range(0.0..1.0)));
            eprintln!("{why}; connecting again in {} ms", pause.as_millis());
            tokio::time::sleep(pause).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    })
}

/// How far it has got: where it goes on after a reconnect.
struct Places {
    inbox: Option<String>,
    channels: BTreeMap<String, String>,
}

impl Places {
    /// Takes the position that a frame says, if it says one.
    fn note(&mut self, told: &Told) {
        let Some(position) = told.position.clone() else {
            return;
        };
        match &told.channel {
            Some(channel) => {
                self.channels.insert(channel.clone(), position);
            }
            None => self.inbox = Some(position),
        }
    }

    /// The URL with where each channel goes on. Channel names and positions are safe in a query, but for these.
    fn put_into(&self, url: &str) -> String {
        if self.channels.is_empty() {
            return url.to_owned();
        }
        let named = self
            .channels
            .iter()
            .map(|(name, at)| format!("{name}@{at}"));
        let list = named.collect::<Vec<_>>().join(",");
        let list: String = form_urlencoded::byte_serialize(list.as_bytes()).collect();
        let mark = if url.contains('?') { '&' } else { '?' };
        format!("{url}{mark}channels={list}")
    }
}

async fn connect(args: &ListenArgs, places: &mut Places, welcomed: &mut bool) -> End {
    let request = pb::IssueTicketRequest {
        user_id: args.user.clone(),
        device: args.device.clone().unwrap_or_default(),
        channels: args.channels.clone(),
        since: places.inbox.clone().unwrap_or_default(),
        ..Default::default()
    };
    let issued = match issue(&args.server, request).await {
        Ok(issued) => issued,
        Err(failure) if failure.code == 4 => return End::Again(failure.message, None),
        Err(failure) => return End::Stop(failure),
    };
    let url = match (&args.url, issued.url.is_empty()) {
        (Some(url), _) => url.clone(),
        (None, false) => issued.url,
        (None, true) => {
            return End::Stop(Failure::usage(
                "the node does not know its public address ([public] url); give it with --url wss://host/ws",
            ));
        }
    };
    let target = places.put_into(&url);
    let link = dial(&target, &issued.ticket, &args.server.tls);
    match tokio::time::timeout(PATIENCE, link).await {
        Ok(Ok(link)) => follow(link, args.device.is_some(), places, welcomed).await,
        Ok(Err(end)) => end,
        Err(_) => End::Again(
            format!("{url} did not answer within {} s", PATIENCE.as_secs()),
            None,
        ),
    }
}

/// Prints every frame until the connection ends.
async fn follow(mut stream: Link, acks: bool, places: &mut Places, welcomed: &mut bool) -> End {
    let mut decoder = Decoder::new(Role::Client, LIMITS);
    let mut buffer = vec![0; 64 << 10];
    let mut after = None;
    // A node that is gone without a word is noticed by its missing heartbeats.
    let mut silence = None;
    loop {
        let count = match within(silence, stream.read(&mut buffer)).await {
            Ok(0) => return End::Again("the connection was cut".into(), after),
            Ok(count) => count,
            Err(error) => return End::Again(error.to_string(), after),
        };
        let mut input = &mut buffer[..count];
        loop {
            let answer = match decoder.next(&mut input) {
                Ok(None) => break,
                Err(error) => {
                    return End::Again(format!("the server broke RFC 6455: {error}"), None);
                }
                Ok(Some(Event::Text(text))) => {
                    if let Err(unheard) = say(&text) {
                        return End::Stop(unheard);
                    }
                    let told = Told::read(&text);
                    if told.kind == "welcome" {
                        *welcomed = true;
                        silence = told.silence();
                    }
                    after = told.after_ms.map(Duration::from_millis).or(after);
                    places.note(&told);
                    told.answer(acks)
                        .map(|answer| (Opcode::Text, answer.into_bytes()))
                }
                Ok(Some(Event::Binary(_) | Event::Pong(_))) => None,
                Ok(Some(Event::Ping(payload))) => Some((Opcode::Pong, payload.to_vec())),
                Ok(Some(Event::Close(close))) => {
                    let code = close.as_ref().map_or(CloseCode::NORMAL, |close| close.code);
                    let why = format!(
                        "closed with {code} {}",
                        close.as_ref().map_or("", |close| &close.reason)
                    );
                    let payload = codec::close_payload(code, "");
                    let frame = codec::masked_frame(Opcode::Close, &payload, rand::random());
                    let _ = stream.write_all(&frame).await;
                    let _ = stream.flush().await;
                    return match code.get() {
                        4500..=4999 => End::Stop(Failure::refused(why)),
                        _ => End::Again(why, after),
                    };
                }
            };
            if let Some((opcode, payload)) = answer {
                let frame = codec::masked_frame(opcode, &payload, rand::random());
                let written = stream.write_all(&frame).await;
                // TLS holds back what it could not write at once.
                if let Err(error) = written.and(stream.flush().await) {
                    return End::Again(error.to_string(), None);
                }
            }
        }
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
struct Told {
    #[serde(rename = "type")]
    kind: String,
    after_ms: Option<u64>,
    heartbeat_seconds: u64,
    channel: Option<String>,
    position: Option<String>,
}

impl Told {
    fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// What a frame is answered: a ping by a pong, and, with a device, a message of the inbox by its acknowledgement.
    fn answer(&self, acks: bool) -> Option<String> {
        let frame = match (self.kind.as_str(), &self.position) {
            ("ping", _) => serde_json::json!({"type": "pong"}),
            ("message", Some(position)) if acks && self.channel.is_none() => {
                serde_json::json!({"type": "ack", "position": position})
            }
            _ => return None,
        };
        Some(frame.to_string())
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
    fn it_goes_on_where_it_stopped_and_acknowledges_what_it_printed() {
        let mut places = Places {
            inbox: None,
            channels: BTreeMap::new(),
        };
        assert_eq!(places.put_into("ws://h/ws"), "ws://h/ws");
        for frame in [
            r#"{"type":"welcome","position":"p1"}"#,
            r#"{"type":"subscribed","channel":"a:b","position":"c1"}"#,
            r#"{"type":"message","channel":"x","data":1}"#,
            r#"{"type":"gap","position":"p2"}"#,
        ] {
            places.note(&Told::read(frame));
        }
        assert_eq!(places.inbox.as_deref(), Some("p2"));
        assert_eq!(
            places.put_into("ws://h/ws"),
            "ws://h/ws?channels=a%3Ab%40c1"
        );
        let answer = |frame, acks| Told::read(frame).answer(acks);
        let message = r#"{"type":"message","position":"p3","data":1}"#;
        let ack = r#"{"position":"p3","type":"ack"}"#;
        assert_eq!(answer(message, true).as_deref(), Some(ack));
        assert_eq!(answer(message, false), None);
        assert_eq!(
            answer(r#"{"type":"message","channel":"x","position":"c"}"#, true),
            None
        );
        assert!(answer(r#"{"type":"ping"}"#, false).is_some());
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
