use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::advice::{Trouble, advice};
use super::hop::Hop;
use super::link::{Heard, Link};
use super::report::Finding;
use super::upgrade::{Opened, open};
use super::{Patient, SILENT_LINKS, address, no_ticket};
use crate::wire::codec::Opcode;

/// Bad frames that are sent at most: a node ends a connection after `max_client_errors` of them.
const BAD_FRAMES: usize = 64;

/// All that goes on with WebSockets once the first one is open: who the node sees, how long links live that say nothing,
/// and those that have heartbeats, and whether close codes come through.
pub(super) async fn first(patient: &Patient, hop: &Hop, mut opened: Opened) -> Vec<Finding> {
    let address = address::check(patient, hop, &opened).await;
    let heartbeat = opened.heartbeat;
    let (beats, silence) = tokio::join!(
        watch_beats(patient, hop, &mut opened),
        watch_silence(patient, hop, heartbeat),
    );
    let lives = beats.level < super::report::Level::Fail;
    let mut findings = vec![address, beats, silence];
    if lives {
        findings.push(check_codes(patient, &mut opened.link).await);
    }
    findings
}

/// Answers pings until the time is over. `Err` = it ended before, after so long and so.
async fn live(link: &mut Link, until: Instant) -> Result<Vec<Instant>, Heard> {
    let mut pings = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match timeout(left, link.hear()).await {
            Err(_) => return Ok(pings),
            Ok(Heard::Ping(payload)) => {
                pings.push(Instant::now());
                if let Err(error) = link.say(Opcode::Pong, &payload).await {
                    return Err(Heard::Cut(error.to_string()));
                }
            }
            Ok(end @ (Heard::Cut(_) | Heard::Close(..))) => return Err(end),
            Ok(_) => {}
        }
    }
}

async fn watch_beats(patient: &Patient, hop: &Hop, opened: &mut Opened) -> Finding {
    let began = opened.at;
    let every = opened.heartbeat;
    let watched = live(&mut opened.link, began + patient.watch).await;
    let lived = began.elapsed();
    match (watched, every) {
        (Err(Heard::Close(code, reason)), _) => Finding::warn(
            "heartbeats",
            format!(
                "the node closed with {code} {reason} after {}",
                seconds(lived)
            ),
        )
        .advise(["the close frame is the node's own: look at its log"]),
        (Err(end), every) => {
            let why = match every {
                Some(every) if lived < every => format!(
                    "before the first heartbeat was due (every {})",
                    seconds(every)
                ),
                Some(_) => "although heartbeats came".into(),
                None => "and the node sends no heartbeats".into(),
            };
            let advice = advice(hop.kind, Trouble::Silence);
            let finding = Finding::fail(
                "heartbeats",
                format!("cut after {} {why}: {}", seconds(lived), cut(&end)),
            );
            finding
                .advise(advice)
                .advise(["or let [heartbeat] interval be less than two thirds of that"])
        }
        (Ok(_), None) => Finding::warn("heartbeats", "the node sends none").advise([
            "[heartbeat] interval = \"25s\": else each proxy's idle timeout cuts quiet clients",
        ]),
        (Ok(pings), Some(every)) => {
            let due = began.elapsed() > every + patient.timeout;
            if pings.is_empty() && due {
                let found = format!("none came within {}", seconds(patient.watch));
                return Finding::fail("heartbeats", found).advise([
                    "something between swallows WebSocket pings; connect with ping=frame",
                ]);
            }
            Finding::ok(
                "heartbeats",
                format!(
                    "{} in {}, one due every {}",
                    pings.len(),
                    seconds(lived),
                    seconds(every)
                ),
            )
        }
    }
}

/// What became of a link on which nothing was said.
enum Silent {
    /// It answered after so long.
    Lived(Duration),
    /// It ended after so long.
    Cut(Duration, Heard),
    /// Nothing came back any more when it was asked after so long.
    Dead(Duration),
    /// There is none, or it was not silent.
    No(String),
}

/// Silent links, each asked for a sign of life after another time: what dies without a word is found between two.
async fn watch_silence(patient: &Patient, hop: &Hop, heartbeat: Option<Duration>) -> Finding {
    let mut asked = Vec::new();
    for number in 1..=SILENT_LINKS {
        match patient.tickets.next().await {
            Ok(Some(ticket)) => asked.push((number, ticket)),
            Ok(None) => break,
            Err(failure) => return Finding::fail("silence", failure.message),
        }
    }
    if asked.is_empty() {
        return no_ticket("silence");
    }
    let count = asked.len() as u32;
    let links = asked.into_iter().map(|(number, ticket)| async move {
        silent(patient, &ticket, patient.watch * number / count).await
    });
    let outcomes = futures_util::future::join_all(links).await;
    judge(&outcomes, hop, heartbeat)
}

async fn silent(patient: &Patient, ticket: &str, time: Duration) -> Silent {
    let mut opened = match open(patient, ticket, "?heartbeat=off&ack=client").await {
        Ok(opened) => opened,
        Err(refused) => {
            let hop = Hop {
                kind: super::hop::Kind::Unknown,
            };
            return Silent::No(super::upgrade::explain(&refused, &hop).found);
        }
    };
    // What comes of its own accord breaks the silence, and it begins anew.
    let mut quiet_since = opened.at;
    let until = opened.at + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match timeout(left, opened.link.hear()).await {
            Err(_) => break,
            Ok(Heard::Ping(_)) => {
                return Silent::No(
                    "the node pings all the same: is it older than this doctor?".into(),
                );
            }
            Ok(end @ (Heard::Cut(_) | Heard::Close(..))) => {
                return Silent::Cut(quiet_since.elapsed(), end);
            }
            Ok(_) => quiet_since = Instant::now(),
        }
    }
    let quiet = quiet_since.elapsed();
    let asking = async {
        opened.link.say(Opcode::Ping, b"doctor").await.ok()?;
        loop {
            match opened.link.hear().await {
                Heard::Pong => return Some(()),
                Heard::Cut(_) | Heard::Close(..) => return None,
                _ => {}
            }
        }
    };
    match timeout(patient.timeout, asking).await {
        Ok(Some(())) => {
            opened.link.leave().await;
            Silent::Lived(quiet)
        }
        Ok(None) | Err(_) => Silent::Dead(quiet),
    }
}

fn judge(outcomes: &[Silent], hop: &Hop, heartbeat: Option<Duration>) -> Finding {
    let lived = outcomes.iter().filter_map(|o| match o {
        Silent::Lived(time) => Some(*time),
        _ => None,
    });
    let longest = lived.max();
    let ended = outcomes.iter().filter_map(|o| match o {
        Silent::Cut(time, end) => Some((*time, cut(end))),
        Silent::Dead(time) => Some((
            *time,
            "it died without a word, as behind a NAT or a firewall".into(),
        )),
        _ => None,
    });
    if let Some((time, how)) = ended.min_by_key(|(time, _)| *time) {
        let found = format!(
            "a link that says nothing is cut after {}: {how}",
            seconds(time)
        );
        let settings = advice(hop.kind, Trouble::Silence);
        return match heartbeat {
            Some(every) if every.mul_f64(1.2) < time => Finding::ok(
                "silence",
                format!("{found}; heartbeats every {} keep it", seconds(every)),
            ),
            Some(every) if every < time => Finding::warn(
                "silence",
                format!("{found}, and heartbeats come only every {}", seconds(every)),
            )
            .advise(settings),
            Some(every) => Finding::fail(
                "silence",
                format!("{found}, and heartbeats come only every {}", seconds(every)),
            )
            .advise(settings)
            .advise(["or let [heartbeat] interval be less than two thirds of that"]),
            None => Finding::fail(
                "silence",
                format!("{found}, and the node sends no heartbeats"),
            )
            .advise(settings)
            .advise(["set [heartbeat] interval"]),
        };
    }
    match (longest, outcomes.first()) {
        (Some(time), _) => Finding::ok(
            "silence",
            format!(
                "a link that says nothing lives for {} and longer",
                seconds(time)
            ),
        ),
        (None, Some(Silent::No(why))) => {
            Finding::warn("silence", format!("it could not be measured: {why}"))
        }
        (None, _) => no_ticket("silence"),
    }
}

/// Whether the node's close codes come through: it is made to end the connection by frames that are none.
async fn check_codes(patient: &Patient, link: &mut Link) -> Finding {
    let mut answered = 0;
    let ending = async {
        for _ in 0..BAD_FRAMES {
            // An error shows in what is heard.
            let _ = link.say(Opcode::Text, b"{\"type\":\"doctor\"}").await;
        }
        loop {
            match link.hear().await {
                end @ (Heard::Close(..) | Heard::Cut(_)) => return end,
                Heard::Text(_) => answered += 1,
                _ => {}
            }
        }
    };
    let as_they_are = [
        "something between ends the connection itself: it must pass WebSocket frames on as they are",
    ];
    match timeout(patient.timeout, ending).await {
        // 1008: more frames a second than the node takes.
        Ok(Heard::Close(code @ (4500 | 1008), reason)) => {
            link.leave().await;
            Finding::ok(
                "close codes",
                format!("{code} {reason} came as it was sent"),
            )
        }
        // What a node that leaves, is full or ends a session says may have come first.
        Ok(Heard::Close(code @ (1001 | 1012 | 1013 | 4000..), reason)) => Finding::warn(
            "close codes",
            format!("{code} {reason} came in place of 4500"),
        ),
        Ok(Heard::Close(code, reason)) => Finding::fail(
            "close codes",
            format!("{code} {reason} came in place of the node's 4500"),
        )
        .advise(as_they_are),
        Ok(_) => Finding::fail(
            "close codes",
            "the node's close frame did not arrive: clients see 1006",
        )
        .advise(as_they_are),
        // Each bad frame is answered until the node ends the connection.
        Err(_) if answered < BAD_FRAMES => {
            let found = "the node's close frame did not arrive, and the connection stays open: clients do not know that it is over";
            Finding::fail("close codes", found).advise(as_they_are)
        }
        Err(_) => Finding::warn(
            "close codes",
            "the node did not end a connection that sends nonsense",
        )
        .advise(["is [limits] max_client_errors above 64?"]),
    }
}

fn cut(end: &Heard) -> String {
    match end {
        Heard::Close(code, reason) => format!("a close frame with {code} {reason}"),
        Heard::Cut(why) => why.clone(),
        other => format!("{other:?}"),
    }
}

/// A time as a person reads it.
pub(super) fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds.fract() < 0.05 || seconds >= 100.0 {
        true => format!("{seconds:.0} s"),
        false => format!("{seconds:.1} s"),
    }
}
