//! A run that is under way: all its clients and producers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::body::Stream;
use crate::cast::Cast;
use crate::client::{Order, Pen};
use crate::clock::Stamp;
use crate::fleet::{Doors, Result};
use crate::ledger::{Answer, ClientLog, Ledger, Push};

/// How often it is looked whether something has come true.
const LOOK: Duration = Duration::from_millis(100);

/// Clients that are connected or will be, and producers that push.
pub(crate) struct Crowd {
    pub(crate) ledger: Arc<Ledger>,
    orders: Vec<watch::Sender<Order>>,
    /// By stream, the clients that follow it.
    followers: HashMap<Stream, Vec<usize>>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    producers: JoinSet<()>,
    /// Pushes before it are known to be everywhere.
    settled: usize,
}

impl Crowd {
    /// Nobody is there yet.
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            orders: Vec::new(),
            followers: HashMap::new(),
            stop: watch::Sender::new(false),
            clients: JoinSet::new(),
            producers: JoinSet::new(),
            settled: 0,
        }
    }

    /// Has a client begin, on one of those threads: the next of those that the ledger has a log for.
    pub(crate) fn client<F>(
        &mut self,
        on: &Handle,
        follows: Vec<Stream>,
        run: impl FnOnce(Pen, watch::Receiver<Order>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let at = self.orders.len();
        for stream in follows {
            self.followers.entry(stream).or_default().push(at);
        }
        let (order, orders) = watch::channel(Order::Stay);
        self.orders.push(order);
        let pen = Pen::new(self.ledger.clone(), at);
        self.clients.spawn_on(run(pen, orders), on);
    }

    /// Has a producer begin, on one of those threads. It ends when it is told to stop.
    pub(crate) fn producer<F>(
        &mut self,
        on: &Handle,
        run: impl FnOnce(Arc<Ledger>, watch::Receiver<bool>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let run = run(self.ledger.clone(), self.stop.subscribe());
        self.producers.spawn_on(run, on);
    }

    /// Has all clients connect, and once they are there the producers push. Clients use the doors of the first list,
    /// producers those of the second.
    pub(crate) async fn gather(
        cast: Cast,
        ledger: Arc<Ledger>,
        to_clients: Vec<Doors>,
        to_producers: Vec<Doors>,
        bound: Duration,
    ) -> Result<Self> {
        let mut crowd = Self::new(ledger);
        let here = Handle::current();
        let doors = Arc::new(to_clients);
        for client in cast.clients {
            let doors = doors.clone();
            crowd.client(&here, client.follows(), |pen, orders| {
                client.run(doors, pen, orders)
            });
        }
        if let Err(awaited) = crowd.settle(bound).await {
            return Err(format!("not everyone could connect: {awaited}").into());
        }
        let doors = Arc::new(to_producers);
        for producer in cast.producers {
            let doors = doors.clone();
            crowd.producer(&here, |ledger, stop| producer.run(doors, ledger, stop));
        }
        Ok(crowd)
    }

    pub(crate) fn client_count(&self) -> usize {
        self.orders.len()
    }

    pub(crate) fn order(&self, client: usize, order: Order) {
        self.orders[client].send_replace(order);
    }

    /// Waits until every client is connected and has, or was told that it has not, what has been accepted by now. If
    /// that takes longer than the bound, what is awaited.
    pub(crate) async fn settle(&mut self, bound: Duration) -> std::result::Result<Stamp, String> {
        let deadline = Instant::now() + bound;
        let target = self.ledger.pushes().len();
        let mut at = self.settled;
        self.settled = target;
        loop {
            while at < target && self.is_everywhere(at) {
                at += 1;
            }
            let whole = (0..self.orders.len()).all(|client| self.ledger.client(client).whole);
            if at == target && whole {
                return Ok(self.ledger.clock.now());
            }
            if Instant::now() > deadline {
                return Err(self.awaited(at..target));
            }
            sleep(LOOK).await;
        }
    }

    /// What keeps a crowd from having settled: the first push of some that somebody lacks, the first client without a
    /// whole connection.
    fn awaited(&self, mut pushes: std::ops::Range<usize>) -> String {
        let push = pushes.find(|at| !self.is_everywhere(*at));
        let push = push.map(|at| self.ledger.pushes()[at].clone());
        let push = push.map(|push| {
            let followers = self.followers.get(&push.key.stream);
            let Answer::Accepted { id, .. } = &push.answer else {
                return push.key.to_string();
            };
            let lacks = followers
                .into_iter()
                .flatten()
                .find(|client| self.ledger.client(**client).awaits(&push, id))
                .map(|client| {
                    let log = self.ledger.client(*client);
                    let since = log.events.iter().filter(|event| event.at > push.begun);
                    let since: Vec<_> = since.take(8).collect();
                    format!("{}, which then saw {since:?}", log.name)
                });
            format!("{push:?} by {}", lacks.unwrap_or_default())
        });
        let part = (0..self.orders.len()).find(|at| !self.ledger.client(*at).whole);
        let part = part.map(|at| {
            let log = self.ledger.client(at);
            let last: Vec<_> = log.events.iter().rev().take(4).collect();
            format!("{} {:?} saw last {last:?}", log.name, log.follows)
        });
        format!("{}; {}", push.unwrap_or_default(), part.unwrap_or_default())
    }

    fn is_everywhere(&self, at: usize) -> bool {
        let push = self.ledger.pushes()[at].clone();
        let Answer::Accepted { id, .. } = &push.answer else {
            return true;
        };
        let followers = self.followers.get(&push.key.stream);
        let mut followers = followers.into_iter().flatten();
        !followers.any(|client| self.ledger.client(*client).awaits(&push, id))
    }

    /// Stops the producers, waits once more, stops the clients, and gives the logs and when all had settled.
    pub(crate) async fn finish(
        mut self,
        bound: Duration,
    ) -> (Vec<Push>, Vec<ClientLog>, Option<Stamp>) {
        self.stop.send_replace(true);
        while self.producers.join_next().await.is_some() {}
        let settled = self.settle(bound).await.ok();
        for order in &self.orders {
            order.send_replace(Order::Stop);
        }
        while self.clients.join_next().await.is_some() {}
        let (pushes, clients) = self.ledger.copy();
        (pushes, clients, settled)
    }
}
