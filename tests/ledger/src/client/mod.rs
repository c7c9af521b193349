//! Clients: each stays connected to some node or other, logs what it sees, and comes back where it was.

mod line;
mod places;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::body::Stream;
use crate::fleet::{API_KEY, Doors};
use crate::http::Http;
use crate::ledger::{Event, Ledger, What};
use line::Line;
use places::Places;

/// A connection that could not be had is tried again after up to so long.
const AGAIN: Duration = Duration::from_millis(600);

/// How a client finds its place in its inbox again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resume {
    /// It says the last position that it saw.
    Since,
    /// It acknowledges, and the node knows its device's cursor.
    Cursor,
}

/// One end of a user.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) user: String,
    pub(crate) device: Option<String>,
    pub(crate) resume: Resume,
    /// Channels that it names when it connects.
    pub(crate) channels: Vec<String>,
    /// Channels that it subscribes to once it is welcome.
    pub(crate) later: Vec<String>,
    pub(crate) seed: u64,
}

impl Client {
    pub(crate) fn name(&self) -> String {
        let device = self.device.as_deref().unwrap_or("-");
        format!("{}/{device}/{:x}", self.user, self.seed & 0xffff)
    }

    /// Its inbox, and its channels.
    pub(crate) fn follows(&self) -> Vec<Stream> {
        let channels = self.channels.iter().chain(&self.later);
        let channels = channels.map(|channel| format!("channel:{channel}").into());
        std::iter::once(self.inbox()).chain(channels).collect()
    }

    pub(crate) fn inbox(&self) -> Stream {
        format!("user:{}", self.user).into()
    }
}

/// What a client is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// To be connected.
    Stay,
    /// To vanish without a word, and to be away until told otherwise.
    Vanish,
    /// To end.
    Stop,
}

/// Where a client logs.
#[derive(Debug, Clone)]
pub(crate) struct Pen {
    ledger: Arc<Ledger>,
    client: usize,
    connection: u32,
}

impl Pen {
    pub(crate) fn new(ledger: Arc<Ledger>, client: usize) -> Self {
        Self {
            ledger,
            client,
            connection: 0,
        }
    }

    /// The same for another connection of the client.
    pub(crate) fn at(&self, connection: u32) -> Self {
        Self {
            connection,
            ..self.clone()
        }
    }

    pub(crate) fn connection(&self) -> u32 {
        self.connection
    }

    pub(crate) fn write(&self, what: What) {
        let event = Event {
            at: self.ledger.clock.now(),
            connection: self.connection,
            what,
        };
        self.ledger.client(self.client).push(event);
    }

    pub(crate) fn whole(&self, whole: bool) {
        self.ledger.client(self.client).whole = whole;
    }
}

impl Client {
    /// Connects, again and again, until it is told to stop.
    pub(crate) async fn run(
        self,
        doors: Arc<Vec<Doors>>,
        mut pen: Pen,
        mut order: watch::Receiver<Order>,
    ) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut places = Places::new(&self);
        loop {
            let now = *order.borrow_and_update();
            match now {
                Order::Stop => return,
                Order::Vanish => {
                    // It errs once nobody can order any more.
                    if order.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Order::Stay => {}
            }
            let node = &doors[rng.random_range(0..doors.len())];
            match self.connect(node, &mut places, &mut rng).await {
                Ok(line) => {
                    let what = line
                        .follow(&self, &mut places, &pen, &mut order, &mut rng)
                        .await;
                    pen.whole(false);
                    pen.write(what);
                }
                Err(why) => pen.write(What::Refused { why }),
            }
            pen.connection += 1;
            tokio::select! {
                () = sleep(AGAIN.mul_f64(rng.random_range(0.0..1.0))) => {}
                _ = order.changed() => order.mark_changed(),
            }
        }
    }

    async fn connect(
        &self,
        node: &Doors,
        places: &mut Places,
        rng: &mut StdRng,
    ) -> Result<Line, String> {
        let mut ask = json!({"user_id": self.user});
        // The ticket's wins over the query's, and both must do.
        let device_by_ticket = rng.random_bool(0.5);
        if device_by_ticket && let Some(device) = &self.device {
            ask["device"] = device.as_str().into();
        }
        let mut service = Http::new(node.service, API_KEY);
        let answer = service.post("/v1/tickets", &ask.to_string()).await;
        let (status, body) = answer.map_err(|failure| format!("ticket: {failure}"))?;
        if status != 200 {
            return Err(format!("ticket: {status}"));
        }
        let body: serde_json::Value =
            serde_json::from_str(&body).map_err(|error| format!("ticket: {error}"))?;
        let ticket = body["ticket"].as_str().ok_or("ticket: none")?;
        let query = places.query(self, ticket, !device_by_ticket);
        Line::connect(node.public, &query).await
    }
}
