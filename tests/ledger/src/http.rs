//! As much of HTTP/1.1 as the service and admin doors need: one request, one answer, on a kept connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing was sent.
    Unsent(io::Error),
    /// Something was sent, and no whole answer came.
    Unanswered(io::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unsent(error) => write!(f, "not sent: {error}"),
            Self::Unanswered(error) => write!(f, "no answer: {error}"),
        }
    }
}

/// A door, and the connection to it while there is one.
#[derive(Debug)]
pub(crate) struct Http {
    address: SocketAddr,
    key: &'static str,
    stream: Option<TcpStream>,
}

impl Http {
    /// Connects when it is first asked.
    pub(crate) fn new(address: SocketAddr, key: &'static str) -> Self {
        Self {
            address,
            key,
            stream: None,
        }
    }

    /// The status and the body of the answer to a POST of JSON.
    pub(crate) async fn post(&mut self, path: &str, body: &str) -> Result<(u16, String), Failure> {
        self.call("POST", path, body).await
    }

    /// The same for a GET.
    pub(crate) async fn get(&mut self, path: &str) -> Result<(u16, String), Failure> {
        self.call("GET", path, "").await
    }

    async fn call(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(u16, String), Failure> {
        let mut stream = match self.stream.take() {
            Some(stream) if is_open(&stream) => stream,
            _ => self.connect().await.map_err(Failure::Unsent)?,
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: ledger\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        let exchange = async {
            stream.write_all(request.as_bytes()).await?;
            answer(&mut stream).await
        };
        let answer = timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let answer = answer.map_err(Failure::Unanswered)?;
        self.stream = Some(stream);
        Ok(answer)
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let connect = TcpStream::connect(self.address);
        let stream = timeout(PATIENCE, connect)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Whether a kept connection is quiet, as it should be: one that has something to read has been closed.
fn is_open(stream: &TcpStream) -> bool {
    let read = stream.try_read(&mut [0]);
    matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

async fn answer(stream: &mut TcpStream) -> io::Result<(u16, String)> {
    let mut buffer = Vec::new();
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let status = text
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let length = text
            .split("content-length:")
            .nth(1)
            .and_then(|rest| rest.lines().next())
            .and_then(|length| length.trim().parse::<usize>().ok());
        let (Some(status), Some(length)) = (status, length) else {
            return Err(io::Error::other(format!("not understood: {text}")));
        };
        let end = head + 4 + length;
        if buffer.len() >= end {
            let body = String::from_utf8_lossy(&buffer[head + 4..end]);
            return Ok((status, body.into_owned()));
        }
    }
}
