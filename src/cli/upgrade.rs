//! How the command line asks for a WebSocket (RFC 6455, section 4.1).

use bytes::Bytes;
use http::Request;
use http::header::{
    CONNECTION, HOST, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http_body_util::Empty;

use crate::wire::codec;
use crate::wire::frames::{SUBPROTOCOL, TICKET_SUBPROTOCOL};

/// What the answer to a request for a WebSocket has to show.
pub(super) struct Accept(String);

impl Accept {
    /// Whether a 101 answers that request, and not another one.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(SEC_WEBSOCKET_ACCEPT);
        shown.is_some_and(|shown| shown == self.0.as_str())
    }
}

/// A request for a WebSocket. The ticket goes as a subprotocol, out of every URL log.
///
/// # Errors
/// Host, path or ticket hold what no request may.
pub(super) fn request(
    host: &str,
    path: &str,
    ticket: &str,
) -> http::Result<(Request<Empty<Bytes>>, Accept)> {
    let key = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        rand::random::<[u8; 16]>(),
    );
    let request = Request::get(path)
        .header(HOST, host)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(
            SEC_WEBSOCKET_PROTOCOL,
            format!("{SUBPROTOCOL}, {TICKET_SUBPROTOCOL}{ticket}"),
        )
        .body(Empty::new())?;
    Ok((request, Accept(codec::accept_key(&key))))
}
