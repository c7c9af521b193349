use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use tokio::time::Instant as Deadline;

use super::command::Command;
use super::delivery::Delivery;
use super::{InboxConfig, Namespaces, SubscribeRule};
use crate::backplane::{Backplane, PublishError};
use crate::model::{
    Address, Body, ChannelName, Class, ConnectionId, DeviceName, Message, MessageId, NodeId,
    Target, UserId, unix_millis,
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

/// One of a user's connections, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The node that holds it.
    pub node: NodeId,
    /// Its id.
    pub connection: ConnectionId,
    /// The device that it named.
    pub device: Option<DeviceName>,
    /// The claims of its ticket: a JSON object as text.
    pub claims: Option<Arc<str>>,
    /// When it was admitted.
    pub connected_at: SystemTime,
    /// What it subscribes to.
    pub channels: Vec<ChannelName>,
}

/// Whom a control call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sessions {
    /// All of a user's.
    OfUser(UserId),
    /// One.
    Connection(ConnectionId),
}

impl std::fmt::Display for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OfUser(user) => write!(f, "user:{user}"),
            Self::Connection(id) => write!(f, "connection:{id}"),
        }
    }
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
/// How long a shard has to answer a question.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where services' and clients' wishes enter: accepts messages into the backplane and asks the shards.
pub struct Router {
    node: NodeId,
    delivery: Arc<Delivery>,
    backplane: Arc<dyn Backplane>,
    namespaces: Arc<Namespaces>,
    /// Whether users have inboxes.
    inbox: bool,
    metrics: Metrics,
}

impl Router {
    pub(super) fn new(
        node: NodeId,
        delivery: Arc<Delivery>,
        backplane: Arc<dyn Backplane>,
        namespaces: Arc<Namespaces>,
        inbox: &InboxConfig,
        metrics: Metrics,
    ) -> Self {
        Self {
            node,
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
        self.accept(Target::One(Address::User(user)), body, deadline)
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
        let kept = self.namespaces.of(&channel).kept;
        self.check_class(
            class,
            kept,
            "the channel's namespace keeps nothing (max_messages = 0)",
        )?;
        self.accept(Target::One(Address::Channel(channel)), body, deadline)
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
        self.accept(Target::Users(users), body, deadline).await
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
        self.accept(Target::One(Address::Everyone), body, deadline)
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
        deadline: Deadline,
    ) -> Result<Accepted, Refusal> {
        let began = Instant::now();
        let time = unix_millis();
        let id = MessageId::new(time);
        let echo = self.delivery.await_echo(id);
        let message = Message {
            id,
            target,
            body,
            time,
        };
        let other_nodes =
            match tokio::time::timeout_at(deadline, self.backplane.publish(message)).await {
                Ok(Ok(nodes)) => nodes,
                Ok(Err(PublishError::Unavailable(problem))) => {
                    return Err(Refusal::Unavailable(problem));
                }
                Ok(Err(PublishError::Unknown(problem))) => {
                    return Err(Refusal::Unknown { id, problem });
                }
                // Cut off while it waited for room, which comes before a message enters any queue.
                Err(_) => {
                    return Err(Refusal::Busy {
                        retry_after: Duration::from_secs(1),
                    });
                }
            };
        let patience = deadline.min(Deadline::now() + ECHO_TIMEOUT);
        let echoed = tokio::time::timeout_at(patience, echo.count())
            .await
            .ok()
            .flatten();
        let local_connections = echoed.unwrap_or(0);
        self.metrics.messages_accepted.inc();
        self.metrics
            .push_seconds
            .observe(began.elapsed().as_secs_f64());
        Ok(Accepted {
            status: match (other_nodes, local_connections, echoed) {
                (1.., _, _) => Status::DispatchedToCluster,
                // Without the echo it is not known that nobody is here: the shards have it in their queues.
                (0, 1.., _) | (0, 0, None) => Status::DeliveredLocally,
                (0, 0, Some(_)) => Status::NobodyConnected,
            },
            id,
            local_connections,
            other_nodes,
            degraded: echoed.is_none(),
        })
    }

    /// A user's connections, and how many nodes did not answer.
    pub async fn where_is(&self, user: UserId) -> (Vec<ConnectionInfo>, u32) {
        let shards = self.delivery.followers(&Address::User(user.clone()));
        let (answers, silent) = self
            .ask(shards, |answer| Command::WhereIs {
                user: user.clone(),
                answer,
            })
            .await;
        (answers.into_iter().flatten().collect(), u32::from(silent))
    }

    /// Closes sessions with 4501.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn disconnect(&self, sessions: Sessions, reason: String) -> Result<Applied, Refusal> {
        let reason: Arc<str> = reason.into();
        let shards = self.shards_of(&sessions);
        let ask = |answer| Command::Disconnect {
            sessions: sessions.clone(),
            reason: reason.clone(),
            answer,
        };
        Ok(applied(self.ask(shards, ask).await))
    }

    /// Subscribes sessions to a channel and grants it to them.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn subscribe(
        &self,
        sessions: Sessions,
        channel: ChannelName,
    ) -> Result<Applied, Refusal> {
        self.check_grantable("channel", &channel)?;
        let shards = self.shards_of(&sessions);
        let ask = |answer| Command::Subscribe {
            sessions: sessions.clone(),
            channel: channel.clone(),
            answer,
        };
        Ok(applied(self.ask(shards, ask).await))
    }

    /// Ends sessions' subscriptions to a channel and takes the grant back.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn unsubscribe(
        &self,
        sessions: Sessions,
        channel: ChannelName,
    ) -> Result<Applied, Refusal> {
        let shards = self.shards_of(&sessions);
        let ask = |answer| Command::Unsubscribe {
            sessions: sessions.clone(),
            channel: channel.clone(),
            answer,
        };
        Ok(applied(self.ask(shards, ask).await))
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
        let (mut connections, _) = self.where_is(user.clone()).await;
        connections.sort_by_key(|c| c.connected_at);
        for oldest in connections.into_iter().take(count) {
            let connection = oldest.connection;
            if let Some(shard) = self.delivery.shards().get(usize::from(connection.shard)) {
                // A shard that is gone has no connections to replace.
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

    fn shards_of(&self, sessions: &Sessions) -> Vec<usize> {
        match sessions {
            Sessions::OfUser(user) => self.delivery.followers(&Address::User(user.clone())),
            Sessions::Connection(id) => {
                let shard = usize::from(id.shard);
                if shard < self.delivery.shards().len() {
                    vec![shard]
                } else {
                    Vec::new()
                }
            }
        }
    }

    /// Asks some shards the same; answers what they said and whether one of them was silent.
    async fn ask<T>(
        &self,
        shards: Vec<usize>,
        command: impl Fn(oneshot::Sender<T>) -> Command,
    ) -> (Vec<T>, bool) {
        let asked = async {
            let mut waiting = Vec::with_capacity(shards.len());
            for shard in shards {
                let (sender, receiver) = oneshot::channel();
                let _ = self.delivery.shards()[shard].send(command(sender)).await;
                waiting.push(receiver);
            }
            waiting
        };
        let deadline = tokio::time::Instant::now() + CONTROL_TIMEOUT;
        let Ok(waiting) = tokio::time::timeout_at(deadline, asked).await else {
            return (Vec::new(), true);
        };
        let mut answers = Vec::with_capacity(waiting.len());
        let mut silent = false;
        for receiver in waiting {
            match tokio::time::timeout_at(deadline, receiver).await {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(_)) | Err(_) => silent = true,
            }
        }
        (answers, silent)
    }
}

fn applied((counts, silent): (Vec<u32>, bool)) -> Applied {
    Applied {
        applied: counts.into_iter().sum(),
        unknown: u32::from(silent),
    }
}
