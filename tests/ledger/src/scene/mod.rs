//! The fleet of a roll or a crash: nodes over a Redis, behind a HAProxy, and everyone who is there.

mod judge;
mod load;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::checker::{Evidence, Report, check};
use crate::clock::Stamp;
use crate::crowd::Crowd;
use crate::fleet::{HaProxy, Kept, Node, Redis, Result, Setup};
use crate::ledger::{ClientLog, Ledger};
use crate::machines::Machine;
use crate::mover::{Auth, Ways};
use crate::publisher::Answers;
use crate::spans::{Span, spans, told_later};
pub(crate) use judge::{in_line, millis, pushes, rate, seconds, three};
pub(crate) use load::Load;

/// More than any stream gets.
const KEPT: Kept = Kept(100_000);
/// By when everyone is connected and has everything, after the last of it.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// Nodes behind a balancer, and all that the clients and publishers log.
pub(crate) struct Scene {
    pub(crate) nodes: Vec<Node>,
    pub(crate) haproxy: HaProxy,
    pub(crate) crowd: Crowd,
    pub(crate) answers: Arc<Mutex<Answers>>,
    pub(crate) redis: Redis,
    publishers: Machine,
    /// The threads of the clients end with the scene.
    _clients: Machine,
    load: Load,
}

/// A client's connections.
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) obeys: bool,
    pub(crate) spans: Vec<Span>,
    /// When it was refused and told to come later.
    pub(crate) told_later: Vec<Stamp>,
}

/// What is known in the end.
pub(crate) struct Outcome {
    pub(crate) report: Report,
    pub(crate) clients: Vec<Client>,
    pub(crate) answers: Answers,
    /// When the clients were told to stop.
    pub(crate) over: Stamp,
    /// Whether everyone was connected and had everything by then.
    pub(crate) settled: bool,
}

impl Scene {
    /// Builds it, and has the clients begin to arrive. `nodes` are names and binaries; `more` is what they are
    /// configured with besides.
    pub(crate) async fn build(
        nodes: &[(&str, &Path)],
        folder: &Path,
        load: Load,
        more: String,
    ) -> Result<Self> {
        let redis = Redis::start(folder, "redis").await?;
        // It is not killed here, so nothing hangs on how soon it writes to the disk; and this is what most have.
        redis.command("CONFIG SET appendfsync everysec").await?;
        let setup = Setup {
            redis: Some(redis.port),
            kept: KEPT,
            more,
        };
        let names = nodes;
        let mut nodes = Vec::new();
        for (name, binary) in names {
            nodes.push(Node::start(binary, folder, name, setup.clone()).await?);
        }
        let haproxy = HaProxy::start(folder, &nodes, load.stands_back).await?;
        let ways = Arc::new(Ways {
            public: haproxy.public,
            auth: nodes
                .iter()
                .map(|node| Auth::new(node.doors.service))
                .collect(),
        });
        let movers = load.movers();
        let logs = movers
            .iter()
            .map(|mover| ClientLog::new(mover.user.clone(), mover.follows()));
        let ledger = Arc::new(Ledger::new(logs.collect()));
        let clients = Machine::of_clients(load.stands_back)?;
        let mut crowd = Crowd::new(ledger);
        for mover in movers {
            let ways = ways.clone();
            crowd.client(clients.handle(), mover.follows(), |pen, order| {
                mover.run(ways, pen, order)
            });
        }
        Ok(Self {
            nodes,
            haproxy,
            crowd,
            answers: Arc::default(),
            redis,
            publishers: Machine::of_publishers()?,
            _clients: clients,
            load,
        })
    }

    /// Waits until every client is connected.
    pub(crate) async fn gather(&mut self) -> Result<()> {
        let connected = self.crowd.settle(self.load.arriving() + BOUND).await;
        connected.map_err(|awaited| format!("not everyone could connect: {awaited}"))?;
        println!(
            "{:>9}  {} nodes behind HAProxy, {} clients that obey and {} that do not are connected",
            self.now().to_string(),
            self.nodes.len(),
            self.load.obeying,
            self.load.stubborn,
        );
        Ok(())
    }

    /// Has the publishers begin.
    pub(crate) fn publish(&mut self) {
        let services = self.nodes.iter().map(|node| node.doors.service);
        let services = Arc::new(services.collect::<Vec<_>>());
        for publisher in self.load.publishers(&self.answers) {
            let services = services.clone();
            let on = self.publishers.handle();
            self.crowd
                .producer(on, |ledger, stop| publisher.run(services, ledger, stop));
        }
    }

    pub(crate) fn now(&self) -> Stamp {
        self.crowd.ledger.clock.now()
    }

    /// Waits until every client is connected and has what has been accepted by now; when that was.
    pub(crate) async fn settle(&mut self, most: Duration) -> Result<Stamp> {
        let settled = self.crowd.settle(most).await;
        settled.map_err(|awaited| format!("still awaited: {awaited}").into())
    }

    /// Ends everything, and holds what was accepted against what was seen.
    pub(crate) async fn finish(self) -> Outcome {
        let ledger = self.crowd.ledger.clone();
        let (pushes, logs, settled) = self.crowd.finish(BOUND).await;
        let over = settled.unwrap_or_else(|| ledger.clock.now());
        let movers = self.load.movers().into_iter();
        let clients = movers.zip(&logs).map(|(mover, log)| Client {
            name: mover.user,
            obeys: mover.obeys,
            spans: spans(log),
            told_later: told_later(log),
        });
        let clients = clients.collect();
        let report = check(&Evidence {
            pushes,
            clients: logs,
            disturbances: Vec::new(),
            bound: BOUND,
            trimmed: false,
        });
        let answers = std::mem::take(&mut *crate::publisher::answers(&self.answers));
        Outcome {
            report,
            clients,
            answers,
            over,
            settled: settled.is_some(),
        }
    }
}

/// A folder for the servers of a run, which is kept if the run was not good.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().into()
    }

    /// Says where to look, and how to have the same again.
    pub(crate) fn keep_unless(self, good: bool, seed: u64) {
        if !good {
            let folder = self.0.keep();
            println!("\nwhat the servers said is kept in {}", folder.display());
            println!("the same again: --seed {seed}");
        }
    }
}
