//! The servers of a torture run, and how each disturbance is done to them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::blow::Blow;
use crate::fleet::{Doors, Kept, Load, Node, Pipe, Redis, Result, Setup};

/// More than any stream gets in the longest of runs.
const KEPT: Kept = Kept(100_000);

/// Three nodes, and the Redis behind them.
pub(super) struct Stage {
    nodes: Vec<Node>,
    /// Through it the nodes reach whichever Redis is the primary.
    pipe: Pipe,
    redis: Redis,
    /// How many there have been.
    redises: u32,
    folder: PathBuf,
    brief: bool,
}

impl Stage {
    pub(super) async fn build(binary: &Path, folder: &Path, brief: bool) -> Result<Self> {
        let redis = Redis::start(folder, "redis-0").await?;
        let pipe = Pipe::to(redis.port).await?;
        let setup = Setup {
            redis: Some(pipe.port),
            kept: KEPT,
            more: String::new(),
        };
        let mut nodes = Vec::new();
        for name in ["a", "b", "c"] {
            nodes.push(Node::start(binary, folder, name, setup.clone()).await?);
        }
        Ok(Self {
            nodes,
            pipe,
            redis,
            redises: 1,
            folder: folder.into(),
            brief,
        })
    }

    pub(super) fn doors(&self) -> Vec<Doors> {
        self.nodes.iter().map(|node| node.doors.clone()).collect()
    }

    /// Waits until every node says that it is ready.
    pub(super) async fn until_ready(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.until_ready().await?;
        }
        Ok(())
    }

    /// Some time, in seconds at most.
    async fn wait(&self, rng: &mut StdRng, most: u64) {
        let most = if self.brief { most * 600 } else { most * 1000 };
        sleep(Duration::from_millis(rng.random_range(200..most))).await;
    }

    /// Does it, and returns when everything runs again.
    pub(super) async fn strike(&mut self, blow: Blow, rng: &mut StdRng) -> Result<()> {
        match blow {
            Blow::KillNode => {
                let at = rng.random_range(0..self.nodes.len());
                self.nodes[at].kill()?;
                self.wait(rng, 5).await;
                self.nodes[at].restart().await
            }
            Blow::FreezeRedis => {
                self.redis.freeze()?;
                // About as long as a node tries: some of what is pushed meanwhile ends as unknown.
                sleep(Duration::from_secs(3)).await;
                self.wait(rng, 7).await;
                self.redis.thaw()
            }
            Blow::CutSubscriptions => self.cut("pubsub", rng).await,
            Blow::CutCommands => self.cut("normal", rng).await,
            Blow::KillRedis => self.restart(Load::Everything, rng).await,
            Blow::OlderSnapshot => {
                self.redis.snapshot().await?;
                // What is accepted now will be lost.
                self.wait(rng, 5).await;
                self.restart(Load::Snapshot, rng).await
            }
            Blow::EmptyRedis => self.restart(Load::Nothing, rng).await,
            Blow::LaggingReplica => self.fail_over(rng).await,
            Blow::Vanish => {
                self.wait(rng, 6).await;
                Ok(())
            }
        }
    }

    /// Cuts links of a kind, several times.
    async fn cut(&self, kind: &str, rng: &mut StdRng) -> Result<()> {
        for _ in 0..rng.random_range(1..=3) {
            self.redis
                .command(&format!("CLIENT KILL TYPE {kind}"))
                .await?;
            self.wait(rng, 1).await;
        }
        Ok(())
    }

    async fn restart(&mut self, load: Load, rng: &mut StdRng) -> Result<()> {
        self.redis.kill()?;
        self.wait(rng, 4).await;
        self.redis.restart(load).await
    }

    async fn fail_over(&mut self, rng: &mut StdRng) -> Result<()> {
        let name = format!("redis-{}", self.redises);
        self.redises += 1;
        let replica = Redis::start(&self.folder, &name).await?;
        let link = Pipe::to(self.redis.port).await?;
        replica.follow(link.port).await?;
        link.plug();
        // What is accepted now will be lost.
        self.wait(rng, 4).await;
        self.redis.kill()?;
        self.wait(rng, 3).await;
        replica.command("REPLICAOF NO ONE").await?;
        self.pipe.switch(replica.port);
        self.redis = replica;
        Ok(())
    }
}
