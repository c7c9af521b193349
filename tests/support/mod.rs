//! A node on free ports that stops on drop, and clients that are not ours.

pub mod certs;
pub mod chaos;
pub mod consul;
pub mod dns;
pub mod events;
pub mod fleet;
pub mod heard;
pub mod http2;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod resp;
pub mod secure;
pub mod served;

use std::time::Duration;

use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use serde_json::{Value, json};
use tidings::config::{Config, Mode};
use tidings::node::{Addresses, Node};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// How long a test waits for what must come.
pub const DEADLINE: Duration = Duration::from_secs(20);
pub const KEY: &str = "dev-key-not-for-production";

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub struct TestNode {
    pub at: Addresses,
    pub node: Option<Node>,
    pub http: reqwest::Client,
}

/// `tidings dev`, on free ports.
pub fn config() -> Config {
    let mut config = Config::dev();
    config.public.listen.set_port(0);
    config.service.listen.set_port(0);
    config.admin.listen.set_port(0);
    config.hub.shards = 2;
    config
}

pub async fn node() -> TestNode {
    node_with(|_| {}).await
}

pub async fn node_with(change: impl FnOnce(&mut Config)) -> TestNode {
    let mut config = config();
    change(&mut config);
    let node = Node::start(config, Mode::Dev)
        .await
        .expect("the node starts");
    TestNode {
        at: node.addresses,
        node: Some(node),
        http: reqwest::Client::new(),
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            tokio::spawn(node.leave(std::future::ready(())));
        }
    }
}

impl TestNode {
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("it runs")
    }

    /// A call of the HTTP service API: status and body.
    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.post_as(KEY, path, body).await
    }

    pub async fn post_as(&self, key: &str, path: &str, body: Value) -> (u16, Value) {
        let request = self
            .http
            .post(format!("http://{}{path}", self.at.service))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {key}"))
            .body(body.to_string());
        answer(request).await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let request = self
            .http
            .get(format!("http://{}{path}", self.at.service))
            .header("authorization", format!("Bearer {KEY}"));
        answer(request).await
    }

    pub async fn push(&self, user: &str, message: Value) -> Value {
        let (status, body) = self
            .post("/v1/push", json!({"user_id": user, "message": message}))
            .await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub async fn publish(&self, channel: &str, message: Value) -> Value {
        let (status, body) = self
            .post(
                "/v1/publish",
                json!({"channel": channel, "message": message}),
            )
            .await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub async fn ticket(&self, body: Value) -> String {
        let (status, body) = self.post("/v1/tickets", body).await;
        assert_eq!(status, 200, "{body}");
        body["ticket"].as_str().expect("a ticket").into()
    }

    /// The URL of a WebSocket with a fresh ticket for a user, and more query.
    pub async fn url(&self, user: &str, more: &str) -> String {
        let ticket = self.ticket(json!({"user_id": user})).await;
        format!("ws://{}/ws?ticket={ticket}{more}", self.at.public)
    }

    /// Connects as a user; the welcome is still to come.
    pub async fn open(&self, user: &str, more: &str) -> Socket {
        connect(&self.url(user, more).await)
            .await
            .expect("an upgrade")
    }

    /// Connects as a user and takes the welcome.
    pub async fn join(&self, user: &str, more: &str) -> (Socket, Value) {
        let mut socket = self.open(user, more).await;
        let welcome = next(&mut socket).await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (socket, welcome)
    }

    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.at.admin);
        self.http
            .get(url)
            .send()
            .await
            .expect("answered")
            .text()
            .await
            .expect("text")
    }

    /// A counter's sum over all its labels.
    pub async fn counter(&self, name: &str) -> u64 {
        let metrics = self.metrics().await;
        let of_name = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
        metrics.lines().filter(of_name).filter_map(value).sum()
    }

    /// What `/readyz` says: the status, and the body with its reasons.
    pub async fn readyz(&self) -> (u16, String) {
        let url = format!("http://{}/readyz", self.at.admin);
        let response = self.http.get(url).send().await.expect("answered");
        let status = response.status().as_u16();
        (status, response.text().await.expect("text"))
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("answered");
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    let body =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: not JSON: {text:?}"));
    (status, body)
}

pub async fn connect(url: &str) -> Result<Socket, Error> {
    connect_with(url, &[]).await
}

pub async fn connect_with(url: &str, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
    let mut request = url.into_client_request()?;
    for (name, value) in headers {
        request
            .headers_mut()
            .insert(*name, value.parse().expect("a header value"));
    }
    let connecting = tokio_tungstenite::connect_async(request);
    let connected = tokio::time::timeout(DEADLINE, connecting)
        .await
        .expect("in time");
    connected.map(|(socket, _)| socket)
}

/// The status and body that a handshake was refused with.
pub async fn refused(url: &str, headers: &[(&'static str, &str)]) -> (u16, Value) {
    match connect_with(url, headers).await {
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            (
                response.status().as_u16(),
                serde_json::from_slice(body).unwrap_or_default(),
            )
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// The next message of whatever kind.
pub async fn next_message<S>(socket: &mut S) -> Option<Message>
where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    let next = tokio::time::timeout(DEADLINE, socket.next())
        .await
        .expect("something in time");
    next.and_then(Result::ok)
}

/// The next frame of the wire; pings of the protocol are passed over.
pub async fn next<S>(socket: &mut S) -> Value
where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    loop {
        match next_message(socket).await {
            Some(Message::Text(text)) => return serde_json::from_str(&text).expect("JSON"),
            Some(Message::Ping(_)) => {}
            other => panic!("no frame: {other:?}"),
        }
    }
}

/// The next frame of a type.
pub async fn next_of<S>(socket: &mut S, kind: &str) -> Value
where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    loop {
        let frame = next(socket).await;
        if frame["type"] == kind {
            return frame;
        }
    }
}

/// The close frame that ends a connection, after whatever came before it.
pub async fn closed<S>(socket: &mut S) -> CloseFrame
where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    loop {
        match next_message(socket).await {
            Some(Message::Close(Some(frame))) => return frame,
            Some(Message::Close(None)) | None => panic!("closed without a frame"),
            Some(_) => {}
        }
    }
}

pub async fn say<S>(socket: &mut S, frame: Value)
where
    S: Sink<Message, Error = Error> + Unpin,
{
    socket
        .send(Message::text(frame.to_string()))
        .await
        .expect("sent");
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
