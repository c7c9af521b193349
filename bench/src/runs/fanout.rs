//! Frames per second of the server's CPU time: one channel, many subscribers; a node and the floor in turn.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustls::ClientConnection;
use serde_json::json;

use super::{Common, Outcome, SERVER_CORE, connect, users};
use crate::crowd::Crowd;
use crate::floor::PUBLISH;
use crate::http::Http;
use crate::process::{Node, Process, floor};
use crate::report::{self, Meter};
use crate::tls::{Certificate, Stream};

const CONNECTIONS: usize = 1_000;

pub fn run(common: &Common) -> Outcome {
    let node = Node::start(&common.server, SERVER_CORE, &[])?;
    let mut subscribers = Crowd::new()?;
    let all = users(0..CONNECTIONS);
    connect(&mut subscribers, &node, &all, "&channels=bench")?;
    let both = 2 * CONNECTIONS as u64;
    subscribers.until("welcome and subscribed", |c| c.frames >= both)?;
    let (floor, at) = {
        // As long as the node's.
        let bytes = subscribers.bytes;
        NodePublishers::open(&node, 1)?.publish(1)?;
        subscribers.until("a message", |c| c.frames >= both + CONNECTIONS as u64)?;
        let frame = (subscribers.bytes - bytes) as usize / CONNECTIONS;
        floor(SERVER_CORE, frame, None)?
    };
    let mut readers = Crowd::new()?;
    readers.open(at, (0..CONNECTIONS).map(|_| "/ws".into()))?;
    let mut on_floor = FloorPublisher::open(at, None)?;
    report::head(&[
        "server",
        "round",
        "window",
        "frames/s",
        "frames per CPU-second",
        "frames a read",
        "bytes a frame",
        "cores: server",
        "load",
        "others",
    ]);
    let rounds = if common.short { 1 } else { 2 };
    for round in 1..=rounds {
        for window in [1, 32] {
            let mut on_node = NodePublishers::open(&node, window)?;
            let measure =
                |name: &str, process, crowd: &mut Crowd, publish: &mut dyn FnMut() -> Outcome| {
                    let figures = measure(process, crowd, common.seconds(), window, publish)?;
                    let cells = [name.into(), round.to_string(), window.to_string()];
                    report::row(&[&cells[..], &figures].concat());
                    Outcome::Ok(())
                };
            measure("tidings", &node.process, &mut subscribers, &mut || {
                on_node.publish(window)
            })?;
            measure("floor", &floor, &mut readers, &mut || {
                on_floor.publish(window)
            })?;
        }
    }
    Ok(())
}

fn measure(
    process: &Process,
    crowd: &mut Crowd,
    seconds: u64,
    window: usize,
    publish: &mut dyn FnMut() -> Outcome,
) -> Result<Vec<String>, Box<dyn Error>> {
    let (frames, reads, bytes) = (crowd.frames, crowd.reads, crowd.bytes);
    let meter = Meter::start(&[process])?;
    while meter.began().elapsed() < Duration::from_secs(seconds) {
        let all = crowd.frames + (window * crowd.len()) as u64;
        publish()?;
        crowd.until("every frame", |c| c.frames >= all)?;
    }
    let used = meter.stop()?;
    let frames = (crowd.frames - frames) as f64;
    let mut cells = vec![
        report::count(frames / used.wall),
        report::count(frames / used.cpu[0]),
        format!("{:.1}", frames / (crowd.reads - reads) as f64),
        report::count((crowd.bytes - bytes) as f64 / frames),
    ];
    cells.extend(used.cores(&used.cpu));
    Ok(cells)
}

/// One connection for each message under way: HTTP/1.1 answers in order.
struct NodePublishers(Vec<Http>);

impl NodePublishers {
    fn open(node: &Node, count: usize) -> std::io::Result<Self> {
        let open = |_| Http::connect(node.service, &node.key);
        (0..count).map(open).collect::<Result<_, _>>().map(Self)
    }

    fn publish(&mut self, count: usize) -> Outcome {
        // With the frame around it about 128 bytes.
        let text = "x".repeat(32);
        let body = json!({"channel": "bench", "message": text, "class": "VOLATILE"}).to_string();
        let publishers = &mut self.0[..count];
        for publisher in publishers.iter_mut() {
            publisher.send("/v1/publish", &body)?;
        }
        for publisher in publishers {
            publisher.answer()?;
        }
        Ok(())
    }
}

/// Tells the floor to write.
pub struct FloorPublisher(Stream<ClientConnection>);

impl FloorPublisher {
    pub fn open(floor: SocketAddr, tls: Option<&Certificate>) -> std::io::Result<Self> {
        let socket = TcpStream::connect(floor)?;
        socket.set_nodelay(true)?;
        let mut stream = Stream::to(socket, tls.map(|tls| &tls.client))?;
        stream.write_all(format!("GET {PUBLISH} HTTP/1.1\r\n\r\n").as_bytes())?;
        // The answer: from then on each byte is a message.
        let _ = stream.read(&mut [0; 256])?;
        Ok(Self(stream))
    }

    /// So many messages at once.
    pub fn publish(&mut self, messages: usize) -> Outcome {
        Ok(self.0.write_all(&vec![b'x'; messages])?)
    }
}
