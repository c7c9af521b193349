//! Envelopes in and out of Redis: the backplane alone, without doors and hub, and what comes in at a whole node.
//!
//! The backplane alone runs in a process of its own (`part`), with one worker thread.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::json;
use tidings::backplane::redis::Redis as RedisBackplane;
use tidings::backplane::{
    Arrivals, Backplane, BackplaneConfig, BackplaneKind, BackplaneUrl, Envelope, Later, Sealer,
};
use tidings::model::{Address, Body, Message, MessageId, Target, UserId, unix_millis};
use tidings::telemetry::Metrics;

use super::{Common, Outcome, connect, users};
use crate::crowd::{Crowd, PATIENCE};
use crate::process::{Redis, part};
use crate::report::{self, Meter, Used};
use crate::resp;

const USERS: usize = 1_000;
/// Who publishes at once.
const PUBLISHERS: usize = 1_024;
/// Commands in one pipeline of the load.
const PIPELINE: usize = 256;
/// After how many messages a part says how many it has.
const SAID_EVERY: u64 = 1_024;
/// Messages on their way to a node; its receive queues hold more.
const UNDER_WAY: u64 = 4_096;

#[derive(Debug, Subcommand)]
pub enum Part {
    /// Publishes to nobody for some seconds.
    Out { url: String, seconds: u64 },
    /// Listens, and counts.
    In { url: String },
}

pub fn run(common: &Common) -> Outcome {
    report::head(&[
        "direction",
        "envelopes/s",
        "per CPU-second of the node",
        "per CPU-second of Redis",
        "cores: node",
        "Redis",
        "load",
        "others",
    ]);
    out_alone(common)?;
    in_alone(common)?;
    in_at_a_node(common)
}

fn out_alone(common: &Common) -> Outcome {
    let redis = Redis::start()?;
    let seconds = common.seconds();
    let part = part(&[
        "part".into(),
        "out".into(),
        redis.url(),
        seconds.to_string(),
    ])?;
    let meter = Meter::start(&[&part, &redis.process])?;
    // It says so when it is done, and stays.
    let said = part.says()?;
    let used = meter.stop()?;
    let published = said["published"].as_f64().ok_or("no number")?;
    print("out, the backplane alone", published, &used);
    Ok(())
}

fn in_alone(common: &Common) -> Outcome {
    let redis = Redis::start()?;
    let part = part(&["part".into(), "in".into(), redis.url()])?;
    let mut publisher = Publisher::new(&redis)?;
    let (mut sent, mut received) = (0, 0);
    let meter = Meter::start(&[&part, &redis.process])?;
    while meter.began().elapsed() < Duration::from_secs(common.seconds()) {
        sent += publisher.publish()?;
        while sent - received > UNDER_WAY {
            received = part.says()?["received"].as_u64().ok_or("no number")?;
        }
    }
    let used = meter.stop()?;
    print("in, the backplane alone", received as f64, &used);
    Ok(())
}

fn in_at_a_node(common: &Common) -> Outcome {
    let redis = Redis::start()?;
    let node = redis.node(&common.server, "a")?;
    let mut crowd = Crowd::new()?;
    connect(&mut crowd, &node, &users(0..USERS), "")?;
    crowd.until("every welcome", |c| c.frames >= USERS as u64)?;
    let mut publisher = Publisher::new(&redis)?;
    let (mut sent, frames) = (crowd.frames, crowd.frames);
    let meter = Meter::start(&[&node.process, &redis.process])?;
    while meter.began().elapsed() < Duration::from_secs(common.seconds()) {
        sent += publisher.publish()?;
        crowd.until("the messages under way", |c| c.frames + UNDER_WAY > sent)?;
    }
    crowd.until("every message", |c| c.frames >= sent)?;
    let used = meter.stop()?;
    let name = format!("in, a whole node, to {USERS} screens");
    print(&name, (crowd.frames - frames) as f64, &used);
    Ok(())
}

fn print(name: &str, envelopes: f64, used: &Used) {
    let mut cells = vec![name.into(), report::count(envelopes / used.wall)];
    cells.extend(used.cpu.iter().map(|cpu| report::count(envelopes / cpu)));
    cells.extend(used.cores(&used.cpu));
    report::row(&cells);
}

/// Publishes envelopes to all users in turn, as a node would, at next to no cost: they are encoded once.
struct Publisher {
    redis: resp::Resp,
    pipelines: Vec<Vec<u8>>,
    next: usize,
}

impl Publisher {
    fn new(redis: &Redis) -> Result<Self, Box<dyn Error>> {
        let mut pipelines = Vec::new();
        for some in addresses().chunks(PIPELINE) {
            let some = some.iter().cycle().take(PIPELINE);
            pipelines.push(some.flat_map(publish).collect());
        }
        Ok(Self {
            redis: redis.connect()?,
            pipelines,
            next: 0,
        })
    }

    /// One pipeline; answers how many it were.
    fn publish(&mut self) -> Result<u64, Box<dyn Error>> {
        let pipeline = &self.pipelines[self.next % self.pipelines.len()];
        self.next += 1;
        self.redis.send(pipeline)?;
        for _ in 0..PIPELINE {
            self.redis.answer()?;
        }
        Ok(PIPELINE as u64)
    }
}

fn publish(to: &Address) -> Vec<u8> {
    let bytes = Sealer::new(None).seal(to, &message(to));
    resp::command(&[b"PUBLISH", format!("tidings:m:{{{to}}}").as_bytes(), &bytes])
}

fn addresses() -> Vec<Address> {
    let parse = |user: String| UserId::parse(&user).expect("letters and digits");
    let all = users(0..USERS).into_iter();
    all.map(|user| Address::User(parse(user))).collect()
}

fn message(to: &Address) -> Envelope {
    let time = unix_millis();
    Envelope::Message(Message::new(
        MessageId::new(time),
        Target::One(to.clone()),
        Body::Text("x".repeat(128).into()),
        time,
    ))
}

/// Counts what arrives, and says so now and then.
#[derive(Default)]
struct Counted(AtomicU64);

impl Arrivals for Counted {
    fn arrive(&self, _: Envelope) -> Later<'_, ()> {
        let received = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        if received.is_multiple_of(SAID_EVERY) {
            println!("{}", json!({"received": received}));
        }
        Box::pin(std::future::ready(()))
    }

    fn missed(&self, _: Vec<Address>) -> Later<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Part {
    pub fn run(self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let (Self::Out { url, .. } | Self::In { url }) = &self;
            let config = BackplaneConfig {
                kind: BackplaneKind::Redis,
                url: Some(BackplaneUrl::new(url.clone())),
                ..BackplaneConfig::default()
            };
            let metrics = Metrics::new().backplane;
            let redis =
                RedisBackplane::new(&config, 1, false, metrics, Arc::new(Counted::default()))?;
            redis.wait_until_whole().await?;
            match self {
                Self::Out { seconds, .. } => out(redis, Duration::from_secs(seconds)).await,
                Self::In { .. } => listen(redis).await,
            }
        })
    }
}

async fn out(redis: RedisBackplane, time: Duration) -> Outcome {
    println!("{}", json!({"began": true}));
    let redis = Arc::new(redis);
    let began = Instant::now();
    let publishers: Vec<_> = addresses()
        .into_iter()
        .cycle()
        .take(PUBLISHERS)
        .map(|to| {
            let redis = redis.clone();
            tokio::spawn(async move {
                let mut published = 0u64;
                while began.elapsed() < time {
                    let deadline = tokio::time::Instant::now() + PATIENCE;
                    let done = redis.publish(to.clone(), message(&to), deadline).await;
                    done.expect("Redis is there");
                    published += 1;
                }
                published
            })
        })
        .collect();
    let mut published = 0;
    for publisher in publishers {
        published += publisher.await?;
    }
    println!("{}", json!({"published": published}));
    std::future::pending().await
}

async fn listen(redis: RedisBackplane) -> Outcome {
    for address in addresses() {
        redis.listen(address).await?;
    }
    println!("{}", json!({"began": true}));
    std::future::pending().await
}
