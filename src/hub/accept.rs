//! The one path in: a message gets its id, goes into the backplane, and its answer says what became of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::time::Instant as Deadline;

use super::answer::status;
use super::delivery::EchoGuard;
use super::{Accepted, BroadcastAccepted, Draft, Refusal, Router, Status};
use crate::backplane::{
    Append, AppendError, Appended, Envelope, Here, Keep, PublishError, Published,
};
use crate::model::{Address, ChannelName, Class, Message, MessageId, Target, UserId, unix_millis};

/// How long an answer waits for this node's own echo before it says `degraded`.
const ECHO_TIMEOUT: Duration = Duration::from_millis(250);
/// The first and the longest pause before an append whose answer was lost is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Users of one broadcast whose appends are under way.
const BROADCAST_UNDER_WAY: usize = 128;
impl Router {
    /// Pushes to one user: all connections, on all nodes.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn push(&self, user: UserId, draft: Draft) -> Result<Accepted, Refusal> {
        let keep = kept(&draft, self.inbox, NO_INBOX)?;
        let target = Target::One(Address::User(user));
        self.accept(new_id(), target, &draft, keep).await
    }

    /// Publishes to a channel.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn publish(&self, channel: ChannelName, draft: Draft) -> Result<Accepted, Refusal> {
        let keep = self.namespaces.of(&channel).keep;
        let why = "the channel's namespace keeps nothing (max_messages = 0)";
        let keep = kept(&draft, keep, why)?;
        let target = Target::One(Address::Channel(channel));
        self.accept(new_id(), target, &draft, keep).await
    }

    /// Pushes or publishes an event of a source, under an id of its own.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn bring(
        &self,
        id: MessageId,
        address: Address,
        draft: Draft,
    ) -> Result<Accepted, Refusal> {
        let keep = kept(
            &draft,
            self.keep(&address),
            "nothing is kept of the address",
        )?;
        self.accept(id, Target::One(address), &draft, keep).await
    }

    /// Pushes one body to many users: live only as one envelope for each node, kept into each inbox.
    ///
    /// # Errors
    /// See [`Refusal`]; of a kept one only if it was accepted for nobody.
    pub async fn broadcast(
        &self,
        users: Arc<[UserId]>,
        draft: Draft,
    ) -> Result<BroadcastAccepted, Refusal> {
        let Some(keep) = kept(&draft, self.inbox, NO_INBOX)? else {
            let count = u32::try_from(users.len()).unwrap_or(u32::MAX);
            let draft = Draft {
                once: draft.once.map(|once| once.with_users(&users)),
                ..draft
            };
            let target = Target::Users(users);
            let whole = self.accept(new_id(), target, &draft, None).await?;
            return Ok(BroadcastAccepted {
                whole,
                users: count,
                failures: Vec::new(),
            });
        };
        self.broadcast_kept(users, &draft, keep).await
    }

    /// Pushes one body to every session.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn broadcast_everyone(&self, draft: Draft) -> Result<Accepted, Refusal> {
        let keep = kept(&draft, None, "a broadcast to everyone is VOLATILE only")?;
        let target = Target::One(Address::Everyone);
        self.accept(new_id(), target, &draft, keep).await
    }

    /// One append for each user, a bounded number of them under way, so that other pushes get their turn.
    async fn broadcast_kept(
        &self,
        users: Arc<[UserId]>,
        draft: &Draft,
        keep: Keep,
    ) -> Result<BroadcastAccepted, Refusal> {
        let id = new_id();
        let mut whole = Accepted::nowhere(id);
        (whole.durability, whole.duplicate) = (None, true);
        let (mut accepted, mut failures) = (0, Vec::new());
        let pushes = users.iter().cloned().map(|user| async move {
            let target = Target::One(Address::User(user.clone()));
            let pushed = self.accept(id.of_user(&user), target, draft, Some(keep));
            (user, pushed.await)
        });
        let mut pushes = futures_util::stream::iter(pushes).buffer_unordered(BROADCAST_UNDER_WAY);
        while let Some((user, pushed)) = pushes.next().await {
            match pushed {
                Ok(one) => {
                    accepted += 1;
                    whole.add(&one);
                }
                Err(refusal) => failures.push((user, refusal)),
            }
        }
        if accepted == 0 {
            // Nothing was accepted for certain only if it is certain of each.
            let unknown = |(_, refusal): &(_, Refusal)| matches!(refusal, Refusal::Unknown { .. });
            let worst = failures.iter().position(unknown).unwrap_or(0);
            if worst < failures.len() {
                return Err(failures.swap_remove(worst).1);
            }
        }
        whole.status = match status(whole.other_nodes, whole.local_connections) {
            Status::NobodyConnected => Status::Stored,
            status => status,
        };
        Ok(BroadcastAccepted {
            whole,
            users: accepted,
            failures,
        })
    }

    /// The one path in: id, backplane, echo.
    async fn accept(
        &self,
        id: MessageId,
        target: Target,
        draft: &Draft,
        keep: Option<Keep>,
    ) -> Result<Accepted, Refusal> {
        let began = Instant::now();
        let time = unix_millis();
        let ttl = draft
            .ttl
            .map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let message = Message {
            expires: ttl.map(|ttl| time.saturating_add(ttl)),
            collapse_key: draft.collapse_key.clone(),
            ..Message::new(id, target, draft.body.clone(), time)
        };
        let accepted = match keep.is_some() || draft.once.is_some() {
            true => self.accept_once(message, draft, keep).await?,
            false => self.accept_volatile(message, draft).await?,
        };
        self.metrics.messages_accepted.inc();
        self.metrics
            .push_seconds
            .observe(began.elapsed().as_secs_f64());
        Ok(accepted)
    }

    /// A message that nothing makes one but itself: it is tried once.
    async fn accept_volatile(&self, message: Message, draft: &Draft) -> Result<Accepted, Refusal> {
        let deadline = draft.deadline;
        let echo = self.delivery.await_echo(message.id);
        let to = message.target.address();
        let envelope = Envelope::Message(message.clone());
        match self.backplane.publish(to.clone(), envelope, deadline).await {
            Ok(published) => Ok(self.settle(message, published, echo, &to, deadline).await),
            // Certainly nobody got it, and it was said to matter only to who is here.
            Err(PublishError::Unavailable(problem)) if draft.class == Class::Volatile => {
                let local = self.deliver_directly(message, echo, deadline).await;
                match local.local_connections {
                    0 => Err(Refusal::Unavailable(problem)),
                    _ => Ok(local),
                }
            }
            Err(PublishError::Unavailable(problem)) => Err(Refusal::Unavailable(problem)),
            Err(PublishError::Unknown(problem)) => Err(Refusal::Unknown {
                id: message.id,
                problem,
            }),
            Err(PublishError::Busy) => Err(busy()),
        }
    }

    /// A message that is accepted once however often it is tried: until it is known what became of it, or the deadline
    /// comes.
    async fn accept_once(
        &self,
        message: Message,
        draft: &Draft,
        keep: Option<Keep>,
    ) -> Result<Accepted, Refusal> {
        let (id, deadline) = (message.id, draft.deadline);
        let mut echo = self.delivery.await_echo(id);
        let mut pause = RETRY_PAUSE;
        let mut again = false;
        let appended = loop {
            let append = Append {
                message: message.clone(),
                keep,
                once: draft.once,
                again,
            };
            let problem = match self.streams.append(append, deadline).await {
                Ok(appended) => break appended,
                Err(AppendError::Conflict) => return Err(Refusal::Conflict),
                Err(AppendError::Unavailable(problem)) if !again => {
                    return Err(Refusal::Unavailable(problem));
                }
                Err(AppendError::Busy) if !again => return Err(busy()),
                Err(AppendError::Unavailable(problem) | AppendError::Unknown(problem)) => problem,
                Err(AppendError::Busy) => "the node is too busy to ask again".into(),
            };
            again = true;
            self.metrics.streams.append_retries.inc();
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            if Deadline::now() + jittered >= deadline {
                return Err(Refusal::Unknown { id, problem });
            }
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        };
        let Appended {
            published,
            position,
            duplicate,
            durability,
            ..
        } = appended;
        let kept = Accepted {
            position,
            durability: position.map(|_| durability),
            duplicate,
            ..Accepted::nowhere(appended.id)
        };
        if duplicate {
            // Who was there for the first one is not asked again.
            let others = published.listeners;
            let status = match status(others, 0) {
                Status::NobodyConnected if position.is_some() => Status::Stored,
                status => status,
            };
            return Ok(Accepted { status, ..kept });
        }
        let (echoed, others) = self.await_own(&published, &mut echo, deadline).await;
        let local = echoed.unwrap_or(0);
        Ok(Accepted {
            status: match status(others, local) {
                Status::NobodyConnected if position.is_some() => Status::Stored,
                status => status,
            },
            local_connections: local,
            other_nodes: others,
            degraded: echoed.is_none(),
            ..kept
        })
    }

    /// Waits for this node's own echo, if it must come: how many outboxes took it, none if it did not come, and how many
    /// other nodes listen.
    async fn await_own(
        &self,
        published: &Published,
        echo: &mut EchoGuard<'_>,
        deadline: Deadline,
    ) -> (Option<u32>, u32) {
        let Published {
            listeners, here, ..
        } = *published;
        if !published.may_echo() {
            return ((here != Here::Away).then_some(0), listeners);
        }
        let patience = deadline.min(Deadline::now() + ECHO_TIMEOUT);
        let echoed = tokio::time::timeout_at(patience, echo.count()).await;
        let but_us = listeners.saturating_sub(1);
        match echoed.ok().flatten() {
            // Redis had not counted this node: whoever listened is elsewhere.
            None if here == Here::Changing => (Some(0), listeners),
            echoed => (echoed, but_us),
        }
    }

    /// The answer to a message that is live only and went out: waits for its echo, if one must come.
    async fn settle(
        &self,
        message: Message,
        published: Published,
        mut echo: EchoGuard<'_>,
        to: &Address,
        deadline: Deadline,
    ) -> Accepted {
        let id = message.id;
        let (echoed, others) = self.await_own(&published, &mut echo, deadline).await;
        let Published { here, heard, .. } = published;
        // Not one word came on the link on which the echo was due: it hangs, and nobody here would get this.
        let deaf = here == Here::Listens && echoed.is_none() && self.backplane.is_deaf(to, heard);
        if here == Here::Away || deaf {
            let local = self.deliver_directly(message, echo, deadline).await;
            return Accepted {
                other_nodes: others,
                status: status(others, local.local_connections),
                ..local
            };
        }
        let degraded = echoed.is_none();
        let local = echoed.unwrap_or(0);
        Accepted {
            // Without the echo it is not known that nobody is here.
            status: match degraded && others == 0 {
                true => Status::DeliveredLocally,
                false => status(others, local),
            },
            local_connections: local,
            other_nodes: others,
            degraded,
            ..Accepted::nowhere(id)
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
            local_connections: local,
            degraded: true,
            ..Accepted::nowhere(id)
        }
    }
}

/// Why a message to users cannot be kept.
const NO_INBOX: &str = "users have no inbox ([inbox] max_messages = 0)";

/// What is kept of a message's address, if the message is.
fn kept(draft: &Draft, keep: Option<Keep>, why: &str) -> Result<Option<Keep>, Refusal> {
    let invalid = |field, problem| Err(Refusal::Invalid { field, problem });
    let keep = match draft.class {
        Class::Volatile => None,
        Class::Unset => keep,
        Class::Kept if keep.is_none() => {
            let problem = format!("cannot be KEPT: {why}; leave it out or say VOLATILE");
            return invalid("class", problem);
        }
        Class::Kept => keep,
    };
    if keep.is_some() && draft.collapse_key.is_some() {
        let problem =
            "is for VOLATILE messages: a KEPT one is never superseded; say class VOLATILE";
        return invalid("collapse_key", problem.into());
    }
    Ok(keep)
}

fn new_id() -> MessageId {
    MessageId::new(unix_millis())
}

fn busy() -> Refusal {
    Refusal::Busy {
        retry_after: Duration::from_secs(1),
    }
}
