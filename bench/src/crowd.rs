//! Many WebSockets on one thread: raw sockets under one epoll, one read buffer for all of them, frames told apart by
//! their headers. A connection costs a descriptor and some 64 bytes, with TLS some KiB.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with};
use rustls::{ClientConfig, ClientConnection};

use crate::tls::Stream;

/// One source address has about 28,000 ports to one server; connecting slows down long before.
const CONNECTIONS_PER_ADDRESS: usize = 4_000;
/// Handshakes under way at once.
const OPENING: usize = 256;
/// Tokens of descriptors that are not the crowd's own.
const OTHERS: u64 = 1 << 32;
/// How long whatever must come may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Connections to one node, or to several.
pub struct Crowd {
    /// What they are encrypted with, if they are.
    tls: Option<Arc<ClientConfig>>,
    epoll: rustix::fd::OwnedFd,
    members: Vec<Member>,
    events: Vec<Event>,
    buffer: Box<[u8]>,
    /// Handshakes that were answered with 101.
    pub opened: usize,
    /// Whole frames that came.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Reads that it took.
    pub reads: u64,
    /// Other descriptors that are ready since the last poll.
    pub ready: Vec<u64>,
}

struct Member {
    stream: Stream<ClientConnection>,
    open: bool,
    /// The beginning of a frame, or of the handshake's answer.
    rest: Vec<u8>,
}

impl Crowd {
    pub fn new() -> io::Result<Self> {
        Self::over(None)
    }

    /// One that speaks TLS, if with that.
    pub fn over(tls: Option<Arc<ClientConfig>>) -> io::Result<Self> {
        Ok(Self {
            tls,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            members: Vec::new(),
            events: Vec::with_capacity(1024),
            buffer: vec![0; 64 << 10].into(),
            opened: 0,
            frames: 0,
            bytes: 0,
            reads: 0,
            ready: Vec::new(),
        })
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Watches a descriptor too: `token` is in `ready` when there is something to read.
    pub fn watch(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(OTHERS + token);
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    /// Begins a WebSocket.
    pub fn begin(&mut self, to: SocketAddr, path: &str) -> io::Result<()> {
        let index = self.members.len();
        let socket = connect_from(1 + index / CONNECTIONS_PER_ADDRESS, to)?;
        let mut stream = Stream::to(socket, self.tls.as_ref())?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let socket = stream.socket();
        socket.set_nonblocking(true)?;
        let data = EventData::new_u64(index as u64);
        epoll::add(&self.epoll, socket, data, EventFlags::IN)?;
        self.members.push(Member {
            stream,
            open: false,
            rest: Vec::new(),
        });
        Ok(())
    }

    /// Opens a WebSocket for each path, some at once.
    pub fn open(
        &mut self,
        to: SocketAddr,
        paths: impl IntoIterator<Item = String>,
    ) -> io::Result<()> {
        self.begin_all(to, paths, |_| ())?;
        self.until("an answer to every handshake", |crowd| {
            crowd.opened == crowd.len()
        })
    }

    /// Begins a WebSocket for each path, some at once, and gives what comes meanwhile to `frame`.
    pub fn begin_all(
        &mut self,
        to: SocketAddr,
        paths: impl IntoIterator<Item = String>,
        mut frame: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        for path in paths {
            self.begin(to, &path)?;
            while self.len() - self.opened >= OPENING {
                self.poll(Some(PATIENCE), &mut frame)?;
            }
        }
        Ok(())
    }

    /// Polls until a condition holds.
    pub fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> io::Result<()> {
        self.look_until(what, done, |_| ())
    }

    /// Polls until a condition holds, and gives what comes to `frame`.
    pub fn look_until(
        &mut self,
        what: &str,
        done: impl Fn(&Self) -> bool,
        mut frame: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() > deadline {
                let (opened, frames) = (self.opened, self.frames);
                return Err(io::Error::other(format!(
                    "waited in vain for {what}: {opened} open, {frames} frames"
                )));
            }
            self.poll(Some(Duration::from_secs(1)), &mut frame)?;
        }
        Ok(())
    }

    /// Waits for what comes, and gives each whole frame's payload to `frame`.
    pub fn poll(&mut self, wait: Option<Duration>, mut frame: impl FnMut(&[u8])) -> io::Result<()> {
        let wait = wait.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        self.events.clear();
        self.ready.clear();
        let buffer = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, buffer, wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for at in 0..self.events.len() {
            let event = self.events[at];
            let token = event.data.u64();
            if token >= OTHERS {
                self.ready.push(token - OTHERS);
            } else {
                self.read(token as usize, &mut frame)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, index: usize, frame: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let member = &mut self.members[index];
        let count = match member.stream.read(&mut self.buffer) {
            Ok(0) => return Err(io::Error::other("the node closed a connection")),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        self.reads += 1;
        let whole;
        let mut bytes = &self.buffer[..count];
        if !member.rest.is_empty() {
            whole = [std::mem::take(&mut member.rest).as_slice(), bytes].concat();
            bytes = &whole;
        }
        if !member.open {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                member.rest = bytes.to_vec();
                return Ok(());
            };
            if !bytes.starts_with(b"HTTP/1.1 101") {
                let answer = String::from_utf8_lossy(bytes).into_owned();
                return Err(io::Error::other(answer));
            }
            member.open = true;
            self.opened += 1;
            bytes = &bytes[end + 4..];
        }
        while let Some((head, length)) = header(bytes)
            && let Some(payload) = bytes.get(head..head + length)
        {
            frame(payload);
            self.frames += 1;
            self.bytes += (head + length) as u64;
            bytes = &bytes[head + length..];
        }
        if !bytes.is_empty() {
            member.rest = bytes.to_vec();
        }
        Ok(())
    }
}

/// A connection from the `n`th loopback address.
fn connect_from(n: usize, to: SocketAddr) -> io::Result<TcpStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        flags,
        Some(ipproto::TCP),
    )?;
    let source = Ipv4Addr::new(127, 0, 0, u8::try_from(n).unwrap_or(250));
    bind(&socket, &SocketAddrV4::new(source, 0))?;
    connect(&socket, &to)?;
    Ok(socket.into())
}

/// A server's frame: the lengths of its header and payload.
fn header(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes.get(1)? & 0x7f {
        length @ 0..=125 => Some((2, length.into())),
        126 => {
            let length = bytes.get(2..4)?.try_into().ok()?;
            Some((4, u16::from_be_bytes(length).into()))
        }
        _ => {
            let length = bytes.get(2..10)?.try_into().ok()?;
            Some((10, usize::try_from(u64::from_be_bytes(length)).ok()?))
        }
    }
}
