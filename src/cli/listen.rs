use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use clap::Args;

use super::call::{Server, issue};
use super::dial::dial;
use super::exit::{Failure, block_on};
use super::follow::{Followed, Told, follow};
use crate::proto::tidings::v1 as pb;

/// The first wait before a reconnect, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long a connection and its handshake may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Messages whose second coming is noticed: what two connections bring while one takes the other's place.
const REMEMBERED: usize = 1000;

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
            ..Places::default()
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
#[derive(Default)]
pub(super) struct Places {
    inbox: Option<String>,
    channels: BTreeMap<String, String>,
    /// The latest messages, in their order.
    seen: HashSet<String>,
    order: VecDeque<String>,
}

impl Places {
    /// Takes the position that a frame says, if it says one.
    pub(super) fn note(&mut self, told: &Told) {
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

    /// Whether a message came before.
    pub(super) fn is_double(&mut self, told: &Told) -> bool {
        let Some(id) = told.id.as_ref().filter(|_| told.kind == "message") else {
            return false;
        };
        if !self.seen.insert(id.clone()) {
            return true;
        }
        self.order.push_back(id.clone());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        false
    }

    /// The URL with where the inbox goes on too, for a ticket that does not say so.
    pub(super) fn put_all_into(&self, url: &str) -> String {
        let url = self.put_into(url);
        let Some(inbox) = &self.inbox else {
            return url;
        };
        let mark = if url.contains('?') { '&' } else { '?' };
        format!("{url}{mark}since={inbox}")
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

/// A ticket for this user, from here on in its inbox.
async fn fetch(args: &ListenArgs, since: Option<String>) -> Result<pb::IssueTicketResponse, End> {
    let request = pb::IssueTicketRequest {
        user_id: args.user.clone(),
        device: args.device.clone().unwrap_or_default(),
        channels: args.channels.clone(),
        since: since.unwrap_or_default(),
        ..Default::default()
    };
    let issued = issue(&args.server, request).await;
    issued.map_err(|failure| match failure.code {
        4 => End::Again(failure.message, None),
        _ => End::Stop(failure),
    })
}

async fn connect(args: &ListenArgs, places: &mut Places, welcomed: &mut bool) -> End {
    let issued = match fetch(args, places.inbox.clone()).await {
        Ok(issued) => issued,
        Err(end) => return end,
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
    let open = async |target: String, ticket: String| {
        let link = dial(&target, &ticket, &args.server.tls);
        let late = |_| {
            let why = format!("{url} did not answer within {} s", PATIENCE.as_secs());
            End::Again(why, None)
        };
        tokio::time::timeout(PATIENCE, link).await.map_err(late)?
    };
    let mut link = match open(target, issued.ticket).await {
        Ok(link) => link,
        Err(end) => return end,
    };
    loop {
        let moving = |ticket: Option<String>, places: &Places| {
            let (target, inbox) = (places.put_all_into(&url), places.inbox.clone());
            async {
                let ticket = match ticket {
                    Some(ticket) => ticket,
                    None => fetch(args, inbox).await?.ticket,
                };
                open(target, ticket).await
            }
        };
        match follow(link, args.device.is_some(), places, welcomed, moving).await {
            Followed::Ended(end) => return end,
            Followed::Moved(next) => link = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_where_it_stopped_and_acknowledges_what_it_printed() {
        let mut places = Places::default();
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
        assert_eq!(
            places.put_all_into("ws://h/ws"),
            "ws://h/ws?channels=a%3Ab%40c1&since=p2"
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

    #[test]
    fn what_two_connections_bring_is_printed_once() {
        let mut places = Places::default();
        let mut double = |frame: &str| places.is_double(&Told::read(frame));
        assert!(!double(r#"{"type":"message","id":"m1"}"#));
        assert!(double(r#"{"type":"message","id":"m1"}"#));
        assert!(!double(r#"{"type":"published","id":"m1"}"#));
        for n in 0..REMEMBERED {
            assert!(!double(&format!(r#"{{"type":"message","id":"n{n}"}}"#)));
        }
        assert!(!double(r#"{"type":"message","id":"m1"}"#), "forgotten");
    }
}
