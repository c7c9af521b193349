//! Bytes of resident memory per idle connection: a node's, with user, session and inbox subscription, and the floor's;
//! then the same with TLS 1.3.

use std::time::Duration;

use serde_json::json;

use super::{Common, Outcome, SERVER_CORE, connect, users};
use crate::crowd::Crowd;
use crate::http::Http;
use crate::process::{Node, Process, floor};
use crate::report;
use crate::tls::Certificate;

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
    let certificate = Certificate::new()?;
    let tls = Some(&certificate);
    for (name, (idle, warm)) in [
        ("tidings", of_node(common, connections, None)?),
        ("floor", of_floor(connections, None)?),
        ("tidings, TLS", of_node(common, connections, tls)?),
        ("floor, TLS", of_floor(connections, tls)?),
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

/// A crowd that speaks what the server does.
fn crowd(tls: Option<&Certificate>) -> std::io::Result<Crowd> {
    Crowd::over(tls.map(|tls| tls.client.clone()))
}

fn of_node(common: &Common, connections: usize, tls: Option<&Certificate>) -> Measured {
    let sets = tls.map(|tls| {
        let (cert, key) = (tls.cert_file(), tls.key_file());
        [
            format!("public.tls.cert_file={}", cert.display()),
            format!("public.tls.key_file={}", key.display()),
        ]
    });
    let sets: Vec<String> = sets.into_iter().flatten().collect();
    let node = Node::start(&common.server, SERVER_CORE, &sets)?;
    let mut first = crowd(tls)?;
    connect(&mut first, &node, &users(0..FIRST), "")?;
    std::thread::sleep(REST);
    let before = node.process.resident()?;
    let mut crowd = crowd(tls)?;
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

fn of_floor(connections: usize, tls: Option<&Certificate>) -> Measured {
    let (process, address) = floor(SERVER_CORE, 132, tls)?;
    let mut first = crowd(tls)?;
    first.open(address, (0..FIRST).map(|_| "/ws".into()))?;
    std::thread::sleep(REST);
    let before = process.resident()?;
    let mut crowd = crowd(tls)?;
    crowd.open(address, (0..connections).map(|_| "/ws".into()))?;
    let mut publisher = super::fanout::FloorPublisher::open(address, tls)?;
    above(&process, before, &mut crowd, || publisher.publish(MESSAGES))
}
