//! Push to screen: from the moment that a push is due to its frame at the client. Open loop: pushes leave by the clock,
//! whether earlier ones were answered or not, and one that left late counts from when it was due, so nothing that the
//! system did to it is left out (no coordinated omission).

use std::error::Error;
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::EventFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use serde_json::json;

use super::{Common, Outcome, SERVER_CORE, connect, users};
use crate::crowd::Crowd;
use crate::http::Http;
use crate::process::{Node, Process, Redis};
use crate::report::{self, Meter, Times};

const CONNECTIONS: usize = 100;
const TIMER: u64 = u64::MAX >> 32;
const COLUMNS: [&str; 10] = [
    "path",
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

/// On one node.
pub fn alone(common: &Common) -> Outcome {
    let node = Node::start(&common.server, SERVER_CORE, &[])?;
    report::head(&COLUMNS);
    for rate in [200, 1_000] {
        let caller = (node.service, node.key.as_str());
        measure(
            "one node",
            caller,
            &node,
            rate,
            common.seconds() * 2,
            &[&node.process],
        )?;
    }
    Ok(())
}

/// Over Redis: from one node to users on another, and on the pusher's own node, whose messages go through Redis too.
pub fn across(common: &Common) -> Outcome {
    let redis = Redis::start()?;
    let (a, b) = (
        redis.node(&common.server, "a")?,
        redis.node(&common.server, "b")?,
    );
    report::head(&COLUMNS);
    let caller = (a.service, a.key.as_str());
    let processes = [&a.process, &b.process, &redis.process];
    for (path, to) in [("a → Redis → b", &b), ("a → Redis → a", &a)] {
        for rate in [50, 200] {
            measure(path, caller, to, rate, common.seconds() * 2, &processes)?;
        }
    }
    Ok(())
}

fn measure(
    path: &str,
    (service, key): (SocketAddr, &str),
    to: &Node,
    rate: u32,
    seconds: u64,
    processes: &[&Process],
) -> Outcome {
    let mut crowd = Crowd::new()?;
    let all = users(0..CONNECTIONS);
    connect(&mut crowd, to, &all, "&format=raw")?;
    let mut callers = Callers::new(service, key);
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    crowd.watch(&timer, TIMER, EventFlags::IN)?;
    let mut timer = std::fs::File::from(timer);
    let gap = Duration::from_secs(1) / rate;
    // One round over all users, not counted, opens what is opened once.
    let warm = CONNECTIONS as u32;
    let total = warm + rate * u32::try_from(seconds)?;
    let meter = Meter::start(processes)?;
    let (began, mut next) = (meter.began(), 0);
    let (mut seen, mut late) = (Times::default(), Times::default());
    while next < total || began.elapsed() < gap * total + Duration::from_millis(500) {
        let due = gap * next;
        if next < total && began.elapsed() >= due {
            if next >= warm {
                late.add(began.elapsed() - due);
            }
            let user = &all[next as usize % all.len()];
            let body = json!({"user_id": user, "message": format!("{next:010}")});
            callers.send(&mut crowd, &body.to_string())?;
            next += 1;
            continue;
        }
        let wait = (due.max(began.elapsed() + Duration::from_micros(1))) - began.elapsed();
        let wait = if next < total {
            wait
        } else {
            Duration::from_millis(100)
        };
        arm(&timer, wait)?;
        crowd.poll(None, |payload| {
            let number = std::str::from_utf8(payload)
                .ok()
                .and_then(|t| t.parse().ok());
            if let Some(number) = number.filter(|number| *number >= warm) {
                seen.add(began.elapsed().saturating_sub(gap * number));
            }
        })?;
        for token in std::mem::take(&mut crowd.ready) {
            match token {
                TIMER => drop(timer.read(&mut [0; 8])?),
                caller => callers.read(caller as usize)?,
            }
        }
    }
    let mut cells = vec![path.into(), rate.to_string()];
    cells.push(format!("{} of {}", seen.len(), total - warm));
    cells.extend(seen.cells(&[0.5, 0.9, 0.99, 0.999, 1.0]));
    cells.extend(late.cells(&[0.99]));
    let used = meter.stop()?;
    cells.push(format!("{:.2}", used.others / used.wall));
    report::row(&cells);
    Ok(())
}

fn arm(timer: &std::fs::File, wait: Duration) -> Result<(), Box<dyn Error>> {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let value = Timespec {
        tv_sec: wait.as_secs().try_into()?,
        tv_nsec: wait.subsec_nanos().max(1).into(),
    };
    let once = Itimerspec {
        it_interval: zero,
        it_value: value,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// Kept connections to a service door, of which an idle one takes the next push: none waits for another's answer.
struct Callers<'a> {
    service: SocketAddr,
    key: &'a str,
    all: Vec<Http>,
    idle: Vec<usize>,
}

impl<'a> Callers<'a> {
    fn new(service: SocketAddr, key: &'a str) -> Self {
        Self {
            service,
            key,
            all: Vec::new(),
            idle: Vec::new(),
        }
    }

    fn send(&mut self, crowd: &mut Crowd, body: &str) -> Outcome {
        let caller = match self.idle.pop() {
            Some(caller) => caller,
            None => {
                let http = Http::connect(self.service, self.key)?;
                crowd.watch(&http, self.all.len() as u64, EventFlags::IN)?;
                self.all.push(http);
                self.all.len() - 1
            }
        };
        Ok(self.all[caller].send("/v1/push", body)?)
    }

    fn read(&mut self, caller: usize) -> Outcome {
        if self.all[caller].try_answer()?.is_some() {
            self.idle.push(caller);
        }
        Ok(())
    }
}
