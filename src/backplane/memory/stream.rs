use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::backplane::streams::Found;
use crate::backplane::{Keep, Page, Top};
use crate::model::{Body, Message, MessageId, Place, Position, Tag};

/// Epochs that are remembered as replaced.
const REPLACED_MAX: usize = 8;
/// What a message costs beside its body: about its other fields.
const OVERHEAD: u64 = 160;

/// The kept messages of one address, and where its stream stands.
pub(super) struct Stream {
    top: Top,
    /// Epochs that the present one replaced, latest first.
    replaced: VecDeque<u64>,
    messages: VecDeque<Message>,
    bytes: u64,
}

impl Stream {
    /// A stream that begins, in an epoch of its own.
    pub(super) fn new() -> Self {
        let position = Position {
            epoch: rand::random(),
            offset: 0,
            tag: Tag::default(),
        };
        Self {
            top: Top {
                position,
                began: position,
            },
            replaced: VecDeque::new(),
            messages: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(super) fn top(&self) -> Top {
        self.top
    }

    /// Bytes of what is kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether this message is the newest kept ones' already.
    pub(super) fn position_of(&self, id: MessageId) -> Option<Position> {
        let found = self.messages.iter().rev().find(|m| m.id == id)?;
        found.position()
    }

    /// Gives a message its place at the end.
    pub(super) fn append(&mut self, mut message: Message, keep: Keep, now: u64) -> Message {
        let last = self.top.position;
        let place = Place {
            epoch: last.epoch,
            offset: last.offset + 1,
            previous: last.tag,
        };
        message.place = Some(place);
        self.top.position = place.behind(message.id);
        self.bytes += size(&message);
        self.messages.push_back(message.clone());
        while self.messages.len() > 1
            && (self.messages.len() > keep.messages as usize || self.bytes > keep.bytes)
        {
            self.forget_oldest();
        }
        self.forget_older(now.saturating_sub(keep.age.as_millis() as u64));
        message
    }

    /// Forgets what was accepted before a moment.
    pub(super) fn forget_older(&mut self, moment: u64) {
        while self.messages.front().is_some_and(|m| m.time < moment) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.messages.pop_front() {
            self.bytes -= size(&oldest);
        }
    }

    /// What is there behind an offset.
    pub(super) fn found(&self, after: u64) -> Found {
        let before = |message: Option<&Message>| {
            message
                .and_then(|message| message.place)
                .map_or(self.top.position, |place| place.before())
        };
        Found {
            top: self.top,
            before_oldest: before(self.messages.front()),
            before_next: before(self.messages.get(self.index(after))),
        }
    }

    pub(super) fn read(&self, after: u64, most: usize) -> Page {
        let messages = self.messages.iter().skip(self.index(after)).take(most);
        Page {
            top: self.top,
            messages: messages.cloned().collect(),
        }
    }

    /// It began because somebody knows of another one at this address.
    pub(super) fn replaces(&mut self, epoch: u64) {
        self.replaced.push_front(epoch);
        self.replaced.truncate(REPLACED_MAX);
    }

    /// A node knows of a position that this stream never had, or has no more, or of an epoch that this one never
    /// replaced: it begins a new epoch.
    pub(super) fn compare(&mut self, known: Position) {
        let top = self.top.position;
        let next = self.messages.get(self.index(known.offset));
        let next = next.and_then(|message| message.place);
        let other = known.epoch != top.epoch;
        let differs = match known.offset.cmp(&top.offset) {
            _ if other => !self.replaced.contains(&known.epoch),
            Ordering::Greater => true,
            Ordering::Equal => known.tag != top.tag,
            // Where the next one had to go it cannot be told.
            Ordering::Less => next
                .is_some_and(|next| next.offset == known.offset + 1 && next.previous != known.tag),
        };
        if differs {
            self.replaces(top.epoch);
            if other {
                self.replaces(known.epoch);
            }
            let position = Position {
                epoch: rand::random(),
                ..top
            };
            self.top = Top {
                position,
                began: position,
            };
            // What is still kept is read in the new epoch, as its positions are given out.
            let places = self.messages.iter_mut().filter_map(|m| m.place.as_mut());
            places.for_each(|place| place.epoch = position.epoch);
        }
    }

    /// Where in the queue the first message behind an offset is: offsets are consecutive.
    fn index(&self, after: u64) -> usize {
        let first = self.messages.front().and_then(|m| m.place);
        let skip = first.map_or(0, |first| {
            after.saturating_add(1).saturating_sub(first.offset)
        });
        usize::try_from(skip).unwrap_or(usize::MAX)
    }
}

fn size(message: &Message) -> u64 {
    let body = match &message.body {
        Body::Text(text) | Body::Json(text) => text.len(),
        Body::Binary(bytes) => bytes.len(),
    };
    body as u64 + OVERHEAD
}
