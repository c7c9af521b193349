//! Memory and Redis answer alike, whatever is asked of them in whatever order.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tidings::backplane::{Append, From, Keep, Memory, Once, Top};
use tidings::model::{Address, Message, Position, Since, Tag};

use crate::backplane::{Inbox, soon, user};
use crate::streams::{End, MANY, append, device, redis_at, text};
use crate::support::redis::RedisServer;

const USERS: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Push {
        user: usize,
        keep: u32,
    },
    /// The newest of the user's messages again.
    Retry {
        user: usize,
        keep: u32,
    },
    Once {
        user: usize,
        key: u8,
        asked: u8,
        kept: bool,
    },
    Read {
        user: usize,
        after: u64,
        most: usize,
    },
    Open {
        user: usize,
        from: Whence,
    },
    Ack {
        user: usize,
        device: u8,
        to: Which,
    },
    Compare {
        user: usize,
        known: Which,
    },
}

#[derive(Debug, Clone)]
enum Whence {
    Now,
    After(Which),
    Cursor(u8),
}

/// One of the positions that were given out, or one beside it.
#[derive(Debug, Clone)]
struct Which {
    nth: usize,
    ahead: u64,
    other: bool,
}

fn which() -> impl Strategy<Value = Which> {
    (
        0..12usize,
        prop_oneof![4 => Just(0), 1 => 1..3u64],
        prop::bool::weighted(0.1),
    )
        .prop_map(|(nth, ahead, other)| Which { nth, ahead, other })
}

fn step() -> impl Strategy<Value = Step> {
    let user = || 0..USERS;
    let whence = prop_oneof![
        Just(Whence::Now),
        which().prop_map(Whence::After),
        (0..4u8).prop_map(Whence::Cursor),
    ];
    prop_oneof![
        4 => (user(), 1..6u32).prop_map(|(user, keep)| Step::Push { user, keep }),
        1 => (user(), 1..6u32).prop_map(|(user, keep)| Step::Retry { user, keep }),
        2 => (user(), 0..2u8, 0..2u8, any::<bool>())
            .prop_map(|(user, key, asked, kept)| Step::Once { user, key, asked, kept }),
        2 => (user(), 0..12u64, 1..5usize)
            .prop_map(|(user, after, most)| Step::Read { user, after, most }),
        3 => (user(), whence).prop_map(|(user, from)| Step::Open { user, from }),
        2 => (user(), 0..4u8, which()).prop_map(|(user, device, to)| Step::Ack { user, device, to }),
        1 => (user(), which()).prop_map(|(user, known)| Step::Compare { user, known }),
    ]
}

/// One backplane, with its own epochs told by the order in which they came up.
struct Side {
    end: End,
    epochs: Vec<u64>,
    given: HashMap<usize, Vec<Position>>,
}

impl Side {
    fn new(end: End) -> Self {
        Self {
            end,
            epochs: Vec::new(),
            given: HashMap::new(),
        }
    }

    /// A position as both sides would tell it.
    fn told(&mut self, position: Position) -> (usize, u64, Tag) {
        let known = self
            .epochs
            .iter()
            .position(|epoch| *epoch == position.epoch);
        let epoch = known.unwrap_or_else(|| {
            self.epochs.push(position.epoch);
            self.epochs.len() - 1
        });
        (epoch, position.offset, position.tag)
    }

    fn told_top(&mut self, top: Top) -> String {
        let (position, began) = (self.told(top.position), self.told(top.began));
        format!("{position:?} {began:?}")
    }

    fn pick(&self, user: usize, which: &Which) -> Option<Position> {
        let given = self.given.get(&user)?;
        let mut position = given[which.nth % given.len()];
        position.offset += which.ahead;
        position.tag.0 ^= u32::from(which.other);
        Some(position)
    }

    async fn push(&mut self, at: usize, append: Append) -> String {
        match self.end.streams.append(append, soon()).await {
            Err(error) => format!("{error:?}"),
            Ok(done) => {
                if let Some(position) = done.position {
                    self.given.entry(at).or_default().push(position);
                }
                let position = done.position.map(|position| self.told(position));
                format!("{:?} {position:?} {}", done.id, done.duplicate)
            }
        }
    }

    /// What a step came to; `message` is the new one, `newest` the user's last.
    async fn take(
        &mut self,
        step: &Step,
        to: &Address,
        message: &Message,
        newest: Option<&Message>,
    ) -> String {
        let keep = |messages| Some(Keep { messages, ..MANY });
        match step {
            Step::Push { user, keep: most } => {
                let keep = keep(*most);
                self.push(
                    *user,
                    Append {
                        keep,
                        ..append(message)
                    },
                )
                .await
            }
            Step::Retry { user, keep: most } => {
                let (keep, again) = (keep(*most), newest.is_some());
                let retried = append(newest.unwrap_or(message));
                self.push(
                    *user,
                    Append {
                        keep,
                        again,
                        ..retried
                    },
                )
                .await
            }
            Step::Once {
                user,
                key,
                asked,
                kept,
            } => {
                let once = Some(Once {
                    key: [*key; 32],
                    asked: [*asked; 32],
                });
                let keep = kept.then_some(MANY);
                self.push(
                    *user,
                    Append {
                        keep,
                        once,
                        ..append(message)
                    },
                )
                .await
            }
            Step::Read { after, most, .. } => {
                let page = self
                    .end
                    .streams
                    .read(to.clone(), *after, *most)
                    .await
                    .expect("read");
                let top = self.told_top(page.top);
                let places = page.messages.iter().map(|message| {
                    let place = message.place.expect("it has a place");
                    (message.id, self.told(place.before()))
                });
                format!("{top} {:?}", places.collect::<Vec<_>>())
            }
            Step::Open { user, from } => {
                let from = match from {
                    Whence::Now => From::Since(Since::Now),
                    Whence::After(which) => match self.pick(*user, which) {
                        Some(position) => From::Since(Since::After(position)),
                        None => From::Cursor(None),
                    },
                    Whence::Cursor(0) => From::Cursor(None),
                    Whence::Cursor(n) => device(&n.to_string()),
                };
                let opened = self
                    .end
                    .streams
                    .open(to.clone(), MANY.age, from)
                    .await
                    .expect("opened");
                let (top, start) = (self.told_top(opened.top), self.told(opened.start));
                format!("{top} {start:?} {:?}", opened.recovered)
            }
            Step::Ack {
                user,
                device,
                to: which,
            } => {
                if let Some(position) = self.pick(*user, which) {
                    let name = (*device > 0).then(|| device.to_string());
                    self.end.ack(to, name.as_deref(), position).await;
                }
                String::new()
            }
            Step::Compare { user, known } => match self.pick(*user, known) {
                None => String::new(),
                Some(known) => {
                    let tops = self.end.streams.tops(vec![(to.clone(), known)]).await;
                    self.told_top(tops.expect("tops")[0])
                }
            },
        }
    }
}

#[test]
fn memory_and_redis_answer_alike() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = runtime.block_on(RedisServer::start());
    let mut runner = TestRunner::new(Config {
        cases: 150,
        failure_persistence: None,
        ..Config::default()
    });
    let case = std::cell::Cell::new(0);
    let result = runner.run(&prop::collection::vec(step(), 1..60), |steps| {
        let number = case.replace(case.get() + 1);
        runtime.block_on(async {
            let inbox = Inbox::new();
            let streams = Arc::new(Memory::new(inbox.clone()));
            let mut memory = Side::new(End { streams, inbox });
            let mut redis = Side::new(redis_at(&server.url(), |_| {}).await);
            let mut newest: HashMap<usize, Message> = HashMap::new();
            for (n, step) in steps.iter().enumerate() {
                let (Step::Push { user: at, .. }
                | Step::Retry { user: at, .. }
                | Step::Once { user: at, .. }
                | Step::Read { user: at, .. }
                | Step::Open { user: at, .. }
                | Step::Ack { user: at, .. }
                | Step::Compare { user: at, .. }) = step;
                let to = user(&format!("{number}-{at}"));
                let message = text(&to, &n.to_string());
                let last = newest.get(at);
                let expected = memory.take(step, &to, &message, last).await;
                let found = redis.take(step, &to, &message, last).await;
                prop_assert_eq!(&found, &expected, "step {}: {:?}", n, step);
                match step {
                    Step::Push { .. } => _ = newest.insert(*at, message),
                    Step::Retry { .. } if last.is_none() => _ = newest.insert(*at, message),
                    // It may be the newest, and its id another's.
                    Step::Once { .. } => _ = newest.remove(at),
                    _ => {}
                }
            }
            redis.end.streams.close().await;
            Ok(())
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
