//! HTTP by hand on one kept connection to a service door.

use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use serde_json::{Value, json};

use crate::crowd::PATIENCE;

/// Requests that are sent ahead of their answers.
const PIPELINED: usize = 64;

pub struct Http {
    stream: TcpStream,
    key: String,
    buffer: Vec<u8>,
}

impl Http {
    pub fn connect(address: SocketAddr, key: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            key: key.into(),
            buffer: Vec::new(),
        })
    }

    /// Sends one request without waiting for its answer.
    pub fn send(&mut self, path: &str, body: &str) -> io::Result<()> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        self.stream.write_all(request.as_bytes())
    }

    /// Takes one answer's body; anything but a 200 is an error.
    pub fn answer(&mut self) -> io::Result<String> {
        loop {
            if let Some(body) = self.whole_answer()? {
                return Ok(body);
            }
            self.read()?;
        }
    }

    /// Reads once, and takes the answer if that was all of it.
    pub fn try_answer(&mut self) -> io::Result<Option<String>> {
        self.read()?;
        self.whole_answer()
    }

    pub fn call(&mut self, path: &str, body: &str) -> io::Result<String> {
        self.send(path, body)?;
        self.answer()
    }

    /// A ticket for each user.
    pub fn tickets(&mut self, users: &[String]) -> Result<Vec<String>, Box<dyn Error>> {
        let mut tickets = Vec::with_capacity(users.len());
        for some in users.chunks(PIPELINED) {
            for user in some {
                self.send("/v1/tickets", &json!({"user_id": user}).to_string())?;
            }
            for _ in some {
                let answer: Value = serde_json::from_str(&self.answer()?)?;
                tickets.push(answer["ticket"].as_str().ok_or("no ticket")?.into());
            }
        }
        Ok(tickets)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk)? {
            0 => Err(io::Error::other("the service door closed the connection")),
            count => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    }

    fn whole_answer(&mut self) -> io::Result<Option<String>> {
        let head = self.buffer.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(head) = head else { return Ok(None) };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_ascii_lowercase();
        let length = text
            .split("content-length:")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        let end = head + 4 + length;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let body = String::from_utf8_lossy(&self.buffer[head + 4..end]).into_owned();
        self.buffer.drain(..end);
        if !text.starts_with("http/1.1 200") {
            return Err(io::Error::other(format!("{text}\n{body}")));
        }
        Ok(Some(body))
    }
}

impl AsFd for Http {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
