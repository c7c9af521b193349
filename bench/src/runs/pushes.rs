//! Pushes through Redis: many callers, each a stream of `PushNotifications` with some pushes under way.

use std::time::Duration;

use super::{Common, Outcome, connect, users};
use crate::callers::{Callers, UNDER_WAY, fill};
use crate::crowd::Crowd;
use crate::process::{Node, Redis};
use crate::pushes::Class;
use crate::report::{self, Meter, Used};

/// Users with a connection each.
const USERS: usize = 1_000;
/// Streams per pushing node.
const STREAMS: usize = 32;
/// What an inbox holds: beyond it, each push makes the oldest go.
const INBOX: usize = 100;

/// VOLATILE alone.
pub fn volatile(common: &Common) -> Outcome {
    run(common, &[Class::Volatile])
}

/// KEPT, into inboxes that are full, and VOLATILE beside it for the ratio.
pub fn kept(common: &Common) -> Outcome {
    run(common, &Class::BOTH)
}

fn run(common: &Common, classes: &[Class]) -> Outcome {
    report::head(&[
        "class",
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
    if let [_, Class::Kept] = classes {
        fill(&a, &users(0..USERS), if common.short { 1 } else { INBOX })?;
    }
    let apart = Scene {
        name: "a pushes, all users on b",
        pushing: &[&a],
        holding: &[&b],
    };
    let measure = |scene: &Scene, streams| -> Outcome {
        for &class in classes {
            scene.measure(&redis, class, streams, common.seconds())?;
        }
        Ok(())
    };
    measure(&apart, 1)?;
    measure(&apart, STREAMS)?;
    let c = node("c")?;
    let (name, all) = ("3 nodes push, users on all", [&a, &b, &c]);
    let fleet = Scene {
        name,
        pushing: &all,
        holding: &all,
    };
    measure(&fleet, STREAMS)
}

struct Scene<'a> {
    name: &'a str,
    pushing: &'a [&'a Node],
    holding: &'a [&'a Node],
}

impl Scene<'_> {
    fn measure(&self, redis: &Redis, class: Class, streams: usize, seconds: u64) -> Outcome {
        let mut crowd = Crowd::new()?;
        let all = users(0..USERS);
        for (node, some) in self
            .holding
            .iter()
            .zip(all.chunks(USERS.div_ceil(self.holding.len())))
        {
            // What an earlier row left in the inboxes is not this one's.
            connect(&mut crowd, node, some, "&since=now")?;
        }
        crowd.until("every welcome", |c| c.frames >= USERS as u64)?;
        let mut callers = Callers::open(&crowd, self.pushing, streams, &all, class)?;
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
        let cpu = [of(self.pushing), of(self.holding)];
        let mut cells = vec![class.name().into(), self.name.into()];
        cells.extend(self.cells(streams, pushes, &used, cpu));
        cells.push(format!("{:.2}", seen / total));
        cells.extend(used.cores(&[used.cpu[1..].iter().sum(), used.cpu[0]]));
        report::row(&cells);
        Ok(())
    }

    fn cells(&self, streams: usize, pushes: f64, used: &Used, cpu: [f64; 2]) -> [String; 6] {
        [
            (streams * UNDER_WAY * self.pushing.len()).to_string(),
            report::count(pushes / used.wall),
            report::count(pushes / used.wall / self.pushing.len() as f64),
            report::count(pushes / cpu[0]),
            report::count(pushes / cpu[1]),
            report::count(pushes / used.cpu[0]),
        ]
    }
}
