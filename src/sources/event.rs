use serde_json::value::RawValue;

use super::{Pointer, SourceConfig};
use crate::backplane::Once;
use crate::hub::LiveLimits;
use crate::model::{
    Address, Body, ChannelName, Message, MessageId, Target, UserId, sha256, unix_millis,
};

/// Why an event is not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It is not JSON.
    NotJson,
    /// Nobody is named where the user or the channel should be, or not by a text or a whole number.
    NoAddress,
    /// What is named there is no user id, or no channel's name.
    BadAddress,
    /// There is no message.
    NoMessage,
    /// There is no id where one should be, or it is neither a text nor a whole number.
    NoId,
    /// The message is larger than `[limits] message_bytes`.
    TooBig,
    /// A stream's entry lacks the field that the event is in.
    NoField,
}

impl Malformed {
    /// Its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::NoAddress => "no_address",
            Self::BadAddress => "bad_address",
            Self::NoMessage => "no_message",
            Self::NoId => "no_id",
            Self::TooBig => "too_big",
            Self::NoField => "no_field",
        }
    }
}

/// How the events of a topic are read.
pub(super) struct Reading {
    topic: String,
    whom: Whom,
    message: Pointer,
    id: Option<Pointer>,
    limits: LiveLimits,
}

enum Whom {
    User(Pointer),
    Channel(Pointer),
}

impl Reading {
    /// As a source is configured; without `user` and `channel` an event is `{"user_id":"42","message":…}`.
    pub(super) fn of(config: &SourceConfig, limits: LiveLimits) -> Self {
        let field = |name: &str| Pointer::parse(name).expect("it begins with a slash");
        let (whom, message) = match (&config.user, &config.channel) {
            (Some(user), _) => (Whom::User(user.clone()), Pointer::default()),
            (None, Some(channel)) => (Whom::Channel(channel.clone()), Pointer::default()),
            (None, None) => (Whom::User(field("/user_id")), field("/message")),
        };
        Self {
            topic: config.topic.clone(),
            whom,
            message: config.message.clone().unwrap_or(message),
            id: config.id.clone(),
            limits,
        }
    }

    /// The message in an event: the same on every node, but for its time.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub(super) fn read(&self, event: &[u8]) -> Result<Message, Malformed> {
        self.parse(event, None).map(|parsed| parsed.message)
    }

    /// The message in an event of a log, where it has an id, and what makes it one however often it is taken.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub(super) fn read_logged(&self, event: &[u8], id: &str) -> Result<(Message, Once), Malformed> {
        let Parsed { message, own } = self.parse(event, Some(id))?;
        let asked = sha256(event);
        // A log that was lost and began anew may give an id again.
        let told_apart = match self.id {
            Some(_) => &[],
            None => asked.as_slice(),
        };
        let (Whom::User(whom) | Whom::Channel(whom)) = &self.whom;
        let (topic, pointer) = (&self.topic, &self.message);
        // No name of an API key, whose idempotency keys these are beside, begins so.
        let name = format!("\0source\0{topic}\0{whom}\0{pointer}\0{own}\0");
        let key = sha256(&[name.as_bytes(), told_apart].concat());
        Ok((message, Once { key, asked }))
    }

    fn parse(&self, event: &[u8], id: Option<&str>) -> Result<Parsed, Malformed> {
        let event: &RawValue = serde_json::from_slice(event).map_err(|_| Malformed::NotJson)?;
        let address = self.address(event)?;
        let message = self.message.find(event).ok_or(Malformed::NoMessage)?;
        let body = match serde_json::from_str::<String>(message.get()) {
            Ok(text) => Body::Text(text.into()),
            Err(_) => Body::Json(message.get().into()),
        };
        if body.len() > self.limits.now().message_bytes {
            return Err(Malformed::TooBig);
        }
        let own = self.own_id(event, id)?;
        let id = self.id(&address, &own);
        let message = Message::new(id, Target::One(address), body, unix_millis());
        Ok(Parsed { message, own })
    }

    fn address(&self, event: &RawValue) -> Result<Address, Malformed> {
        let (Whom::User(pointer) | Whom::Channel(pointer)) = &self.whom;
        let name = pointer.find(event).and_then(plain);
        let name = name.ok_or(Malformed::NoAddress)?;
        let address = match self.whom {
            Whom::User(_) => UserId::parse(&name).map(Address::User),
            Whom::Channel(_) => ChannelName::parse(&name).map(Address::Channel),
        };
        address.map_err(|_| Malformed::BadAddress)
    }

    /// The event's own id, else the one that it has in its log, else the whole event.
    fn own_id(&self, event: &RawValue, id: Option<&str>) -> Result<String, Malformed> {
        match (&self.id, id) {
            (Some(pointer), _) => {
                let own = pointer.find(event).and_then(plain);
                own.ok_or(Malformed::NoId)
            }
            (None, Some(id)) => Ok(id.to_owned()),
            (None, None) => Ok(event.get().to_owned()),
        }
    }

    /// From the topic, the address, and the event's own id. With the address in it, an event that two sources bring to a
    /// user and to a channel is two messages.
    fn id(&self, address: &Address, own: &str) -> MessageId {
        let hash = sha256(format!("{}\0{address}\0{own}", self.topic).as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        MessageId::from_bytes(id)
    }
}

struct Parsed {
    message: Message,
    /// The event's own id.
    own: String,
}

/// A text, or a whole number as it is written.
fn plain(value: &RawValue) -> Option<String> {
    let text = value.get();
    let digits = text.strip_prefix('-').unwrap_or(text);
    match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Some(text.to_owned()),
        false => serde_json::from_str(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(keys: &str) -> Reading {
        let text = format!("kind = \"redis-pubsub\"\ntopic = \"orders.completed\"\n{keys}");
        let limits = crate::hub::Limits {
            message_bytes: 64,
            ..Default::default()
        };
        let source = toml::from_str(&text).expect("a source");
        Reading::of(&source, LiveLimits::new(limits))
    }

    /// To whom, with which body.
    fn read(keys: &str, event: &str) -> Result<(String, Body), Malformed> {
        let message = reading(keys).read(event.as_bytes())?;
        let Target::One(address) = message.target else {
            panic!("one address");
        };
        Ok((address.to_string(), message.body))
    }

    fn json(text: &str) -> Body {
        Body::Json(text.into())
    }

    #[test]
    fn pointers_say_who_gets_what_of_an_event() {
        let event =
            r#" {"customer": {"id": 42}, "shop": "orders:eu", "total": 1.50, "note": "a\tb"} "#;
        let user = "user = \"/customer/id\"\n";
        let channel = "channel = \"/shop\"\n";
        let cases = [
            (user.to_owned(), "user:42", json(event.trim())),
            (
                format!("{user}message = \"\""),
                "user:42",
                json(event.trim()),
            ),
            (
                format!("{user}message = \"/total\""),
                "user:42",
                json("1.50"),
            ),
            (
                format!("{user}message = \"/note\""),
                "user:42",
                Body::Text("a\tb".into()),
            ),
            (
                format!("{channel}message = \"/customer\""),
                "channel:orders:eu",
                json("{\"id\": 42}"),
            ),
        ];
        for (keys, to, body) in cases {
            let keys = keys.as_str();
            let limits = crate::hub::Limits {
                message_bytes: 1024,
                ..Default::default()
            };
            let big = Reading {
                limits: LiveLimits::new(limits),
                ..reading(keys)
            };
            let message = big.read(event.as_bytes()).expect("well-formed");
            let Target::One(address) = message.target else {
                panic!("one address")
            };
            assert_eq!(
                (address.to_string().as_str(), message.body),
                (to, body),
                "{keys}"
            );
        }
    }

    #[test]
    fn an_event_of_a_log_is_one_by_its_id_there_or_by_its_own() {
        let event = |n: u32| format!("{{\"user_id\":\"42\",\"message\":{n},\"id\":7}}");
        let logged = |keys: &str, n, id| {
            let (message, once) = reading(keys)
                .read_logged(event(n).as_bytes(), id)
                .expect("well-formed");
            (message.id, once)
        };
        let first = logged("", 1, "1-0");
        assert_eq!(logged("", 1, "1-0"), first);
        // An equal event is another one; and so is what has its id after the log was lost.
        let equal = logged("", 1, "2-0");
        assert!(equal.0 != first.0 && equal.1.key != first.1.key);
        assert_ne!(logged("", 2, "1-0").1.key, first.1.key);
        let own = "id = \"/id\"";
        let first = logged(own, 1, "1-0");
        assert_eq!(logged(own, 1, "2-0"), first);
        let other = logged(own, 2, "3-0");
        assert_eq!((other.0, other.1.key), (first.0, first.1.key));
        assert_ne!(other.1.asked, first.1.asked);
    }

    #[test]
    fn without_pointers_an_event_is_our_own_envelope() {
        let event = r#"{"user_id":"42","message":{"order":1},"more":true}"#;
        assert_eq!(
            read("", event),
            Ok(("user:42".into(), json("{\"order\":1}")))
        );
        let null = r#"{"user_id":"42","message":null}"#;
        assert_eq!(read("", null), Ok(("user:42".into(), json("null"))));
    }

    #[test]
    fn each_malformed_event_has_its_reason() {
        let long = format!("{{\"user_id\":1,\"message\":\"{}\"}}", "x".repeat(65));
        let cases = [
            ("", "", Malformed::NotJson),
            ("", "order 1", Malformed::NotJson),
            ("", "{\"user_id\":\"42\"", Malformed::NotJson),
            ("", "{} {}", Malformed::NotJson),
            ("", "42", Malformed::NoAddress),
            ("", "{\"message\":1}", Malformed::NoAddress),
            ("", "{\"user_id\":null,\"message\":1}", Malformed::NoAddress),
            ("", "{\"user_id\":1.0,\"message\":1}", Malformed::NoAddress),
            (
                "",
                "{\"user_id\":[\"42\"],\"message\":1}",
                Malformed::NoAddress,
            ),
            (
                "",
                "{\"user_id\":\"\",\"message\":1}",
                Malformed::BadAddress,
            ),
            (
                "",
                "{\"user_id\":\"4 2\",\"message\":1}",
                Malformed::BadAddress,
            ),
            ("channel = \"/c\"", "{\"c\":\"a@b\"}", Malformed::BadAddress),
            ("", "{\"user_id\":\"42\"}", Malformed::NoMessage),
            (
                "id = \"/id\"",
                "{\"user_id\":1,\"message\":1}",
                Malformed::NoId,
            ),
            ("", &long, Malformed::TooBig),
        ];
        for (keys, event, reason) in cases {
            assert_eq!(read(keys, event), Err(reason), "{event}");
        }
        assert_eq!(
            reading("").read(b"\"\xff\"").err(),
            Some(Malformed::NotJson)
        );
    }

    #[test]
    fn an_id_is_the_same_for_the_same_event_and_no_other() {
        let id = |keys: &str, event: &str| reading(keys).read(event.as_bytes()).expect("read").id;
        let event = r#"{"user_id":"42","message":1,"id":7}"#;
        let other = r#"{"user_id":"42","message":2,"id":7}"#;
        let another = r#"{"user_id":"43","message":1,"id":7}"#;
        assert_eq!(id("", event), id("", event));
        assert_ne!(id("", event), id("", other));
        let own = "id = \"/id\"";
        assert_eq!(id(own, event), id(own, other));
        assert_ne!(id(own, event), id(own, another));
        assert_ne!(id(own, event), id("user = \"/user_id\"", event));
        // `printf 'orders.completed\0user:42\0007' | sha256sum`, as docs/sources.md says.
        let hash = sha256(b"orders.completed\0user:42\x007");
        assert_eq!(id(own, event).as_bytes()[..], hash[..16]);
    }

    proptest::proptest! {
        #[test]
        fn any_event_is_a_message_or_malformed(event: Vec<u8>, text: String) {
            for keys in ["", "user = \"\"", "channel = \"/0\"\nid = \"/1\"\nmessage = \"/2\""] {
                let _ = reading(keys).read(&event);
                let _ = reading(keys).read(text.as_bytes());
            }
        }
    }
}
