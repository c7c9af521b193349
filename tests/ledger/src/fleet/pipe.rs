//! A TCP relay whose far end can be changed, and which can be plugged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Result;

/// A relay; its connections end when it is dropped.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) port: u16,
    target: Arc<AtomicU16>,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Rises with each change of the target: connections of an older one end.
    generation: u64,
    /// Nothing passes, and nothing ends.
    plugged: bool,
}

impl Pipe {
    /// Listens on a free port and passes on to another.
    pub(crate) async fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = listener.local_addr()?.port();
        let target = Arc::new(AtomicU16::new(port));
        let (state, watched) = watch::channel(State::default());
        let accepting = tokio::spawn(accept(listener, target.clone(), watched));
        Ok(Self {
            port: own,
            target,
            state,
            accepting,
        })
    }

    /// Ends all connections; new ones go elsewhere.
    pub(crate) fn switch(&self, port: u16) {
        self.target.store(port, Ordering::SeqCst);
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Holds back everything from now on.
    pub(crate) fn plug(&self) {
        self.state.send_modify(|state| state.plugged = true);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.send_modify(|state| state.generation += 1);
    }
}

async fn accept(listener: TcpListener, target: Arc<AtomicU16>, state: watch::Receiver<State>) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Out of descriptors, most likely: some will be given back.
            tokio::task::yield_now().await;
            continue;
        };
        let port = target.load(Ordering::SeqCst);
        tokio::spawn(relay(near, port, state.clone()));
    }
}

/// Both ways until one end is gone, or the target is another.
async fn relay(near: TcpStream, port: u16, mut state: watch::Receiver<State>) {
    let generation = state.borrow_and_update().generation;
    let far = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(far) = TcpStream::connect(far).await else {
        return;
    };
    // Without it a reply may wait for the other side's acknowledgement.
    let (_, _) = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let plugged = state.clone();
    let changed =
        async { while state.changed().await.is_ok() && state.borrow().generation == generation {} };
    tokio::select! {
        () = pump(near_read, far_write, plugged.clone()) => {}
        () = pump(far_read, near_write, plugged) => {}
        () = changed => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        if state.wait_for(|state| !state.plugged).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
