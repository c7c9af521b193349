//! One stream of `PushNotifications`: gRPC by hand over one HTTP/2 connection, so that the load costs less than what it
//! loads. Requests are encoded once; of an answer only what it says is looked at.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW: i64 = 65_535;
const SETTING_INITIAL_WINDOW: u16 = 4;
/// What we let the server send: more than a run needs.
const OUR_WINDOW: u32 = (1 << 31) - 1;
/// Bytes that may wait to be written.
const AHEAD: usize = 64 << 10;

/// Of a push: always said, since what is meant by silence depends on the node's configuration.
#[derive(Debug, Clone, Copy)]
pub enum Class {
    Kept = 1,
    Volatile = 2,
}

impl Class {
    /// VOLATILE first, so that what is kept is not there yet.
    pub const BOTH: [Self; 2] = [Self::Volatile, Self::Kept];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "KEPT",
            Self::Volatile => "VOLATILE",
        }
    }
}

/// One caller.
pub struct Pushes {
    stream: TcpStream,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// What of a message of the answer is not whole yet.
    message: Vec<u8>,
    connection_window: i64,
    stream_window: i64,
    initial_window: i64,
    /// Pushes without an answer yet.
    pub under_way: usize,
    /// Answers that accepted a push.
    pub accepted: u64,
    /// The first answer that did not.
    pub refused: Option<String>,
}

impl Pushes {
    pub fn open(service: SocketAddr, key: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(service)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut settings = SETTING_INITIAL_WINDOW.to_be_bytes().to_vec();
        settings.extend(OUR_WINDOW.to_be_bytes());
        frame(&mut out, SETTINGS, 0, 0, &settings);
        let more = OUR_WINDOW - INITIAL_WINDOW as u32;
        frame(&mut out, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        let mut head = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/tidings.v1.Notification/PushNotifications"),
            (":authority", "bench"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", &format!("Bearer {key}")),
        ] {
            // RFC 7541, 6.2.2: a literal with its name, not indexed; all are shorter than 127 bytes.
            head.push(0);
            for text in [name, value] {
                head.push(text.len() as u8);
                head.extend(text.bytes());
            }
        }
        frame(&mut out, HEADERS, END_HEADERS, 1, &head);
        Ok(Self {
            stream,
            out,
            sent: 0,
            input: Vec::new(),
            message: Vec::new(),
            connection_window: INITIAL_WINDOW,
            stream_window: INITIAL_WINDOW,
            initial_window: INITIAL_WINDOW,
            under_way: 0,
            accepted: 0,
            refused: None,
        })
    }

    /// Puts a push behind the others, if the server has room for it.
    pub fn push(&mut self, item: &[u8]) -> bool {
        let room = self.connection_window.min(self.stream_window);
        if room < item.len() as i64 || self.out.len() - self.sent > AHEAD {
            return false;
        }
        self.connection_window -= item.len() as i64;
        self.stream_window -= item.len() as i64;
        self.under_way += 1;
        frame(&mut self.out, DATA, 0, 1, item);
        true
    }

    /// Writes what waits, as far as the socket takes it.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Takes what has come.
    pub fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 32 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::Error::other("the service door closed a stream")),
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        while let Some((head, after)) = rest.split_at_checked(9)
            && let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize
            && let Some((payload, after)) = after.split_at_checked(length)
        {
            match head[3] {
                WINDOW_UPDATE => self.allow(number(&head[5..]), number(payload)),
                kind => self.take(kind, head[4], payload)?,
            }
            rest = after;
        }
        self.input = rest.to_vec();
        Ok(())
    }

    fn take(&mut self, kind: u8, flags: u8, payload: &[u8]) -> io::Result<()> {
        match kind {
            DATA => self.take_messages(payload),
            HEADERS if flags & END_STREAM != 0 => {
                let text = String::from_utf8_lossy(payload).into_owned();
                return Err(io::Error::other(format!("the stream ended: {text}")));
            }
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if setting[..2] == SETTING_INITIAL_WINDOW.to_be_bytes() {
                        let window = i64::from(number(&setting[2..]));
                        self.stream_window += window - self.initial_window;
                        self.initial_window = window;
                    }
                }
                frame(&mut self.out, SETTINGS, ACK, 0, &[]);
            }
            PING if flags & ACK == 0 => frame(&mut self.out, PING, ACK, 0, payload),
            RESET | GOAWAY => {
                let text = format!("{:?}", payload);
                return Err(io::Error::other(format!("the stream was reset: {text}")));
            }
            _ => {}
        }
        Ok(())
    }

    fn take_messages(&mut self, payload: &[u8]) {
        self.message.extend_from_slice(payload);
        let message = std::mem::take(&mut self.message);
        let mut rest = message.as_slice();
        // A byte that says "not compressed", then the length.
        while let Some((head, after)) = rest.split_at_checked(5)
            && let Some((result, after)) = after.split_at_checked(number(&head[1..]) as usize)
        {
            self.under_way -= 1;
            // Without a `ref`, the first field of a PushResult is its response (2) or its error (3).
            match result.first() {
                Some(0x12) => self.accepted += 1,
                _ => {
                    let text = || String::from_utf8_lossy(result).into_owned();
                    self.refused.get_or_insert_with(text);
                }
            }
            rest = after;
        }
        self.message = rest.to_vec();
    }

    fn allow(&mut self, stream: u32, more: u32) {
        match stream {
            0 => self.connection_window += i64::from(more),
            _ => self.stream_window += i64::from(more),
        }
    }
}

impl AsFd for Pushes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |four| u32::from_be_bytes(*four))
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A push as an item of a stream, with gRPC's five bytes before it.
pub fn item(user: &str, text: &str, class: Class) -> Vec<u8> {
    fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
        out.push(number << 3 | 2);
        if bytes.len() > 127 {
            out.push(bytes.len() as u8 & 127 | 128);
        }
        out.push(match bytes.len() > 127 {
            true => (bytes.len() >> 7) as u8,
            false => bytes.len() as u8,
        });
        out.extend_from_slice(bytes);
    }
    let (mut push, mut item) = (Vec::new(), Vec::new());
    field(&mut push, 1, user.as_bytes());
    field(&mut push, 2, text.as_bytes());
    push.extend([4 << 3, class as u8]);
    field(&mut item, 2, &push);
    let mut bytes = vec![0];
    bytes.extend((item.len() as u32).to_be_bytes());
    bytes.extend(item);
    bytes
}
