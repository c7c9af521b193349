//! Bytes of resident memory per idle connection: a node's, with user, session and inbox subscription, and the floor's.

use std::time::Duration;

use serde_json::json;

use super::{Common, Outcome, SERVER_CORE, connect, users};
use crate::crowd::Crowd;
use crate::http::Http;
use crate::process::{Node, Process, floor};
use crate::report;

/// What the first connections cost once (threads, tables) is not theirs.
const FIRST: usize = 100;
const MESSAGES: usize = 5;
/// What was freed a moment ago may still be on its way to the system.
const REST: Duration = Duration::from_secs(2);

pub fn run(common: &Common) -> Outcome {
    let connections = if common.short { 2_000 } else { 10_000 };
    let each = |bytes: u64| report::count(bytes as f64 / connections as f64);
    report::head(&[
        "server",
        "connections",
        "bytes each, idle",
        "bytes each, after 5 messages",
    ]);
    for (name, (idle, warm)) in [
        ("tidings", of_node(common, connections)?),
        ("floor", of_floor(connections)?),
    ] {
        report::row(&[name.into(), connections.to_string(), each(idle), each(warm)]);
    }
    Ok(())
}

type Measured = Result<(u64, u64), Box<dyn std::error::Error>>;

/// Above what was there before, idle and then after some messages.
fn above(
    process: &Process,
    before: u64,
    crowd: &mut Crowd,
    messages: impl FnOnce() -> Outcome,
) -> Measured {
    std::thread::sleep(REST);
    let idle = process.resident()?.saturating_sub(before);
    let frames = crowd.frames + (MESSAGES * crowd.len()) as u64;
    messages()?;
    crowd.until("every message", |c| c.frames >= frames)?;
    std::thread::sleep(REST);
    Ok((idle, process.resident()?.saturating_sub(before)))
}

fn of_node(common: &Common, connections: usize) -> Measured {
    let node = Node::start(&common.server, SERVER_CORE, &[])?;
    let mut first = Crowd::new()?;
    connect(&mut first, &node, &users(0..FIRST), "")?;
    std::thread::sleep(REST);
    let before = node.process.resident()?;
    let mut crowd = Crowd::new()?;
    let all = users(FIRST..FIRST + connections);
    connect(&mut crowd, &node, &all, "")?;
    crowd.until("every welcome", |c| c.frames >= connections as u64)?;
    above(&node.process, before, &mut crowd, || {
        let mut http = Http::connect(node.service, &node.key)?;
        let text = "x".repeat(128);
        let body = json!({"everyone": true, "message": text, "class": "VOLATILE"}).to_string();
        for _ in 0..MESSAGES {
            http.call("/v1/broadcast", &body)?;
        }
        Ok(())
    })
}

fn of_floor(connections: usize) -> Measured {
    let (process, address) = floor(SERVER_CORE, 132)?;
    let mut first = Crowd::new()?;
    first.open(address, (0..FIRST).map(|_| "/ws".into()))?;
    std::thread::sleep(REST);
    let before = process.resident()?;
    let mut crowd = Crowd::new()?;
    crowd.open(address, (0..connections).map(|_| "/ws".into()))?;
    let mut publisher = super::fanout::FloorPublisher::open(address)?;
    above(&process, before, &mut crowd, || publisher.publish(MESSAGES))
}
