//! What every backplane must keep: one contract, run for each.

use std::sync::Arc;
use std::time::Duration;

use tidings::backplane::redis::Redis;
use tidings::backplane::{
    Append, AppendError, Appended, Backplane, BackplaneConfig, BackplaneKind, BackplaneUrl,
    CursorMove, Durability, Envelope, From, Keep, Memory, Once, Streams,
};
use tidings::model::{
    Address, Body, ChannelName, DeviceName, Message, MessageId, Position, Since, Tag, Target,
    unix_millis,
};
use tidings::telemetry::Metrics;

use crate::backplane::{Inbox, soon, user};
use crate::support::redis::RedisServer;

pub const HOUR: Duration = Duration::from_secs(3600);
pub const MANY: Keep = Keep {
    messages: 1000,
    age: HOUR,
    bytes: 1 << 20,
};

/// A node's end of a backplane that keeps.
pub trait Keeps: Backplane + Streams {}
impl<T: Backplane + Streams> Keeps for T {}

pub struct End {
    pub streams: Arc<dyn Keeps>,
    pub inbox: Arc<Inbox>,
}

pub async fn redis_at(url: &str, change: impl FnOnce(&mut BackplaneConfig)) -> End {
    let mut config = BackplaneConfig {
        kind: BackplaneKind::Redis,
        url: Some(BackplaneUrl::new(url)),
        ..BackplaneConfig::default()
    };
    change(&mut config);
    let inbox = Inbox::new();
    let metrics = Metrics::new().backplane;
    let redis = Redis::new(&config, 7, true, metrics, inbox.clone()).expect("valid");
    redis.wait_until_whole().await.expect("fit");
    assert_eq!(redis.ailments(), Vec::<String>::new());
    let streams = Arc::new(redis);
    End { streams, inbox }
}

pub fn text(to: &Address, text: &str) -> Message {
    let time = unix_millis();
    let id = MessageId::new(time);
    Message::new(id, Target::One(to.clone()), Body::Text(text.into()), time)
}

pub fn append(message: &Message) -> Append {
    Append {
        message: message.clone(),
        keep: Some(MANY),
        once: None,
        again: false,
    }
}

impl End {
    pub async fn push(&self, append: Append) -> Appended {
        let done = self.streams.append(append, soon()).await;
        done.expect("appended")
    }

    /// Appends a text, and answers the position behind it.
    pub async fn say(&self, to: &Address, said: &str) -> Position {
        let done = self.push(append(&text(to, said))).await;
        done.position.expect("it is kept")
    }

    /// The bodies that are kept behind an offset.
    pub async fn kept(&self, address: &Address, after: u64) -> Vec<String> {
        let page = self.streams.read(address.clone(), after, 2000).await;
        let messages = page.expect("read").messages.into_iter();
        messages
            .map(|message| match message.body {
                Body::Text(text) => text.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    pub async fn open(&self, address: &Address, from: From) -> (Position, Option<bool>) {
        let opened = self.streams.open(address.clone(), HOUR, from).await;
        let opened = opened.expect("opened");
        (opened.start, opened.recovered)
    }

    pub async fn top(&self, address: &Address, known: Position) -> Position {
        let tops = self.streams.tops(vec![(address.clone(), known)]).await;
        tops.expect("tops")[0].position
    }

    pub async fn ack(&self, address: &Address, device: Option<&str>, to: Position) {
        let Address::User(user) = address else {
            panic!("only users have cursors");
        };
        let to = CursorMove {
            user: user.clone(),
            device: device.map(|name| DeviceName::parse(name).expect("a device")),
            to,
        };
        self.streams.advance(vec![to]).await.expect("advanced");
    }
}

pub fn after(position: Position) -> From {
    From::Since(Since::After(position))
}

pub fn device(name: &str) -> From {
    From::Cursor(Some(DeviceName::parse(name).expect("a device")))
}

fn once(key: u8, asked: u8) -> Option<Once> {
    Some(Once {
        key: [key; 32],
        asked: [asked; 32],
    })
}

async fn appends_are_consecutive_and_name_their_predecessor(end: &End) {
    for to in [
        user("consecutive"),
        Address::Channel(ChannelName::parse("a:b").expect("a channel")),
    ] {
        end.streams.listen(to.clone()).await.expect("listened");
        let (start, recovered) = end.open(&to, From::Cursor(None)).await;
        assert_eq!((start.offset, start.tag), (0, Tag::default()));
        assert_eq!(recovered, None);
        let mut last = start;
        for n in 1..=20 {
            let message = text(&to, &n.to_string());
            let done = end.push(append(&message)).await;
            assert_eq!((done.id, done.duplicate), (message.id, false));
            assert_eq!(done.published.listeners, 1);
            assert_ne!(done.durability, Durability::Replicated);
            let Envelope::Message(heard) = end.inbox.next().await else {
                panic!("no message");
            };
            let place = heard.place.expect("it has a place");
            assert_eq!(place.before(), last);
            last = done.position.expect("it is kept");
            assert_eq!(heard.position(), Some(last));
            assert_eq!((last.offset, last.tag), (n, message.id.tag()));
            let as_sent = Message {
                place: None,
                ..heard
            };
            assert_eq!(as_sent, message);
        }
        assert_eq!(end.top(&to, last).await, last);
        let page = end.streams.read(to, 0, 100).await.expect("read");
        assert_eq!(page.top.position, last);
        assert_eq!(page.top.began, start);
        let mut before = start;
        for message in &page.messages {
            assert_eq!(message.place.map(|place| place.before()), Some(before));
            before = message.position().expect("it has a place");
        }
        assert_eq!(before, last);
    }
}

async fn a_retry_with_the_same_id_appends_once(end: &End) {
    let to = user("retried");
    let message = text(&to, "once");
    let first = end.push(append(&message)).await;
    end.say(&to, "other").await;
    for _ in 0..3 {
        let again = Append {
            again: true,
            ..append(&message)
        };
        let again = end.push(again).await;
        assert_eq!(
            (again.id, again.position),
            (first.id, first.position),
            "the first attempt's answer"
        );
        assert!(!again.duplicate);
    }
    assert_eq!(end.kept(&to, 0).await, ["once", "other"]);
    // One that did not get through is appended.
    let lost = Append {
        again: true,
        ..append(&text(&to, "lost at first"))
    };
    end.push(lost).await;
    assert_eq!(end.kept(&to, 0).await, ["once", "other", "lost at first"]);
}

async fn an_idempotency_key_makes_a_message_one(end: &End) {
    for keep in [Some(MANY), None] {
        let to = user(if keep.is_some() {
            "idempotent"
        } else {
            "idempotent-live"
        });
        let ask = |message: &Message, once| Append {
            keep,
            once,
            ..append(message)
        };
        let first_message = text(&to, "first");
        let first = end.push(ask(&first_message, once(1, 1))).await;
        assert_eq!(first.position.is_some(), keep.is_some());
        assert!(!first.duplicate);
        let second = end.push(ask(&text(&to, "second"), once(1, 1))).await;
        assert_eq!(
            (second.id, second.position),
            (first_message.id, first.position)
        );
        assert!(second.duplicate);
        let asked = ask(&text(&to, "other"), once(1, 2));
        let conflict = end.streams.append(asked, soon()).await;
        assert_eq!(conflict, Err(AppendError::Conflict));
        assert!(!end.push(ask(&text(&to, "key"), once(2, 1))).await.duplicate);
        let elsewhere = user("idempotent-elsewhere");
        let asked = ask(&text(&elsewhere, "x"), once(1, 1));
        assert!(!end.push(asked).await.duplicate || keep.is_none());
        let kept = end.kept(&to, 0).await;
        match keep {
            Some(_) => assert_eq!(kept, ["first", "key"]),
            None => assert_eq!(kept, Vec::<String>::new()),
        }
    }
}

async fn what_is_beyond_a_bound_goes_oldest_first(end: &End) {
    let to = user("by-count");
    for n in 0..10 {
        let three = Keep {
            messages: 3,
            ..MANY
        };
        let few = Append {
            keep: Some(three),
            ..append(&text(&to, &n.to_string()))
        };
        end.push(few).await;
    }
    assert_eq!(end.kept(&to, 0).await, ["7", "8", "9"]);

    let to = user("by-bytes");
    let small = Keep {
        bytes: 10_000,
        ..MANY
    };
    for n in 0..10 {
        let some = Append {
            keep: Some(small),
            ..append(&text(&to, &n.to_string().repeat(3000)))
        };
        end.push(some).await;
        assert_eq!(end.kept(&to, 0).await.len(), (n + 1).min(3));
    }
    // The newest is kept whatever its size.
    let huge = Append {
        keep: Some(small),
        ..append(&text(&to, &"x".repeat(20_000)))
    };
    end.push(huge).await;
    assert_eq!(end.kept(&to, 0).await, ["x".repeat(20_000)]);
    end.say(&to, "more room").await;
    assert_eq!(end.kept(&to, 0).await.len(), 2);

    let to = user("by-age");
    for n in 0..5 {
        let old = Message {
            time: unix_millis() - 2 * HOUR.as_millis() as u64,
            ..text(&to, &n.to_string())
        };
        let days = Keep {
            age: 24 * HOUR,
            ..MANY
        };
        let old = Append {
            keep: Some(days),
            ..append(&old)
        };
        end.push(old).await;
    }
    assert_eq!(end.kept(&to, 0).await.len(), 5);
    let new = end.say(&to, "new").await;
    assert_eq!(end.kept(&to, 0).await, ["new"]);
    assert_eq!(end.top(&to, new).await, new);
}

async fn a_session_begins_where_it_asks_to(end: &End) {
    let to = user("begins");
    let mut said = Vec::new();
    for n in 0..10 {
        let some = Append {
            keep: Some(Keep {
                messages: 5,
                ..MANY
            }),
            ..append(&text(&to, &n.to_string()))
        };
        said.push(end.push(some).await.position.expect("it is kept"));
    }
    let (oldest, top) = (said[4], said[9]);
    assert_eq!(
        end.open(&to, From::Since(Since::Now)).await,
        (top, None),
        "now"
    );
    // The five that are kept: 5 to 9.
    for position in &said[4..] {
        assert_eq!(
            end.open(&to, after(*position)).await,
            (*position, Some(true))
        );
    }
    for position in &said[..4] {
        assert_eq!(end.open(&to, after(*position)).await, (oldest, Some(false)));
    }
    let mut wrong = vec![top; 4];
    wrong[0].epoch ^= 1;
    wrong[1].offset += 1;
    wrong[2].tag.0 ^= 1;
    wrong[3].offset = u64::MAX;
    for position in wrong {
        assert_eq!(end.open(&to, after(position)).await, (oldest, Some(false)));
    }
    // No cursor, the shared one, the device's own.
    assert_eq!(end.open(&to, From::Cursor(None)).await, (oldest, None));
    assert_eq!(end.open(&to, device("phone")).await, (oldest, None));
    end.ack(&to, None, said[6]).await;
    assert_eq!(end.open(&to, From::Cursor(None)).await, (said[6], None));
    assert_eq!(end.open(&to, device("phone")).await, (said[6], None));
    end.ack(&to, Some("phone"), said[7]).await;
    assert_eq!(end.open(&to, device("phone")).await, (said[7], Some(true)));
    assert_eq!(end.open(&to, device("desk")).await, (said[6], None));
    assert_eq!(end.open(&to, From::Cursor(None)).await, (said[6], None));
    end.ack(&to, Some("desk"), said[2]).await;
    assert_eq!(end.open(&to, device("desk")).await, (oldest, Some(false)));
    // What is too old goes first.
    let aged = end
        .streams
        .open(to.clone(), Duration::ZERO, after(said[7]))
        .await;
    std::thread::sleep(Duration::from_millis(2));
    drop(aged);
    let aged = end.streams.open(to, Duration::ZERO, after(said[7])).await;
    let aged = aged.expect("opened");
    assert_eq!((aged.start, aged.recovered), (top, Some(false)));
}

async fn a_stream_that_is_behind_what_is_known_was_rolled_back(end: &End) {
    let to = user("forked");
    let first = end.say(&to, "0").await;
    let top = end.say(&to, "1").await;
    // What is right stays.
    for known in [first, top] {
        assert_eq!(end.top(&to, known).await, top);
    }
    let ahead = Position {
        offset: top.offset + 1,
        ..top
    };
    let other = Position {
        tag: Tag(top.tag.0 ^ 1),
        ..top
    };
    let mut last = top;
    for known in [ahead, other] {
        let known = Position {
            epoch: last.epoch,
            ..known
        };
        let tops = end.streams.tops(vec![(to.clone(), known)]).await;
        let found = tops.expect("tops")[0];
        assert_ne!(found.position.epoch, last.epoch);
        assert_eq!(found.position, found.began);
        assert_eq!(
            (found.position.offset, found.position.tag),
            (top.offset, top.tag)
        );
        // Once: whoever else knows of it has another epoch.
        assert_eq!(end.top(&to, known).await, found.position);
        assert_eq!(end.open(&to, after(last)).await.1, Some(false));
        last = found.position;
    }
    let next = end.say(&to, "2").await;
    assert_eq!((next.epoch, next.offset), (last.epoch, last.offset + 1));
    assert_eq!(end.open(&to, after(last)).await, (last, Some(true)));
    assert_eq!(end.kept(&to, 0).await, ["0", "1", "2"]);
}

async fn a_cursor_moves_forward_alone(end: &End) {
    let to = user("cursors");
    let mut said = Vec::new();
    for n in 0..5 {
        said.push(end.say(&to, &n.to_string()).await);
    }
    let at = async |position| assert_eq!(end.open(&to, device("a")).await.0, position);
    end.ack(&to, Some("a"), said[2]).await;
    end.ack(&to, Some("a"), said[1]).await;
    at(said[2]).await;
    end.ack(&to, Some("a"), said[3]).await;
    at(said[3]).await;
    // Another epoch only if it is the present one.
    let elsewhere = Position {
        epoch: said[4].epoch ^ 1,
        ..said[4]
    };
    end.ack(&to, Some("a"), elsewhere).await;
    at(said[3]).await;
    let ahead = Position {
        offset: 100,
        ..said[4]
    };
    let new = end.top(&to, ahead).await;
    assert_ne!(new.epoch, said[4].epoch);
    end.ack(&to, Some("a"), new).await;
    at(new).await;
    end.ack(&to, Some("a"), said[4]).await;
    at(new).await;
    // The longest silent of seventeen is forgotten, which is not who moved last.
    for n in 0..16 {
        if n == 15 {
            end.ack(&to, Some("a"), new).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        end.ack(&to, Some(&n.to_string()), new).await;
    }
    assert_eq!(end.open(&to, device("a")).await.1, Some(true));
    assert_eq!(end.open(&to, device("0")).await.1, None);
    assert_eq!(end.open(&to, device("1")).await.1, Some(true));
    assert_eq!(end.open(&to, device("15")).await.1, Some(true));
}

async fn a_stream_is_read_in_pages(end: &End) {
    let to = user("pages");
    for n in 0..25 {
        end.say(&to, &n.to_string()).await;
    }
    let mut read = Vec::new();
    let mut last = 0;
    loop {
        let page = end.streams.read(to.clone(), last, 10).await.expect("read");
        assert_eq!(page.top.position.offset, 25);
        let count = page.messages.len();
        for message in page.messages {
            last = message.place.expect("it has a place").offset;
            read.push(last);
        }
        if count < 10 {
            break;
        }
    }
    assert_eq!(read, (1..=25).collect::<Vec<_>>());
    let page = end.streams.read(to, 25, 10).await.expect("read");
    assert!(page.messages.is_empty());
    let unheard = user("never-heard-of");
    let page = end.streams.read(unheard, 0, 10).await.expect("read");
    assert_eq!((page.top.position.offset, page.messages.len()), (0, 0));
}

async fn keeps_the_contract(end: End) {
    appends_are_consecutive_and_name_their_predecessor(&end).await;
    a_retry_with_the_same_id_appends_once(&end).await;
    an_idempotency_key_makes_a_message_one(&end).await;
    what_is_beyond_a_bound_goes_oldest_first(&end).await;
    a_session_begins_where_it_asks_to(&end).await;
    a_stream_that_is_behind_what_is_known_was_rolled_back(&end).await;
    a_cursor_moves_forward_alone(&end).await;
    a_stream_is_read_in_pages(&end).await;
    end.streams.close().await;
}

#[tokio::test]
async fn memory_keeps_the_streams_contract() {
    let inbox = Inbox::new();
    let streams = Arc::new(Memory::new(inbox.clone()));
    keeps_the_contract(End { streams, inbox }).await;
}

#[tokio::test]
async fn redis_keeps_the_streams_contract() {
    let server = RedisServer::start().await;
    keeps_the_contract(redis_at(&server.url(), |_| {}).await).await;
}
