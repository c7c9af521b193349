use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::task::AbortHandle;

use super::command::Delivered;
use super::encoded::Encoded;
use super::session::SessionKey;
use crate::model::{Message, Position};

/// Messages that are held while a stream is mended, at most. Kept ones beyond are read from the stream.
const HELD_MAX: usize = 256;
/// Messages that are live only and wait until a session has caught up, at most; the oldest go.
const WAITING_MAX: usize = 64;

/// Messages that the members got which are at hand for who is behind, at most.
const LATEST_MAX: usize = 256;

/// What a shard knows of the stream of an address that it follows: how far its sessions have got.
///
/// Sessions that have all of it are *members* and get what comes next, without a look at each. A session that begins
/// further back is *behind*: a task reads the stream for it until it is where the members are. If something is missing for
/// all, the stream is *mended*: what comes meanwhile is held, and what is missing is read.
pub(super) struct Stream {
    /// Where the members are.
    last: Position,
    /// What they got latest, as long as somebody is behind: whoever is no further back than that need not read it.
    latest: VecDeque<Arc<Encoded>>,
    mending: Option<Mending>,
    behind: HashMap<SessionKey, Behind>,
}

struct Mending {
    held: VecDeque<Delivered>,
    /// A kept one found no room: it is to be read.
    dropped: bool,
    /// Something may be missing that the look under way began too early to find.
    again: bool,
    _task: TaskGuard,
}

struct Behind {
    /// Messages that are live only, for when it has caught up.
    waiting: VecDeque<Arc<Encoded>>,
    _task: TaskGuard,
}

/// A task that ends with its owner.
pub(super) struct TaskGuard(AbortHandle);

impl TaskGuard {
    pub(super) fn new(task: &tokio::task::JoinHandle<()>) -> Self {
        Self(task.abort_handle())
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is to be done with a message that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the next one, or live only: for the members now.
    Next,
    /// They have it.
    Known,
    /// Something before it is missing, or it does not belong behind what they have.
    Missing,
}

impl Stream {
    /// The stream of an address that is followed from now on.
    pub(super) fn new(last: Position) -> Self {
        Self {
            last,
            latest: VecDeque::new(),
            mending: None,
            behind: HashMap::new(),
        }
    }

    /// Where the members are.
    pub(super) fn last(&self) -> Position {
        self.last
    }

    pub(super) fn is_mending(&self) -> bool {
        self.mending.is_some()
    }

    /// What is to be done with a message.
    pub(super) fn verdict(&self, message: &Message) -> Verdict {
        let Some(place) = message.place else {
            return Verdict::Next;
        };
        let next = self.last.offset + 1;
        match place.offset {
            _ if place.epoch != self.last.epoch => Verdict::Missing,
            offset if offset > next => Verdict::Missing,
            offset if offset == next => match place.previous == self.last.tag {
                true => Verdict::Next,
                false => Verdict::Missing,
            },
            offset if offset == self.last.offset && message.id.tag() != self.last.tag => {
                Verdict::Missing
            }
            _ => Verdict::Known,
        }
    }

    /// The members do without what was before this position.
    pub(super) fn reached(&mut self, position: Position) {
        self.latest.clear();
        self.last = position;
    }

    /// The members got a kept message.
    pub(super) fn got(&mut self, position: Position, encoded: &Arc<Encoded>) {
        self.last = position;
        if self.behind.is_empty() {
            return;
        }
        if self.latest.len() == LATEST_MAX {
            self.latest.pop_front();
        }
        self.latest.push_back(encoded.clone());
    }

    /// What the members have behind a position, if all of it is at hand.
    pub(super) fn latest_since(&self, at: Position) -> Option<Vec<Arc<Encoded>>> {
        let place = |encoded: &Arc<Encoded>| encoded.message().place.map(|place| place.before());
        let mut latest = self.latest.iter();
        let from = latest.position(|encoded| place(encoded) == Some(at))?;
        Some(self.latest.iter().skip(from).cloned().collect())
    }

    /// Begins to mend it by this task.
    pub(super) fn mend(&mut self, task: TaskGuard) {
        self.mending = Some(Mending {
            held: VecDeque::new(),
            dropped: false,
            again: false,
            _task: task,
        });
    }

    /// Mends it once more after the look that is under way.
    pub(super) fn mend_again(&mut self) {
        if let Some(mending) = &mut self.mending {
            mending.again = true;
        }
    }

    /// A look at it begins, which finds all that is missing by now.
    pub(super) fn looks(&mut self) {
        if let Some(mending) = &mut self.mending {
            mending.again = false;
        }
    }

    /// Whether the look under way is not enough.
    pub(super) fn is_to_mend_again(&self) -> bool {
        self.mending.as_ref().is_some_and(|mending| mending.again)
    }

    /// Holds a message while the stream is mended, or gives it back. Of too many the oldest goes: a kept one will be read.
    pub(super) fn hold(&mut self, delivered: Delivered) -> Option<Delivered> {
        let Some(mending) = &mut self.mending else {
            return Some(delivered);
        };
        if mending.held.len() == HELD_MAX {
            let oldest = mending.held.pop_front();
            let kept = oldest.is_some_and(|oldest| oldest.encoded.message().place.is_some());
            mending.dropped |= kept;
        }
        mending.held.push_back(delivered);
        None
    }

    /// Of what is held, the next that may be delivered once the stream was read up to an offset.
    pub(super) fn next_held(&mut self, up_to: u64) -> Option<Delivered> {
        let held = &mut self.mending.as_mut()?.held;
        let place = held.front()?.encoded.message().place;
        match place.is_none_or(|place| place.offset <= up_to) {
            true => held.pop_front(),
            false => None,
        }
    }

    /// Whether nothing is held any more, and nothing went that has to be read.
    pub(super) fn holds_nothing(&mut self) -> bool {
        let Some(mending) = &mut self.mending else {
            return true;
        };
        !std::mem::take(&mut mending.dropped) && mending.held.is_empty()
    }

    /// Nothing is missing any more.
    pub(super) fn mended(&mut self) {
        self.mending = None;
    }

    /// A session is behind, and read for by this task.
    pub(super) fn falls_behind(&mut self, key: SessionKey, task: TaskGuard) {
        let waiting = VecDeque::new();
        self.behind.insert(
            key,
            Behind {
                waiting,
                _task: task,
            },
        );
    }

    pub(super) fn is_behind(&self, key: SessionKey) -> bool {
        self.behind.contains_key(&key)
    }

    /// Everybody who is behind.
    pub(super) fn behind(&self) -> impl Iterator<Item = SessionKey> {
        self.behind.keys().copied()
    }

    /// It has caught up, or is gone: what waited for it. Ends its task, if it is not the one who calls.
    pub(super) fn catches_up(&mut self, key: SessionKey) -> Option<VecDeque<Arc<Encoded>>> {
        let behind = self.behind.remove(&key);
        if self.behind.is_empty() {
            self.latest = VecDeque::new();
        }
        behind.map(|behind| behind.waiting)
    }

    /// Keeps a message that is live only for those who are behind; answers how many were dropped for it.
    pub(super) fn keep_waiting(&mut self, encoded: &Arc<Encoded>) -> u64 {
        let mut dropped = 0;
        for behind in self.behind.values_mut() {
            if behind.waiting.len() == WAITING_MAX {
                behind.waiting.pop_front();
                dropped += 1;
            }
            behind.waiting.push_back(encoded.clone());
        }
        dropped
    }

    /// Whether nobody is behind.
    pub(super) fn is_level(&self) -> bool {
        self.behind.is_empty()
    }
}
