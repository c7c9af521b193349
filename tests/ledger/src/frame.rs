//! What the witness's own clients know of the client wire.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::body::Stream;

/// Longer than a handshake may take.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(15);

/// What a node says; what is not named here is ignored, as by any client.
#[derive(Deserialize)]
pub(crate) struct Frame<'a> {
    pub(crate) r#type: &'a str,
    pub(crate) id: Option<&'a str>,
    pub(crate) channel: Option<&'a str>,
    pub(crate) position: Option<&'a str>,
    pub(crate) recovered: Option<bool>,
    pub(crate) user: Option<&'a str>,
    pub(crate) code: Option<&'a str>,
    pub(crate) after_ms: Option<u64>,
    pub(crate) ticket: Option<&'a str>,
    #[serde(borrow)]
    pub(crate) data: Option<&'a RawValue>,
}

impl Frame<'_> {
    /// Whose it is, for a client with that inbox.
    pub(crate) fn stream(&self, inbox: Stream) -> Stream {
        match self.channel {
            Some(channel) => format!("channel:{channel}").into(),
            None => inbox,
        }
    }
}

/// Asks for a WebSocket on a connection.
pub(crate) async fn upgrade(
    stream: TcpStream,
    public: SocketAddr,
    query: &str,
) -> Result<WebSocketStream<TcpStream>, Error> {
    stream.set_nodelay(true)?;
    // Thousands of these share one process: the default buffers are 128 KiB each.
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(0);
    let url = format!("ws://{public}/ws?{query}");
    let (socket, _) = client_async_with_config(url, stream, Some(config)).await?;
    Ok(socket)
}
