//! What a message of the run carries: its stream, its producer and its number, so that each one tells where it belongs.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

/// The name of a stream: `user:<id>` or `channel:<name>`.
pub(crate) type Stream = Arc<str>;

/// One message, as its producer names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Where it was sent.
    pub(crate) stream: Stream,
    /// Who sent it.
    pub(crate) producer: u32,
    /// Its number among those of this producer in this stream, from 0.
    pub(crate) n: u32,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} p{} n{}", self.stream, self.producer, self.n)
    }
}

impl Key {
    /// A push of it that is kept: the path, and the request with more fields of its own.
    pub(crate) fn push(&self, body: &str, more: &str) -> (&'static str, String) {
        let (path, to) = match self.stream.split_once(':') {
            Some(("channel", channel)) => ("/v1/publish", format!(r#""channel":"{channel}""#)),
            Some((_, user)) => ("/v1/push", format!(r#""user_id":"{user}""#)),
            None => ("/v1/push", String::new()),
        };
        let request = format!(r#"{{{to},"class":"KEPT","message":{body}{more}}}"#);
        (path, request)
    }

    /// The field that makes it safe to ask again.
    pub(crate) fn idempotency(&self) -> String {
        format!(r#","idempotency_key":"{}-{}""#, self.producer, self.n)
    }
}

/// How many messages of one producer each stream has.
#[derive(Debug, Default)]
pub(crate) struct Numbers(HashMap<Stream, u32>);

impl Numbers {
    /// The producer's next one in a stream.
    pub(crate) fn next(&mut self, stream: Stream, producer: u32) -> Key {
        let next = self.0.entry(stream.clone()).or_default();
        let n = *next;
        *next += 1;
        Key {
            stream,
            producer,
            n,
        }
    }
}

/// Letters that mean nothing, at most so many.
const MOST_PAD: u64 = 200;

/// The body's JSON text. It follows from the key, so that it can be made again.
pub(crate) fn render(key: &Key) -> String {
    let mut state = hash(&key.to_string());
    let length = 1 + state % MOST_PAD;
    let pad: String = (0..length)
        .map(|_| {
            // The multiplier is Knuth's, of MMIX; the high bits are the random ones.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from(b'a' + ((state >> 56) % 26) as u8)
        })
        .collect();
    format!(
        r#"{{"stream":"{}","producer":{},"n":{},"pad":"{pad}"}}"#,
        key.stream, key.producer, key.n
    )
}

/// Who a body says that it is; none if it is not one of ours.
pub(crate) fn read(text: &str) -> Option<Key> {
    #[derive(Deserialize)]
    struct Body<'a> {
        stream: &'a str,
        producer: u32,
        n: u32,
    }
    let body: Body<'_> = serde_json::from_str(text).ok()?;
    Some(Key {
        stream: body.stream.into(),
        producer: body.producer,
        n: body.n,
    })
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): enough against accidents, which is all that is asked.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_names_its_key() {
        let key = Key {
            stream: "user:42".into(),
            producer: 3,
            n: 17,
        };
        assert_eq!(read(&render(&key)), Some(key));
        assert_eq!(read(r#"{"stream":"user:42"}"#), None);
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
