//! How a node leaves: step by step, as docs/operations.md tells it.

use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};

use super::Node;
use crate::fleet::Phase;

/// How long calls in flight have once the node was told to leave now.
const HURRIED_CALLS: Duration = Duration::from_secs(1);

/// How long those who take events from streams have to confirm them when the node leaves.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// How long the node's end waits for its discovery to know.
const DISCOVERY: Duration = Duration::from_secs(1);

impl Node {
    /// Leaves: readiness goes red; all doors accept for `deregister_delay`; listeners close and calls in flight finish;
    /// over `spread` the sessions are told to go elsewhere; who has not gone `grace` later is closed with 1012, as is
    /// everyone where no other node could take them. Without sessions it leaves at once. When `now` comes, sessions are
    /// closed at once and calls in flight have 1 s.
    pub async fn leave(mut self, now: impl Future<Output = ()>) {
        self.drain.begin();
        tokio::pin!(now);
        // Nobody is sent here any more before the doors close, also where there is nobody to wait for.
        let waited = async {
            let out = tokio::time::timeout(DISCOVERY, self.discovery.join_next());
            let _ = tokio::join!(out, self.drain.deregister());
        };
        let mut hurried = tokio::select! {
            () = waited => false,
            () = &mut now => true,
        };
        self.hub.router.stop_accepting().await;
        self.health.enter(Phase::Closing);
        self.stop_sources.send_replace(true);
        if !hurried {
            tokio::select! {
                () = self.drain.empty() => {}
                () = &mut now => hurried = true,
            }
        }
        self.hub.router.close_all().await;
        let hurry = async {
            if !hurried {
                now.await;
            }
            tokio::time::sleep(HURRIED_CALLS).await;
        };
        // Close frames get a moment to be answered, while calls in flight finish.
        let goodbyes = self.drain.until_empty(Duration::from_secs(1));
        tokio::join!(finish(self.service, hurry), goodbyes);
        if !hurried {
            confirm_taken(&mut self.streams).await;
        }
        self.streams.shutdown().await;
        self.hub.router.end().await;
        let shards = self.shards;
        let _ = tokio::task::spawn_blocking(move || shards.join()).await;
        self.tasks.shutdown().await;
        self.discovery.shutdown().await;
        let incarnation = self.hub.lease_name();
        let released = self.links.leases.release(incarnation);
        // A backplane that is away lets the lease lapse.
        let _ = tokio::time::timeout(Duration::from_secs(1), released).await;
        self.links.backplane.close().await;
        self.stop_admin.send_replace(true);
        for admin in self.admins {
            let _ = admin.await;
        }
        tracing::info!("left");
    }
}

/// Waits for those who take events from streams. What they cannot confirm in time another node takes.
async fn confirm_taken(streams: &mut JoinSet<()>) {
    let ended = async { while streams.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_EVENTS, ended).await;
}

/// Waits for a door's end, and ends it at `most`, calls in flight included.
async fn finish(mut door: JoinHandle<()>, most: impl Future<Output = ()>) {
    tokio::select! {
        _ = &mut door => {}
        () = most => {
            door.abort();
            let _ = door.await;
        }
    }
}
