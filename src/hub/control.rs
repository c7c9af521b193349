//! Control calls: what a node asks all that listen, this one included, and how it answers when it is asked.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant as Deadline;

use super::questions::Pending;
use super::{Applied, Refusal, Router};
use crate::backplane::{Answer, Arrivals as _, Envelope, Here, PublishError, Published, Question};
use crate::model::{
    Address, Ask, ChannelName, ConnectionId, ConnectionInfo, Members, Said, Sessions, UserId,
};

/// How long nodes have to answer a question.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(4);
/// What of that an answer has for its way back.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// Questions that a node answers at once; more wait.
const ANSWERS_UNDER_WAY: usize = 1024;

impl Router {
    /// A user's connections on all nodes, and how many nodes did not answer.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn where_is(&self, user: UserId) -> Result<(Vec<ConnectionInfo>, u32), Refusal> {
        let (answers, unknown) = self.ask(Ask::WhereIs(user)).await?;
        let connections = answers.into_iter().flat_map(|said| match said {
            Said::Connections(connections) => connections,
            Said::Applied(_) | Said::Members(_) => Vec::new(),
        });
        Ok((connections.collect(), unknown))
    }

    /// Who subscribes to a channel on all nodes, and how many nodes did not answer.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn presence(&self, channel: ChannelName) -> Result<(Members, u32), Refusal> {
        let (answers, unknown) = self.ask(Ask::Presence(channel)).await?;
        Ok((all_members(answers), unknown))
    }

    /// Closes sessions with 4501.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn disconnect(&self, sessions: Sessions, reason: String) -> Result<Applied, Refusal> {
        if let Sessions::OfUser(user) = &sessions {
            // First: who comes back with a resume ticket meanwhile would be asked too late.
            let revoked = self.resume.revoke_user(user).await;
            revoked.map_err(|problem| Refusal::Unavailable(problem.to_string()))?;
        }
        self.apply(Ask::Disconnect(sessions, reason.into())).await
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
        self.apply(Ask::Subscribe(sessions, channel)).await
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
        self.apply(Ask::Unsubscribe(sessions, channel)).await
    }

    /// Closes sessions whose place another one has taken, with 1000, on whichever nodes they are.
    pub(super) async fn replace(&self, connections: &[ConnectionId]) {
        for &connection in connections {
            let ask = Ask::Replace(connection);
            if connection.incarnation == self.incarnation {
                let waiting = self.delivery.ask_shards(&ask).await;
                let _ = futures_util::future::join_all(waiting).await;
            } else if let Err(problem) = self.apply(ask).await {
                tracing::warn!(%connection, ?problem, "a connection that was continued elsewhere was not closed");
            }
        }
    }

    async fn apply(&self, ask: Ask) -> Result<Applied, Refusal> {
        let (answers, unknown) = self.ask(ask).await?;
        let count = |said: &Said| match said {
            Said::Applied(count) => *count,
            Said::Connections(_) | Said::Members(_) => 0,
        };
        Ok(Applied {
            applied: answers.iter().map(count).sum(),
            unknown,
        })
    }

    /// Asks every node that listens for the sessions, this one too; answers what they said, and how many were silent.
    async fn ask(&self, ask: Ask) -> Result<(Vec<Said>, u32), Refusal> {
        self.ask_within(ask, CONTROL_TIMEOUT).await
    }

    /// The same, with another time to answer.
    pub(super) async fn ask_within(
        &self,
        ask: Ask,
        time: Duration,
    ) -> Result<(Vec<Said>, u32), Refusal> {
        let deadline = Deadline::now() + time;
        let to = match &ask {
            Ask::WhereIs(user)
            | Ask::Places(user)
            | Ask::Disconnect(Sessions::OfUser(user), _)
            | Ask::Subscribe(Sessions::OfUser(user), _)
            | Ask::Unsubscribe(Sessions::OfUser(user), _) => Address::User(user.clone()),
            Ask::Presence(channel) => Address::Channel(channel.clone()),
            Ask::Replace(id)
            | Ask::Evict(id)
            | Ask::Disconnect(Sessions::Connection(id), _)
            | Ask::Subscribe(Sessions::Connection(id), _)
            | Ask::Unsubscribe(Sessions::Connection(id), _) => Address::Node(id.incarnation),
        };
        let mut awaited = self.delivery.await_answers();
        let question = Question {
            id: awaited.question(),
            from: self.incarnation,
            within: time - ANSWER_MARGIN.min(time / 8),
            ask,
        };
        let published = self
            .backplane
            .publish(to, Envelope::Question(question.clone()), deadline)
            .await;
        let expected = match published {
            Ok(Published {
                listeners,
                here: Here::Away,
                ..
            }) => {
                // The link does not bring it, so this node asks itself.
                self.delivery.arrive(Envelope::Question(question)).await;
                listeners + 1
            }
            Ok(published) => published.listeners,
            Err(PublishError::Unavailable(problem)) => return Err(Refusal::Unavailable(problem)),
            Err(PublishError::Busy) => {
                return Err(Refusal::Busy {
                    retry_after: Duration::from_secs(1),
                });
            }
            // Nobody knows how many were asked; at least one.
            Err(PublishError::Unknown(_)) => return Ok((Vec::new(), 1)),
        };
        let answers = awaited.answers(expected, deadline).await;
        let silent = expected.saturating_sub(u32::try_from(answers.len()).unwrap_or(u32::MAX));
        Ok((answers, silent))
    }

    /// Answers what nodes ask, this one included, until no question can come any more.
    pub(super) async fn answer(self: Arc<Self>, mut questions: mpsc::Receiver<Pending>) {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                pending = questions.recv(), if under_way.len() < ANSWERS_UNDER_WAY => match pending {
                    Some(pending) => under_way.push(self.answer_one(pending)),
                    None => return,
                },
                Some(()) = under_way.next() => {}
            }
        }
    }

    async fn answer_one(&self, pending: Pending) {
        let Pending { question, waiting } = pending;
        let deadline = Deadline::now() + question.within;
        // A shard that is silent leaves the whole node unknown, which is the truth.
        let Ok(Ok(said)) =
            tokio::time::timeout_at(deadline, futures_util::future::try_join_all(waiting)).await
        else {
            return;
        };
        let answer = Answer {
            to: question.id,
            from: self.incarnation,
            said: match &question.ask {
                // It knows its own.
                Ask::Places(_) if question.from == self.incarnation => Said::Applied(0),
                ask => together(ask, said),
            },
        };
        if question.from == self.incarnation {
            self.delivery.answered(answer);
            return;
        }
        let (to, answer) = (Address::Node(question.from), Envelope::Answer(answer));
        if let Err(problem) = self.backplane.publish(to, answer, deadline).await {
            tracing::warn!(?problem, "an answer to another node was lost");
        }
    }
}

/// What the shards of a node say, as one.
fn together(ask: &Ask, said: Vec<Said>) -> Said {
    if matches!(ask, Ask::Presence(_)) {
        return Said::Members(all_members(said));
    }
    let (mut connections, mut applied) = (Vec::new(), 0);
    for said in said {
        match said {
            Said::Connections(more) => connections.extend(more),
            Said::Applied(more) => applied += more,
            Said::Members(_) => {}
        }
    }
    match ask {
        Ask::WhereIs(_) => Said::Connections(connections),
        _ => Said::Applied(applied),
    }
}

/// The members in some answers.
fn all_members(said: Vec<Said>) -> Members {
    let mut all = Members::default();
    for said in said {
        if let Said::Members(more) = said {
            all.join(more);
        }
    }
    all
}
