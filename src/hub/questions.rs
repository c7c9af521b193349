use std::collections::HashSet;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::command::Command;
use super::delivery::{Delivery, lock};
use crate::backplane::{Answer, Question};
use crate::model::{Address, Ask, Said, Sessions};

/// Answers to one question that may wait; as many nodes may answer at one moment.
const ANSWERS_MAX: usize = 256;

/// A question that the shards of this node were asked.
pub(super) struct Pending {
    pub(super) question: Question,
    pub(super) waiting: Vec<oneshot::Receiver<Said>>,
}

/// The node's side of what nodes ask each other: to the shards, and from the nodes that answer.
impl Delivery {
    /// Makes a question's id, and waits for its answers.
    pub(super) fn await_answers(&self) -> AnswersGuard<'_> {
        let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
        let id = rand::random();
        lock(&self.questions).insert(id, sender);
        AnswersGuard {
            delivery: self,
            id,
            receiver,
        }
    }

    /// A node answered.
    pub(super) fn answered(&self, answer: Answer) {
        let waiting = lock(&self.questions).get(&answer.to).cloned();
        if let Some(waiting) = waiting {
            // No room: so many nodes answered that the rest counts as unknown.
            let _ = waiting.try_send(answer);
        }
    }

    /// Asks the shards that have the sessions, in order with the messages.
    pub(super) async fn ask_shards(&self, ask: &Ask) -> Vec<oneshot::Receiver<Said>> {
        let shards = match ask {
            Ask::Places(user) => {
                let (answer, receiver) = oneshot::channel();
                let _ = answer.send(Said::Applied(self.user_places(user)));
                return vec![receiver];
            }
            Ask::WhereIs(user)
            | Ask::Disconnect(Sessions::OfUser(user), _)
            | Ask::Subscribe(Sessions::OfUser(user), _)
            | Ask::Unsubscribe(Sessions::OfUser(user), _) => {
                self.followers(&Address::User(user.clone()))
            }
            Ask::Presence(channel) => self.followers(&Address::Channel(channel.clone())),
            Ask::Replace(id)
            | Ask::Evict(id)
            | Ask::Disconnect(Sessions::Connection(id), _)
            | Ask::Subscribe(Sessions::Connection(id), _)
            | Ask::Unsubscribe(Sessions::Connection(id), _) => {
                let shard = usize::from(id.shard);
                let ours = id.incarnation == self.incarnation && shard < self.shards.len();
                if ours { vec![shard] } else { Vec::new() }
            }
        };
        let mut waiting = Vec::with_capacity(shards.len());
        for shard in shards {
            let (answer, receiver) = oneshot::channel();
            let ask = ask.clone();
            // A shard that is gone drops the sender, which whoever waits is told.
            let _ = self.shards[shard].send(Command::Ask { ask, answer }).await;
            waiting.push(receiver);
        }
        waiting
    }

    pub(super) async fn asked(&self, question: Question) {
        let waiting = self.ask_shards(&question.ask).await;
        if self
            .pending
            .try_send(Pending { question, waiting })
            .is_err()
        {
            self.metrics.lost("questions");
        }
    }
}

/// The wait for the answers to one question; forgets it when dropped.
pub(super) struct AnswersGuard<'a> {
    delivery: &'a Delivery,
    id: u64,
    receiver: mpsc::Receiver<Answer>,
}

impl AnswersGuard<'_> {
    /// The question's id.
    pub(super) fn question(&self) -> u64 {
        self.id
    }

    /// That many nodes' answers, or those that came by the deadline. A node that was asked twice, past its link and
    /// through it, counts once.
    pub(super) async fn answers(&mut self, expected: u32, deadline: Instant) -> Vec<Said> {
        let (mut nodes, mut answers) = (HashSet::new(), Vec::new());
        while answers.len() < expected as usize {
            match tokio::time::timeout_at(deadline, self.receiver.recv()).await {
                Ok(Some(answer)) if nodes.insert(answer.from) => answers.push(answer.said),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        answers
    }
}

impl Drop for AnswersGuard<'_> {
    fn drop(&mut self) {
        lock(&self.delivery.questions).remove(&self.id);
    }
}
