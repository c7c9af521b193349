//! Movers: clients as a good library is. They open the new connection before they close the old one when a node says
//! `goaway`, wait for the slot that a refusal names, and drop by its id what came twice meanwhile. Stubborn ones know
//! nothing of it: they come back after the close, with a new ticket and a backoff, as a simple client does.

mod line;
mod mind;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::body::Stream;
use crate::client::{Order, Pen};
use crate::fleet::API_KEY;
use crate::http::{Failure, Http};
use crate::ledger::What;
use line::{Line, News, NotOpened};
use mind::Mind;

/// The first pause before a try is repeated; it doubles, and any part of it is taken.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(8);

/// How the end of a connection is logged that the client gave up for a new one.
pub(crate) const MOVED: &str = "moved;";

/// A client and the user's one end.
#[derive(Debug, Clone)]
pub(crate) struct Mover {
    pub(crate) user: String,
    pub(crate) channels: Vec<String>,
    /// Whether it knows `goaway` and `refused`.
    pub(crate) obeys: bool,
    /// From which address it connects: one has too few ports for a crowd.
    pub(crate) from: IpAddr,
    /// When it first connects.
    pub(crate) comes_after: Duration,
    pub(crate) seed: u64,
}

/// How movers reach the fleet.
#[derive(Debug)]
pub(crate) struct Ways {
    /// The balancer.
    pub(crate) public: SocketAddr,
    /// Where the auth service, which each mover is besides, has its tickets from: any node.
    pub(crate) auth: Vec<Auth>,
}

/// The auth service's connections to a node.
#[derive(Debug)]
pub(crate) struct Auth {
    door: SocketAddr,
    /// Calls at a time.
    room: Semaphore,
    /// Connections that nobody uses: at most as many.
    kept: Mutex<Vec<Http>>,
}

impl Auth {
    pub(crate) fn new(door: SocketAddr) -> Self {
        Self {
            door,
            room: Semaphore::new(16),
            kept: Mutex::default(),
        }
    }

    async fn post(&self, path: &str, body: &str) -> Result<(u16, String), Failure> {
        let _room = self.room.acquire().await;
        let kept = mind::lock(&self.kept).pop();
        let mut http = kept.unwrap_or_else(|| Http::new(self.door, API_KEY));
        let answer = http.post(path, body).await;
        mind::lock(&self.kept).push(http);
        answer
    }
}

impl Mover {
    pub(crate) fn follows(&self) -> Vec<Stream> {
        let channels = self.channels.iter();
        let channels = channels.map(|channel| format!("channel:{channel}").into());
        std::iter::once(self.inbox()).chain(channels).collect()
    }

    fn inbox(&self) -> Stream {
        format!("user:{}", self.user).into()
    }

    /// Is connected, and stays it, until it is told to stop.
    pub(crate) async fn run(self, ways: Arc<Ways>, pen: Pen, mut order: watch::Receiver<Order>) {
        let stopped = order.wait_for(|order| *order == Order::Stop);
        let end = End::new(self, ways, pen);
        tokio::select! {
            _ = stopped => {}
            () = end.live() => {}
        }
    }
}

/// A mover that runs. What it reads it reads in tasks that end with it.
struct End {
    mover: Mover,
    ways: Arc<Ways>,
    pen: Pen,
    mind: Arc<Mutex<Mind>>,
    lines: JoinSet<()>,
    /// Tries so far that had a ticket.
    connections: u32,
    rng: StdRng,
}

impl End {
    fn new(mover: Mover, ways: Arc<Ways>, pen: Pen) -> Self {
        Self {
            mind: Arc::new(Mutex::new(Mind::new(mover.follows()))),
            rng: StdRng::seed_from_u64(mover.seed),
            lines: JoinSet::new(),
            connections: 0,
            mover,
            ways,
            pen,
        }
    }

    async fn live(mut self) {
        sleep(self.mover.comes_after).await;
        loop {
            let Some(mut line) = self.enter(None, None).await else {
                continue;
            };
            while let Some(News::GoAway { after, ticket }) = line.news.recv().await {
                if !self.mover.obeys {
                    continue;
                }
                sleep(after).await;
                if let Some(new) = self.enter(ticket, Some(&line)).await {
                    // Only now is the old one given up.
                    line.goodbye.notify_one();
                    line = new;
                }
            }
            // Everyone who was on that node knows it now: not all at once.
            self.pause(0).await;
        }
    }

    /// Tries until it is welcome, or until the connection that it has meanwhile is gone.
    async fn enter(&mut self, mut ticket: Option<String>, old: Option<&Line>) -> Option<Line> {
        let mut tries = 0;
        loop {
            if tries > 0 && old.is_some_and(Line::has_ended) {
                return None;
            }
            let shown = match ticket.take() {
                Some(ticket) => ticket,
                None => match self.ticket().await {
                    Ok(ticket) => ticket,
                    Err(why) => {
                        self.pen.write(What::Refused { why });
                        self.pause(tries).await;
                        tries += 1;
                        continue;
                    }
                },
            };
            tries += 1;
            self.connections += 1;
            let pen = self.pen.at(self.connections);
            let (query, asked) = mind::lock(&self.mind).query(&self.mover, &shown);
            match Line::open(self.ways.public, self.mover.from, &query).await {
                Ok(opened) => {
                    while self.lines.try_join_next().is_some() {}
                    let (line, read) = opened.follow(self.mind.clone(), pen, asked);
                    self.lines.spawn(read);
                    return Some(line);
                }
                Err(NotOpened::Told { code, after }) => {
                    if let ("overloaded", Some(after)) = (&*code, after) {
                        pen.write(What::Later { after });
                    }
                    pen.write(What::Refused {
                        why: format!("refused: {code}"),
                    });
                    // It is still good, unless it is what was wrong.
                    if code != "ticket" {
                        ticket = Some(shown);
                    }
                    match after {
                        Some(after) => sleep(after).await,
                        None => self.pause(tries).await,
                    }
                }
                Err(NotOpened::Otherwise(why)) => {
                    pen.write(What::Refused { why });
                    // Whether a resume ticket was spent is not known; a spent one is refused as such.
                    if self.mover.obeys {
                        ticket = Some(shown);
                    }
                    self.pause(tries).await;
                }
            }
        }
    }

    /// Any part of a pause that doubles.
    async fn pause(&mut self, tries: u32) {
        let most = AGAIN.saturating_mul(1 << tries.min(5)).min(LONGEST);
        let part = self.rng.random_range(0.0..1.0);
        sleep(most.mul_f64(part)).await;
    }

    /// From any node that answers.
    async fn ticket(&mut self) -> Result<String, String> {
        let nodes = self.ways.auth.len();
        let first = self.rng.random_range(0..nodes);
        let ask = serde_json::json!({"user_id": self.mover.user, "ttl": "60s"}).to_string();
        let mut why = String::new();
        for at in 0..nodes {
            let auth = &self.ways.auth[(first + at) % nodes];
            match auth.post("/v1/tickets", &ask).await {
                Ok((200, body)) => {
                    let body: serde_json::Value =
                        serde_json::from_str(&body).map_err(|error| format!("ticket: {error}"))?;
                    let ticket = body["ticket"].as_str().ok_or("ticket: none")?;
                    return Ok(ticket.into());
                }
                Ok((status, _)) => why = format!("ticket: {status}"),
                Err(failure) => why = format!("ticket: {failure}"),
            }
        }
        Err(why)
    }
}
