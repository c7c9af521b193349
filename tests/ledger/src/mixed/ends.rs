//! The ends of a user in the checks of a mixed cluster: a WebSocket and a stream of events, each as plain as can be.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::fleet::{API_KEY, Node};
use crate::http::Http;

/// By when everything that is awaited comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What went wrong, in words.
pub(super) type Checked<T> = Result<T, String>;

/// A call at a node's service door; its answer if that is 200.
pub(super) async fn post(node: &Node, path: &str, body: &Value) -> Checked<Value> {
    let mut door = Http::new(node.doors.service, API_KEY);
    accepted(path, door.post(path, &body.to_string()).await)
}

/// A question at a node's service door.
pub(super) async fn get(node: &Node, path: &str) -> Checked<Value> {
    let mut door = Http::new(node.doors.service, API_KEY);
    accepted(path, door.get(path).await)
}

fn accepted(path: &str, answer: Result<(u16, String), crate::http::Failure>) -> Checked<Value> {
    match answer {
        Ok((200, body)) => serde_json::from_str(&body).map_err(|error| format!("{path}: {error}")),
        Ok((status, body)) => Err(format!("{path}: {status} {body}")),
        Err(failure) => Err(format!("{path}: {failure}")),
    }
}

/// A ticket for a user.
pub(super) async fn ticket(node: &Node, user: &str) -> Checked<String> {
    let answer = post(node, "/v1/tickets", &json!({"user_id": user})).await?;
    word(&answer, "ticket")
}

/// A field that is text.
pub(super) fn word(value: &Value, name: &str) -> Checked<String> {
    let word = value[name].as_str().map(str::to_owned);
    word.ok_or_else(|| format!("no {name} in {value}"))
}

/// Nothing else will do.
pub(super) fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: T, should: T) -> Checked<()> {
    match is == should {
        true => Ok(()),
        false => Err(format!("{what} is {is:?} and not {should:?}")),
    }
}

/// A WebSocket.
pub(super) struct Web(WebSocketStream<TcpStream>);

impl Web {
    /// Opens one, and its welcome.
    pub(super) async fn open(node: &Node, query: &str) -> Checked<(Self, Value)> {
        let public = node.doors.public;
        let stream = TcpStream::connect(public).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let opened = client_async(format!("ws://{public}/ws?{query}"), stream).await;
        let (socket, _) = opened.map_err(|error| format!("handshake: {error}"))?;
        let mut web = Self(socket);
        let welcome = web.until("welcome").await?;
        Ok((web, welcome))
    }

    /// The next frame of that type.
    pub(super) async fn until(&mut self, kind: &str) -> Checked<Value> {
        loop {
            match self.next().await? {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
                    if frame["type"] == kind {
                        return Ok(frame);
                    }
                }
                Message::Close(frame) => return Err(format!("closed before {kind}: {frame:?}")),
                _ => {}
            }
        }
    }

    /// The code of the close that comes.
    pub(super) async fn close_code(&mut self) -> Checked<u16> {
        loop {
            if let Message::Close(frame) = self.next().await? {
                return frame.map(|frame| frame.code.into()).ok_or("no code".into());
            }
        }
    }

    async fn next(&mut self) -> Checked<Message> {
        match timeout(PATIENCE, self.0.next()).await {
            Err(_) => Err("nothing came in time".into()),
            Ok(None) => Err("cut without a close".into()),
            Ok(Some(read)) => read.map_err(|error| error.to_string()),
        }
    }
}

/// A stream of events.
pub(super) struct Events {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
    /// The last one that came.
    pub(super) id: String,
}

impl Events {
    /// Opens one; with an id it goes on from there.
    pub(super) async fn open(node: &Node, query: &str, last: Option<&str>) -> Checked<Self> {
        let mut stream = TcpStream::connect(node.doors.public)
            .await
            .map_err(|error| error.to_string())?;
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n"));
        // HTTP/1.0, so that the body comes without chunks.
        let request = format!(
            "GET /sse?{query} HTTP/1.0\r\nHost: ledger\r\n{}\r\n",
            last.unwrap_or_default()
        );
        let written = stream.write_all(request.as_bytes()).await;
        written.map_err(|error| error.to_string())?;
        let mut events = Self {
            lines: BufReader::new(stream).lines(),
            id: String::new(),
        };
        let status = events.line().await?;
        match status.contains(" 200 ") {
            true => Ok(events),
            false => Err(format!("/sse: {status}")),
        }
    }

    /// The next frame of that type, once its event is whole.
    pub(super) async fn until(&mut self, kind: &str) -> Checked<Value> {
        let mut found = None;
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                if let Some(frame) = found.take() {
                    return Ok(frame);
                }
            } else if let Some(id) = line.strip_prefix("id:") {
                self.id = id.trim().into();
            } else if let Some(text) = line.strip_prefix("data:") {
                let frame: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
                found = (frame["type"] == kind).then_some(frame);
            }
        }
    }

    async fn line(&mut self) -> Checked<String> {
        match timeout(PATIENCE, self.lines.next_line()).await {
            Err(_) => Err("nothing came in time".into()),
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => Err("the stream of events ended".into()),
            Ok(Err(error)) => Err(error.to_string()),
        }
    }
}
