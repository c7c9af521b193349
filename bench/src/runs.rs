//! What is measured.

use std::error::Error;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::task::spawn_local;

use crate::client::{Counter, Http, count, open};
use crate::node::Measured;

type Outcome = Result<(), Box<dyn Error>>;

#[derive(Debug, Args)]
pub struct Common {
    /// The binary that is measured.
    #[arg(long, default_value = "target/release/tidings")]
    server: PathBuf,
    /// Connections; a process may hold as many as its descriptors.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Shards of the node.
    #[arg(long, default_value_t = 1)]
    shards: usize,
}

async fn http(node: &Measured) -> Result<Http, Box<dyn Error>> {
    let service = node.service.ok_or("no service door")?;
    Ok(Http::connect(service, &node.key).await?)
}

async fn ticket(http: &mut Http, user: &str) -> Result<String, Box<dyn Error>> {
    let answer = http
        .call("/v1/tickets", &json!({"user_id": user}).to_string())
        .await?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["ticket"].as_str().ok_or("no ticket")?.into())
}

/// Opens all connections, each its own user, and counts what comes.
async fn crowd(
    node: &Measured,
    connections: usize,
    query: &str,
) -> Result<Rc<Counter>, Box<dyn Error>> {
    let mut http = http(node).await?;
    let counter = Counter::new();
    for index in 0..connections {
        let ticket = ticket(&mut http, &format!("u{index}")).await?;
        let stream = open(node.public, index, &format!("/ws?ticket={ticket}{query}")).await?;
        spawn_local(count(stream, counter.clone()));
    }
    Ok(counter)
}

async fn until_frames(counter: &Counter, frames: u64) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(60);
    while counter.frames.get() < frames {
        if Instant::now() > deadline {
            return Err(format!("{} frames of {frames} came", counter.frames.get()).into());
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    Ok(())
}

pub async fn idle(common: Common) -> Outcome {
    let node = Measured::node(&common.server, common.shards)?;
    // What the first connections cost once (threads, tables) is not theirs.
    let first = crowd(&node, 100, "").await?;
    until_frames(&first, 100).await?;
    let before = node.resident()?;
    let counter = crowd(&node, common.connections, "").await?;
    until_frames(&counter, common.connections as u64).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = node.resident()? - before;
    let mut http = http(&node).await?;
    for _ in 0..5 {
        http.call(
            "/v1/broadcast",
            &json!({"everyone": true, "message": "x".repeat(128)}).to_string(),
        )
        .await?;
    }
    until_frames(&counter, 6 * common.connections as u64).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let warm = node.resident()? - before;
    let each = |bytes: u64| bytes / common.connections as u64;
    println!("| connections | bytes each, idle | bytes each, after 5 messages |\n|---|---|---|");
    println!(
        "| {} | {} | {} |",
        common.connections,
        each(idle),
        each(warm)
    );
    Ok(())
}

pub async fn fanout(common: Common, window: usize, seconds: u64, floor: bool) -> Outcome {
    let measured = if floor {
        Measured::floor()?
    } else {
        Measured::node(&common.server, common.shards)?
    };
    let (name, figures) = if floor {
        (
            "floor",
            floor_fanout(measured, &common, window, seconds).await?,
        )
    } else {
        (
            "tidings",
            node_fanout(measured, &common, window, seconds).await?,
        )
    };
    println!(
        "| server | connections | window | frames/s | frames per CPU-second | frames a read |\n|---|---|---|---|---|---|"
    );
    let (frames, reads, wall, cpu) = figures;
    println!(
        "| {name} | {} | {window} | {:.0} | {:.0} | {:.1} |",
        common.connections,
        frames as f64 / wall,
        frames as f64 / cpu,
        frames as f64 / reads as f64
    );
    Ok(())
}

/// Frames, reads, seconds, CPU-seconds.
type Figures = (u64, u64, f64, f64);

async fn node_fanout(
    node: Measured,
    common: &Common,
    window: usize,
    seconds: u64,
) -> Result<Figures, Box<dyn Error>> {
    let counter = crowd(&node, common.connections, "&channels=bench").await?;
    // Welcome and subscribed.
    until_frames(&counter, 2 * common.connections as u64).await?;
    // One connection for each message under way: HTTP/1.1 answers in order.
    let mut publishers = Vec::new();
    for _ in 0..window {
        publishers.push(http(&node).await?);
    }
    // With the frame around it about 128 bytes.
    let body = json!({"channel": "bench", "message": "x".repeat(32)}).to_string();
    let (began, cpu) = (Instant::now(), node.cpu()?);
    let (start, reads) = (counter.frames.get(), counter.reads.get());
    let mut sent = 0u64;
    while began.elapsed() < Duration::from_secs(seconds) {
        for publisher in &mut publishers {
            publisher.send("/v1/publish", &body).await?;
        }
        for publisher in &mut publishers {
            publisher.answer().await?;
        }
        sent += window as u64;
        until_frames(&counter, start + sent * common.connections as u64).await?;
    }
    Ok(figures(&counter, start, reads, began, node.cpu()? - cpu))
}

async fn floor_fanout(
    mut floor: Measured,
    common: &Common,
    window: usize,
    seconds: u64,
) -> Result<Figures, Box<dyn Error>> {
    let counter = Counter::new();
    floor.tell(&format!("accept {}", common.connections))?;
    for index in 0..common.connections {
        let stream = open(floor.public, index, "/").await?;
        spawn_local(count(stream, counter.clone()));
    }
    let (began, cpu) = (Instant::now(), floor.cpu()?);
    let (start, reads) = (counter.frames.get(), counter.reads.get());
    let mut sent = 0u64;
    while began.elapsed() < Duration::from_secs(seconds) {
        floor.tell(&format!("write {window}"))?;
        sent += window as u64;
        until_frames(&counter, start + sent * common.connections as u64).await?;
    }
    Ok(figures(&counter, start, reads, began, floor.cpu()? - cpu))
}

fn figures(counter: &Counter, start: u64, reads: u64, began: Instant, cpu: Duration) -> Figures {
    let frames = counter.frames.get() - start;
    let reads = counter.reads.get() - reads;
    (
        frames,
        reads,
        began.elapsed().as_secs_f64(),
        cpu.as_secs_f64(),
    )
}

/// Open loop: each push has its moment, and its latency counts from that moment, also if it left late (no coordinated
/// omission).
pub async fn latency(common: Common, rate: u64, seconds: u64) -> Outcome {
    let node = Measured::node(&common.server, common.shards)?;
    let mut requests = http(&node).await?;
    let began = Instant::now() + Duration::from_millis(500);
    let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
    for index in 0..common.connections {
        let ticket = ticket(&mut requests, &format!("u{index}")).await?;
        let mut stream = open(
            node.public,
            index,
            &format!("/ws?ticket={ticket}&format=raw"),
        )
        .await?;
        let seen = seen.clone();
        spawn_local(async move {
            // format=raw: a frame of two header bytes and the intended moment in microseconds, ten digits.
            let mut frame = [0; 12];
            while stream.read_exact(&mut frame).await.is_ok() {
                let at: u64 = std::str::from_utf8(&frame[2..])
                    .ok()
                    .and_then(|t| t.parse().ok())
                    .unwrap_or(0);
                let now = began.elapsed().as_micros() as u64;
                seen.borrow_mut().push(now.saturating_sub(at));
            }
        });
    }
    let gap = Duration::from_secs(1) / u32::try_from(rate)?;
    let total = rate * seconds;
    let start = began.elapsed() + Duration::from_millis(200);
    for n in 0..total {
        let at = start + gap * u32::try_from(n)?;
        tokio::time::sleep_until((began + at).into()).await;
        let user = n as usize % common.connections;
        // tokio's timer has milliseconds; the intended moment is the schedule's, or when the timer could first fire.
        let due = began.elapsed().max(at);
        let intended = if due - at < Duration::from_millis(2) {
            due
        } else {
            at
        };
        let body = json!({"user_id": format!("u{user}"), "message": format!("{:010}", intended.as_micros())});
        requests.call("/v1/push", &body.to_string()).await?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut latencies = seen.borrow().clone();
    latencies.sort_unstable();
    let at =
        |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    println!(
        "| pushes/s | seen | p50 ms | p90 | p99 | p99.9 | max |\n|---|---|---|---|---|---|---|"
    );
    println!(
        "| {rate} | {} of {total} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |",
        latencies.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    Ok(())
}
