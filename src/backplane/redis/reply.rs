//! What Redis, and the scripts of streams in it, answer.

use bytes::Bytes;
use redis::Value;

use crate::backplane::Top;
use crate::backplane::streams::{Cursor, Found};
use crate::model::{MessageId, Place, Position, Tag};

/// What became of an append.
pub(super) struct Answer {
    pub(super) id: MessageId,
    /// None where nothing was kept.
    pub(super) position: Option<Position>,
    pub(super) listeners: i64,
}

/// Where a session may begin, and the cursor that was asked for.
pub(super) struct Start {
    pub(super) found: Found,
    pub(super) cursor: Option<Cursor>,
}

/// What is left of an answer.
pub(super) type Values = std::vec::IntoIter<Value>;

pub(super) fn array(value: Value) -> Option<Values> {
    match value {
        Value::Array(values) => Some(values.into_iter()),
        _ => None,
    }
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// Names and values: a map, or what stands for one.
pub(super) fn pairs(value: Value) -> Option<Vec<(Value, Value)>> {
    let mut values = match value {
        Value::Map(pairs) => return Some(pairs),
        value => array(value)?,
    };
    let mut pairs = Vec::with_capacity(values.len() / 2);
    while let Some(name) = values.next() {
        pairs.push((name, values.next()?));
    }
    Some(pairs)
}

fn number(value: Value) -> Option<u64> {
    std::str::from_utf8(&bytes(value)?).ok()?.parse().ok()
}

fn tag(value: Value) -> Option<Tag> {
    let bytes = bytes(value)?.try_into().ok()?;
    Some(Tag(u32::from_be_bytes(bytes)))
}

/// `<id><epoch><tag><offset>:<listeners>`.
pub(super) fn answer(value: Value) -> Option<Answer> {
    let bytes = bytes(value)?;
    let (id, rest) = bytes.split_first_chunk()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (tag, rest) = rest.split_first_chunk()?;
    let (offset, listeners) = std::str::from_utf8(rest).ok()?.split_once(':')?;
    let position = |offset: u64| Position {
        epoch: u64::from_be_bytes(*epoch),
        offset,
        tag: Tag(u32::from_be_bytes(*tag)),
    };
    Some(Answer {
        id: MessageId::from_bytes(*id),
        position: match offset {
            "" => None,
            offset => Some(position(offset.parse().ok()?)),
        },
        listeners: listeners.parse().ok()?,
    })
}

/// Epoch, offset and tag of the top, offset and tag of where the epoch began.
pub(super) fn top(values: &mut Values) -> Option<Top> {
    let epoch = u64::from_be_bytes(bytes(values.next()?)?.try_into().ok()?);
    let mut position = || {
        Some(Position {
            epoch,
            offset: number(values.next()?)?,
            tag: tag(values.next()?)?,
        })
    };
    Some(Top {
        position: position()?,
        began: position()?,
    })
}

/// What `open` answers.
pub(super) fn start(value: Value) -> Option<Start> {
    let mut values = array(value)?;
    let top = top(&mut values)?;
    let mut before = || {
        let (offset, previous) = (values.next()?, values.next()?);
        if offset == Value::Nil {
            return Some(top.position);
        }
        let place = Place {
            epoch: top.position.epoch,
            offset: number(offset)?,
            previous: tag(previous)?,
        };
        Some(place.before())
    };
    let found = Found {
        top,
        before_oldest: before()?,
        before_next: before()?,
    };
    let cursor = match values.next()? {
        Value::Nil => None,
        value => Some(cursor(&bytes(value)?)?),
    };
    let own = values.next()? == Value::Int(1);
    let cursor = cursor.map(|at| Cursor { at, own });
    Some(Start { found, cursor })
}

/// `<epoch>:<offset>:<tag>:<when>`, epoch and tag in hex.
fn cursor(bytes: &[u8]) -> Option<Position> {
    let mut parts = std::str::from_utf8(bytes).ok()?.split(':');
    Some(Position {
        epoch: u64::from_str_radix(parts.next()?, 16).ok()?,
        offset: parts.next()?.parse().ok()?,
        tag: Tag(u32::from_str_radix(parts.next()?, 16).ok()?),
    })
}

/// A top, and the places and envelopes of a stream's entries.
pub(super) fn page(value: Value) -> Option<(Top, Vec<(Place, Bytes)>)> {
    let mut values = array(value)?;
    let top = top(&mut values)?;
    let mut entries = Vec::with_capacity(values.len() / 3);
    while let Some(offset) = values.next() {
        let place = Place {
            epoch: top.position.epoch,
            offset: number(offset)?,
            previous: tag(values.next()?)?,
        };
        entries.push((place, bytes(values.next()?)?.into()));
    }
    Some((top, entries))
}
