//! Storms: everybody comes at once, each with an inbox to be listened to, and everybody goes at once. How fast the node
//! is, and when Redis has seen it.

use std::time::{Duration, Instant};

use super::{Common, Outcome, users};
use crate::crowd::{Crowd, PATIENCE};
use crate::http::Http;
use crate::process::Redis;
use crate::report::{self, Meter, Used};
use crate::resp::Resp;

/// How long a node goes on listening for who may come back.
const LINGER: Duration = Duration::from_secs(2);

pub fn run(common: &Common) -> Outcome {
    let connections = if common.short { 2_000 } else { 10_000 };
    let redis = Redis::start()?;
    let node = redis.node(&common.server, "a")?;
    let mut info = redis.connect()?;
    let all = users(0..connections);
    // In less than the 30 s that a ticket lives.
    let tickets = Http::connect(node.service, &node.key)?.tickets(&all)?;
    let before = subscriptions(&mut info)?;
    report::head(&[
        "storm",
        "connections",
        "per second",
        "per CPU-second of the node",
        "of Redis",
        "Redis has seen all after ms",
        "cores: node",
        "Redis",
        "load",
        "others",
    ]);
    let print = |name: &str, rate: f64, seen: Duration, used: &Used| {
        let per = |cpu: f64| report::count(connections as f64 / cpu);
        let mut cells = vec![
            name.into(),
            connections.to_string(),
            report::count(rate),
            per(used.cpu[0]),
            per(used.cpu[1]),
            report::count(seen.as_secs_f64() * 1000.0),
        ];
        cells.extend(used.cores(&used.cpu));
        report::row(&cells);
    };

    // A handshake is welcomed once Redis has confirmed that its inbox is listened to.
    let mut crowd = Crowd::new()?;
    let meter = Meter::start(&[&node.process, &redis.process])?;
    let began = meter.began();
    let paths = tickets.iter().map(|ticket| format!("/ws?ticket={ticket}"));
    crowd.open(node.public, paths)?;
    crowd.until("every welcome", |c| c.frames >= connections as u64)?;
    let welcomed = began.elapsed();
    let seen = until(&mut info, before + connections as u64, began)?;
    let used = meter.stop()?;
    let rate = connections as f64 / welcomed.as_secs_f64();
    print("connect and listen", rate, seen, &used);

    let meter = Meter::start(&[&node.process, &redis.process])?;
    let began = meter.began();
    drop(crowd);
    let closed = began.elapsed();
    let seen = until(&mut info, before, began)?;
    let used = meter.stop()?;
    let name = format!("all close (in {} ms), and linger 2 s", closed.as_millis());
    let rate = connections as f64 / seen.saturating_sub(LINGER).as_secs_f64();
    print(&name, rate, seen, &used);
    Ok(())
}

/// Pub/Sub channels that somebody listens to.
fn subscriptions(redis: &mut Resp) -> std::io::Result<u64> {
    redis.info("stats", "pubsub_channels")
}

fn until(redis: &mut Resp, count: u64, began: Instant) -> std::io::Result<Duration> {
    loop {
        let now = subscriptions(redis)?;
        if now == count {
            return Ok(began.elapsed());
        }
        if began.elapsed() > PATIENCE {
            let text = format!("Redis has {now} subscriptions, not {count}");
            return Err(std::io::Error::other(text));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
