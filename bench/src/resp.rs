//! As much of Redis's protocol as a measurement needs.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use crate::crowd::PATIENCE;

pub struct Resp {
    stream: TcpStream,
    buffer: Vec<u8>,
    at: usize,
}

impl Resp {
    pub fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            at: 0,
        })
    }

    /// One command; its answer as text, lines of an array one below the other.
    pub fn call(&mut self, words: &[&str]) -> io::Result<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.stream.write_all(&command(&words))?;
        self.answer()
    }

    /// Sends commands that are encoded already.
    pub fn send(&mut self, commands: &[u8]) -> io::Result<()> {
        self.stream.write_all(commands)
    }

    /// Takes one answer.
    pub fn answer(&mut self) -> io::Result<String> {
        let line = self.line()?;
        let (kind, rest) = line.split_at(1);
        let count = || rest.parse::<i64>().map_err(io::Error::other);
        match kind {
            "+" | ":" => Ok(rest.into()),
            "$" => {
                let length = usize::try_from(count()?).unwrap_or(0);
                self.fill(length + 2)?;
                let text = &self.buffer[self.at..self.at + length];
                let text = String::from_utf8_lossy(text).into_owned();
                self.at += length + 2;
                Ok(text)
            }
            "*" => {
                let answers: Result<Vec<_>, _> = (0..count()?).map(|_| self.answer()).collect();
                Ok(answers?.join("\n"))
            }
            _ => Err(io::Error::other(format!("Redis said {line}"))),
        }
    }

    /// A number in `INFO`.
    pub fn info(&mut self, section: &str, name: &str) -> io::Result<u64> {
        let text = self.call(&["INFO", section])?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|number| number.trim().parse().ok())
            .ok_or_else(|| io::Error::other(format!("INFO {section} has no {name}")))
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            let rest = &self.buffer[self.at..];
            if let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                self.at += end + 2;
                return Ok(line);
            }
            self.read()?;
        }
    }

    fn fill(&mut self, length: usize) -> io::Result<()> {
        while self.buffer.len() - self.at < length {
            self.read()?;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk)? {
            0 => Err(io::Error::other("Redis closed the connection")),
            count => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
        }
    }
}

/// A command as it goes over the wire.
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend_from_slice(word);
        bytes.extend(b"\r\n");
    }
    bytes
}
