use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::Instant as Deadline;

use super::command::Command;
use super::delivery::{Delivery, EchoGuard};
use super::{InboxConfig, Namespaces, SubscribeRule};
use crate::backplane::{Backplane, Envelope, Here, PublishError, Published};
use crate::model::{
    Address, Ask, Body, ChannelName, Class, Message, MessageId, NodeId, Said, Target, UserId,
    unix_millis,
};
use crate::telemetry::Metrics;

/// What became of an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Connections on this node took it; no other node listens.
    DeliveredLocally,
    /// At least one other node listens and was sent it.
    DispatchedToCluster,
    /// Nobody is connected, and it was not kept.
    NobodyConnected,
}

/// The answer to an accepted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// What became of it.
    pub status: Status,
    /// Its id.
    pub id: MessageId,
    /// Outboxes on this node that took it.
    pub local_connections: u32,
    /// Other nodes that listen: a hint.
    pub other_nodes: u32,
    /// The cluster could not be asked in full.
    pub degraded: bool,
}

/// Why a message, or a control call, was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request is wrong: which field, and the rule.
    Invalid {
        /// The field, by its name in the service API.
        field: &'static str,
        /// The rule that it breaks, to be read after the field's name.
        problem: String,
    },
    /// The node is too busy; nothing was accepted.
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The backplane cannot be reached; nothing was accepted.
    Unavailable(String),
    /// It is not known whether the message was accepted.
    Unknown {
        /// The message's id.
        id: MessageId,
        /// What happened.
        problem: String,
    },
}

/// What a control call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Connections that it was applied to.
    pub applied: u32,
    /// Nodes that did not confirm in time.
    pub unknown: u32,
}

/// How long an answer waits for this node's own echo before it says `degraded`.
const ECHO_TIMEOUT: Duration = Duration::from_millis(250);
/// How long the acceptance of a message may take, unless the one who asks has a deadline of its own.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where services' and clients' wishes enter: accepts messages into the backplane and asks the shards.
pub struct Router {
    node: NodeId,
    pub(super) incarnation: u64,
    pub(super) delivery: Arc<Delivery>,
    pub(super) backplane: Arc<dyn Backplane>,
    namespaces: Arc<Namespaces>,
    /// Whether users have inboxes.
    inbox: bool,
    metrics: Metrics,
}

impl Router {
    pub(super) fn new(
        node: NodeId,
        incarnation: u64,
        delivery: Arc<Delivery>,
        backplane: Arc<dyn Backplane>,
        namespaces: Arc<Namespaces>,
        inbox: &InboxConfig,
        metrics: Metrics,
    ) -> Self {
        Self {
            node,
            incarnation,
            delivery,
            backplane,
            namespaces,
            inbox: inbox.max_messages > 0,
            metrics,
        }
    }

    /// The node's name.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Pushes to one user: all connections, on all nodes.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn push(
        &self,
        user: UserId,
        body: Body,
        class: Class,
        deadline: Deadline,
    ) -> Result<Accepted, Refusal> {
        self.check_class(
            class,
            self.inbox,
            "users have no inbox ([inbox] max_messages = 0)",
        )?;
        self.accept(Target::One(Address::User(user)), body, class, deadline)
            .await
    }

    /// Publishes to a channel.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn publish(
        &self,
        channel: ChannelName,
        body: Body,
        class: Class,
        deadline: Deadline,
    ) -> Result<Accepted, Refusal> {
        let kept = self.namespaces.of(&channel).keep.is_some();
        self.check_class(
            class,
            kept,
            "the channel's namespace keeps nothing (max_messages = 0)",
        )?;
        self.accept(
            Target::One(Address::Channel(channel)),
            body,
            class,
            deadline,
        )
        .await
    }

    /// Pushes one body to many users.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn broadcast(
        &self,
        users: Arc<[UserId]>,
        body: Body,
        class: Class,
        deadline: Deadline,
    ) -> Result<Accepted, Refusal> {
        self.check_class(
            class,
            self.inbox,
            "users have no inbox ([inbox] max_messages = 0)",
        )?;
        self.accept(Target::Users(users), body, class, deadline)
            .await
    }

    /// Pushes one body to every session.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn broadcast_everyone(
        &self,
        body: Body,
        class: Class,
        deadline: Deadline,
    ) -> Result<Accepted, Refusal> {
        self.check_class(class, false, "a broadcast to everyone is VOLATILE only")?;
        self.accept(Target::One(Address::Everyone), body, class, deadline)
            .await
    }

    fn check_class(&self, class: Class, keeps: bool, why: &str) -> Result<(), Refusal> {
        if class == Class::Kept && !keeps {
            return Err(Refusal::Invalid {
                field: "class",
                problem: format!("cannot be KEPT: {why}; leave it out or say VOLATILE"),
            });
        }
        Ok(())
    }

    /// The one path in: id, backplane, echo.
    async fn accept(
        &self,
        target: Target,
        body: Body,
        class: Class,
        deadline: Deadline,
    ) -> Result<Accepted, Refusal> {
        let began = Instant::now();
        let time = unix_millis();
        let message = Message {
            id: MessageId::new(time),
            target,
            body,
            time,
        };
        let echo = self.delivery.await_echo(message.id);
        let to = match &message.target {
            Target::One(address) => address.clone(),
            // One envelope per node; each finds its own users in it.
            Target::Users(_) => Address::Everyone,
        };
        let envelope = Envelope::Message(message.clone());
        let accepted = match self.backplane.publish(to.clone(), envelope, deadline).await {
            Ok(published) => self.settle(message, published, echo, &to, deadline).await,
            // Certainly nobody got it, and it was said to matter only to who is here.
            Err(PublishError::Unavailable(problem)) if class == Class::Volatile => {
                let local = self.deliver_directly(message, echo, deadline).await;
                if local.local_connections == 0 {
                    return Err(Refusal::Unavailable(problem));
                }
                local
            }
            Err(PublishError::Unavailable(problem)) => return Err(Refusal::Unavailable(problem)),
            Err(PublishError::Unknown(problem)) => {
                let id = message.id;
                return Err(Refusal::Unknown { id, problem });
            }
            Err(PublishError::Busy) => {
                return Err(Refusal::Busy {
                    retry_after: Duration::from_secs(1),
                });
            }
        };
        self.metrics.messages_accepted.inc();
        self.metrics
            .push_seconds
            .observe(began.elapsed().as_secs_f64());
        Ok(accepted)
    }

    /// The answer to a message that went out: waits for its echo, if one must come.
    async fn settle(
        &self,
        message: Message,
        published: Published,
        mut echo: EchoGuard<'_>,
        to: &Address,
        deadline: Deadline,
    ) -> Accepted {
        let id = message.id;
        let patience = deadline.min(Deadline::now() + ECHO_TIMEOUT);
        let Published {
            listeners,
            here,
            heard,
        } = published;
        let echoed = match here {
            Here::Silent => Some(0),
            Here::Away => {
                let local = self.deliver_directly(message, echo, deadline).await;
                return Accepted {
                    other_nodes: listeners,
                    status: status(listeners, local.local_connections),
                    ..local
                };
            }
            Here::Listens | Here::Changing => tokio::time::timeout_at(patience, echo.count())
                .await
                .ok()
                .flatten(),
        };
        // Not one word came on the link on which the echo was due: it hangs, and nobody here would get this.
        if here == Here::Listens && echoed.is_none() && self.backplane.is_deaf(to, heard) {
            let local = self.deliver_directly(message, echo, deadline).await;
            let others = listeners.saturating_sub(1);
            return Accepted {
                other_nodes: others,
                status: status(others, local.local_connections),
                ..local
            };
        }
        let (others, degraded) = match (here, echoed) {
            (Here::Listens, echoed) => (listeners.saturating_sub(1), echoed.is_none()),
            (Here::Changing, Some(_)) => (listeners.saturating_sub(1), false),
            // Redis had not counted this node: whoever listened is elsewhere.
            _ => (listeners, false),
        };
        let local = echoed.unwrap_or(0);
        Accepted {
            // Without the echo it is not known that nobody is here.
            status: match degraded && others == 0 {
                true => Status::DeliveredLocally,
                false => status(others, local),
            },
            id,
            local_connections: local,
            other_nodes: others,
            degraded,
        }
    }

    /// To this node's own sessions, past the backplane. Should it come through the backplane after all, it is not
    /// delivered again.
    async fn deliver_directly(
        &self,
        message: Message,
        mut echo: EchoGuard<'_>,
        deadline: Deadline,
    ) -> Accepted {
        let id = message.id;
        let delivering = async {
            self.delivery.deliver_directly(message).await;
            echo.count().await
        };
        // Cut off while it waited for room, nobody got it.
        let local = tokio::time::timeout_at(deadline, delivering).await;
        let local = local.ok().flatten().unwrap_or(0);
        Accepted {
            status: status(0, local),
            id,
            local_connections: local,
            other_nodes: 0,
            degraded: true,
        }
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

    /// Closes a user's oldest connections, to make room for newer ones.
    pub(super) async fn replace_oldest(&self, user: &UserId, count: usize) {
        let waiting = self.delivery.ask_shards(&Ask::WhereIs(user.clone())).await;
        let mut connections = Vec::new();
        for waiting in waiting {
            // A shard that is gone has no connections to replace.
            if let Ok(Said::Connections(more)) = waiting.await {
                connections.extend(more);
            }
        }
        connections.sort_by_key(|c| c.connected_at);
        for oldest in connections.into_iter().take(count) {
            let connection = oldest.connection;
            if let Some(shard) = self.delivery.shards().get(usize::from(connection.shard)) {
                let _ = shard.send(Command::Replace { connection }).await;
            }
        }
    }

    /// Tells every shard to accept nobody any more.
    pub async fn stop_accepting(&self) {
        self.tell_all(|| Command::StopAccepting).await;
    }

    /// Tells every shard to close its sessions with 1012, each at a random moment within the time.
    pub async fn drain(&self, spread: Duration) {
        self.tell_all(|| Command::Drain { spread }).await;
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

fn status(others: u32, local: u32) -> Status {
    match (others, local) {
        (1.., _) => Status::DispatchedToCluster,
        (0, 1..) => Status::DeliveredLocally,
        (0, 0) => Status::NobodyConnected,
    }
}
