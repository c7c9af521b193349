//! How what is missing for all sessions of a shard is found and read, before anything later is delivered.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::spawn_local;

use super::command::Delivered;
use super::encoded::Encoded;
use super::resume::{PAGE, Pauses};
use super::shard::Shard;
use super::state::State;
use super::stream::{Stream, TaskGuard, Verdict};
use crate::backplane::{Page, Top};
use crate::model::{Address, Message, Position, Target};

/// Streams compared at once.
const COMPARED: usize = 512;
/// Looks at a stream that bring nothing, before what is held is given up.
const IDLE_MAX: u32 = 4;

/// Whether something is missing before a message.
pub(super) enum Missing {
    Nothing,
    /// Hold it, and mend the stream.
    Before(Delivered),
}

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

impl Shard {
    /// Something is missing for all members of an address: looks what, and fills it. What comes meanwhile is held.
    pub(super) fn mend(self: &Rc<Self>, address: &Address) {
        self.mend_with_guard(address, None);
    }

    fn mend_with_guard(self: &Rc<Self>, address: &Address, guard: Option<CatchingUp>) {
        let mut state = self.state.borrow_mut();
        let Some(stream) = state.stream(address) else {
            return;
        };
        if !stream.is_mending() {
            let task = spawn_local(self.clone().mend_stream(address.clone(), guard));
            stream.mend(TaskGuard::new(&task));
        } else {
            stream.mend_again();
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

    /// `_guard` says as long as it lives that the node is not whole.
    async fn mend_stream(self: Rc<Self>, address: Address, _guard: Option<CatchingUp>) {
        self.hub.metrics.streams.mended.inc();
        let mut pauses = Pauses::new();
        let mut idle = 0;
        loop {
            let last = match self.state.borrow_mut().stream(&address) {
                None => return,
                Some(stream) => {
                    stream.looks();
                    stream.last()
                }
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
                    let moved =
                        |stream: &mut Stream| stream.last() != last || stream.is_to_mend_again();
                    if self.state.borrow_mut().stream(&address).is_none_or(moved) {
                        idle = 0;
                        continue;
                    }
                    // What is held came from a stream that does not have it: that was rolled back since.
                    idle += 1;
                    if idle == IDLE_MAX {
                        // What came since the look goes with it, so the stream is read once more.
                        self.state.borrow_mut().give_up(&address);
                        idle = 0;
                        continue;
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
                let known = self.state.borrow_mut().known_of(some);
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
                let guard = CatchingUp::new(&self.hub.catching_up);
                self.mend_with_guard(address, Some(guard));
            }
        }
    }
}

impl State {
    /// Where the members of those of these addresses are that are followed. One of which it is not known yet is mended
    /// once it is.
    fn known_of(&mut self, addresses: &[Address]) -> Vec<(Address, Position)> {
        let mut known = Vec::new();
        for address in addresses {
            if let Some(followers) = self.followers.get_mut(address) {
                match &followers.stream {
                    Some(stream) => known.push((address.clone(), stream.last())),
                    None => followers.early = true,
                }
            }
        }
        known
    }

    /// Delivers a message in the order of its stream. True if something is missing before it: it is held then.
    pub(super) fn deliver_in_order(&mut self, address: &Address, delivered: Delivered) -> Missing {
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
                    stream.got(position, &delivered.encoded);
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
        while let Some(stream) = self.stream(address) {
            let Some(held) = stream.next_held(stream.last().offset + 1) else {
                // What is left is further on: the stream is read again.
                let done = stream.holds_nothing() && !stream.is_to_mend_again();
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

    /// Goes on without what is held, but for what is live only.
    fn give_up(&mut self, address: &Address) {
        while let Some(held) = self.stream(address).and_then(|s| s.next_held(u64::MAX)) {
            if held.encoded.message().place.is_none() {
                self.deliver_next(address, &held);
            }
        }
    }

    fn gap_for_all(&mut self, address: &Address, position: Position) {
        let members = self.followers.get(address).map(|f| f.members.clone());
        for key in members.unwrap_or_default() {
            self.gap(key, address, position);
        }
    }
}
