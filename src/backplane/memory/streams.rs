use std::collections::{HashMap, VecDeque};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::stream::Stream;
use super::{Memory, published};
use crate::backplane::streams::Cursor;
use crate::backplane::{
    Append, AppendError, Appended, CursorMove, Durability, Envelope, From, Later, Once, Opened,
    Page, Streams, Top,
};
use crate::model::{Address, DeviceName, Message, MessageId, Position, Since, UserId, unix_millis};

/// Bytes that all streams may hold together. Beyond that the longest untouched lose their messages, and whoever resumes
/// there is told so.
const BYTES_MAX: u64 = 256 << 20;
/// Streams, empty ones too; beyond that the longest untouched go, with their users' cursors.
const STREAMS_MAX: usize = 1_000_000;
/// Cursors of one user's devices, the shared one aside; the longest silent is forgotten.
const DEVICES_MAX: usize = 16;
/// Idempotency keys that are known at once.
const KEYS_MAX: usize = 100_000;

/// What one process keeps.
#[derive(Default)]
pub(super) struct Kept {
    streams: HashMap<Address, (Stream, u64)>,
    /// Addresses by when they were touched, oldest first; one counts only with its newest number.
    touched: VecDeque<(u64, Address)>,
    touches: u64,
    bytes: u64,
    cursors: HashMap<UserId, Cursors>,
    once: HashMap<(Address, [u8; 32]), Known>,
    once_order: VecDeque<(Instant, Address, [u8; 32])>,
}

/// A user's cursors, with when each moved last.
#[derive(Default)]
struct Cursors {
    shared: Option<Position>,
    devices: Vec<(DeviceName, Position, u64)>,
}

impl Cursors {
    /// That of a device, else the shared one.
    fn of(&self, device: Option<&DeviceName>) -> Option<Cursor> {
        let mut devices = self.devices.iter();
        let own = devices.find(|(name, ..)| Some(name) == device);
        match own {
            Some((_, at, _)) => Some(Cursor { at: *at, own: true }),
            None => self.shared.map(|at| Cursor { at, own: false }),
        }
    }
}

/// A push that an idempotency key stands for.
struct Known {
    asked: [u8; 32],
    id: MessageId,
    position: Option<Position>,
}

impl Kept {
    fn stream(&mut self, address: &Address) -> &mut Stream {
        self.touches += 1;
        self.touched.push_back((self.touches, address.clone()));
        let entry = self.streams.entry(address.clone());
        let (stream, touched) = entry.or_insert_with(|| (Stream::new(), 0));
        *touched = self.touches;
        stream
    }

    /// Forgets whole streams, the longest untouched first, until there is room, and what is said of touches long ago.
    fn make_room(&mut self) {
        let over = |kept: &Self| kept.bytes > BYTES_MAX || kept.streams.len() > STREAMS_MAX;
        while over(self) || self.touched.len() > 2 * self.streams.len() + 1024 {
            let Some((number, address)) = self.touched.pop_front() else {
                return;
            };
            let newest = self.streams.get(&address).map(|(_, touched)| *touched);
            if newest != Some(number) {
                continue;
            }
            if over(self) {
                if let Some((stream, _)) = self.streams.remove(&address) {
                    self.bytes -= stream.bytes();
                }
                if let Address::User(user) = &address {
                    self.cursors.remove(user);
                }
            } else {
                self.touched.push_back((number, address));
                return;
            }
        }
    }

    fn known(&mut self, address: &Address, once: &Once) -> Option<&Known> {
        let now = Instant::now();
        while let Some((until, ..)) = self.once_order.front()
            && (*until <= now || self.once_order.len() >= KEYS_MAX)
        {
            if let Some((_, address, key)) = self.once_order.pop_front() {
                self.once.remove(&(address, key));
            }
        }
        self.once.get(&(address.clone(), once.key))
    }

    /// Gives the message its place, or says what became of it before.
    fn append(&mut self, append: Append) -> Result<Result<Message, Appended>, AppendError> {
        let Append {
            message,
            keep,
            once,
            again,
        } = append;
        let address = message.target.address();
        let appended = |id, position, duplicate| Appended {
            published: published(),
            id,
            position,
            duplicate,
            durability: Durability::Memory,
        };
        if let Some(once) = &once
            && let Some(known) = self.known(&address, once)
        {
            return match known.asked == once.asked {
                true => Ok(Err(appended(known.id, known.position, true))),
                false => Err(AppendError::Conflict),
            };
        }
        let message = match keep {
            None => message,
            Some(keep) => {
                let stream = self.stream(&address);
                if again && let Some(position) = stream.position_of(message.id) {
                    return Ok(Err(appended(message.id, Some(position), false)));
                }
                let before = stream.bytes();
                let message = stream.append(message, keep, unix_millis());
                let after = stream.bytes();
                self.bytes = self.bytes + after - before;
                self.make_room();
                message
            }
        };
        if let Some(once) = once {
            let known = Known {
                asked: once.asked,
                id: message.id,
                position: message.position(),
            };
            self.once.insert((address.clone(), once.key), known);
            self.once_order
                .push_back((Instant::now() + Once::LIFE, address, once.key));
        }
        Ok(Ok(message))
    }

    fn open(&mut self, address: &Address, age: Duration, from: From) -> Opened {
        let cursors = match address {
            Address::User(user) => self.cursors.get(user),
            _ => None,
        };
        let cursor = match (&from, cursors) {
            (From::Cursor(device), Some(cursors)) => cursors.of(device.as_ref()),
            _ => None,
        };
        let asked = match from {
            From::Since(Since::After(position)) => Some(position),
            _ => cursor.map(|cursor| cursor.at),
        };
        let stream = self.stream(address);
        let before = stream.bytes();
        stream.forget_older(unix_millis().saturating_sub(age.as_millis() as u64));
        let found = stream.found(asked.map_or(0, |p| p.offset));
        let after = stream.bytes();
        self.bytes = self.bytes + after - before;
        self.make_room();
        found.open(&from, cursor)
    }

    fn advance(&mut self, to: CursorMove) {
        let address = Address::User(to.user.clone());
        let present = self
            .streams
            .get(&address)
            .map(|(s, _)| s.top().position.epoch);
        self.touches += 1;
        let touched = self.touches;
        let cursors = self.cursors.entry(to.user).or_default();
        let moves = |from: Position| match from.epoch == to.to.epoch {
            true => to.to.offset > from.offset,
            false => present == Some(to.to.epoch),
        };
        let Some(device) = to.device else {
            if cursors.shared.is_none_or(moves) {
                cursors.shared = Some(to.to);
            }
            return;
        };
        match cursors
            .devices
            .iter_mut()
            .find(|(name, ..)| *name == device)
        {
            Some((_, position, when)) => {
                *when = touched;
                if moves(*position) {
                    *position = to.to;
                }
            }
            None => {
                if cursors.devices.len() >= DEVICES_MAX {
                    let silent = cursors.devices.iter().enumerate();
                    let silent = silent.min_by_key(|(_, (_, _, when))| *when).map(|(i, _)| i);
                    cursors.devices.swap_remove(silent.unwrap_or(0));
                }
                cursors.devices.push((device, to.to, touched));
            }
        }
    }
}

impl Memory {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each change is whole before anything in it can panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn append_one(&self, append: Append, deadline: Instant) -> Result<Appended, AppendError> {
        let (arriving, appended) = {
            let mut kept = self.kept();
            let message = match kept.append(append)? {
                Ok(message) => message,
                Err(appended) => return Ok(appended),
            };
            let appended = Appended {
                published: published(),
                id: message.id,
                position: message.position(),
                duplicate: false,
                durability: Durability::Memory,
            };
            let arrivals = self.arrivals.clone();
            let arriving = async move { arrivals.arrive(Envelope::Message(message)).await };
            let mut arriving = Box::pin(arriving);
            // Under the lock, so that messages arrive in the order of their places; where a queue is full it is waited
            // for without, and whoever gets a later one first fills the hole.
            match futures_util::FutureExt::now_or_never(&mut arriving) {
                Some(()) => return Ok(appended),
                None => (arriving, appended),
            }
        };
        // It is kept, and comes to its sessions whatever becomes of the caller.
        let arrived = {
            let (done, arrived) = oneshot::channel();
            let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
            while late.try_join_next().is_some() {}
            late.spawn(async move {
                arriving.await;
                let _ = done.send(());
            });
            arrived
        };
        let _ = tokio::time::timeout_at(deadline, arrived).await;
        Ok(appended)
    }
}

impl Streams for Memory {
    fn append(
        &self,
        append: Append,
        deadline: Instant,
    ) -> Later<'_, Result<Appended, AppendError>> {
        Box::pin(self.append_one(append, deadline))
    }

    fn open(
        &self,
        address: Address,
        age: Duration,
        from: From,
    ) -> Later<'_, Result<Opened, String>> {
        let opened = self.kept().open(&address, age, from);
        Box::pin(std::future::ready(Ok(opened)))
    }

    fn tops(&self, known: Vec<(Address, Position)>) -> Later<'_, Result<Vec<Top>, String>> {
        let mut kept = self.kept();
        let top = |(address, known): (Address, Position)| {
            let is_new = !kept.streams.contains_key(&address);
            let stream = kept.stream(&address);
            if is_new {
                stream.replaces(known.epoch);
            }
            stream.compare(known);
            stream.top()
        };
        let tops = known.into_iter().map(top).collect();
        Box::pin(std::future::ready(Ok(tops)))
    }

    fn read(&self, address: Address, after: u64, most: usize) -> Later<'_, Result<Page, String>> {
        let page = self.kept().stream(&address).read(after, most);
        Box::pin(std::future::ready(Ok(page)))
    }

    fn advance(&self, moves: Vec<CursorMove>) -> Later<'_, Result<(), String>> {
        let mut kept = self.kept();
        for to in moves {
            kept.advance(to);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}
