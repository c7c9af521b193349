//! A WebSocket relay in front of a node's public door.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{accept_hdr_async, client_async};

use super::mutant::{Den, Said};
use crate::body::Stream;

/// A message that was to trade places goes on alone if no other comes.
const HELD: Duration = Duration::from_millis(300);

/// A relay; it accepts nobody once it is dropped.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub(super) async fn start(node: SocketAddr, den: Arc<Den>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let den = den.clone();
                // How a connection ends is its client's to log.
                tokio::spawn(async move {
                    let _ = relay(near, node, &den).await;
                });
            }
        });
        Ok(Self { address, accepting })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(near: TcpStream, node: SocketAddr, den: &Den) -> Result<(), Error> {
    near.set_nodelay(true)?;
    let mut query = String::new();
    // A handler gives a whole answer as its error; it is the library's type.
    #[allow(clippy::result_large_err)]
    let handler = |request: &Request, response: Response| {
        query = request.uri().query().unwrap_or_default().into();
        Ok(response)
    };
    let mut near = accept_hdr_async(near, handler).await?;
    let far = TcpStream::connect(node).await?;
    far.set_nodelay(true)?;
    // A refusal ends the client's connection, and it comes back.
    let (mut far, _) = client_async(format!("ws://{node}/ws?{query}"), far).await?;

    let asked = asked(&query);
    let mut user = String::new();
    let mut held: Option<Said> = None;
    let (line, mut given) = mpsc::unbounded_channel();
    loop {
        // In: the client's frames, the node's, what another connection gives away, the end of a wait.
        tokio::select! {
            frame = near.next() => match frame {
                Some(frame) => match frame? {
                    frame @ (Message::Text(_) | Message::Binary(_)) => far.send(frame).await?,
                    Message::Close(_) => return Ok(()),
                    _ => {}
                },
                None => return Ok(()),
            },
            frame = far.next() => match frame {
                Some(frame) => match frame? {
                    Message::Text(text) => {
                        let stranger = user.is_empty();
                        let said = Said::read(&text, &mut user);
                        for text in den.mutate(said, &asked, &mut held) {
                            near.send(Message::text(text)).await?;
                        }
                        if stranger && !user.is_empty() {
                            den.joined(&user, line.clone());
                        }
                    }
                    frame @ (Message::Close(_) | Message::Ping(_)) => near.send(frame).await?,
                    _ => {}
                },
                None => return Ok(()),
            },
            Some(text) = given.recv() => near.send(Message::text(text)).await?,
            () = sleep(HELD), if held.is_some() => {
                if let Some(said) = held.take() {
                    near.send(Message::text(said.text)).await?;
                }
            }
        }
    }
}

/// From where a client asked for each stream. Its inbox has no name here, since the query does not tell the user: it is
/// found by the empty one.
fn asked(query: &str) -> HashMap<Stream, String> {
    let mut asked = HashMap::new();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "since" => {
                asked.insert("".into(), value.into());
            }
            "channels" => {
                for (channel, position) in value.split(',').filter_map(|c| c.split_once('@')) {
                    asked.insert(format!("channel:{channel}").into(), position.into());
                }
            }
            _ => {}
        }
    }
    asked
}
