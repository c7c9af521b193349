//! HTTP/2 by hand (RFC 9113), so that a test sees each frame of the server.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::DEADLINE;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The stream of the one call.
pub const CALL: u32 = 1;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Of a GOAWAY: the last stream that the server serves, and its reason (0 = none).
    pub fn goaway(&self) -> (u32, u32) {
        let number = |at: usize| self.payload[at..at + 4].try_into().map(u32::from_be_bytes);
        (
            number(0).expect("four bytes"),
            number(4).expect("four bytes"),
        )
    }

    /// Of the HEADERS of an answer: whether they begin with `:status: 200` (RFC 7541, entry 8 of the static table).
    pub fn is_ok(&self) -> bool {
        self.kind == HEADERS && self.payload.first() == Some(&0x88)
    }
}

/// A connection on which one call is made.
pub struct Http2(TcpStream);

impl Http2 {
    pub async fn connect(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).await.expect("connected");
        let mut http = Self(stream);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        http.0.write_all(preface).await.expect("sent");
        http.say(SETTINGS, 0, 0, &[]).await;
        http
    }

    /// Begins a POST of JSON, whose body is still to come, and waits until the server has read that.
    pub async fn begin_post(&mut self, path: &str, key: &str) {
        let bearer = format!("Bearer {key}");
        let mut head = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "tidings"),
            ("authorization", &bearer),
            ("content-type", "application/json"),
        ] {
            // Literals, without the tables and without Huffman (RFC 7541, section 6.2.2).
            head.push(0);
            for text in [name, value] {
                head.push(u8::try_from(text.len()).expect("short"));
                head.extend(text.as_bytes());
            }
        }
        self.say(HEADERS, END_HEADERS, CALL, &head).await;
        self.say(PING, 0, 0, b"read it?").await;
        let pong = self.next_of(PING).await;
        assert_eq!(
            (pong.flags, pong.payload.as_slice()),
            (ACK, &b"read it?"[..])
        );
    }

    /// The body of the call.
    pub async fn finish_post(&mut self, body: &[u8]) {
        self.say(DATA, END_STREAM, CALL, body).await;
    }

    /// The next frame of a kind.
    pub async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection is open");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The next frame, once what has to be confirmed is; none = the server closed the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        let reading = tokio::time::timeout(DEADLINE, self.read());
        let frame = reading.await.expect("something in time")?;
        if matches!(frame.kind, SETTINGS | PING) && frame.flags & ACK == 0 {
            self.say(
                frame.kind,
                ACK,
                0,
                match frame.kind {
                    PING => &frame.payload,
                    _ => &[],
                },
            )
            .await;
        }
        Some(frame)
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    async fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // A connection that the server has closed shows in what is read.
        let _ = self.0.write_all(&frame).await;
    }
}
