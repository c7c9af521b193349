//! The frames of `tidings.v1`: JSON objects, one per text frame. Server frames are built here, client frames are parsed
//! here; RFC 6455 framing is the codec's.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::{
    Address, Body, ChannelName, DeviceName, Message, MessageId, Position, Since, Target, UserId,
};

/// The subprotocol's name.
pub const SUBPROTOCOL: &str = "tidings.v1";
/// What a ticket that is shown as a subprotocol begins with.
pub const TICKET_SUBPROTOCOL: &str = "tidings.ticket.";
/// The most bytes of a client's `ref`.
const REF_MAX_BYTES: usize = 128;

/// Codes of `error` and `unsubscribed` frames: the connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ErrorCode {
    BadRequest,
    Forbidden,
    Limit,
    NotSubscribed,
    Unimplemented,
    Unavailable,
    Revoked,
}

impl ErrorCode {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Forbidden => "forbidden",
            Self::Limit => "limit",
            Self::NotSubscribed => "not_subscribed",
            Self::Unimplemented => "unimplemented",
            Self::Unavailable => "unavailable",
            Self::Revoked => "revoked",
        }
    }
}

/// A frame from server to client, but for `message`, which is encoded once for all ([`message`]).
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ServerFrame<'a> {
    Welcome {
        connection: String,
        user: &'a UserId,
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<&'a DeviceName>,
        node: &'a str,
        heartbeat_seconds: u64,
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown")]
        position: Option<Position>,
        #[serde(skip_serializing_if = "Option::is_none")]
        recovered: Option<bool>,
    },
    Subscribed {
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        channel: &'a ChannelName,
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown")]
        position: Option<Position>,
        #[serde(skip_serializing_if = "Option::is_none")]
        recovered: Option<bool>,
    },
    /// Messages were lost: fetch your state anew and go on from this position.
    Gap {
        #[serde(skip_serializing_if = "Option::is_none")]
        channel: Option<&'a ChannelName>,
        #[serde(serialize_with = "text")]
        position: Position,
    },
    Unsubscribed {
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        channel: &'a ChannelName,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<ErrorCode>,
    },
    Error {
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        code: ErrorCode,
        message: &'a str,
    },
    Published {
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        id: String,
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown")]
        position: Option<Position>,
    },
    Refused {
        code: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        after_ms: Option<u64>,
    },
    /// In that long, open a new connection with this ticket, then close this one.
    Goaway {
        after_ms: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        ticket: Option<&'a str>,
    },
    Ping,
    Pong {
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
    },
}

fn text<T: std::fmt::Display, S: serde::Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn shown<T: std::fmt::Display, S: serde::Serializer>(
    value: &Option<T>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

impl ServerFrame<'_> {
    /// Its JSON text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("frames hold nothing that JSON cannot say")
    }
}

/// The JSON text of a `message` frame. The publisher's JSON is in it byte for byte.
pub fn message(message: &Message) -> String {
    let mut text = String::with_capacity(message.body.len() + 160);
    let _ = write!(text, r#"{{"type":"message","id":"{}""#, message.id);
    if let Target::One(Address::Channel(channel)) = &message.target {
        text.push_str(r#","channel":"#);
        push_string(&mut text, channel.as_str());
    }
    match &message.body {
        Body::Text(body) => {
            text.push_str(r#","data":"#);
            push_string(&mut text, body);
        }
        Body::Json(body) => {
            text.push_str(r#","data":"#);
            text.push_str(body);
        }
        Body::Binary(bytes) => {
            text.push_str(r#","encoding":"base64","data":""#);
            STANDARD.encode_string(bytes, &mut text);
            text.push('"');
        }
    }
    if let Some(position) = message.position() {
        let _ = write!(text, r#","position":"{position}""#);
    }
    let _ = write!(text, r#","time":{}}}"#, message.time);
    text
}

fn push_string(text: &mut String, value: &str) {
    text.push_str(&serde_json::to_string(value).expect("a string is always JSON"));
}

/// A frame from client to server, checked.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum ClientFrame<'a> {
    Subscribe {
        channel: ChannelName,
        /// None = with what comes from now on.
        since: Option<Since>,
    },
    /// Everything of the inbox up to here is handled.
    Ack(Position),
    /// So much of this channel is.
    AckChannel(ChannelName, Position),
    /// This one message is.
    AckOne(MessageId),
    Unsubscribe {
        channel: ChannelName,
    },
    Publish {
        channel: ChannelName,
        data: &'a RawValue,
    },
    Pong,
    Ping,
}

/// Why a client's frame is refused.
#[derive(Debug)]
pub struct ClientFrameError<'a> {
    /// The frame's `ref`, if it could be read.
    pub reference: Option<&'a RawValue>,
    /// `bad_request` or `unimplemented`.
    pub code: ErrorCode,
    /// What is wrong and what to do.
    pub message: String,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(rename = "ref", borrow)]
    reference: Option<&'a RawValue>,
    #[serde(borrow)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    since: Option<Cow<'a, str>>,
    #[serde(borrow)]
    position: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "given")]
    data: Option<&'a RawValue>,
}

/// `null` is data too.
fn given<'de: 'a, 'a, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Parses one client frame: what it asks and its `ref`. Fields that are not known are ignored, as newer clients may
/// send them.
///
/// # Errors
/// A code and a sentence for the error frame.
pub fn parse_client(
    text: &str,
) -> Result<(ClientFrame<'_>, Option<&RawValue>), ClientFrameError<'_>> {
    let refuse = |reference, code, message: String| ClientFrameError {
        reference,
        code,
        message,
    };
    let bad = |reference, message: String| refuse(reference, ErrorCode::BadRequest, message);
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|e| {
        bad(
            None,
            format!("the frame is not a JSON object of the wire: {e}"),
        )
    })?;
    let reference = fields.reference;
    if let Some(raw) = reference {
        let scalar = !raw.get().starts_with(['{', '[']);
        if raw.get().len() > REF_MAX_BYTES || !scalar {
            return Err(bad(
                None,
                format!("ref must be a string or number of at most {REF_MAX_BYTES} bytes"),
            ));
        }
    }
    let channel = || match &fields.channel {
        None => Err(bad(reference, "channel is missing".into())),
        Some(name) => ChannelName::parse(name).map_err(|e| bad(reference, format!("channel {e}"))),
    };
    let frame = match fields.kind.as_deref() {
        None => return Err(bad(reference, "type is missing".into())),
        Some("subscribe") => {
            let since = fields.since.as_deref().map(Since::parse).transpose();
            let since = since.map_err(|e| bad(reference, format!("since {e}")))?;
            ClientFrame::Subscribe {
                channel: channel()?,
                since,
            }
        }
        Some("unsubscribe") => ClientFrame::Unsubscribe {
            channel: channel()?,
        },
        Some("publish") => ClientFrame::Publish {
            channel: channel()?,
            data: fields
                .data
                .ok_or_else(|| bad(reference, "data is missing".into()))?,
        },
        Some("ping") => ClientFrame::Ping,
        Some("pong") => ClientFrame::Pong,
        Some("ack") => ack(&fields).map_err(|problem| bad(reference, problem))?,
        Some(other) => {
            let name: String = other.chars().take(32).collect();
            return Err(bad(
                reference,
                format!(
                    "type {name:?} is not known; it is one of subscribe, unsubscribe, publish, ping, pong, ack"
                ),
            ));
        }
    };
    Ok((frame, reference))
}

/// An ack names a position, of the inbox or a channel, or one message.
fn ack<'a>(fields: &Fields<'a>) -> Result<ClientFrame<'a>, String> {
    let position = |text: &str| {
        Position::parse(text).map_err(|_| "position must be one that a frame gave, unchanged")
    };
    match (&fields.position, &fields.id, &fields.channel) {
        (Some(at), None, None) => Ok(ClientFrame::Ack(position(at)?)),
        (Some(at), None, Some(channel)) => {
            let channel = ChannelName::parse(channel).map_err(|e| format!("channel {e}"))?;
            Ok(ClientFrame::AckChannel(channel, position(at)?))
        }
        (None, Some(id), _) => MessageId::parse(id)
            .map(ClientFrame::AckOne)
            .ok_or_else(|| "id must be that of a message".into()),
        _ => Err("an ack names either a position or an id".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_holds_the_publishers_json_byte_for_byte() {
        let body = r#"{ "a" : 1.0e2, "é":[ ] }"#;
        let channel = ChannelName::parse("a:\"b").expect("valid");
        let text = message(&Message::new(
            MessageId::new(0),
            Target::One(Address::Channel(channel)),
            Body::json(body).expect("valid"),
            7,
        ));
        assert!(text.contains(&format!(r#","data":{body},"#)), "{text}");
        let parsed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(parsed["channel"], "a:\"b");
        assert_eq!(parsed["time"], 7);
    }

    #[test]
    fn every_wrong_frame_gets_its_sentence() {
        let cases = [
            ("{", "not a JSON object"),
            ("[1]", "not a JSON object"),
            ("{}", "type is missing"),
            (r#"{"type":"dance"}"#, "\"dance\" is not known"),
            (r#"{"type":"subscribe"}"#, "channel is missing"),
            (
                r#"{"type":"subscribe","channel":"a b"}"#,
                "channel must not contain spaces",
            ),
            (
                r#"{"type":"subscribe","channel":"a","since":"x"}"#,
                "since must be",
            ),
            (r#"{"type":"publish","channel":"a"}"#, "data is missing"),
            (r#"{"type":"ack","position":"a"}"#, "position must be"),
            (r#"{"type":"ack","id":"a"}"#, "id must be"),
            (r#"{"type":"ack"}"#, "either a position or an id"),
            (r#"{"type":"ping","ref":{}}"#, "ref must be"),
        ];
        for (text, sentence) in cases {
            let error = parse_client(text).expect_err(text);
            assert!(
                error.message.contains(sentence),
                "{text}: {}",
                error.message
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            let _ = parse_client(&text);
        }
    }
}
