//! A client of the model: what it sees, and what it may see.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use serde_json::Value;
use tokio::task::AbortHandle;

use super::node::Admitted;
use super::world::{Inner, Run, World};
use crate::hub::Asked;
use crate::model::{Address, ChannelName, DeviceName, Grant, MessageId, Position, Since, UserId};

/// How a connection says where it begins in its inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// Behind what it saw last.
    Seen,
    /// At its cursor.
    Cursor,
    Now,
}

pub(super) struct Client {
    pub(super) name: String,
    pub(super) user: UserId,
    device: Option<DeviceName>,
    channel: Option<ChannelName>,
    /// Which run of a node it came to last.
    run: Option<Run>,
    opening: Option<(AbortHandle, Asked, Opening)>,
    pub(super) open: Option<Open>,
    /// It takes nothing.
    pub(super) stalled: bool,
    /// Where it is in each stream.
    pub(super) at: HashMap<Address, Position>,
    /// Losses that it must be told of, by who knows of them.
    pub(super) owed: HashMap<Address, HashSet<Run>>,
    /// The furthest that it acknowledged.
    acked: Option<Position>,
}

/// What comes of an admission.
type Opening = Rc<RefCell<Option<Option<Admitted>>>>;

pub(super) struct Open {
    pub(super) admitted: Admitted,
    asked: Asked,
    buffer: String,
    live_only: HashSet<u64>,
}

/// The furthest that a connection without a device has been, of each user.
pub(super) type Shared = HashMap<UserId, Position>;

impl Client {
    pub(super) fn new(
        name: usize,
        user: UserId,
        device: bool,
        channel: Option<ChannelName>,
    ) -> Self {
        let device = device.then(|| DeviceName::parse(&format!("d{name}")).expect("a name"));
        Self {
            name: format!("client {name}"),
            user,
            device,
            channel,
            run: None,
            opening: None,
            open: None,
            stalled: false,
            at: HashMap::new(),
            owed: HashMap::new(),
            acked: None,
        }
    }

    pub(super) fn is_away(&self) -> bool {
        self.open.is_none() && self.opening.is_none()
    }

    fn inbox(&self) -> Address {
        Address::User(self.user.clone())
    }

    /// The streams that it follows.
    pub(super) fn streams(&self) -> impl Iterator<Item = Address> {
        let channel = self.channel.clone().map(Address::Channel);
        std::iter::once(self.inbox()).chain(channel)
    }

    /// What it asks for.
    pub(super) fn wish(&self, begin: Begin) -> (Grant, Asked) {
        let seen = self.at.get(&self.inbox());
        let channel = self.channel.iter().map(|channel| {
            let seen = self.at.get(&Address::Channel(channel.clone()));
            (
                channel.clone(),
                seen.map_or(Since::Now, |at| Since::After(*at)),
            )
        });
        let asked = Asked {
            since: match begin {
                Begin::Seen => seen.map(|at| Since::After(*at)),
                Begin::Cursor => None,
                Begin::Now => Some(Since::Now),
            },
            channels: channel.collect(),
            format: crate::hub::Format::Events,
            ..Asked::default()
        };
        let grant = Grant {
            device: self.device.clone(),
            ..Grant::of(self.user.clone())
        };
        (grant, asked)
    }

    /// It is being admitted.
    pub(super) fn opens(
        &mut self,
        run: Run,
        asked: Asked,
        admit: impl FnOnce(Opening) -> AbortHandle,
    ) {
        self.run = Some(run);
        let opening = Opening::default();
        self.opening = Some((admit(opening.clone()), asked, opening));
    }

    /// The connection is lost, with all that it did not take.
    pub(super) fn leave(&mut self) {
        if let Some((task, ..)) = self.opening.take() {
            task.abort();
        }
        self.open = None;
        self.stalled = false;
    }

    /// A node died: its connections are lost.
    pub(super) fn lose(&mut self, run: Run) {
        if self.run == Some(run) {
            self.leave();
        }
    }

    /// Acknowledges what it has seen of its inbox.
    pub(super) fn ack(&mut self) -> Result<(), String> {
        let at = self.at.get(&self.inbox()).copied();
        let (Some(open), Some(at)) = (&self.open, at) else {
            return Ok(());
        };
        let Admitted { shard, key, .. } = &open.admitted;
        if !shard.state.borrow_mut().ack(*key, at) {
            // Unless a gap is on its way to it, or its session is over.
            let session = shard.state.borrow_mut().get(*key).map(|s| s.reached);
            return match session {
                Some(Some(reached)) if reached.epoch == at.epoch && !self.stalled => {
                    Err(format!("{}: {at:?} is refused at {reached:?}", self.name))
                }
                _ => Ok(()),
            };
        }
        self.acknowledged(at);
        Ok(())
    }

    fn acknowledged(&mut self, at: Position) {
        let further = |acked: Position| acked.epoch != at.epoch || acked.offset < at.offset;
        if self.acked.is_none_or(further) {
            self.acked = Some(at);
        }
    }

    /// Takes what there is, and looks at it.
    pub(super) fn take(&mut self, world: &World, shared: &mut Shared) -> Result<(), String> {
        if let Some((_, _, opening)) = &self.opening
            && let Some(done) = opening.take()
            && let Some((_, asked, _)) = self.opening.take()
        {
            self.open = done.map(|admitted| Open {
                admitted,
                asked,
                buffer: String::new(),
                live_only: HashSet::new(),
            });
        }
        if self.stalled {
            return Ok(());
        }
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let mut ended = false;
        loop {
            let context = Context::from_waker(Waker::noop());
            match open.admitted.stream.poll_next(&context) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    ended = true;
                    break;
                }
                Poll::Ready(Some(bytes)) => {
                    let text = std::str::from_utf8(&bytes).expect("whole frames");
                    open.buffer.push_str(text);
                }
            }
        }
        while let Some(end) = open.buffer.find("\n\n") {
            let event: String = open.buffer.drain(..end + 2).collect();
            // Not for longer: a session that ends asks the world, too.
            let told = self.event(&event, &mut open, &world.lock(), shared);
            told.map_err(|problem| format!("{}: {problem}, by {event}", self.name))?;
        }
        if !ended {
            self.open = Some(open);
        }
        Ok(())
    }

    fn event(
        &mut self,
        event: &str,
        open: &mut Open,
        world: &Inner,
        shared: &mut Shared,
    ) -> Result<(), String> {
        let Some(json) = event.lines().find_map(|line| line.strip_prefix("data: ")) else {
            return Ok(());
        };
        let frame: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let address = match frame["channel"].as_str() {
            Some(channel) => Address::Channel(ChannelName::parse(channel).expect("a name")),
            None => self.inbox(),
        };
        if !self.streams().any(|own| own == address) {
            return Err("it does not follow that".into());
        }
        let position = frame["position"].as_str().map(Position::parse);
        let position = position.transpose().map_err(|e| e.to_string())?;
        let recovered = frame["recovered"].as_bool();
        let at = |position: Option<Position>| position.ok_or("it has no position");
        match frame["type"].as_str() {
            Some("message") => self.message(&frame, &address, position, open, world)?,
            Some("gap") => self.lost(world, &address, at(position)?)?,
            Some("welcome") => {
                let asked = open.asked.since;
                if asked.is_none() {
                    self.at_cursor(world, at(position)?, recovered, shared)?;
                }
                self.begins(world, &address, asked, at(position)?, recovered)?;
            }
            Some("subscribed") => {
                let mut channels = open.asked.channels.iter();
                let asked = channels.find(|(name, _)| Address::Channel(name.clone()) == address);
                let asked = asked.map(|(_, since)| *since);
                self.begins(world, &address, asked, at(position)?, recovered)?;
            }
            _ => return Err("nobody expects this".into()),
        }
        if let (None, Some(at)) = (&self.device, self.at.get(&self.inbox())) {
            let furthest = shared.entry(self.user.clone()).or_insert(*at);
            if furthest.epoch != at.epoch || furthest.offset < at.offset {
                *furthest = *at;
            }
        }
        Ok(())
    }

    fn message(
        &mut self,
        frame: &Value,
        address: &Address,
        position: Option<Position>,
        open: &mut Open,
        world: &Inner,
    ) -> Result<(), String> {
        let number = frame["data"].as_u64().ok_or("it is no number")?;
        let Some(position) = position else {
            let first = open.live_only.insert(number);
            return first.then_some(()).ok_or("it came before".into());
        };
        let id = frame["id"].as_str().and_then(MessageId::parse);
        let mut past = world.past.get(&number).into_iter().flatten();
        let past = past
            .find(|p| Some(p.id) == id && p.offset == position.offset && p.address == *address)
            .ok_or("it never was there")?;
        let last = self.at.get(address).ok_or("it has not begun")?;
        let next = Position {
            epoch: last.epoch,
            offset: last.offset + 1,
            tag: past.id.tag(),
        };
        if position != next || past.previous != last.tag {
            return Err(format!("it does not follow {last:?}, at {position:?}"));
        }
        self.at.insert(address.clone(), position);
        Ok(())
    }

    /// It goes on from here, and is told that something is missing before.
    fn lost(&mut self, world: &Inner, address: &Address, to: Position) -> Result<(), String> {
        if let Some(at) = self.at.get(address) {
            may_lose(world, address, *at, to)?;
        }
        self.at.insert(address.clone(), to);
        self.owed.remove(address);
        Ok(())
    }

    fn begins(
        &mut self,
        world: &Inner,
        address: &Address,
        asked: Option<Since>,
        start: Position,
        recovered: Option<bool>,
    ) -> Result<(), String> {
        match (asked, recovered) {
            (Some(Since::After(at)), Some(true)) if start != at => {
                return Err(format!("it asked for {at:?}"));
            }
            (Some(Since::After(at)), Some(false)) => may_lose(world, address, at, start)?,
            (None, Some(false)) => {
                // Its cursor is where it began first, or further on.
                may_lose(world, address, Position { offset: 0, ..start }, start)?;
            }
            (Some(Since::After(_)), None) => return Err("it does not say whether".into()),
            (Some(Since::Now), Some(_)) => return Err("nothing was asked for".into()),
            _ => {}
        }
        if recovered != Some(true) {
            self.owed.remove(address);
        }
        self.at.insert(address.clone(), start);
        Ok(())
    }

    /// It begins at a cursor: never beyond what it acknowledged, or somebody without a device has seen.
    fn at_cursor(
        &mut self,
        world: &Inner,
        start: Position,
        recovered: Option<bool>,
        shared: &Shared,
    ) -> Result<(), String> {
        let furthest = match (&self.device, recovered) {
            (Some(_), Some(true)) => self.acked,
            // Nobody moved its cursor yet, or what was behind it is not kept.
            (Some(_), _) => None,
            (None, _) => shared.get(&self.user).copied(),
        };
        let gone = world
            .store
            .logs
            .get(&self.inbox())
            .map_or(0, |log| log.gone);
        if let Some(furthest) = furthest
            && furthest.epoch == start.epoch
            && furthest.offset.max(gone) < start.offset
        {
            return Err(format!("its cursor is at {furthest:?}"));
        }
        if self.device.is_some() {
            self.acknowledged(start);
        }
        Ok(())
    }
}

/// Whether a client may be told that it goes on from there: something was rolled back, or what is between is not kept.
fn may_lose(world: &Inner, address: &Address, at: Position, to: Position) -> Result<(), String> {
    if world.disturbed.contains(address) {
        return Ok(());
    }
    let gone = world.store.logs.get(address).map_or(0, |log| log.gone);
    match at.offset < gone && to.offset <= gone {
        true => Ok(()),
        false => Err(format!("nothing is lost behind {at:?}; {gone} are gone")),
    }
}
