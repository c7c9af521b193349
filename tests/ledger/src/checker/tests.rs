//! The checker on logs that were made up: it finds each fault, and none where there is none.

use std::time::Duration;

use super::{Disturbance, Evidence, Fault, check};
use crate::body::{self, Key, Stream};
use crate::clock::Stamp;
use crate::ledger::{Answer, Asked, ClientLog, Event, Push, What};

const INBOX: &str = "user:42";
const SECOND: u64 = 1_000_000;

fn key(stream: &str, n: u32) -> Key {
    Key {
        stream: stream.into(),
        producer: 1,
        n,
    }
}

fn id(n: u32) -> Box<str> {
    format!("id-{n}").into()
}

fn position(n: u32) -> Box<str> {
    format!("e.{n}").into()
}

/// The push `n`, begun at the second `n` and answered half a second later.
fn push(stream: &str, n: u32, answer: Answer) -> Push {
    let key = key(stream, n);
    let begun = u64::from(n) * SECOND;
    Push {
        hash: body::hash(&body::render(&key)),
        key,
        begun: Stamp(begun),
        answered: Stamp(begun + SECOND / 2),
        attempts: 1,
        answer,
    }
}

fn accepted(n: u32) -> Push {
    let answer = Answer::Accepted {
        id: id(n),
        position: Some(position(n)),
        durability: Some("STORED".into()),
    };
    push(INBOX, n, answer)
}

/// A client's log, line by line; the clock goes on by a millisecond with each.
struct Diary {
    log: ClientLog,
    at: u64,
}

impl Diary {
    /// Of a client that follows the inbox from the beginning.
    fn new() -> Self {
        let mut diary = Self {
            log: ClientLog::new("a client".into(), vec![INBOX.into()]),
            at: 1,
        };
        diary.opened(Asked::Nothing, Some(0), None);
        diary
    }

    fn at(&mut self, second: u64) -> &mut Self {
        self.at = second * SECOND;
        self
    }

    fn wrote(&mut self, what: What) -> &mut Self {
        self.at += 1000;
        self.log.push(Event {
            at: Stamp(self.at),
            connection: 0,
            what,
        });
        self
    }

    fn opened(&mut self, asked: Asked, at: Option<u32>, recovered: Option<bool>) -> &mut Self {
        self.wrote(What::Opened {
            stream: INBOX.into(),
            asked,
            position: at.map(position),
            recovered,
        })
    }

    fn gap(&mut self, at: u32) -> &mut Self {
        self.wrote(What::Gap {
            stream: INBOX.into(),
            position: Some(position(at)),
        })
    }

    /// Saw `n` as it was sent, at the second after it was begun or later.
    fn saw(&mut self, n: u32) -> &mut Self {
        self.at = self.at.max(u64::from(n) * SECOND + SECOND * 6 / 10);
        self.saw_on(INBOX.into(), key(INBOX, n))
    }

    fn saw_on(&mut self, stream: Stream, key: Key) -> &mut Self {
        self.wrote(What::Message {
            stream,
            id: id(key.n),
            position: Some(position(key.n)),
            hash: body::hash(&body::render(&key)),
            key: Some(key),
        })
    }
}

fn evidence(pushes: Vec<Push>, diaries: Vec<Diary>) -> Evidence {
    Evidence {
        pushes,
        clients: diaries.into_iter().map(|diary| diary.log).collect(),
        bound: Duration::from_secs(30),
        ..Evidence::default()
    }
}

fn faults(evidence: &Evidence) -> Vec<(Fault, u64)> {
    let report = check(evidence);
    let kinds = report.kinds();
    kinds
        .into_iter()
        .map(|kind| (kind, report.count(kind)))
        .collect()
}

fn disturbance(keeps: bool, began: u64, ended: u64) -> Disturbance {
    Disturbance {
        name: "a disturbance",
        keeps,
        began: Stamp(began * SECOND),
        ended: Stamp(ended * SECOND),
        settled: Some(Stamp((ended + 1) * SECOND)),
    }
}

#[test]
fn what_was_accepted_and_seen_is_right() {
    let mut diary = Diary::new();
    diary.saw(1).saw(2);
    diary.opened(Asked::Position, Some(2), Some(true)).saw(3);
    let evidence = evidence((1..=3).map(accepted).collect(), vec![diary]);
    assert_eq!(faults(&evidence), []);
    let report = check(&evidence);
    assert_eq!((report.accepted, report.due, report.seen), (3, 3, 3));
}

#[test]
fn what_is_missing_is_lost_in_silence() {
    let mut diary = Diary::new();
    diary.saw(1).saw(3);
    let evidence = evidence((1..=3).map(accepted).collect(), vec![diary]);
    assert_eq!(faults(&evidence), [(Fault::LostInSilence, 1)]);
}

#[test]
fn what_was_pushed_before_a_client_followed_is_not_due_to_it() {
    let mut late = Diary::new();
    late.log.events.clear();
    late.at(2).opened(Asked::Nothing, Some(1), None).saw(3);
    let evidence = evidence((1..=3).map(accepted).collect(), vec![late]);
    assert_eq!(check(&evidence).due, 1);
    assert_eq!(faults(&evidence), []);
}

#[test]
fn a_loss_that_was_told_is_no_silence_where_something_may_be_lost() {
    for by_gap in [true, false] {
        let mut diary = Diary::new();
        diary.saw(1).at(5);
        match by_gap {
            true => diary.gap(1),
            false => diary.opened(Asked::Position, Some(1), Some(false)),
        };
        diary.saw(6);
        let pushes = vec![accepted(1), accepted(2), accepted(6)];
        let mut evidence = evidence(pushes, vec![diary]);
        assert_eq!(faults(&evidence), [(Fault::ToldInVain, 1)]);
        evidence.disturbances.push(disturbance(false, 3, 4));
        assert_eq!(faults(&evidence), []);
        assert_eq!(check(&evidence).excused, 1);
        evidence.disturbances[0].keeps = true;
        assert_eq!(faults(&evidence), [(Fault::ToldInVain, 1)]);
    }
}

#[test]
fn a_loss_does_not_cover_what_was_pushed_after_it_was_told() {
    let mut diary = Diary::new();
    diary.saw(1).at(3).gap(1).saw(5);
    let pushes = vec![accepted(1), accepted(4), accepted(5)];
    let mut evidence = evidence(pushes, vec![diary]);
    evidence.disturbances.push(disturbance(false, 2, 3));
    assert_eq!(faults(&evidence), [(Fault::LostInSilence, 1)]);
}

#[test]
fn a_loss_that_is_told_after_the_bound_covers_nothing() {
    let mut diary = Diary::new();
    diary.saw(1).at(50).gap(1).saw(60);
    let pushes = vec![accepted(1), accepted(2), accepted(60)];
    let mut evidence = evidence(pushes, vec![diary]);
    evidence.disturbances.push(disturbance(false, 2, 4));
    evidence.disturbances.push(disturbance(false, 49, 50));
    assert_eq!(faults(&evidence), [(Fault::LostInSilence, 1)]);
}

#[test]
fn where_streams_are_only_trimmed_a_loss_is_told_before_anything_later() {
    let mut diary = Diary::new();
    diary.saw(1).saw(3);
    diary.opened(Asked::Position, Some(3), Some(false));
    let mut evidence = evidence((1..=3).map(accepted).collect(), vec![diary]);
    evidence.trimmed = true;
    assert_eq!(faults(&evidence), [(Fault::LostInSilence, 1)]);
}

#[test]
fn a_message_twice_is_doubled_unless_a_loss_was_told_in_between() {
    let mut diary = Diary::new();
    diary.saw(1).saw(2);
    diary.opened(Asked::Position, Some(2), Some(true)).saw(2);
    let pushes = vec![accepted(1), accepted(2)];
    assert_eq!(
        faults(&evidence(pushes.clone(), vec![diary])),
        [(Fault::Doubled, 1)]
    );

    let mut diary = Diary::new();
    diary.saw(1).saw(2);
    diary.opened(Asked::Position, Some(0), Some(false)).saw(2);
    let mut evidence = evidence(pushes, vec![diary]);
    evidence.disturbances.push(disturbance(false, 0, 1));
    assert_eq!(faults(&evidence), []);
}

#[test]
fn what_a_device_did_not_acknowledge_comes_again_and_nothing_else() {
    let pushes: Vec<Push> = (1..=4).map(accepted).collect();
    let mut diary = Diary::new();
    diary.saw(1).saw(2).saw(3);
    diary.opened(Asked::Cursor, Some(1), Some(true));
    diary.saw(2).saw(3).saw(4);
    assert_eq!(faults(&evidence(pushes.clone(), vec![diary])), []);

    let mut diary = Diary::new();
    diary.saw(1).saw(2).saw(3);
    diary.opened(Asked::Cursor, Some(2), Some(true));
    diary.saw(2).saw(3).saw(4);
    assert_eq!(
        faults(&evidence(pushes.clone(), vec![diary])),
        [(Fault::Doubled, 1)]
    );

    // What comes again comes in order, and after what the cursor stands at.
    let mut diary = Diary::new();
    diary.saw(1).saw(2).saw(3);
    diary.opened(Asked::Cursor, Some(1), Some(true));
    diary.saw(3).saw(2).saw(4);
    assert_eq!(
        faults(&evidence(pushes.clone(), vec![diary])),
        [(Fault::OutOfOrder, 3)]
    );

    let mut diary = Diary::new();
    diary.saw(1).opened(Asked::Cursor, Some(9), Some(true));
    assert_eq!(
        faults(&evidence(vec![accepted(1)], vec![diary])),
        [(Fault::OffTheWire, 1)]
    );
}

#[test]
fn a_device_that_is_not_known_begins_anew_but_is_not_forgotten() {
    let pushes = vec![accepted(1), accepted(2), accepted(4)];
    let mut diary = Diary::new();
    diary
        .saw(1)
        .at(3)
        .opened(Asked::Cursor, Some(2), None)
        .saw(4);
    assert_eq!(faults(&evidence(pushes.clone(), vec![diary])), []);

    let mut diary = Diary::new();
    diary.saw(1).opened(Asked::Cursor, Some(1), Some(true));
    diary.at(3).opened(Asked::Cursor, Some(2), None).saw(4);
    let mut evidence = evidence(pushes, vec![diary]);
    assert_eq!(faults(&evidence), [(Fault::ToldInVain, 1)]);
    evidence.disturbances.push(disturbance(false, 2, 3));
    assert_eq!(faults(&evidence), []);
}

#[test]
fn a_producers_messages_come_in_its_order() {
    let mut diary = Diary::new();
    diary.at(4).saw(2).saw(1).saw(3);
    let evidence = evidence((1..=3).map(accepted).collect(), vec![diary]);
    assert_eq!(faults(&evidence), [(Fault::OutOfOrder, 1)]);
}

#[test]
fn clients_agree_on_the_order_of_what_was_pushed_at_the_same_time() {
    let at_once = |n| Push {
        begun: Stamp(SECOND),
        answered: Stamp(2 * SECOND),
        ..accepted(n)
    };
    let orders = [[1, 2, 3], [2, 1, 3]].map(|order| {
        let mut diary = Diary::new();
        diary.at(4);
        for n in order {
            diary.saw(n);
        }
        diary
    });
    let evidence = evidence((1..=3).map(at_once).collect(), orders.into());
    assert_eq!(faults(&evidence), [(Fault::OutOfOrder, 2)]);
}

#[test]
fn a_message_of_another_is_for_the_wrong_audience() {
    let mut diary = Diary::new();
    diary.saw_on(INBOX.into(), key("user:7", 1));
    diary.saw_on("channel:kept:1".into(), key("channel:kept:1", 2));
    let pushes = [("user:7", 1), ("channel:kept:1", 2)].map(|(stream, n)| {
        let answer = accepted(n).answer;
        push(stream, n, answer)
    });
    let evidence = evidence(pushes.into(), vec![diary]);
    assert_eq!(faults(&evidence), [(Fault::WrongAudience, 2)]);
}

#[test]
fn a_changed_body_is_corrupt_and_not_lost() {
    let mut diary = Diary::new();
    diary.saw(1);
    if let Some(Event {
        what: What::Message { hash, .. },
        ..
    }) = diary.log.events.last_mut()
    {
        *hash ^= 1;
    }
    diary.saw(2);
    let evidence = evidence(vec![accepted(1)], vec![diary]);
    // The second was sent by nobody.
    assert_eq!(faults(&evidence), [(Fault::Corrupt, 2)]);
}

#[test]
fn what_was_refused_is_not_to_be_seen() {
    let mut diary = Diary::new();
    diary.saw(1);
    let refused = push(INBOX, 1, Answer::Refused { status: 503 });
    let evidence = evidence(vec![refused], vec![diary]);
    assert_eq!(faults(&evidence), [(Fault::RefusedButSeen, 1)]);
}

#[test]
fn what_is_unknown_may_be_seen_or_not_but_by_all_or_none() {
    let unknown = push(INBOX, 1, Answer::Unknown);
    let two = |first: bool, second: bool| {
        let diaries = [first, second].map(|saw| {
            let mut diary = Diary::new();
            if saw {
                diary.saw(1);
            }
            diary
        });
        faults(&evidence(vec![unknown.clone()], diaries.into()))
    };
    assert_eq!(two(false, false), []);
    assert_eq!(two(true, true), []);
    assert_eq!(two(true, false), [(Fault::LostInSilence, 1)]);
}

#[test]
fn what_comes_after_the_bound_is_late() {
    let mut diary = Diary::new();
    diary.at(40).saw(1);
    let mut evidence = evidence(vec![accepted(1)], vec![diary]);
    assert_eq!(faults(&evidence), [(Fault::Late, 1)]);
    // A disturbance gives it until so long after its end.
    evidence.disturbances.push(disturbance(true, 1, 20));
    assert_eq!(faults(&evidence), []);
    evidence.disturbances[0].settled = None;
    assert_eq!(faults(&evidence), [(Fault::Late, 1)]);
}

#[test]
fn a_resume_is_told_whether_all_is_there() {
    let mut diary = Diary::new();
    diary.opened(Asked::Position, Some(0), None);
    let evidence = evidence(Vec::new(), vec![diary]);
    assert_eq!(faults(&evidence), [(Fault::OffTheWire, 1)]);
}
