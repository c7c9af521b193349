//! Push to screen: from the moment that a push is due to its frame at the client.

use super::{Common, Outcome, SERVER_CORE, connect, users};
use crate::clock::Clock;
use crate::crowd::Crowd;
use crate::process::{Node, Process, Redis};
use crate::pushes::Class;
use crate::report::{self, Meter, Times};

const CONNECTIONS: usize = 100;
const COLUMNS: [&str; 11] = [
    "path",
    "class",
    "pushes/s",
    "seen",
    "p50 ms",
    "p90",
    "p99",
    "p99.9",
    "max",
    "left late, p99",
    "cores: others",
];

/// VOLATILE, on one node.
pub fn alone(common: &Common) -> Outcome {
    let node = Node::start(&common.server, SERVER_CORE, &[])?;
    report::head(&COLUMNS);
    let scene = Scene::on_one(&node);
    for rate in [200, 1_000] {
        scene.measure(Class::Volatile, rate, common.seconds() * 2)?;
    }
    Ok(())
}

/// VOLATILE, over Redis: from one node to users on another, and on the pusher's own node, whose messages go through Redis
/// too.
pub fn across(common: &Common) -> Outcome {
    let redis = Redis::start()?;
    let (a, b) = (
        redis.node(&common.server, "a")?,
        redis.node(&common.server, "b")?,
    );
    report::head(&COLUMNS);
    for to in [&b, &a] {
        let scene = Scene::over(&redis, &a, &b, to);
        for rate in [50, 200] {
            scene.measure(Class::Volatile, rate, common.seconds() * 2)?;
        }
    }
    Ok(())
}

/// Both classes in turn: in one node's memory, and over Redis from one node to another.
pub fn kept(common: &Common) -> Outcome {
    report::head(&COLUMNS);
    let seconds = common.seconds() * 2;
    let node = Node::start(&common.server, None, &[])?;
    Scene::on_one(&node).in_turn(&[200, 1_000], seconds)?;
    drop(node);
    let redis = Redis::start()?;
    let (a, b) = (
        redis.node(&common.server, "a")?,
        redis.node(&common.server, "b")?,
    );
    Scene::over(&redis, &a, &b, &b).in_turn(&[50, 200], seconds)
}

struct Scene<'a> {
    path: &'static str,
    from: &'a Node,
    to: &'a Node,
    processes: Vec<&'a Process>,
}

impl<'a> Scene<'a> {
    fn on_one(node: &'a Node) -> Self {
        Self {
            path: "one node",
            from: node,
            to: node,
            processes: vec![&node.process],
        }
    }

    fn over(redis: &'a Redis, a: &'a Node, b: &'a Node, to: &'a Node) -> Self {
        let back = to.public == a.public;
        Self {
            path: if back {
                "a → Redis → a"
            } else {
                "a → Redis → b"
            },
            from: a,
            to,
            processes: vec![&a.process, &b.process, &redis.process],
        }
    }

    fn in_turn(&self, rates: &[u32], seconds: u64) -> Outcome {
        for &rate in rates {
            for class in Class::BOTH {
                self.measure(class, rate, seconds)?;
            }
        }
        Ok(())
    }

    fn measure(&self, class: Class, rate: u32, seconds: u64) -> Outcome {
        let mut crowd = Crowd::new()?;
        let all = users(0..CONNECTIONS);
        // What an earlier row left in the inboxes is not this one's.
        connect(&mut crowd, self.to, &all, "&format=raw&since=now")?;
        let clock = Clock {
            service: self.from.service,
            key: &self.from.key,
            class,
            users: &all,
            rate,
        };
        let total = rate * u32::try_from(seconds)?;
        let meter = Meter::start(&self.processes)?;
        let mut came = clock.run(&mut crowd, |pushed| pushed < total)?;
        let used = meter.stop()?;
        let mut seen: Times = came.seen.iter().map(|(_, took)| *took).collect();
        let mut cells = vec![self.path.into(), class.name().into(), rate.to_string()];
        cells.push(format!("{} of {total}", seen.len()));
        cells.extend(seen.cells(&[0.5, 0.9, 0.99, 0.999, 1.0]));
        cells.extend(came.late.cells(&[0.99]));
        cells.push(format!("{:.2}", used.others / used.wall));
        report::row(&cells);
        Ok(())
    }
}
