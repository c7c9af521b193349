use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{HeaderMap, Method, Request};

use super::refusal::{Kind, Refusal};
use crate::hub::{Acks, Asked, Format};
use crate::model::{ChannelName, DeviceName, Secret, Since};
use crate::tickets::{parse_device, parse_since};
use crate::wire::codec;
use crate::wire::events::EventId;
use crate::wire::frames::TICKET_SUBPROTOCOL;

/// What an `EventSource` comes back with.
const LAST_EVENT_ID: &str = "last-event-id";
/// What is said of a Last-Event-ID that no event had.
const NOT_AN_ID: &str =
    "Last-Event-ID is not an id that an event had; fetch a new ticket, and open a new EventSource";

/// A well-formed request for a connection: parsed, nothing decided.
#[derive(Default)]
pub(super) struct Handshake {
    pub(super) proof: Proof,
    pub(super) asked: Asked,
    pub(super) device: Option<DeviceName>,
}

/// What the client shows to be let in.
#[derive(Default)]
pub(super) enum Proof {
    Ticket(Secret),
    Jwt(Secret),
    #[default]
    Nothing,
}

/// Whether the client wants refusals as frames; looked at first, so that a bad query can be told too.
pub(super) fn wants_refusals_told(query: Option<&str>) -> bool {
    pairs(query).any(|(key, value)| key == "refuse" && value == "close")
}

/// The `Sec-WebSocket-Accept` of a request that can be upgraded at all.
///
/// # Errors
/// Which rule of RFC 6455 section 4.2.1 it breaks.
pub(super) fn upgrade_key<B>(request: &Request<B>) -> Result<String, Refusal> {
    let bad = |detail: &str| Err(Refusal::new(Kind::BadRequest, detail));
    let headers = request.headers();
    if request.method() != Method::GET {
        return bad("a WebSocket handshake is a GET");
    }
    if !has_token(headers, &UPGRADE, "websocket") || !has_token(headers, &CONNECTION, "upgrade") {
        return bad(
            "this is a WebSocket endpoint: send Connection: Upgrade and Upgrade: websocket; a proxy between may have dropped them",
        );
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        return bad("Sec-WebSocket-Version must be 13");
    }
    match headers.get(SEC_WEBSOCKET_KEY).and_then(|k| k.to_str().ok()) {
        Some(key) if codec::is_valid_key(key) => Ok(codec::accept_key(key)),
        _ => bad("Sec-WebSocket-Key must be 16 bytes of base64"),
    }
}

impl Handshake {
    /// Parses query and headers.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn parse<B>(request: &Request<B>) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        for (key, value) in parameters(request)? {
            parsed.parameter(&key, &value)?;
        }
        parsed.headers(request.headers())?;
        Ok(parsed)
    }

    /// Parses a request for server-sent events: what an `EventSource` comes back with wins over the rest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse_events<B>(request: &Request<B>) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        let header = request.headers().get(LAST_EVENT_ID);
        let mut last = match header.map(|value| value.to_str()) {
            None => None,
            Some(Ok(text)) => Some(text.to_owned()),
            Some(Err(_)) => return Err(Refusal::new(Kind::Ticket, NOT_AN_ID)),
        };
        for (key, value) in parameters(request)? {
            match (key.as_str(), value.as_str()) {
                ("lastEventId", _) => last = last.or(Some(value)),
                ("ping" | "refuse" | "heartbeat", _) | ("format", "raw") => {
                    return Err(Refusal::new(
                        Kind::BadRequest,
                        format!("{key}={value} is for WebSockets; leave it out at /sse"),
                    ));
                }
                _ => parsed.parameter(&key, &value)?,
            }
        }
        parsed.headers(request.headers())?;
        parsed.asked.format = Format::Events;
        if let Some(text) = last.filter(|text| !text.is_empty()) {
            let id = EventId::parse(&text).ok_or_else(|| Refusal::new(Kind::Ticket, NOT_AN_ID))?;
            parsed.proof = Proof::Ticket(id.ticket);
            parsed.asked.since = id.inbox.or(parsed.asked.since);
            parsed.asked.acknowledges = id.inbox.is_some();
            parsed.asked.reached = id.channels;
        }
        Ok(parsed)
    }

    fn parameter(&mut self, key: &str, value: &str) -> Result<(), Refusal> {
        let bad = |detail: String| Err(Refusal::new(Kind::BadRequest, detail));
        match (key, value) {
            ("ticket", _) => self.proof = Proof::Ticket(Secret::new(value)),
            ("channels", _) => self.asked.channels = parse_channels(value)?,
            ("device", _) => {
                self.device = parse_device(value)
                    .map_err(|e| Refusal::new(Kind::BadRequest, e.to_string()))?;
            }
            ("since", _) => {
                self.asked.since = parse_since(value)
                    .map_err(|e| Refusal::new(Kind::BadRequest, e.to_string()))?;
            }
            ("refuse", "close") => {}
            ("ack", "auto") => self.asked.acks = Some(Acks::Auto),
            ("ack", "client") => self.asked.acks = Some(Acks::Client),
            ("ping", "frame") => self.asked.ping_frame = true,
            ("heartbeat", "off") => self.asked.silent = true,
            ("format", "raw") => self.asked.format = Format::Raw,
            ("format", "json") => {}
            ("ack", _) => return bad("ack must be auto or client".into()),
            ("refuse", _) => return bad("refuse must be close".into()),
            ("ping", _) => return bad("ping must be frame".into()),
            ("heartbeat", _) => return bad("heartbeat must be off".into()),
            ("format", _) => return bad("format must be json or raw".into()),
            (other, _) => {
                let other: String = other.chars().take(32).collect();
                return bad(format!(
                    "the query parameter {other:?} is not known; known are ticket, channels, device, since, ack, ping, heartbeat, format, refuse"
                ));
            }
        }
        Ok(())
    }

    fn headers(&mut self, headers: &HeaderMap) -> Result<(), Refusal> {
        for protocol in tokens(headers, &SEC_WEBSOCKET_PROTOCOL) {
            if let Some(ticket) = protocol.strip_prefix(TICKET_SUBPROTOCOL) {
                if !matches!(self.proof, Proof::Nothing) {
                    return Err(Refusal::new(
                        Kind::BadRequest,
                        "the ticket is there twice; show it once",
                    ));
                }
                self.proof = Proof::Ticket(Secret::new(ticket));
            }
        }
        if matches!(self.proof, Proof::Nothing)
            && let Some(token) = bearer(headers)
        {
            self.proof = Proof::Jwt(token);
        }
        Ok(())
    }
}

/// The token of `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| Secret::new(token.trim()))
}

fn parse_channels(list: &str) -> Result<Vec<(ChannelName, Since)>, Refusal> {
    let mut channels = Vec::new();
    for item in list.split(',').filter(|item| !item.is_empty()) {
        let (name, position) = match item.split_once('@') {
            Some((name, position)) => (name, Some(position)),
            None => (item, None),
        };
        let channel = ChannelName::parse(name)
            .map_err(|e| Refusal::new(Kind::BadRequest, format!("channels: {name:?} {e}")))?;
        let since = position.map_or(Ok(Since::Now), Since::parse);
        let since = since.map_err(|e| {
            Refusal::new(
                Kind::BadRequest,
                format!("channels: what is behind the @ of {name} {e}"),
            )
        })?;
        channels.push((channel, since));
    }
    Ok(channels)
}

/// The parameters of the query, each once.
fn parameters<B>(request: &Request<B>) -> Result<Vec<(String, String)>, Refusal> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (key, value) in pairs(request.uri().query()) {
        if found.iter().any(|(other, _)| *other == key) {
            return Err(Refusal::new(
                Kind::BadRequest,
                format!("the query names {key} twice"),
            ));
        }
        found.push((key, value));
    }
    Ok(found)
}

fn pairs(query: Option<&str>) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned()
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|t| t.eq_ignore_ascii_case(token))
}
