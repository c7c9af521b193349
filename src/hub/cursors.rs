//! How far devices have got, on its way to the backplane: many moves become one write.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::session::SessionKey;
use super::shard::Shard;
use super::state::State;
use crate::backplane::CursorMove;
use crate::model::{DeviceName, Position, UserId};

/// How long an acknowledgement may wait for others.
const ACKED: Duration = Duration::from_millis(40);
/// How long it may, that something was written to a connection without a device.
const WRITTEN: Duration = Duration::from_secs(1);
/// The pause after a backplane that did not take them.
const PAUSE: Duration = Duration::from_secs(1);
/// Cursors that wait, at most. One beyond is lost: its messages come again, with the same ids.
const WAITING_MAX: usize = 100_000;

/// Whose cursor: a device's, or the user's shared one.
type Owner = (UserId, Option<DeviceName>);

/// Cursors of a shard's sessions that are to be written.
#[derive(Default)]
pub(super) struct Cursors {
    waiting: HashMap<Owner, Position>,
    due: Option<Instant>,
    changed: Rc<Notify>,
}

impl Cursors {
    /// A device acknowledged.
    pub(super) fn acked(&mut self, user: UserId, device: Option<DeviceName>, to: Position) {
        self.put((user, device), to, ACKED);
    }

    /// It was written to a connection whose cursor the node moves.
    pub(super) fn written(&mut self, user: UserId, device: Option<DeviceName>, to: Position) {
        self.put((user, device), to, WRITTEN);
    }

    /// A session of this user has ended: the next one begins where it stopped.
    pub(super) fn hurry(&mut self, user: &UserId, device: Option<&DeviceName>) {
        if self.waiting.contains_key(&(user.clone(), device.cloned())) {
            self.due_in(Duration::ZERO);
        }
    }

    fn put(&mut self, owner: Owner, to: Position, within: Duration) {
        let full = self.waiting.len() >= WAITING_MAX;
        match self.waiting.entry(owner) {
            Entry::Occupied(mut entry) => {
                let from = *entry.get();
                if from.epoch != to.epoch || from.offset < to.offset {
                    entry.insert(to);
                }
            }
            Entry::Vacant(_) if full => return,
            Entry::Vacant(entry) => {
                entry.insert(to);
            }
        }
        self.due_in(within);
    }

    fn due_in(&mut self, within: Duration) {
        let due = Instant::now() + within;
        if self.due.is_none_or(|earlier| due < earlier) {
            self.due = Some(due);
            self.changed.notify_one();
        }
    }

    fn take(&mut self) -> Vec<CursorMove> {
        self.due = None;
        self.waiting.drain().map(moved).collect()
    }

    fn take_of(&mut self, user: &UserId) -> Vec<CursorMove> {
        let theirs = self.waiting.extract_if(|(owner, _), _| owner == user);
        theirs.map(moved).collect()
    }

    /// What was not written waits again, unless there is something newer.
    fn put_back(&mut self, moves: Vec<CursorMove>) {
        for CursorMove { user, device, to } in moves {
            let full = self.waiting.len() >= WAITING_MAX;
            if let Entry::Vacant(entry) = self.waiting.entry((user, device))
                && !full
            {
                entry.insert(to);
            }
        }
        self.due_in(PAUSE);
    }
}

fn moved(((user, device), to): (Owner, Position)) -> CursorMove {
    CursorMove { user, device, to }
}

impl State {
    /// A client has handled its inbox up to a position; false if it was not sent that.
    pub(super) fn ack(&mut self, key: SessionKey, position: Position) -> bool {
        let Some(session) = self.get(key) else {
            return true;
        };
        let sent = session.reached.is_some_and(|reached| {
            let same = position.epoch == reached.epoch;
            same && (position.offset < reached.offset || position == reached)
        });
        if sent {
            let (user, device) = (session.user.clone(), session.device.clone());
            self.cursors.acked(user, device, position);
        }
        sent
    }
}

impl Shard {
    /// Writes cursors when they are due, until it is told to end: then what is left.
    pub(super) async fn keep_cursors(self: Rc<Self>, end: Rc<Notify>) {
        let changed = self.state.borrow().cursors.changed.clone();
        loop {
            let due = self.state.borrow().cursors.due;
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end.notified() => return self.write_cursors().await,
                () = changed.notified() => continue,
                () = due => {}
            }
            // Not cut off: what is under way is nowhere else.
            self.write_cursors().await;
        }
    }

    /// Writes all that waits.
    pub(super) async fn write_cursors(&self) {
        let moves = self.state.borrow_mut().cursors.take();
        self.write(moves).await;
    }

    /// Writes what waits of one user, who begins another session now.
    pub(super) async fn write_cursors_of(&self, user: &UserId) {
        let moves = self.state.borrow_mut().cursors.take_of(user);
        self.write(moves).await;
    }

    async fn write(&self, moves: Vec<CursorMove>) {
        if moves.is_empty() {
            return;
        }
        if let Err(problem) = self.hub.streams.advance(moves.clone()).await {
            tracing::debug!(%problem, "cursors were not written");
            self.state.borrow_mut().cursors.put_back(moves);
        }
    }
}
