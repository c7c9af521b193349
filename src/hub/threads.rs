use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{LocalSet, spawn_local};

use super::command::Command;
use super::state::State;
use super::{Hub, Shard};
use crate::telemetry::Reason;

/// Bytes read from a socket at once, into the one buffer of the shard.
const READ_BYTES: usize = 64 << 10;
/// Reads of streams that a shard has under way, so that many who resume do not crowd out who publishes.
const READS_AT_ONCE: usize = 32;
/// Connections taken from the backlog before other work of the shard has its turn.
const ACCEPTS_PER_YIELD: usize = 64;
/// How long the last cursors may take.
const LAST_CURSORS: Duration = Duration::from_secs(1);

/// A shard's place before its thread runs: its queue is there already.
pub struct ShardSeat {
    hub: Arc<Hub>,
    index: usize,
    commands: mpsc::Receiver<Command>,
}

/// The running shards; they end when their queues are dropped or they are told to.
pub struct ShardThreads(Vec<std::thread::JoinHandle<()>>);

impl ShardThreads {
    /// Starts every shard on a thread of its own. Each listens on its own socket, and hands every connection to
    /// `on_connection`, on its own thread.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start<F>(
        seats: Vec<ShardSeat>,
        listeners: Vec<std::net::TcpListener>,
        on_connection: F,
    ) -> std::io::Result<Self>
    where
        F: Fn(&Rc<Shard>, TcpStream, SocketAddr) + Clone + Send + 'static,
    {
        let mut threads = Vec::new();
        for (seat, listener) in seats.into_iter().zip(listeners) {
            let on_connection = on_connection.clone();
            let thread = std::thread::Builder::new()
                .name(format!("shard-{}", seat.index))
                .spawn(move || seat.run(listener, on_connection))?;
            threads.push(thread);
        }
        Ok(Self(threads))
    }

    /// Waits until all have ended.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a shard panicked");
            }
        }
    }
}

impl ShardSeat {
    pub(super) fn new(hub: Arc<Hub>, index: usize, commands: mpsc::Receiver<Command>) -> Self {
        Self {
            hub,
            index,
            commands,
        }
    }

    /// The shard, for the thread that runs it, and its queue.
    pub(super) fn take(self) -> (Rc<Shard>, mpsc::Receiver<Command>) {
        let shard = Rc::new(Shard {
            state: RefCell::new(State::new(self.hub.clone(), self.index)),
            read_buffer: RefCell::new(vec![0; READ_BYTES].into()),
            hub: self.hub,
            index: self.index,
            work: Notify::new(),
            reading: Semaphore::new(READS_AT_ONCE),
            stop_accepting: Notify::new(),
        });
        (shard, self.commands)
    }

    fn run<F>(self, listener: std::net::TcpListener, on_connection: F)
    where
        F: Fn(&Rc<Shard>, TcpStream, SocketAddr) + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs only an epoll descriptor, which start-up left room for");
        let (shard, commands) = self.take();
        let tasks = LocalSet::new();
        tasks.block_on(&runtime, async {
            let accepting = spawn_local(accept(shard.clone(), listener, on_connection));
            let end = Rc::new(Notify::new());
            let cursors = spawn_local(shard.clone().keep_cursors(end.clone()));
            shard.run(commands).await;
            accepting.abort();
            end.notify_one();
            // What clients acknowledged until now; a backplane that is away lets it come again.
            let _ = tokio::time::timeout(LAST_CURSORS, cursors).await;
        });
    }
}

/// Accepts until told to stop, then what is in the backlog, then closes the socket.
async fn accept<F>(shard: Rc<Shard>, listener: std::net::TcpListener, on_connection: F)
where
    F: Fn(&Rc<Shard>, TcpStream, SocketAddr),
{
    // Until the backlog is empty there may be somebody in it.
    let _arriving = shard.hub.admission.arrive();
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a shard cannot listen");
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shard.stop_accepting.notified() => break,
        };
        match accepted {
            Ok((stream, peer)) => welcome(&shard, stream, peer, &on_connection),
            Err(error) => pause_after_accept_error(&shard.hub, &error).await,
        }
    }
    empty_backlog(&shard, listener, &on_connection).await;
}

fn welcome<F>(shard: &Rc<Shard>, stream: TcpStream, peer: SocketAddr, on_connection: &F)
where
    F: Fn(&Rc<Shard>, TcpStream, SocketAddr),
{
    // Messages are written whole; there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    on_connection(shard, stream, peer);
}

/// Takes what the kernel has accepted for us, since closing the socket resets it.
async fn empty_backlog<F>(shard: &Rc<Shard>, listener: tokio::net::TcpListener, on_connection: &F)
where
    F: Fn(&Rc<Shard>, TcpStream, SocketAddr),
{
    // Asked directly: the runtime may not know yet of what came last.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    for taken in 1.. {
        match listener.accept() {
            Ok((stream, peer)) => {
                let stream = stream.set_nonblocking(true).map(|()| stream);
                match stream.and_then(TcpStream::from_std) {
                    Ok(stream) => welcome(shard, stream, peer, on_connection),
                    Err(error) => tracing::debug!(%error, "a connection was lost"),
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => pause_after_accept_error(&shard.hub, &error).await,
        }
        if taken % ACCEPTS_PER_YIELD == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Out of descriptors, an accept fails at once and again: a pause lets connections end, and the others live.
async fn pause_after_accept_error(hub: &Hub, error: &std::io::Error) {
    let full = matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOBUFS)
    );
    let reason = if full { "descriptors" } else { "aborted" };
    let count = hub
        .metrics
        .accept_errors
        .get_or_create(&Reason { reason })
        .inc();
    if full {
        if count.is_power_of_two() {
            tracing::warn!(%error, "no descriptor for a new connection; raise the limit (ulimit -n, LimitNOFILE)");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
