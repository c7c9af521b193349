//! One connection of a client, from its handshake to its end.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::places::Places;
use super::{Client, Order, Pen, Resume};
use crate::body::{self, Stream};
use crate::frame::{Frame, HANDSHAKE, upgrade};
use crate::ledger::What;

/// A node pings every 5 s; a line that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(20);
/// A client that acknowledges does so after one message in so many.
const ACK_ONE_IN: u32 = 3;

/// A connection.
pub(super) struct Line {
    socket: WebSocketStream<TcpStream>,
}

impl Line {
    /// Fails with what a client can know of a refusal.
    pub(super) async fn connect(public: SocketAddr, query: &str) -> Result<Self, String> {
        let dial = async {
            let stream = TcpStream::connect(public).await?;
            upgrade(stream, public, query).await
        };
        match timeout(HANDSHAKE, dial).await {
            Ok(Ok(socket)) => Ok(Self { socket }),
            Ok(Err(Error::Http(answer))) => Err(format!("handshake: {}", answer.status())),
            Ok(Err(error)) => Err(format!("handshake: {error}")),
            Err(_) => Err("handshake: no answer".into()),
        }
    }

    /// Reads until the connection ends or is to be dropped, and says how it ended.
    pub(super) async fn follow(
        mut self,
        client: &Client,
        places: &mut Places,
        pen: &Pen,
        order: &mut watch::Receiver<Order>,
        rng: &mut StdRng,
    ) -> What {
        let follows = client.follows();
        let mut open = HashSet::new();
        loop {
            let read = tokio::select! {
                // Dropped as it is: the node is told nothing.
                _ = order.changed() => {
                    order.mark_changed();
                    return closed(None, "vanished");
                }
                read = timeout(SILENCE, self.socket.next()) => read,
            };
            let text = match read {
                Err(_) => return closed(None, "silence"),
                Ok(None) => return closed(None, "end of stream"),
                Ok(Some(Err(error))) => return closed(None, &error.to_string()),
                Ok(Some(Ok(Message::Close(frame)))) => {
                    let code = frame.as_ref().map(|frame| frame.code.into());
                    return closed(code, frame.as_ref().map_or("", |frame| &frame.reason));
                }
                Ok(Some(Ok(Message::Text(text)))) => text,
                Ok(Some(Ok(_))) => continue,
            };
            let said = match serde_json::from_str::<Frame<'_>>(&text) {
                Ok(frame) => hear(&frame, client, places, pen),
                Err(error) => Heard::Odd(format!("{error}: {text}")),
            };
            match said {
                Heard::Nothing => {}
                Heard::Odd(why) => pen.write(What::Odd { why }),
                Heard::End(why) => return closed(None, &why),
                Heard::Opened(stream, anew) => {
                    let welcome = open.is_empty();
                    if let Some(anew) = anew.filter(|_| client.resume == Resume::Cursor)
                        && let Err(error) = self.ack(&anew).await
                    {
                        return closed(None, &error.to_string());
                    }
                    open.insert(stream);
                    pen.whole(open.len() == follows.len());
                    if welcome && let Err(error) = self.subscribe(client, places).await {
                        return closed(None, &error.to_string());
                    }
                }
                Heard::Inbox(position, loss) => {
                    let ack = client.resume == Resume::Cursor
                        && (loss || rng.random_range(0..ACK_ONE_IN) == 0);
                    if ack && let Err(error) = self.ack(&position).await {
                        return closed(None, &error.to_string());
                    }
                }
            }
        }
    }

    async fn subscribe(&mut self, client: &Client, places: &mut Places) -> Result<(), Error> {
        for channel in &client.later {
            let since = places.ask(&format!("channel:{channel}").into());
            let mut frame =
                serde_json::json!({"type": "subscribe", "ref": channel, "channel": channel});
            if let Some(since) = since {
                frame["since"] = (*since).into();
            }
            self.socket.send(Message::text(frame.to_string())).await?;
        }
        Ok(())
    }

    async fn ack(&mut self, position: &str) -> Result<(), Error> {
        let frame = serde_json::json!({"type": "ack", "position": position});
        self.socket.send(Message::text(frame.to_string())).await
    }
}

/// What a frame asks of the loop.
enum Heard {
    Nothing,
    /// A stream opened; with the position if it is an inbox that begins anew there. Its device has dealt with whatever
    /// was lost, and says so, else it would be told of the same loss again.
    Opened(Stream, Option<Box<str>>),
    /// A message of the inbox, by its position, or a loss, which is acknowledged for the same reason.
    Inbox(Box<str>, bool),
    Odd(String),
    End(String),
}

fn hear(frame: &Frame<'_>, client: &Client, places: &mut Places, pen: &Pen) -> Heard {
    let stream = frame.stream(client.inbox());
    let position: Option<Box<str>> = frame.position.map(Into::into);
    match frame.r#type {
        "welcome" | "subscribed" => {
            let asked = places.asked(&stream);
            places.open(&stream, frame.position, frame.recovered);
            let inbox = frame.channel.is_none();
            let anew = position
                .clone()
                .filter(|_| inbox && frame.recovered != Some(true));
            pen.write(What::Opened {
                stream: stream.clone(),
                asked,
                position,
                recovered: frame.recovered,
            });
            Heard::Opened(stream, anew)
        }
        "message" => {
            let text = frame.data.map_or("", RawValue::get);
            let key = body::read(text);
            // A position of another's stream would be the ruin of the next resume.
            let mine = key.as_ref().is_none_or(|key| key.stream == stream);
            if mine {
                places.moved(&stream, frame.position);
            }
            pen.write(What::Message {
                stream,
                id: frame.id.unwrap_or_default().into(),
                position: position.clone(),
                key,
                hash: body::hash(text),
            });
            match position.filter(|_| mine && frame.channel.is_none()) {
                Some(position) => Heard::Inbox(position, false),
                None => Heard::Nothing,
            }
        }
        "gap" => {
            places.moved(&stream, frame.position);
            pen.write(What::Gap {
                stream,
                position: position.clone(),
            });
            match position.filter(|_| frame.channel.is_none()) {
                Some(position) => Heard::Inbox(position, true),
                None => Heard::Nothing,
            }
        }
        // The backplane cannot be reached: come back.
        "error" | "unsubscribed" if frame.code == Some("unavailable") => {
            Heard::End(format!("{}: unavailable", frame.r#type))
        }
        "error" | "unsubscribed" | "refused" => {
            Heard::Odd(format!("{}: {:?}", frame.r#type, frame.code))
        }
        _ => Heard::Nothing,
    }
}

fn closed(code: Option<u16>, why: &str) -> What {
    What::Closed {
        code,
        why: why.into(),
    }
}
