//! Comebacks: all clients of a node come back at once, each to what it missed, while others on that node get live pushes.

use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Common, Outcome, users};
use crate::callers::fill;
use crate::clock::{Came, Clock};
use crate::crowd::Crowd;
use crate::http::Http;
use crate::process::{Node, Redis};
use crate::pushes::Class;
use crate::report::{self, Meter, Times, Used};

/// Messages that each client missed: all that an inbox holds.
const MISSED: usize = 100;
/// Users who stay, and get live pushes.
const LIVE: usize = 100;
/// Of those, a second.
const RATE: u32 = 200;
/// Live pushes alone; and until a node has forgotten who has gone.
const PAUSE: Duration = Duration::from_secs(4);

pub fn run(common: &Common) -> Outcome {
    let (clients, rounds) = if common.short { (200, 1) } else { (1_000, 3) };
    let redis = Redis::start()?;
    let node = |name| redis.node(&common.server, name);
    let (a, b) = (node("a")?, node("b")?);
    let all = users(0..clients);
    let positions = come_and_go(&b, &all)?;
    fill(&a, &all, MISSED)?;

    let others = users(clients..clients + LIVE);
    let clock = Clock {
        service: a.service,
        key: &a.key,
        class: Class::Kept,
        users: &others,
        rate: RATE,
    };
    let screens = paths(&b, &others, |_| "&format=raw&since=now".into())?;
    let (public, stop) = (b.public, AtomicBool::new(false));
    let (storms, came) = std::thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        let live = || push(public, screens, &clock, &stop).map_err(|e| e.to_string());
        let live = scope.spawn(live);
        let storms: Result<Vec<_>, _> = (0..rounds)
            .map(|_| {
                std::thread::sleep(PAUSE);
                Storm::measure(&redis, &a, &b, &all, &positions)
            })
            .collect();
        stop.store(true, Ordering::Release);
        let came = live.join().map_err(|_| "the live pushes panicked")??;
        Ok((storms?, came))
    })?;
    print(&storms, &came);
    Ok(())
}

/// Live pushes until they shall stop.
fn push(
    public: SocketAddr,
    screens: Vec<String>,
    clock: &Clock,
    stop: &AtomicBool,
) -> Result<Came, Box<dyn Error>> {
    let mut crowd = Crowd::new()?;
    crowd.open(public, screens)?;
    clock.run(&mut crowd, |_| !stop.load(Ordering::Acquire))
}

/// Where each user opens a connection.
fn paths(
    node: &Node,
    users: &[String],
    query: impl Fn(&str) -> String,
) -> Result<Vec<String>, Box<dyn Error>> {
    let tickets = Http::connect(node.service, &node.key)?.tickets(users)?;
    let both = users.iter().zip(tickets);
    let path = |(user, ticket): (&String, String)| format!("/ws?ticket={ticket}{}", query(user));
    Ok(both.map(path).collect())
}

/// Connects all users for a moment; the position of each.
fn come_and_go(node: &Node, all: &[String]) -> Result<HashMap<String, String>, Box<dyn Error>> {
    let (mut crowd, mut positions) = (Crowd::new()?, HashMap::new());
    let mut look = |frame: &[u8]| {
        let welcome: Value = serde_json::from_slice(frame).unwrap_or_default();
        if let (Some(user), Some(at)) = (welcome["user"].as_str(), welcome["position"].as_str()) {
            positions.insert(user.to_owned(), at.to_owned());
        }
    };
    crowd.begin_all(node.public, paths(node, all, |_| String::new())?, &mut look)?;
    let welcomes = all.len() as u64;
    crowd.look_until("every welcome", |c| c.frames >= welcomes, look)?;
    if positions.len() < all.len() {
        return Err("a welcome has no position".into());
    }
    Ok(positions)
}

/// One comeback of all.
struct Storm {
    clients: usize,
    began: Instant,
    took: Duration,
    recovered: usize,
    used: Used,
}

impl Storm {
    fn measure(
        redis: &Redis,
        a: &Node,
        b: &Node,
        all: &[String],
        positions: &HashMap<String, String>,
    ) -> Result<Self, Box<dyn Error>> {
        let paths = paths(b, all, |user| format!("&since={}", positions[user]))?;
        let (mut crowd, mut recovered) = (Crowd::new()?, 0);
        let mut look = |frame: &[u8]| {
            if frame.starts_with(br#"{"type":"welcome""#) {
                let whole = br#""recovered":true"#;
                recovered += usize::from(frame.windows(whole.len()).any(|some| some == whole));
            }
        };
        let frames = (all.len() * (1 + MISSED)) as u64;
        let meter = Meter::start(&[&b.process, &redis.process, &a.process])?;
        let began = meter.began();
        crowd.begin_all(b.public, paths, &mut look)?;
        crowd.look_until("every message", |c| c.frames >= frames, look)?;
        let took = began.elapsed();
        let used = meter.stop()?;
        Ok(Self {
            clients: all.len(),
            began,
            took,
            recovered,
            used,
        })
    }

    /// Whether a live push was due meanwhile.
    fn covers(&self, due: Instant) -> bool {
        (self.began..self.began + self.took).contains(&due)
    }
}

fn print(storms: &[Storm], came: &Came) {
    report::head(&[
        "round",
        "clients",
        "missed each",
        "all have all after ms",
        "messages/s",
        "per CPU-second of the node",
        "of Redis",
        "recovered",
        "cores: node",
        "Redis",
        "load",
        "others",
    ]);
    for (round, storm) in storms.iter().enumerate() {
        let messages = (storm.clients * MISSED) as f64;
        let mut cells = vec![
            (round + 1).to_string(),
            report::count(storm.clients as f64),
            MISSED.to_string(),
            report::count(storm.took.as_secs_f64() * 1000.0),
            report::count(messages / storm.took.as_secs_f64()),
            report::count(messages / storm.used.cpu[0]),
            report::count(messages / storm.used.cpu[1]),
            report::count(storm.recovered as f64),
        ];
        cells.extend(storm.used.cores(&storm.used.cpu[..2]));
        report::row(&cells);
    }
    println!();
    report::head(&[
        &format!("live pushes at {RATE}/s"),
        "counted",
        "p50 ms",
        "p90",
        "p99",
        "max",
    ]);
    let row = |name: &str, counts: &dyn Fn(Instant) -> bool| {
        let some = came.seen.iter().filter(|(due, _)| counts(*due));
        let mut times: Times = some.map(|(_, took)| *took).collect();
        let mut cells = vec![name.into(), times.len().to_string()];
        cells.extend(times.cells(&[0.5, 0.9, 0.99, 1.0]));
        report::row(&cells);
    };
    let first = storms.first().map(|storm| storm.began);
    row("before the first comeback", &|due| {
        first.is_some_and(|first| due < first)
    });
    row("due during a comeback", &|due| {
        storms.iter().any(|storm| storm.covers(due))
    });
    row("all", &|_| true);
    let (seen, left) = (came.seen.len(), came.late.len());
    println!("\nOf {left} live pushes {seen} were seen.");
}
