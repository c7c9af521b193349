//! How a shard keeps up with streams: where sessions begin, how they catch up, and how what is missing for all is mended.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::spawn_local;

use super::command::Delivered;
use super::encoded::Encoded;
use super::session::SessionKey;
use super::shard::{Hold, Shard};
use super::state::State;
use super::stream::{Stream, TaskGuard};
use crate::backplane::{From, Opened, Page, Top};
use crate::model::{Address, Message, Position, Since, Target, unix_millis};

/// Messages read from a stream at once.
const PAGE: usize = 128;
/// Streams compared at once.
const COMPARED: usize = 512;
/// Looks at a stream that bring nothing, before what is held is given up.
const IDLE_MAX: u32 = 4;
/// The first and the longest pause after a backplane that did not answer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long a session that has caught up waits for a shard that has not, before it looks again.
const SHARD_PAUSE: Duration = Duration::from_millis(5);
/// How long a session's outbox, or the node's, may stay full before it is looked at again.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// Counts who looks for missing messages: until then the node is not whole.
struct CatchingUp(Arc<AtomicUsize>);

impl CatchingUp {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for CatchingUp {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Pauses that grow, with jitter.
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Self(PAUSE.0)
    }

    async fn next(&mut self) {
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
                Level::Ahead => self.mend(&address),
                Level::Lost(position) => {
                    at = position;
                    self.tell_gap(key, &address, at);
                }
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
        if last == at {
            state.join_members(key, address);
            self.work.notify_one();
            return Level::Yes;
        }
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

    /// Something is missing for all members of an address: looks what, and fills it. What comes meanwhile is held.
    pub(super) fn mend(self: &Rc<Self>, address: &Address) {
        let mut state = self.state.borrow_mut();
        let Some(stream) = state.stream(address) else {
            return;
        };
        if !stream.is_mending() {
            let task = spawn_local(self.clone().mend_stream(address.clone()));
            stream.mend(TaskGuard::new(&task));
        }
    }

    /// Holds a message before which something is missing, and mends the stream.
    pub(super) fn mend_before(self: &Rc<Self>, delivered: Delivered) {
        let Target::One(address) = &delivered.encoded.message().target else {
            return;
        };
        self.mend(address);
        let address = address.clone();
        if let Some(stream) = self.state.borrow_mut().stream(&address) {
            stream.hold(delivered);
        }
    }

    async fn mend_stream(self: Rc<Self>, address: Address) {
        let _catching_up = CatchingUp::new(&self.hub.catching_up);
        self.hub.metrics.streams.mended.inc();
        let mut pauses = Pauses::new();
        let mut idle = 0;
        loop {
            let Some(last) = self.state.borrow().last_of(&address) else {
                return;
            };
            let page = {
                let _turn = self.reading.acquire().await;
                self.missing(&address, last).await
            };
            let problem = match page {
                Ok((top, page)) => {
                    let done = self.state.borrow_mut().mend_with(&address, top, page);
                    self.work.notify_one();
                    if done {
                        return;
                    }
                    if self.state.borrow().last_of(&address) != Some(last) {
                        continue;
                    }
                    // What is held came from a stream that does not have it: that was rolled back since.
                    idle += 1;
                    if idle == IDLE_MAX {
                        return self.state.borrow_mut().give_up(&address);
                    }
                    "it does not have what came".into()
                }
                Err(problem) => problem,
            };
            tracing::debug!(%address, %problem, "a stream is not mended yet");
            pauses.next().await;
        }
    }

    /// Where a stream stands, and what comes behind a position; behind the beginning of its epoch, if that is another.
    async fn missing(&self, address: &Address, last: Position) -> Result<(Top, Page), String> {
        let streams = &self.hub.streams;
        let tops = streams.tops(vec![(address.clone(), last)]).await?;
        let top = *tops.first().ok_or("the backplane gave no top")?;
        let after = match top.position.epoch == last.epoch {
            true => last.offset,
            false => top.began.offset,
        };
        let page = streams.read(address.clone(), after, PAGE).await?;
        Ok((top, page))
    }

    /// What was published to these addresses may not have come: their tops are compared, and what differs is mended.
    pub(super) async fn compare(self: Rc<Self>, addresses: Arc<[Address]>) {
        let _catching_up = CatchingUp::new(&self.hub.catching_up);
        let mut pauses = Pauses::new();
        for some in addresses.chunks(COMPARED) {
            loop {
                let known: Vec<_> = {
                    let state = self.state.borrow();
                    let known =
                        |address: &Address| Some((address.clone(), state.last_of(address)?));
                    some.iter().filter_map(known).collect()
                };
                if known.is_empty() {
                    break;
                }
                let tops = {
                    let _turn = self.reading.acquire().await;
                    self.hub.streams.tops(known.clone()).await
                };
                match tops {
                    Ok(tops) => {
                        self.compared(&known, &tops);
                        break;
                    }
                    Err(problem) => {
                        tracing::debug!(%problem, "streams were not compared");
                        pauses.next().await;
                    }
                }
            }
        }
    }

    fn compared(self: &Rc<Self>, known: &[(Address, Position)], tops: &[Top]) {
        for ((address, _), top) in known.iter().zip(tops) {
            // It may have got on meanwhile.
            let Some(last) = self.state.borrow().last_of(address) else {
                continue;
            };
            let behind = top.position.epoch != last.epoch || top.position.offset > last.offset;
            if behind {
                self.mend(address);
            }
        }
    }
}

/// Whether a session is where the members are.
enum Level {
    Yes,
    /// Not yet.
    Not,
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

    /// Delivers a message in the order of its stream. True if something is missing before it: it is held then.
    pub(super) fn deliver_in_order(&mut self, address: &Address, delivered: Delivered) -> Missing {
        use super::stream::Verdict;
        let Some(followers) = self.followers.get_mut(address) else {
            return Missing::Nothing;
        };
        let Some(stream) = &mut followers.stream else {
            // Nobody is attached before it is known where the stream stands.
            followers.early |= delivered.encoded.message().place.is_some();
            let took = self.deliver_to(address, &delivered.encoded);
            self.took(&delivered, took);
            return Missing::Nothing;
        };
        let Some(delivered) = stream.hold(delivered) else {
            return Missing::Nothing;
        };
        match stream.verdict(delivered.encoded.message()) {
            Verdict::Next => self.deliver_next(address, &delivered),
            Verdict::Known => {}
            Verdict::Missing => return Missing::Before(delivered),
        }
        Missing::Nothing
    }

    /// Delivers the next message of a stream, or one that is live only, to its members, and keeps the latter for who is
    /// behind.
    fn deliver_next(&mut self, address: &Address, delivered: &Delivered) {
        let position = delivered.encoded.message().position();
        // Who is behind gets it from the stream, which counts.
        let mut will = 0;
        if let Some(stream) = self.stream(address) {
            match position {
                Some(position) => {
                    stream.reached(position);
                    will = stream.behind().count() as u32;
                }
                None => {
                    let dropped = stream.keep_waiting(&delivered.encoded);
                    self.hub.metrics.streams.waiting_dropped.inc_by(dropped);
                }
            }
        }
        let took = self.deliver_to(address, &delivered.encoded);
        self.took(delivered, took + will);
    }

    /// Delivers what a stream has behind what its members have. True once nothing is missing.
    fn mend_with(&mut self, address: &Address, top: Top, page: Page) -> bool {
        let Some(stream) = self.stream(address) else {
            return true;
        };
        if page.top.position.epoch != top.position.epoch {
            // It changed between the two looks.
            return false;
        }
        if top.position.epoch != stream.last().epoch {
            stream.reached(top.began);
            self.gap_for_all(address, top.began);
        }
        let full = page.messages.len() == PAGE;
        let empty = page.messages.is_empty();
        for message in page.messages {
            self.mend_one(address, message);
        }
        let Some(stream) = self.stream(address) else {
            return true;
        };
        if empty && page.top.position.offset > stream.last().offset {
            // Not kept any more.
            stream.reached(page.top.position);
            self.gap_for_all(address, page.top.position);
        }
        !full && self.release(address)
    }

    fn mend_one(&mut self, address: &Address, message: Message) {
        let Some(place) = message.place else { return };
        let Some(stream) = self.stream(address) else {
            return;
        };
        if place.offset <= stream.last().offset {
            return;
        }
        if place.before() != stream.last() {
            stream.reached(place.before());
            self.gap_for_all(address, place.before());
        }
        // The one that came, if it did: whoever pushed it waits for its count.
        while let Some(held) = self.stream(address).and_then(|s| s.next_held(place.offset)) {
            let position = held.encoded.message().position();
            match position {
                None => self.deliver_next(address, &held),
                Some(position) if position == place.behind(message.id) => {
                    return self.deliver_next(address, &held);
                }
                Some(_) => {}
            }
        }
        self.hub.metrics.streams.messages_mended.inc();
        let target = Target::One(address.clone());
        self.deliver_next(
            address,
            &Delivered {
                target,
                encoded: Arc::new(Encoded::new(message)),
                tally: None,
            },
        );
    }

    /// Delivers what was held; false if something is still missing before one of them.
    fn release(&mut self, address: &Address) -> bool {
        use super::stream::Verdict;
        while let Some(stream) = self.stream(address) {
            let Some(held) = stream.next_held(stream.last().offset + 1) else {
                // What is left is further on: the stream is read again.
                let done = stream.holds_nothing();
                if done {
                    stream.mended();
                }
                return done;
            };
            match stream.verdict(held.encoded.message()) {
                Verdict::Next => self.deliver_next(address, &held),
                Verdict::Known => {}
                Verdict::Missing => return false,
            }
        }
        true
    }

    /// Ends the mending without what is held, but for what is live only.
    fn give_up(&mut self, address: &Address) {
        while let Some(held) = self.stream(address).and_then(|s| s.next_held(u64::MAX)) {
            if held.encoded.message().place.is_none() {
                self.deliver_next(address, &held);
            }
        }
        if let Some(stream) = self.stream(address) {
            stream.mended();
        }
    }

    /// Tells a session that messages of an address were lost, and where it goes on.
    fn gap(&mut self, key: SessionKey, address: &Address, position: Position) {
        use crate::wire::frames::ServerFrame;
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

    fn gap_for_all(&mut self, address: &Address, position: Position) {
        let members = self.followers.get(address).map(|f| f.members.clone());
        for key in members.unwrap_or_default() {
            self.gap(key, address, position);
        }
    }
}

/// Whether something is missing before a message.
pub(super) enum Missing {
    Nothing,
    /// Hold it, and mend the stream.
    Before(Delivered),
}
