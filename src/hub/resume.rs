//! Where sessions begin in streams, and how they catch up with what they missed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_local;

use super::encoded::Encoded;
use super::session::SessionKey;
use super::shard::{Hold, Shard};
use super::state::State;
use super::stream::{Stream, TaskGuard};
use crate::backplane::{From, Opened, Top};
use crate::model::{Address, Position, Since, unix_millis};
use crate::wire::frames::ServerFrame;

/// Messages read from a stream at once.
pub(super) const PAGE: usize = 128;
/// The first and the longest pause after a backplane that did not answer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How long a session that has caught up waits for a shard that has not, before it looks again.
const SHARD_PAUSE: Duration = Duration::from_millis(5);
/// Looks at members who are not where a session is yet, before they are thought to miss something.
const AHEAD_PATIENCE: u32 = 20;
/// How long a session's outbox, or the node's, may stay full before it is looked at again.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// Pauses that grow, with jitter.
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(PAUSE.0)
    }

    pub(super) async fn next(&mut self) {
        let jitter = rand::random_range(0.5..1.0);
        tokio::time::sleep(self.0.mul_f64(jitter)).await;
        self.0 = (self.0 * 2).min(PAUSE.1);
    }
}

impl Shard {
    /// Makes this node listen to an address and this shard follow it; says where a session begins in its stream, if it is
    /// kept.
    pub(super) async fn follow(
        self: &Rc<Self>,
        address: Address,
        from: From,
    ) -> Result<(Hold, Option<Opened>), String> {
        let hold = self.hold(address).await?;
        let address = &hold.address;
        let Some(keep) = self.hub.keep(address) else {
            return Ok((hold, None));
        };
        if from == From::Since(Since::Now)
            && let Some(last) = self.state.borrow().last_of(address)
        {
            let top = Top {
                position: last,
                began: last,
            };
            let opened = Opened {
                top,
                start: last,
                recovered: None,
            };
            return Ok((hold, Some(opened)));
        }
        if let Address::User(user) = address {
            self.write_cursors_of(user).await;
        }
        // After the confirmation: whatever is not in what is read now arrives.
        let opened = self.hub.streams.open(address.clone(), keep.age, from);
        let opened = opened.await?;
        let mend = self.state.borrow_mut().begin(address, opened.top);
        if mend {
            self.mend(address);
        }
        Ok((hold, Some(opened)))
    }

    /// Attaches a session to an address: as a member, or behind.
    pub(super) fn join(
        self: &Rc<Self>,
        state: &mut State,
        key: SessionKey,
        address: Address,
        start: Option<Position>,
    ) {
        let behind = match start {
            Some(start) => state.last_of(&address) != Some(start),
            None => false,
        };
        let Some(start) = start.filter(|_| behind) else {
            return state.attach(key, address);
        };
        let task = spawn_local(self.clone().catch_up(key, address.clone(), start));
        state.attach_behind(key, address, TaskGuard::new(&task));
    }

    /// Reads a stream for one session until it is where the shard's members are. Ends with the session's subscription.
    async fn catch_up(self: Rc<Self>, key: SessionKey, address: Address, mut at: Position) {
        let mut pauses = Pauses::new();
        let mut ahead = 0;
        loop {
            let page = {
                let _turn = self.reading.acquire().await;
                self.hub
                    .streams
                    .read(address.clone(), at.offset, PAGE)
                    .await
            };
            let page = match page {
                Ok(page) => page,
                Err(problem) => {
                    tracing::debug!(%address, %problem, "a stream was not read");
                    pauses.next().await;
                    continue;
                }
            };
            if page.top.position.epoch != at.epoch {
                at = page.top.began;
                self.tell_gap(key, &address, at);
                continue;
            }
            let full = page.messages.len() == PAGE;
            let empty = page.messages.is_empty();
            for message in page.messages {
                let Some(place) = message.place else { continue };
                if place.offset <= at.offset {
                    continue;
                }
                if place.before() != at {
                    self.tell_gap(key, &address, place.before());
                }
                at = place.behind(message.id);
                self.replay(key, Arc::new(Encoded::new(message))).await;
            }
            if full {
                continue;
            }
            match self.level(key, &address, at, empty.then_some(page.top.position)) {
                Level::Yes => return,
                // What it has comes to the members too, unless it was lost on its way.
                Level::Ahead => {
                    ahead += 1;
                    if ahead % AHEAD_PATIENCE == 0 {
                        self.mend(&address);
                    }
                }
                Level::Lost(position) => {
                    at = position;
                    self.tell_gap(key, &address, at);
                }
                Level::At(position) => at = position,
                Level::Not => {}
            }
            tokio::time::sleep(SHARD_PAUSE).await;
        }
    }

    /// Puts one message of the past into a session's outbox, once there is room.
    async fn replay(&self, key: SessionKey, encoded: Arc<Encoded>) {
        if encoded.message().is_expired(unix_millis()) {
            return;
        }
        loop {
            let room = {
                let mut state = self.state.borrow_mut();
                if state.replay(key, &encoded) {
                    self.work.notify_one();
                    return;
                }
                // The shard's loop watches a socket that is full.
                self.work.notify_one();
                state.room_of(key)
            };
            // The wait ends with the session, whose end ends this task.
            let _ = tokio::time::timeout(ROOM_PAUSE, room.notified()).await;
        }
    }

    /// Makes a session that is where the members are one of them.
    fn level(
        &self,
        key: SessionKey,
        address: &Address,
        at: Position,
        top: Option<Position>,
    ) -> Level {
        let mut state = self.state.borrow_mut();
        let Some(stream) = state.stream(address) else {
            return Level::Not;
        };
        let last = stream.last();
        let rest = match last == at {
            true => Some(Vec::new()),
            // At hand: who reads alone might never be where they are who get more all the time.
            false => stream.latest_since(at),
        };
        if let Some(rest) = rest {
            self.work.notify_one();
            let (mut at, now) = (at, unix_millis());
            for encoded in rest {
                let message = encoded.message();
                if !message.is_expired(now) && !state.replay(key, &encoded) {
                    // There was no room for more of it.
                    return Level::At(at);
                }
                at = message.position().unwrap_or(at);
            }
            state.join_members(key, address);
            return Level::Yes;
        }
        let Some(stream) = state.stream(address) else {
            return Level::Not;
        };
        if last.epoch == at.epoch && last.offset < at.offset && !stream.is_mending() {
            return Level::Ahead;
        }
        // Nothing is there behind it, and yet the stream went on: what came between is not kept any more.
        match top {
            Some(top) if top.offset > at.offset => Level::Lost(top),
            _ => Level::Not,
        }
    }

    fn tell_gap(&self, key: SessionKey, address: &Address, position: Position) {
        self.state.borrow_mut().gap(key, address, position);
        self.work.notify_one();
    }
}

/// Whether a session is where the members are.
enum Level {
    Yes,
    /// Not yet.
    Not,
    /// Not yet, but it got this far.
    At(Position),
    /// It has more than they have.
    Ahead,
    /// What is between is not kept any more; go on from here.
    Lost(Position),
}

impl State {
    /// Where the members of an address are in its stream.
    pub(super) fn last_of(&self, address: &Address) -> Option<Position> {
        let stream = self.followers.get(address)?.stream.as_ref()?;
        Some(stream.last())
    }

    /// Where a session is in the stream of an address; none if it is behind, or the address is not kept.
    pub(super) fn place_of(&self, key: SessionKey, address: &Address) -> Option<Position> {
        let stream = self.followers.get(address)?.stream.as_ref()?;
        (!stream.is_behind(key)).then(|| stream.last())
    }

    pub(super) fn stream(&mut self, address: &Address) -> Option<&mut Stream> {
        self.followers.get_mut(address)?.stream.as_deref_mut()
    }

    /// The stream of an address stands here, and all that comes behind it arrives. True if something did already, or
    /// what is known is of another epoch: then it is to be mended.
    fn begin(&mut self, address: &Address, top: Top) -> bool {
        let Some(followers) = self.followers.get_mut(address) else {
            return false;
        };
        match &followers.stream {
            Some(stream) => stream.last().epoch != top.position.epoch,
            None => {
                followers.stream = Some(Box::new(Stream::new(top.position)));
                std::mem::take(&mut followers.early)
            }
        }
    }

    /// Tells a session that messages of an address were lost, and where it goes on.
    pub(super) fn gap(&mut self, key: SessionKey, address: &Address, position: Position) {
        self.hub.metrics.streams.gaps.inc();
        let (channel, inbox) = match address {
            Address::Channel(channel) => (Some(channel), false),
            _ => (None, true),
        };
        if let Some(session) = self.get(key)
            && inbox
        {
            session.reached = Some(position);
            session.told = u64::MAX;
        }
        self.reply(key, &ServerFrame::Gap { channel, position });
    }
}
