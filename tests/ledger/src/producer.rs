//! Producers: services that push to inboxes and channels, one message after another, and log each answer.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::body::{self, Key, Numbers, Stream};
use crate::fleet::{API_KEY, Doors};
use crate::http::{Failure, Http};
use crate::ledger::{Answer, Ledger, Push};

/// One in so many pushes has a field that no node knows, so that it is refused for certain.
const REFUSED_ONE_IN: u32 = 40;
/// With an idempotency key an unknown outcome is asked for again, so often.
const ATTEMPTS: u32 = 8;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(300);

/// Who pushes what.
#[derive(Debug, Clone)]
pub(crate) struct Producer {
    pub(crate) number: u32,
    pub(crate) seed: u64,
    /// Where to, one at random each time.
    pub(crate) streams: Vec<Stream>,
    /// The mean pause between an answer and the next push.
    pub(crate) pace: Duration,
    /// Whether its pushes have idempotency keys, so that it may ask again.
    pub(crate) keyed: bool,
}

impl Producer {
    /// Pushes until it is told to stop, and finishes what it began.
    pub(crate) async fn run(
        self,
        doors: Arc<Vec<Doors>>,
        ledger: Arc<Ledger>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut ends: Vec<Http> = doors
            .iter()
            .map(|doors| Http::new(doors.service, API_KEY))
            .collect();
        let mut numbers = Numbers::default();
        while !*stop.borrow() {
            let stream = self.streams[rng.random_range(0..self.streams.len())].clone();
            let key = numbers.next(stream, self.number);
            self.push(key, &mut rng, &mut ends, &ledger).await;
            let pause = self.pace.mul_f64(rng.random_range(0.0..2.0));
            tokio::select! {
                () = sleep(pause) => {}
                _ = stop.changed() => {}
            }
        }
    }

    async fn push(&self, key: Key, rng: &mut StdRng, ends: &mut [Http], ledger: &Ledger) {
        let body = body::render(&key);
        let refused = rng.random_range(0..REFUSED_ONE_IN) == 0;
        let mut more = String::new();
        if self.keyed {
            more.push_str(&key.idempotency());
        }
        if refused {
            more.push_str(r#","nonsense":1"#);
        }
        let (path, request) = key.push(&body, &more);
        let begun = ledger.clock.now();
        let mut attempts = 0;
        let mut sent = false;
        let answer = loop {
            let at = rng.random_range(0..ends.len());
            let end = &mut ends[at];
            attempts += 1;
            match understand(end.post(path, &request).await) {
                // Of an earlier attempt it is not known.
                Answer::Refused { .. } if sent => {}
                Answer::Unknown => sent = true,
                answer => break answer,
            }
            if !self.keyed || attempts == ATTEMPTS {
                break Answer::Unknown;
            }
            sleep(BETWEEN_ATTEMPTS).await;
        };
        ledger.pushed(Push {
            hash: body::hash(&body),
            begun,
            answered: ledger.clock.now(),
            attempts,
            answer,
            key,
        });
    }
}

/// What an answer says of a push.
pub(crate) fn understand(answer: Result<(u16, String), Failure>) -> Answer {
    #[derive(Deserialize)]
    struct Accepted {
        message_id: Box<str>,
        position: Option<Box<str>>,
        durability: Option<Box<str>>,
    }
    match answer {
        Ok((200, body)) => match serde_json::from_str::<Accepted>(&body) {
            Ok(accepted) => Answer::Accepted {
                id: accepted.message_id,
                position: accepted.position,
                durability: accepted.durability,
            },
            Err(_) => Answer::Unknown,
        },
        Ok((status, _)) if (400..500).contains(&status) || matches!(status, 501 | 503) => {
            Answer::Refused { status }
        }
        Err(Failure::Unsent(_)) => Answer::Refused { status: 0 },
        Ok(_) | Err(Failure::Unanswered(_)) => Answer::Unknown,
    }
}
