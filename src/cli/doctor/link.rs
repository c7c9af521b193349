use std::collections::VecDeque;
use std::io;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::wire::codec::{self, CloseCode, Decoder, Event, Limits, Opcode, Role};

/// Messages of a server may be larger than those that it takes.
const LIMITS: Limits = Limits {
    message_bytes: 16 << 20,
    fragments: 1024,
};

/// What came on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    Text(String),
    Ping(Vec<u8>),
    Pong,
    Other,
    /// A close frame: its code (1005 = none) and reason.
    Close(u16, String),
    /// The end without a close frame; browsers call it 1006.
    Cut(String),
}

/// An open WebSocket.
pub(super) struct Link {
    stream: TokioIo<Upgraded>,
    decoder: Decoder,
    buffer: Vec<u8>,
    heard: VecDeque<Heard>,
}

impl Link {
    pub(super) fn new(upgraded: Upgraded) -> Self {
        Self {
            stream: TokioIo::new(upgraded),
            decoder: Decoder::new(Role::Client, LIMITS),
            buffer: vec![0; 16 << 10],
            heard: VecDeque::new(),
        }
    }

    /// The next that comes. Dropped before it is there, nothing is lost.
    pub(super) async fn hear(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            match self.stream.read(&mut self.buffer).await {
                Ok(0) => return Heard::Cut("the end of the connection".into()),
                Err(error) => return Heard::Cut(error.to_string()),
                Ok(count) => self.decode(count),
            }
        }
    }

    fn decode(&mut self, count: usize) {
        let mut input = &mut self.buffer[..count];
        loop {
            let heard = match self.decoder.next(&mut input) {
                Ok(None) => return,
                Err(error) => Heard::Cut(format!("what came is no WebSocket frame: {error}")),
                Ok(Some(Event::Text(text))) => Heard::Text(text.into_owned()),
                Ok(Some(Event::Ping(payload))) => Heard::Ping(payload.into_owned()),
                Ok(Some(Event::Pong(_))) => Heard::Pong,
                Ok(Some(Event::Binary(_))) => Heard::Other,
                Ok(Some(Event::Close(None))) => Heard::Close(1005, String::new()),
                Ok(Some(Event::Close(Some(close)))) => {
                    Heard::Close(close.code.get(), close.reason.into_owned())
                }
            };
            let last = matches!(heard, Heard::Cut(_) | Heard::Close(..));
            self.heard.push_back(heard);
            if last {
                return;
            }
        }
    }

    pub(super) async fn say(&mut self, opcode: Opcode, payload: &[u8]) -> io::Result<()> {
        let frame = codec::masked_frame(opcode, payload, rand::random());
        self.stream.write_all(&frame).await?;
        // TLS holds back what it could not write at once.
        self.stream.flush().await
    }

    /// Says goodbye, so that the node counts no lost connection.
    pub(super) async fn leave(&mut self) {
        let payload = codec::close_payload(CloseCode::NORMAL, "");
        let _ = self.say(Opcode::Close, &payload).await;
    }
}
