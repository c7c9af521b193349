//! The floor: what one thread under one epoll can do when there is nothing else to do. No HTTP but a fixed answer, no
//! hub: each byte from a publisher is one message, and every client gets the one shared frame, up to 32 in a write. With a certificate, the
//! same on rustls as it comes.

use std::error::Error;
use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustls::{ServerConfig, ServerConnection};

use crate::tls::Stream;

/// Frames in one write.
const FRAMES_PER_WRITE: usize = 32;
const LISTENER: u64 = u64::MAX;
/// What a publisher asks for instead of `/ws`.
pub const PUBLISH: &str = "/publish";
const ANSWER: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

struct Floor {
    epoll: OwnedFd,
    frame: Rc<[u8]>,
    tls: Option<Arc<ServerConfig>>,
    /// Never closed: the whole process ends with its run.
    clients: Vec<Client>,
}

struct Client {
    stream: Stream<ServerConnection>,
    kind: Kind,
    /// Frames to write, and how much of the first is written.
    pending: u32,
    written: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Opening,
    Reader,
    Publisher,
}

/// Serves until it is killed, with frames of so many bytes, and with TLS if there is a certificate.
pub fn serve(bytes: usize, tls: Option<Arc<ServerConfig>>) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    println!(
        "{}",
        serde_json::json!({"public": listener.local_addr()?.to_string()})
    );
    let payload = u16::try_from(bytes - 4)?.to_be_bytes();
    let mut frame = vec![0x81, 126, payload[0], payload[1]];
    frame.resize(bytes, b'x');
    let mut floor = Floor {
        epoll: epoll::create(CreateFlags::CLOEXEC)?,
        frame: frame.into(),
        tls,
        clients: Vec::new(),
    };
    let token = EventData::new_u64(LISTENER);
    epoll::add(&floor.epoll, &listener, token, EventFlags::IN)?;
    let mut events: Vec<Event> = Vec::with_capacity(1024);
    let mut buffer = vec![0; 64 << 10];
    loop {
        events.clear();
        epoll::wait(
            &floor.epoll,
            rustix::buffer::spare_capacity(&mut events),
            None,
        )?;
        for event in &events {
            match event.data.u64() {
                LISTENER => floor.accept(&listener)?,
                index => floor.turn(index as usize, event.flags, &mut buffer)?,
            }
        }
    }
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let token = EventData::new_u64(self.clients.len() as u64);
            epoll::add(&self.epoll, &stream, token, EventFlags::IN)?;
            self.clients.push(Client {
                stream: Stream::of(stream, self.tls.as_ref())?,
                kind: Kind::Opening,
                pending: 0,
                written: 0,
            });
        }
    }

    fn turn(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8]) -> io::Result<()> {
        if flags.contains(EventFlags::OUT) {
            let token = EventData::new_u64(index as u64);
            let stream = self.clients[index].stream.socket();
            epoll::modify(&self.epoll, stream, token, EventFlags::IN)?;
            self.flush(index)?;
        }
        if !flags.contains(EventFlags::IN) {
            return Ok(());
        }
        let client = &mut self.clients[index];
        let count = match client.stream.read(buffer) {
            Ok(0) => return Ok(epoll::delete(&self.epoll, client.stream.socket())?),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return Ok(epoll::delete(&self.epoll, client.stream.socket())?),
        };
        match client.kind {
            // On loopback the small head of a request comes whole.
            Kind::Opening => {
                client.kind = match buffer.starts_with(format!("GET {PUBLISH} ").as_bytes()) {
                    true => Kind::Publisher,
                    false => Kind::Reader,
                };
                client.stream.write_all(ANSWER)
            }
            Kind::Reader => Ok(()),
            Kind::Publisher => self.publish(count as u32),
        }
    }

    fn publish(&mut self, messages: u32) -> io::Result<()> {
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if client.kind == Kind::Reader {
                let waits = client.pending > 0;
                client.pending += messages;
                if !waits {
                    self.flush(index)?;
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self, index: usize) -> io::Result<()> {
        let client = &mut self.clients[index];
        while client.pending > 0 {
            let mut slices = [IoSlice::new(&self.frame); FRAMES_PER_WRITE];
            slices[0] = IoSlice::new(&self.frame[client.written as usize..]);
            let slices = &slices[..FRAMES_PER_WRITE.min(client.pending as usize)];
            match client.stream.write_vectored(slices) {
                Ok(count) => {
                    let total = client.written as usize + count;
                    client.pending -= (total / self.frame.len()) as u32;
                    client.written = (total % self.frame.len()) as u32;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let token = EventData::new_u64(index as u64);
                    let both = EventFlags::IN | EventFlags::OUT;
                    let socket = client.stream.socket();
                    return Ok(epoll::modify(&self.epoll, socket, token, both)?);
                }
                // Its run is over.
                Err(_) => client.pending = 0,
            }
        }
        Ok(())
    }
}
