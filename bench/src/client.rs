//! The client side: HTTP by hand on one kept connection, and WebSockets that are only counted.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// One source address has about 28,000 ports to one server; connecting slows down long before.
const CONNECTIONS_PER_ADDRESS: usize = 4_000;

/// One kept HTTP connection to the service door.
pub struct Http {
    stream: TcpStream,
    key: String,
    buffer: Vec<u8>,
}

impl Http {
    pub async fn connect(address: SocketAddr, key: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            key: key.into(),
            buffer: Vec::new(),
        })
    }

    /// Sends one request without waiting for its answer.
    pub async fn send(&mut self, path: &str, body: &str) -> io::Result<()> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await
    }

    /// Takes one answer's body; anything but a 200 is an error.
    pub async fn answer(&mut self) -> io::Result<String> {
        loop {
            if let Some(head) = find(&self.buffer, b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&self.buffer[..head]).to_ascii_lowercase();
                let length = text
                    .split("content-length:")
                    .nth(1)
                    .and_then(|rest| rest.split("\r\n").next());
                let length: usize = length.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
                if self.buffer.len() >= head + 4 + length {
                    let body = String::from_utf8_lossy(&self.buffer[head + 4..head + 4 + length])
                        .into_owned();
                    self.buffer.drain(..head + 4 + length);
                    if !text.starts_with("http/1.1 200") {
                        return Err(io::Error::other(format!("{text}\n{body}")));
                    }
                    return Ok(body);
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::other("the service door closed the connection"));
            }
        }
    }

    pub async fn call(&mut self, path: &str, body: &str) -> io::Result<String> {
        self.send(path, body).await?;
        self.answer().await
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// What all counted connections share.
pub struct Counter {
    pub frames: Cell<u64>,
    pub reads: Cell<u64>,
    buffer: RefCell<Box<[u8]>>,
}

impl Counter {
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            frames: Cell::new(0),
            reads: Cell::new(0),
            buffer: RefCell::new(vec![0; 64 << 10].into()),
        })
    }
}

/// Opens the `index`th WebSocket and takes the answer of the handshake.
pub async fn open(address: SocketAddr, index: usize, path: &str) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let source = 1 + u8::try_from(index / CONNECTIONS_PER_ADDRESS).unwrap_or(250);
    socket.bind(SocketAddr::new(IpAddr::from([127, 0, 0, source]), 0))?;
    let mut stream = socket.connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // Byte by byte to the end of the head, so that no frame behind it is taken.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(io::Error::other(
            String::from_utf8_lossy(&head).into_owned(),
        ));
    }
    Ok(stream)
}

/// Counts frames until the connection ends, by their headers alone.
pub async fn count(stream: TcpStream, counter: Rc<Counter>) {
    // How much of the current frame is still to come, and the beginning of a header.
    let mut left = 0usize;
    let mut header: Vec<u8> = Vec::new();
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        let mut buffer = counter.buffer.borrow_mut();
        match stream.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                counter.reads.set(counter.reads.get() + 1);
                let mut bytes = &buffer[..count];
                while !bytes.is_empty() {
                    if left > 0 {
                        let taken = left.min(bytes.len());
                        left -= taken;
                        bytes = &bytes[taken..];
                        continue;
                    }
                    header.push(bytes[0]);
                    bytes = &bytes[1..];
                    if let Some(length) = payload_length(&header) {
                        counter.frames.set(counter.frames.get() + 1);
                        left = length;
                        header.clear();
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

fn payload_length(header: &[u8]) -> Option<usize> {
    match (header.len(), header.get(1)? & 0x7f) {
        (2, length @ 0..=125) => Some(length.into()),
        (4, 126) => Some(u16::from_be_bytes([header[2], header[3]]).into()),
        (10, 127) => header[2..10]
            .try_into()
            .ok()
            .map(|bytes| u64::from_be_bytes(bytes) as usize),
        _ => None,
    }
}
