//! A broadcast to 10,000 named users on two nodes, by one caller and by several at once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Common, Outcome, connect, users};
use crate::crowd::Crowd;
use crate::http::Http;
use crate::process::{Node, Redis};
use crate::report::{self, Meter, Times};

const USERS: usize = 10_000;

pub fn run(common: &Common) -> Outcome {
    let redis = Redis::start()?;
    let node = |name| redis.node(&common.server, name);
    let (a, b) = (node("a")?, node("b")?);
    report::head(&[
        "connected, of 10,000 named",
        "callers",
        "pause ms",
        "broadcasts/s",
        "answer p50 ms",
        "p99",
        "max",
        "frames each",
        "cores: a",
        "b",
        "Redis",
        "load",
        "others",
    ]);
    let counts = if common.short {
        &[100][..]
    } else {
        &[100, USERS]
    };
    for &connected in counts {
        let mut crowd = Crowd::new()?;
        let some = users(0..connected);
        let (left, right) = some.split_at(connected / 2);
        connect(&mut crowd, &a, left, "")?;
        connect(&mut crowd, &b, right, "")?;
        crowd.until("every welcome", |c| c.frames >= connected as u64)?;
        for (callers, pause) in [(1, 100), (8, 800), (1, 0), (8, 0)] {
            let scene = Scene {
                redis: &redis,
                a: &a,
                b: &b,
                callers,
                pause: Duration::from_millis(pause),
            };
            scene.measure(&mut crowd, common.seconds())?;
        }
    }
    Ok(())
}

struct Scene<'a> {
    redis: &'a Redis,
    a: &'a Node,
    b: &'a Node,
    callers: u32,
    /// Of each caller, after an answer.
    pause: Duration,
}

impl Scene<'_> {
    fn measure(&self, crowd: &mut Crowd, seconds: u64) -> Outcome {
        let frames = crowd.frames;
        let processes = [&self.a.process, &self.b.process, &self.redis.process];
        let meter = Meter::start(&processes)?;
        let (stop, until) = (AtomicBool::new(false), Duration::from_secs(seconds));
        let (service, key, pause) = (self.a.service, &self.a.key, self.pause);
        let mut times = std::thread::scope(|scope| -> Result<Times, Box<dyn std::error::Error>> {
            let callers: Vec<_> = (0..self.callers)
                .map(|n| {
                    let stop = &stop;
                    // One after the other within the pause.
                    let first = pause * n / self.callers;
                    let called = move || call(service, key, first, pause, stop);
                    scope.spawn(move || called().map_err(|e| e.to_string()))
                })
                .collect();
            while meter.began().elapsed() < until && callers.iter().all(|c| !c.is_finished()) {
                crowd.poll(Some(Duration::from_millis(20)), |_| ())?;
            }
            stop.store(true, Ordering::Release);
            let mut all = Times::default();
            for caller in callers {
                while !caller.is_finished() {
                    crowd.poll(Some(Duration::from_millis(20)), |_| ())?;
                }
                all.extend(caller.join().map_err(|_| "a caller panicked")??);
            }
            Ok(all)
        })?;
        let expected = frames + (times.len() * crowd.len()) as u64;
        crowd.until("every frame", |c| c.frames >= expected)?;
        let used = meter.stop()?;
        let mut cells = vec![
            report::count(crowd.len() as f64),
            self.callers.to_string(),
            self.pause.as_millis().to_string(),
            format!("{:.1}", times.len() as f64 / used.wall),
        ];
        cells.extend(times.cells(&[0.5, 0.99, 1.0]));
        let each = (crowd.frames - frames) as f64 / times.len() as f64;
        cells.push(report::count(each));
        cells.extend(used.cores(&used.cpu));
        report::row(&cells);
        Ok(())
    }
}

/// One caller, who calls again and again.
fn call(
    service: SocketAddr,
    key: &str,
    first: Duration,
    pause: Duration,
    stop: &AtomicBool,
) -> std::io::Result<Times> {
    let mut http = Http::connect(service, key)?;
    let text = "x".repeat(128);
    let body = json!({"user_ids": users(0..USERS), "message": text, "class": "VOLATILE"});
    let body = body.to_string();
    let mut times = Times::default();
    std::thread::sleep(first);
    while !stop.load(Ordering::Acquire) {
        let began = Instant::now();
        http.call("/v1/broadcast", &body)?;
        times.add(began.elapsed());
        std::thread::sleep(pause);
    }
    Ok(times)
}
