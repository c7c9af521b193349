//! A TCP proxy that misbehaves as told: it delays, cuts one way, slows, resets, half-closes and refuses, and changes its
//! mind while connections live.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::ports::free_port;

/// Chunks that a delayed or cut direction holds before the proxy ceases to read.
const HELD_CHUNKS: usize = 256;
const CHUNK: usize = 16 * 1024;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Towards the server.
    Up,
    /// Towards the client.
    Down,
}

/// What happens to the bytes of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// They pass.
    #[default]
    None,
    /// They pass later.
    Delay(Duration),
    /// None passes. What was held comes once it is mended, as TCP sends again.
    Cut,
    /// So many pass in a second.
    Slow(u32),
}

/// Which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    All,
    /// Those whose client has sent the proxy's mark.
    Marked,
    /// Those whose client has not.
    Unmarked,
}

impl Whom {
    fn classes(self) -> &'static [usize] {
        match self {
            Self::All => &[0, 1],
            Self::Marked => &[1],
            Self::Unmarked => &[0],
        }
    }
}

/// What is asked of connections by class (unmarked, marked) and way. The counts grow with each order.
#[derive(Debug, Clone, Default)]
struct Orders {
    faults: [[Fault; 2]; 2],
    half_closes: [[u64; 2]; 2],
    resets: [u64; 2],
    refuse: bool,
}

pub struct ChaosProxy {
    pub port: u16,
    orders: watch::Sender<Orders>,
    task: JoinHandle<()>,
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ChaosProxy {
    pub async fn to(port: u16) -> Self {
        Self::marking(port, b"").await
    }

    /// A proxy that tells connections apart by whether the client has sent these bytes, in whatever case of ASCII.
    pub async fn marking(port: u16, mark: &'static [u8]) -> Self {
        let own = free_port();
        let orders = watch::Sender::new(Orders::default());
        let listener = listen(own).await;
        let told = orders.subscribe();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let task = tokio::spawn(run(own, listener, target, mark, told));
        Self {
            port: own,
            orders,
            task,
        }
    }

    /// Until another is set, for connections that are there and those to come.
    pub fn set(&self, whom: Whom, way: Way, fault: Fault) {
        self.orders.send_modify(|orders| {
            for class in whom.classes() {
                orders.faults[*class][way as usize] = fault;
            }
        });
    }

    /// As [`ChaosProxy::set`], both ways.
    pub fn set_both(&self, whom: Whom, fault: Fault) {
        self.set(whom, Way::Up, fault);
        self.set(whom, Way::Down, fault);
    }

    /// Ends live connections with a reset, on both sides.
    pub fn reset(&self, whom: Whom) {
        self.orders.send_modify(|orders| {
            for class in whom.classes() {
                orders.resets[*class] += 1;
            }
        });
    }

    /// Ends one direction of live connections: whoever reads there sees the end, and may still write.
    pub fn half_close(&self, whom: Whom, way: Way) {
        self.orders.send_modify(|orders| {
            for class in whom.classes() {
                orders.half_closes[*class][way as usize] += 1;
            }
        });
    }

    /// Whether new connections are refused, as where no process listens. Live ones stay.
    pub async fn refuse(&self, refuse: bool) {
        self.orders.send_modify(|orders| orders.refuse = refuse);
        super::until("the proxy refuses or accepts", async || {
            let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await;
            connected.is_err() == refuse
        })
        .await;
    }
}

async fn listen(port: u16) -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    listener.expect("the port was free")
}

async fn run(
    port: u16,
    first: TcpListener,
    target: SocketAddr,
    mark: &'static [u8],
    mut told: watch::Receiver<Orders>,
) {
    let mut listener = Some(first);
    let mut connections = JoinSet::new();
    loop {
        let refuse = told.borrow_and_update().refuse;
        match (refuse, &listener) {
            (true, Some(_)) => listener = None,
            (false, None) => listener = Some(listen(port).await),
            _ => {}
        }
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            Some(Ok((client, _))) = async { Some(listener.as_ref()?.accept().await) } => {
                connections.spawn(connection(client, target, mark, told.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One client and its server, until both directions have ended or it is reset.
async fn connection(
    mut client: TcpStream,
    target: SocketAddr,
    mark: &'static [u8],
    told: watch::Receiver<Orders>,
) {
    let before = told.borrow().resets;
    let Ok(mut server) = TcpStream::connect(target).await else {
        reset(client);
        return;
    };
    // Delays are the orders' to make.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let marked = Marked {
        mark,
        seen: Arc::default(),
    };
    let was_reset = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let direction = |way| Direction {
            way,
            marked: marked.clone(),
            told: told.clone(),
        };
        tokio::select! {
            _ = async { tokio::join!(
                direction(Way::Up).pump(from_client, to_server),
                direction(Way::Down).pump(from_server, to_client),
            ) } => false,
            () = marked.is_reset(told.clone(), before) => true,
        }
    };
    if was_reset {
        reset(client);
        reset(server);
    }
}

fn reset(stream: TcpStream) {
    // Without lingering, closing is a reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Whether a connection's client has sent the mark.
#[derive(Clone)]
struct Marked {
    mark: &'static [u8],
    seen: Arc<AtomicBool>,
}

impl Marked {
    fn class(&self) -> usize {
        usize::from(self.seen.load(Ordering::Acquire))
    }

    /// Looks for the mark in what the client has sent last.
    fn look(&self, last: &mut VecDeque<u8>, bytes: &[u8]) {
        for byte in bytes {
            if last.len() == self.mark.len() {
                last.pop_front();
            }
            last.push_back(byte.to_ascii_uppercase());
            if !self.mark.is_empty() && last.iter().eq(self.mark) {
                self.seen.store(true, Ordering::Release);
            }
        }
    }

    async fn is_reset(&self, mut told: watch::Receiver<Orders>, before: [u64; 2]) {
        // An error means that the proxy is gone, and with it this task.
        let _ = told
            .wait_for(|orders| orders.resets[self.class()] > before[self.class()])
            .await;
    }
}

/// One direction of a connection.
struct Direction {
    way: Way,
    marked: Marked,
    told: watch::Receiver<Orders>,
}

impl Direction {
    /// Takes bytes as they come and lets them go as the orders say. The end of what comes ends what goes.
    async fn pump(mut self, from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let (held, chunks) = mpsc::channel(HELD_CHUNKS);
        let before = self.told.borrow().half_closes;
        let (marked, way) = (self.marked.clone(), self.way);
        let mut closes = self.told.clone();
        let is_closed = async {
            let mine = |counts: &[[u64; 2]; 2]| counts[marked.class()][way as usize];
            // An error means that the proxy is gone, and with it this task.
            let _ = closes
                .wait_for(|orders| mine(&orders.half_closes) > mine(&before))
                .await;
        };
        let reading = read(from, held, (way == Way::Up).then(|| self.marked.clone()));
        let passing = async { tokio::join!(reading, self.write(chunks, &mut to)) };
        let was_closed = tokio::select! {
            _ = passing => false,
            () = is_closed => true,
        };
        if was_closed {
            let _ = to.shutdown().await;
        }
    }

    async fn write(
        &mut self,
        mut chunks: mpsc::Receiver<(Instant, Vec<u8>)>,
        to: &mut (impl AsyncWrite + Unpin),
    ) {
        while let Some((came, bytes)) = chunks.recv().await {
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() {
                let now = self.pass(came, bytes.len()).await;
                if to.write_all(&bytes[..now]).await.is_err() {
                    return;
                }
                bytes = &bytes[now..];
            }
        }
        let _ = to.shutdown().await;
    }

    /// Resolves when some of a chunk may go, and says how much.
    async fn pass(&mut self, came: Instant, bytes: usize) -> usize {
        loop {
            let class = self.marked.class();
            let fault = self.told.borrow_and_update().faults[class][self.way as usize];
            let (at, most) = match fault {
                Fault::None => return bytes,
                Fault::Delay(delay) if came + delay <= Instant::now() => return bytes,
                Fault::Delay(delay) => (Some(came + delay), bytes),
                Fault::Cut => (None, 0),
                // Twenty times a second, so that a slow line is slow and not jerky.
                Fault::Slow(rate) => {
                    let most = (rate as usize / 20).max(1);
                    (
                        Some(Instant::now() + Duration::from_millis(50)),
                        most.min(bytes),
                    )
                }
            };
            let wait = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => return most,
                changed = self.told.changed() => if changed.is_err() { std::future::pending::<()>().await },
            }
        }
    }
}

async fn read(
    mut from: impl AsyncRead + Unpin,
    held: mpsc::Sender<(Instant, Vec<u8>)>,
    marked: Option<Marked>,
) {
    let mut last = VecDeque::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let bytes = &buffer[..length];
                if let Some(marked) = &marked {
                    marked.look(&mut last, bytes);
                }
                if held.send((Instant::now(), bytes.to_vec())).await.is_err() {
                    return;
                }
            }
        }
    }
}
