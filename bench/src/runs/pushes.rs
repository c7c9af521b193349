//! VOLATILE pushes through Redis: many callers, each a stream of `PushNotifications` with some pushes under way.

use std::error::Error;
use std::time::Duration;

use rustix::event::epoll::EventFlags;

use super::{Common, Outcome, connect, users};
use crate::crowd::Crowd;
use crate::process::{Node, Redis};
use crate::pushes::{Pushes, item};
use crate::report::{self, Meter, Used};

/// Users with a connection each.
const USERS: usize = 1_000;
/// Streams per pushing node.
const STREAMS: usize = 32;
/// Pushes under way per stream: as many as a node works on at once.
const UNDER_WAY: usize = 16;

pub fn run(common: &Common) -> Outcome {
    report::head(&[
        "who pushes, who is connected",
        "under way",
        "pushes/s",
        "per pushing node",
        "per CPU-second of a pushing node",
        "of a receiving node",
        "of Redis",
        "frames/push",
        "cores: nodes",
        "Redis",
        "load",
        "others",
    ]);
    let redis = Redis::start()?;
    let node = |name| redis.node(&common.server, name);
    let (a, b) = (node("a")?, node("b")?);
    let apart = Scene {
        name: "a pushes, all users on b",
        pushing: &[&a],
        holding: &[&b],
    };
    apart.measure(&redis, 1, common.seconds())?;
    apart.measure(&redis, STREAMS, common.seconds())?;
    let c = node("c")?;
    let (names, all) = ("3 nodes push, users on all", [&a, &b, &c]);
    let fleet = Scene {
        name: names,
        pushing: &all,
        holding: &all,
    };
    fleet.measure(&redis, STREAMS, common.seconds())
}

struct Scene<'a> {
    name: &'a str,
    pushing: &'a [&'a Node],
    holding: &'a [&'a Node],
}

impl Scene<'_> {
    fn measure(&self, redis: &Redis, streams: usize, seconds: u64) -> Outcome {
        let mut crowd = Crowd::new()?;
        let all = users(0..USERS);
        for (node, some) in self
            .holding
            .iter()
            .zip(all.chunks(USERS.div_ceil(self.holding.len())))
        {
            connect(&mut crowd, node, some, "")?;
        }
        crowd.until("every welcome", |c| c.frames >= USERS as u64)?;
        let mut callers = Callers::open(&crowd, self.pushing, streams, &all)?;
        // Until the paths are warm.
        callers.push_for(&mut crowd, Duration::from_millis(300))?;
        callers.finish(&mut crowd)?;
        let (accepted, frames) = (callers.accepted(), crowd.frames);
        let mut processes = vec![&redis.process];
        let mut nodes: Vec<_> = self.pushing.iter().chain(self.holding).collect();
        nodes.dedup_by_key(|node| node.public);
        nodes.sort_by_key(|node| node.public);
        nodes.dedup_by_key(|node| node.public);
        processes.extend(nodes.iter().map(|node| &node.process));
        let meter = Meter::start(&processes)?;
        callers.push_for(&mut crowd, Duration::from_secs(seconds))?;
        let pushes = (callers.accepted() - accepted) as f64;
        let used = meter.stop()?;
        callers.finish(&mut crowd)?;
        let of = |some: &[&Node]| -> f64 {
            let all = nodes.iter().zip(&used.cpu[1..]);
            all.filter(|(node, _)| some.iter().any(|s| s.public == node.public))
                .map(|(_, cpu)| cpu)
                .sum()
        };
        let seen = (crowd.frames - frames) as f64;
        let total = callers.accepted() as f64 - accepted as f64;
        self.print(
            streams,
            pushes,
            seen / total,
            &used,
            [of(self.pushing), of(self.holding)],
        );
        Ok(())
    }

    fn print(&self, streams: usize, pushes: f64, seen: f64, used: &Used, cpu: [f64; 2]) {
        let mut cells = vec![
            self.name.into(),
            (streams * UNDER_WAY * self.pushing.len()).to_string(),
            report::count(pushes / used.wall),
            report::count(pushes / used.wall / self.pushing.len() as f64),
            report::count(pushes / cpu[0]),
            report::count(pushes / cpu[1]),
            report::count(pushes / used.cpu[0]),
            format!("{seen:.2}"),
        ];
        cells.extend(used.cores(&[used.cpu[1..].iter().sum(), used.cpu[0]]));
        report::row(&cells);
    }
}

/// All streams, and what they push next.
struct Callers {
    streams: Vec<Pushes>,
    items: Vec<Vec<u8>>,
    next: usize,
}

impl Callers {
    fn open(
        crowd: &Crowd,
        nodes: &[&Node],
        streams: usize,
        users: &[String],
    ) -> Result<Self, Box<dyn Error>> {
        let mut all = Vec::new();
        for node in nodes {
            for _ in 0..streams {
                let pushes = Pushes::open(node.service, &node.key)?;
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                crowd.watch(&pushes, all.len() as u64, flags)?;
                all.push(pushes);
            }
        }
        let text = "x".repeat(128);
        Ok(Self {
            streams: all,
            items: users.iter().map(|user| item(user, &text)).collect(),
            next: 0,
        })
    }

    fn accepted(&self) -> u64 {
        self.streams.iter().map(|stream| stream.accepted).sum()
    }

    fn push_for(&mut self, crowd: &mut Crowd, time: Duration) -> Outcome {
        let began = std::time::Instant::now();
        for index in 0..self.streams.len() {
            self.turn(index, true)?;
        }
        while began.elapsed() < time {
            self.poll(crowd, true)?;
        }
        Ok(())
    }

    /// Waits for the answers and frames of what is under way.
    fn finish(&mut self, crowd: &mut Crowd) -> Outcome {
        let began = std::time::Instant::now();
        while self.streams.iter().any(|stream| stream.under_way > 0) {
            if began.elapsed() > crate::crowd::PATIENCE {
                return Err("pushes have no answer".into());
            }
            self.poll(crowd, false)?;
        }
        let (mut before, mut now) = (0, crowd.frames);
        while before < now {
            before = now;
            crowd.poll(Some(Duration::from_millis(200)), |_| ())?;
            now = crowd.frames;
        }
        Ok(())
    }

    fn poll(&mut self, crowd: &mut Crowd, more: bool) -> Outcome {
        crowd.poll(Some(Duration::from_millis(50)), |_| ())?;
        for index in std::mem::take(&mut crowd.ready) {
            self.turn(index as usize, more)?;
        }
        Ok(())
    }

    fn turn(&mut self, index: usize, more: bool) -> Outcome {
        let stream = &mut self.streams[index];
        stream.read()?;
        if let Some(refused) = &stream.refused {
            return Err(format!("a push was refused: {refused}").into());
        }
        while more && stream.under_way < UNDER_WAY {
            if !stream.push(&self.items[self.next % self.items.len()]) {
                break;
            }
            self.next += 1;
        }
        Ok(stream.flush()?)
    }
}
