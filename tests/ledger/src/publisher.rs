//! Publishers: services that push at a steady rate, and go to another node with the same idempotency key when one does
//! not answer. What each call was answered is counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::body::{self, Key, Numbers, Stream};
use crate::clock::Stamp;
use crate::fleet::API_KEY;
use crate::http::{Failure, Http};
use crate::ledger::{Answer, Ledger, Push};
use crate::producer::understand;

/// How long a push is tried.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause once every node was tried; it doubles, and any part of it is taken.
const AGAIN: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(1);

/// A push and how long it took from when it was due, all its calls together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paid {
    pub(crate) due: Stamp,
    pub(crate) took: Duration,
}

/// What all publishers were answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// By what was answered, how many calls.
    pub(crate) calls: BTreeMap<String, u64>,
    pub(crate) paid: Vec<Paid>,
}

/// One of several that push.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    pub(crate) number: u32,
    pub(crate) seed: u64,
    /// Where to, one at random each time.
    pub(crate) streams: Arc<Vec<Stream>>,
    /// From one push to the next.
    pub(crate) every: Duration,
    pub(crate) answers: Arc<Mutex<Answers>>,
}

impl Publisher {
    /// Pushes until it is told to stop, and finishes what it began.
    pub(crate) async fn run(
        self,
        services: Arc<Vec<SocketAddr>>,
        ledger: Arc<Ledger>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut ends: Vec<Http> = services
            .iter()
            .map(|door| Http::new(*door, API_KEY))
            .collect();
        // Where it was answered last, it goes on.
        let mut at = self.number as usize % ends.len();
        let mut numbers = Numbers::default();
        let first = Instant::now() + self.every.mul_f64(rng.random_range(0.0..1.0));
        let mut ticks = interval_at(first, self.every);
        // A push that takes long does not spare the next ones.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            let due = tokio::select! {
                due = ticks.tick() => due,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            let stream = self.streams[rng.random_range(0..self.streams.len())].clone();
            let key = numbers.next(stream, self.number);
            let push = self.push(key, &mut at, &mut ends, &ledger, &mut rng).await;
            let waited = due.elapsed();
            let due = Stamp(push.answered.0.saturating_sub(waited.as_micros() as u64));
            answers(&self.answers).paid.push(Paid { due, took: waited });
            ledger.pushed(push);
        }
    }

    async fn push(
        &self,
        key: Key,
        at: &mut usize,
        ends: &mut [Http],
        ledger: &Ledger,
        rng: &mut StdRng,
    ) -> Push {
        let text = body::render(&key);
        let (path, request) = key.push(&text, &key.idempotency());
        let begun = ledger.clock.now();
        let until = Instant::now() + PATIENCE;
        let mut attempts: u32 = 0;
        // A call that may have been accepted makes a refusal of a later one prove nothing.
        let mut sent = false;
        let answer = loop {
            let said = ends[*at].post(path, &request).await;
            attempts += 1;
            self.count(&said);
            let answer = understand(said);
            match answer {
                Answer::Accepted { .. } => break answer,
                Answer::Unknown => sent = true,
                Answer::Refused {
                    status: 0 | 429 | 503,
                } => {}
                // Said for good, and wrong: none of these pushes has a fault.
                Answer::Refused { .. } => break answer,
            }
            if Instant::now() > until {
                break if sent { Answer::Unknown } else { answer };
            }
            *at = (*at + 1) % ends.len();
            let nodes = ends.len() as u32;
            if attempts.is_multiple_of(nodes) {
                let round = (attempts / nodes).min(8);
                let most = AGAIN.saturating_mul(1 << round).min(LONGEST);
                sleep(most.mul_f64(rng.random_range(0.0..1.0))).await;
            }
        };
        Push {
            hash: body::hash(&text),
            begun,
            answered: ledger.clock.now(),
            attempts,
            answer,
            key,
        }
    }

    fn count(&self, said: &Result<(u16, String), Failure>) {
        let said = match said {
            Ok((status, _)) => status.to_string(),
            Err(Failure::Unsent(_)) => "could not connect".into(),
            Err(Failure::Unanswered(_)) => "no answer".into(),
        };
        *answers(&self.answers).calls.entry(said).or_default() += 1;
    }
}

/// A panic elsewhere does not unmake what is counted.
pub(crate) fn answers(answers: &Mutex<Answers>) -> MutexGuard<'_, Answers> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}
