use std::sync::Arc;
use std::time::Duration;

use super::command::Command;
use super::delivery::Delivery;
use super::{Leave, Limits, Namespaces, Refusal, SubscribeRule};
use crate::backplane::{Backplane, Keep, Streams};
use crate::model::{Address, Ask, ChannelName, ConnectionId, ConnectionInfo, NodeId, Said, UserId};
use crate::telemetry::Metrics;
use crate::tickets::ResumeTickets;

/// How long the acceptance of a message may take, unless the one who asks has a deadline of its own.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where services' and clients' wishes enter: accepts messages into the backplane and asks the shards.
pub struct Router {
    node: NodeId,
    pub(super) incarnation: u64,
    pub(super) delivery: Arc<Delivery>,
    pub(super) backplane: Arc<dyn Backplane>,
    pub(super) streams: Arc<dyn Streams>,
    pub(super) namespaces: Arc<Namespaces>,
    /// What is kept of a user's messages.
    pub(super) inbox: Option<Keep>,
    pub(super) metrics: Metrics,
    pub(super) resume: Arc<ResumeTickets>,
}

impl Router {
    pub(super) fn new(
        node: NodeId,
        incarnation: u64,
        delivery: Arc<Delivery>,
        (backplane, streams): (Arc<dyn Backplane>, Arc<dyn Streams>),
        namespaces: Arc<Namespaces>,
        inbox: Option<Keep>,
        (metrics, resume): (Metrics, Arc<ResumeTickets>),
    ) -> Self {
        Self {
            node,
            incarnation,
            delivery,
            backplane,
            streams,
            namespaces,
            inbox,
            metrics,
            resume,
        }
    }

    /// What is kept of an address's messages.
    pub(super) fn keep(&self, address: &Address) -> Option<Keep> {
        match address {
            Address::User(_) => self.inbox,
            Address::Channel(channel) => self.namespaces.of(channel).keep,
            Address::Everyone | Address::Node(_) => None,
        }
    }

    /// The node's name.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Checks that a ticket or a service may name a channel for a session (its namespace is not `nobody`).
    ///
    /// # Errors
    /// `Invalid` with the field given.
    pub fn check_grantable(
        &self,
        field: &'static str,
        channel: &ChannelName,
    ) -> Result<(), Refusal> {
        if self.namespaces.of(channel).subscribe == SubscribeRule::Nobody {
            return Err(Refusal::Invalid {
                field,
                problem: format!(
                    "names {channel}, and nobody may subscribe in the namespace {:?} (subscribe = \"nobody\")",
                    channel.namespace()
                ),
            });
        }
        Ok(())
    }

    /// How many of these connections of a user this node holds.
    pub(super) async fn held_here(&self, user: &UserId, connections: &[ConnectionId]) -> u32 {
        let held = self.connections_here(user).await;
        let named = held.iter().filter(|c| connections.contains(&c.connection));
        named.count() as u32
    }

    pub(super) async fn connections_here(&self, user: &UserId) -> Vec<ConnectionInfo> {
        let waiting = self.delivery.ask_shards(&Ask::WhereIs(user.clone())).await;
        let mut connections = Vec::new();
        for waiting in waiting {
            // A shard that is gone has none.
            if let Ok(Said::Connections(more)) = waiting.await {
                connections.extend(more);
            }
        }
        connections
    }

    /// Tells every shard of other limits.
    pub(super) async fn take_up(&self, limits: &Arc<Limits>) {
        self.tell_all(|| Command::Limits(limits.clone())).await;
    }

    /// Tells every shard to accept nobody any more.
    pub async fn stop_accepting(&self) {
        self.tell_all(|| Command::StopAccepting).await;
    }

    /// Tells every shard to make its sessions leave, each at a random moment within the time. Told again, new moments are
    /// drawn.
    pub async fn drain(&self, how: Leave, spread: Duration) {
        self.tell_all(|| Command::Drain { how, spread }).await;
    }

    /// Tells every shard that no session's moment comes for now, or that they come again, later by that time.
    pub async fn hold(&self, held: bool) {
        self.tell_all(|| Command::Hold(held)).await;
    }

    /// Tells every shard to close its sessions with 1012 now.
    pub async fn close_all(&self) {
        self.tell_all(|| Command::CloseAll).await;
    }

    /// Tells every shard to end, once what is queued is done.
    pub async fn end(&self) {
        self.tell_all(|| Command::End).await;
    }

    async fn tell_all(&self, command: impl Fn() -> Command) {
        for shard in self.delivery.shards() {
            let _ = shard.send(command()).await;
        }
    }
}
