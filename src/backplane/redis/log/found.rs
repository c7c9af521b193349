use std::time::Duration;

use redis::Value;

use crate::backplane::redis::reply;

/// A consumer that was silent for so long, and holds nothing, is of a node that is gone.
const GONE: Duration = Duration::from_secs(24 * 60 * 60);

/// An entry that the group knows of, and what is in the stream of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) fields: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

/// The entries in an answer; none if it is of another form.
pub(super) fn entries(value: Value) -> Option<Vec<Found>> {
    let entry = |value| {
        // Redis 6 tells of one that was claimed and is gone only that it is nothing.
        if value == Value::Nil {
            return Some(None);
        }
        let mut entry = reply::array(value)?;
        let id = String::from_utf8(reply::bytes(entry.next()?)?).ok()?;
        let fields = match entry.next()? {
            Value::Nil => None,
            fields => Some(
                reply::pairs(fields)?
                    .into_iter()
                    .map(|(name, value)| Some((reply::bytes(name)?, reply::bytes(value)?)))
                    .collect::<Option<_>>()?,
            ),
        };
        Some(Some(Found { id, fields }))
    };
    let found = reply::array(value)?.map(entry);
    let found: Option<Vec<_>> = found.collect();
    Some(found?.into_iter().flatten().collect())
}

/// The name of a consumer that is gone.
pub(super) fn gone(consumer: Value) -> Option<Vec<u8>> {
    let (mut name, mut pending, mut idle) = (None, None, None);
    for (key, value) in reply::pairs(consumer)? {
        match (reply::bytes(key)?.as_slice(), value) {
            (b"name", value) => name = reply::bytes(value),
            (b"pending", Value::Int(count)) => pending = Some(count),
            (b"idle", Value::Int(millis)) => idle = u64::try_from(millis).ok(),
            _ => {}
        }
    }
    let silent = Duration::from_millis(idle?) > GONE;
    (pending? == 0 && silent).then_some(name?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn entries_are_read_whether_they_are_there_or_trimmed() {
        let fields = Value::Array(vec![text("data"), text("{}"), text("n"), text("1")]);
        let answer = Value::Array(vec![
            Value::Array(vec![text("1-0"), fields]),
            Value::Array(vec![text("2-0"), Value::Nil]),
            Value::Nil,
        ]);
        let found = entries(answer).expect("entries");
        let fields = [("data", "{}"), ("n", "1")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(
            found,
            [
                Found {
                    id: "1-0".into(),
                    fields: Some(fields.into())
                },
                Found {
                    id: "2-0".into(),
                    fields: None
                },
            ]
        );
        for odd in [
            Value::Okay,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![Value::Array(vec![
                text("1-0"),
                Value::Array(vec![text("odd")]),
            ])]),
        ] {
            assert_eq!(entries(odd), None);
        }
    }

    #[test]
    fn only_who_was_silent_for_a_day_and_holds_nothing_is_gone() {
        let consumer = |pending, idle: Duration| {
            let idle = i64::try_from(idle.as_millis()).expect("small");
            Value::Map(vec![
                (text("name"), text("a")),
                (text("pending"), Value::Int(pending)),
                (text("idle"), Value::Int(idle)),
                (text("inactive"), Value::Int(-1)),
            ])
        };
        let long = GONE + Duration::from_secs(1);
        assert_eq!(gone(consumer(0, long)), Some(b"a".to_vec()));
        assert_eq!(gone(consumer(1, long)), None);
        assert_eq!(gone(consumer(0, Duration::from_secs(60))), None);
        assert_eq!(gone(Value::Okay), None);
    }
}
