//! One connection of a mover, from its handshake to its end.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::value::RawValue;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::mind::{Asks, Mind, lock};
use crate::body;
use crate::client::Pen;
use crate::frame::{Frame, HANDSHAKE, upgrade};
use crate::ledger::{Asked, What};

/// A node pings every 5 s; a line that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the answer to a close is awaited.
const GOODBYE: Duration = Duration::from_secs(10);

/// What a connection has to tell its client.
#[derive(Debug)]
pub(super) enum News {
    /// A new one is to be opened in so long, with this resume ticket; without one, with a ticket of its own.
    GoAway {
        after: Duration,
        ticket: Option<String>,
    },
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// By a `refused` frame.
    Told {
        code: String,
        after: Option<Duration>,
    },
    /// By a status, or by nothing.
    Otherwise(String),
}

/// A connection that is followed elsewhere.
#[derive(Debug)]
pub(super) struct Line {
    /// Ends with the connection.
    pub(super) news: mpsc::Receiver<News>,
    /// Has it closed by us.
    pub(super) goodbye: Arc<Notify>,
}

/// A connection that was welcome, and its welcome.
pub(super) struct Opened {
    socket: WebSocketStream<TcpStream>,
    welcome: Utf8Bytes,
}

impl Line {
    pub(super) fn has_ended(&self) -> bool {
        self.news.is_closed()
    }

    /// Dials, and waits for the welcome.
    pub(super) async fn open(
        public: SocketAddr,
        from: IpAddr,
        query: &str,
    ) -> Result<Opened, NotOpened> {
        let handshake = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            let stream = socket.connect(public).await?;
            let mut socket = upgrade(stream, public, query).await?;
            let first = socket.next().await;
            Ok::<_, Error>((socket, first))
        };
        let otherwise = |why: String| Err(NotOpened::Otherwise(format!("handshake: {why}")));
        let (socket, first) = match timeout(HANDSHAKE, handshake).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(Error::Http(answer))) => return otherwise(answer.status().to_string()),
            Ok(Err(error)) => return otherwise(error.to_string()),
            Err(_) => return otherwise("no answer".into()),
        };
        let text = match first {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(other)) => return otherwise(format!("{other:?} in place of a welcome")),
            Some(Err(error)) => return otherwise(error.to_string()),
            None => return otherwise("closed without a word".into()),
        };
        let frame: Frame<'_> = match serde_json::from_str(&text) {
            Ok(frame) => frame,
            Err(error) => return otherwise(error.to_string()),
        };
        match frame.r#type {
            "welcome" => Ok(Opened {
                socket,
                welcome: text,
            }),
            "refused" => Err(NotOpened::Told {
                code: frame.code.unwrap_or_default().into(),
                after: frame.after_ms.map(Duration::from_millis),
            }),
            other => otherwise(format!("{other} in place of a welcome")),
        }
    }
}

impl Opened {
    /// The handle, and what reads until the connection is over, whoever ends it.
    pub(super) fn follow(
        self,
        mind: Arc<Mutex<Mind>>,
        pen: Pen,
        asks: Asks,
    ) -> (Line, impl Future<Output = ()> + Send) {
        let (tell, news) = mpsc::channel(4);
        let goodbye = Arc::new(Notify::new());
        let reader = Reader {
            socket: self.socket,
            mind,
            pen,
            asks,
            tell,
            leaves: false,
        };
        // Heard here and now: from this moment on the client has a connection.
        reader.hear(&self.welcome);
        let line = Line {
            news,
            goodbye: goodbye.clone(),
        };
        (line, reader.read(goodbye))
    }
}

struct Reader {
    socket: WebSocketStream<TcpStream>,
    mind: Arc<Mutex<Mind>>,
    pen: Pen,
    asks: Asks,
    tell: mpsc::Sender<News>,
    /// We said that we close it.
    leaves: bool,
}

impl Reader {
    async fn read(mut self, goodbye: Arc<Notify>) {
        let (code, why) = loop {
            let most = if self.leaves { GOODBYE } else { SILENCE };
            let read = tokio::select! {
                () = goodbye.notified(), if !self.leaves => {
                    self.leaves = true;
                    let frame = CloseFrame { code: CloseCode::Normal, reason: "moved".into() };
                    // Where it is closed already, that is read next.
                    let _ = self.socket.send(Message::Close(Some(frame))).await;
                    continue;
                }
                read = timeout(most, self.socket.next()) => read,
            };
            match read {
                Err(_) => break (None, "silence".into()),
                Ok(None) => break (None, "end of stream".into()),
                Ok(Some(Err(error))) => break (None, error.to_string()),
                Ok(Some(Ok(Message::Close(frame)))) => {
                    let code = frame.as_ref().map(|frame| frame.code.into());
                    let why = frame.map(|frame| frame.reason.to_string());
                    break (code, why.unwrap_or_default());
                }
                Ok(Some(Ok(Message::Text(text)))) => {
                    if let Some(news) = self.hear(&text) {
                        // As much as one that says it all the time may say.
                        let _ = self.tell.try_send(news);
                    }
                }
                Ok(Some(Ok(_))) => {}
            }
        };
        let why = match self.leaves {
            true => format!("{} {why}", super::MOVED),
            false => why,
        };
        {
            let mut mind = lock(&self.mind);
            mind.log(&self.pen, What::Closed { code, why });
            mind.ended(self.pen.connection(), &self.pen);
        }
        // Whoever waits for news is told of the end now.
        drop(self.tell);
        // To answer a close is what ends it for the other side.
        let _ = timeout(GOODBYE, async {
            while let Some(Ok(_)) = self.socket.next().await {}
        })
        .await;
    }

    /// Takes in one frame.
    fn hear(&self, text: &str) -> Option<News> {
        let mut mind = lock(&self.mind);
        let frame: Frame<'_> = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => {
                let why = format!("{error}: {text}");
                mind.log(&self.pen, What::Odd { why });
                return None;
            }
        };
        let stream = frame.stream(mind.inbox());
        let position: Option<Box<str>> = frame.position.map(Into::into);
        match frame.r#type {
            "welcome" | "subscribed" => {
                if let Some(user) = frame.user.filter(|user| *user != &stream["user:".len()..]) {
                    let why = format!("welcome as {user} on {stream}");
                    mind.log(&self.pen, What::Odd { why });
                }
                let asked = self.asks.get(&stream).cloned().unwrap_or(Asked::Nothing);
                let opened = What::Opened {
                    stream: stream.clone(),
                    asked,
                    position,
                    recovered: frame.recovered,
                };
                mind.log(&self.pen, opened);
                let connection = self.pen.connection();
                mind.opened(
                    connection,
                    &stream,
                    frame.position,
                    frame.recovered,
                    &self.pen,
                );
            }
            "message" => {
                let text = frame.data.map_or("", RawValue::get);
                let id = frame.id.unwrap_or_default();
                let what = match mind.take(&stream, id, frame.position) {
                    false => What::Again,
                    true => What::Message {
                        stream,
                        id: id.into(),
                        position,
                        key: body::read(text),
                        hash: body::hash(text),
                    },
                };
                mind.log(&self.pen, what);
            }
            "gap" => {
                mind.at(&stream, frame.position);
                mind.log(&self.pen, What::Gap { stream, position });
            }
            "goaway" => {
                let Some(after) = frame.after_ms else {
                    let why = "a goaway without a time".into();
                    mind.log(&self.pen, What::Odd { why });
                    return None;
                };
                mind.log(&self.pen, What::GoAway);
                return Some(News::GoAway {
                    after: Duration::from_millis(after),
                    ticket: frame.ticket.map(Into::into),
                });
            }
            "error" | "unsubscribed" | "refused" => {
                let why = format!("{}: {:?}", frame.r#type, frame.code);
                mind.log(&self.pen, What::Odd { why });
            }
            _ => {}
        }
        None
    }
}
