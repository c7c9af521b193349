//! What is kept, as the model has it: whole logs, of which a part counts as kept.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::backplane::{CursorMove, From, Keep, Opened, Page, Top};
use crate::model::{Address, DeviceName, Message, MessageId, Place, Position, Since, Tag, UserId};

/// One address's messages from the first on.
#[derive(Clone)]
pub(super) struct Log {
    pub(super) top: Top,
    pub(super) all: Vec<Message>,
    /// So many of them are not kept any more.
    pub(super) gone: u64,
}

/// All that a backplane keeps, and goes back to when it is rolled back.
#[derive(Clone, Default)]
pub(super) struct Store {
    pub(super) logs: HashMap<Address, Log>,
    cursors: HashMap<(UserId, Option<DeviceName>), Position>,
}

/// Epochs, which never come again, whatever is rolled back.
#[derive(Default)]
pub(super) struct Epochs(u64);

impl Epochs {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

impl Log {
    fn new(epoch: u64) -> Self {
        let position = Position {
            epoch,
            offset: 0,
            tag: Tag::default(),
        };
        Self {
            top: Top {
                position,
                began: position,
            },
            all: Vec::new(),
            gone: 0,
        }
    }

    /// Whether this is, or was, a position of this log, whatever its epoch.
    pub(super) fn has(&self, offset: u64, tag: Tag) -> bool {
        match offset.checked_sub(1) {
            None => tag == Tag::default(),
            Some(index) => self.at(index).is_some_and(|m| m.id.tag() == tag),
        }
    }

    fn at(&self, index: u64) -> Option<&Message> {
        self.all.get(usize::try_from(index).ok()?)
    }

    /// Just before the first message that is kept behind an offset; the top, if none is.
    fn before(&self, offset: u64) -> Position {
        let place = self.at(offset.max(self.gone)).and_then(|m| m.place);
        place.map_or(self.top.position, |place| place.before())
    }
}

impl Store {
    pub(super) fn log(&mut self, address: &Address, epochs: &mut Epochs) -> &mut Log {
        let log = self.logs.entry(address.clone());
        log.or_insert_with(|| Log::new(epochs.next()))
    }

    pub(super) fn find(&self, address: &Address, id: MessageId) -> Option<Position> {
        let log = self.logs.get(address)?;
        log.all.iter().find(|m| m.id == id)?.position()
    }

    pub(super) fn append(
        &mut self,
        address: &Address,
        mut message: Message,
        keep: Keep,
        epochs: &mut Epochs,
    ) -> Message {
        let log = self.log(address, epochs);
        let last = log.top.position;
        let place = Place {
            epoch: last.epoch,
            offset: last.offset + 1,
            previous: last.tag,
        };
        message.place = Some(place);
        log.top.position = place.behind(message.id);
        log.all.push(message.clone());
        let most = u64::from(keep.messages);
        log.gone = log.gone.max(place.offset.saturating_sub(most));
        message
    }

    pub(super) fn open(&mut self, address: &Address, from: &From, epochs: &mut Epochs) -> Opened {
        let (asked, told) = match (from, address) {
            (From::Since(Since::After(position)), _) => (Some(*position), true),
            (From::Cursor(device), Address::User(user)) => {
                let cursor = |device| self.cursors.get(&(user.clone(), device)).copied();
                let own = device.clone().and_then(|device| cursor(Some(device)));
                (own.or_else(|| cursor(None)), own.is_some())
            }
            _ => (None, false),
        };
        let log = self.log(address, epochs);
        let (start, recovered) = match (from, asked) {
            (From::Since(Since::Now), _) => (log.top.position, true),
            (_, Some(asked)) if asked == log.before(asked.offset) => (asked, true),
            (_, Some(_)) => (log.before(0), false),
            (_, None) => (log.before(0), true),
        };
        Opened {
            top: log.top,
            start,
            recovered: told.then_some(recovered),
        }
    }

    /// Where a log stands. One that does not have a position that is known of it gets another epoch; true then.
    pub(super) fn compare(
        &mut self,
        address: &Address,
        known: Position,
        epochs: &mut Epochs,
    ) -> (Top, bool) {
        self.log(address, epochs);
        let log = self.log(address, epochs);
        let differs = known.epoch == log.top.position.epoch && !log.has(known.offset, known.tag);
        if differs {
            log.top.position.epoch = epochs.next();
            log.top.began = log.top.position;
            let epoch = log.top.position.epoch;
            let kept = log.all.iter_mut().skip(log.gone as usize);
            kept.filter_map(|m| m.place.as_mut())
                .for_each(|place| place.epoch = epoch);
        }
        (log.top, differs)
    }

    pub(super) fn read(
        &mut self,
        address: &Address,
        after: u64,
        most: usize,
        epochs: &mut Epochs,
    ) -> Page {
        let log = self.log(address, epochs);
        let kept = log.all.iter().skip(after.max(log.gone) as usize);
        Page {
            top: log.top,
            messages: kept.take(most).cloned().collect(),
        }
    }

    pub(super) fn advance(&mut self, to: CursorMove) {
        let log = self.logs.get(&Address::User(to.user.clone()));
        let present = log.map(|log| log.top.position.epoch);
        let cursor = self.cursors.entry((to.user, to.device)).or_insert(to.to);
        let moves = match cursor.epoch == to.to.epoch {
            true => to.to.offset.cmp(&cursor.offset) == Ordering::Greater,
            false => present == Some(to.to.epoch),
        };
        if moves {
            *cursor = to.to;
        }
    }
}
