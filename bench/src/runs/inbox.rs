//! Memory per inbox in Redis: what it has more than before, divided.

use std::error::Error;
use std::time::{Duration, Instant};

use super::{Common, Outcome, connect, users};
use crate::callers::fill;
use crate::crowd::{Crowd, PATIENCE};
use crate::process::{Node, Redis};
use crate::report;
use crate::resp::Resp;

/// What tables and scripts cost once is not the inboxes'.
const FIRST: usize = 100;
/// Until cursors are written, buffers are given back, and tables have grown.
const REST: Duration = Duration::from_secs(2);

pub fn run(common: &Common) -> Outcome {
    let inboxes = if common.short { 1_000 } else { 10_000 };
    let redis = Redis::start()?;
    let node = redis.node(&common.server, "a")?;
    let mut info = redis.connect()?;
    let first = users(0..FIRST);
    come_and_go(&node, &mut info, &first)?;
    fill(&node, &first, 1)?;
    let all = users(FIRST..FIRST + inboxes);
    report::head(&[
        "in each inbox",
        "inboxes",
        "keys each",
        "bytes each",
        "bytes per message",
    ]);
    let before = (memory(&mut info)?, keys(&mut info)?);
    let mut measure = |messages: usize, empty: f64| -> Result<f64, Box<dyn Error>> {
        let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / inboxes as f64;
        let bytes = each(memory(&mut info)?, before.0);
        let (what, per_message) = match messages {
            0 => ("nothing: its user was here once".into(), String::new()),
            n => {
                let per_message = (bytes - empty) / n as f64;
                (format!("messages: {n}"), report::count(per_message))
            }
        };
        report::row(&[
            what,
            report::count(inboxes as f64),
            format!("{:.2}", each(keys(&mut info)?, before.1)),
            report::count(bytes),
            per_message,
        ]);
        Ok(bytes)
    };
    come_and_go(&node, &mut redis.connect()?, &all)?;
    let empty = measure(0, 0.0)?;
    let mut filled = 0;
    for messages in [1, 10, 100] {
        fill(&node, &all, messages - filled)?;
        filled = messages;
        measure(messages, empty)?;
    }
    Ok(())
}

/// Connects all users, which begins their streams and cursors, and waits until the node has forgotten them.
fn come_and_go(node: &Node, redis: &mut Resp, users: &[String]) -> Outcome {
    let listened = redis.info("stats", "pubsub_channels")?;
    let mut crowd = Crowd::new()?;
    connect(&mut crowd, node, users, "")?;
    let welcomes = users.len() as u64;
    crowd.until("every welcome", |c| c.frames >= welcomes)?;
    drop(crowd);
    let closed = Instant::now();
    while redis.info("stats", "pubsub_channels")? > listened {
        if closed.elapsed() > PATIENCE {
            return Err("the node listens on for who has gone".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn memory(redis: &mut Resp) -> std::io::Result<u64> {
    std::thread::sleep(REST);
    redis.info("memory", "used_memory")
}

fn keys(redis: &mut Resp) -> Result<u64, Box<dyn Error>> {
    Ok(redis.call(&["DBSIZE"])?.parse()?)
}
