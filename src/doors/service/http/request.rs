use std::time::Duration;

use axum::extract::Request;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::super::api::{Api, CALL_TIMEOUT, Given, Options};
use super::super::error::{ApiError, Code};
use crate::model::{Class, units};

/// Room for the fields around a message, and for 10,000 user ids.
const BODY_EXTRA_BYTES: usize = 2 << 20;
/// How long a request's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Base64 as people write it: padded or not.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Makes a struct of a request with the options that push, publish and broadcast share, in snake_case and camelCase.
macro_rules! message_request {
    ($name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty),* }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$attribute])* pub(super) $field: $type,)*
            #[serde(default, deserialize_with = "given")]
            message: Option<Box<RawValue>>,
            #[serde(default)]
            json: Option<String>,
            #[serde(default)]
            binary: Option<String>,
            #[serde(default)]
            class: Option<String>,
            #[serde(default)]
            ttl: Option<String>,
            #[serde(default, alias = "collapseKey")]
            collapse_key: Option<String>,
            #[serde(default, alias = "idempotencyKey")]
            idempotency_key: Option<String>,
            #[serde(default, alias = "waitFor")]
            wait_for: Option<String>,
            #[serde(default, alias = "waitTimeout")]
            wait_timeout: Option<String>,
        }

        impl $name {
            pub(super) fn options(&self) -> Result<Options, ApiError> {
                let class = match self.class.as_deref() {
                    None => Class::Unset,
                    Some("KEPT") => Class::Kept,
                    Some("VOLATILE") => Class::Volatile,
                    Some(other) => return Err(ApiError::invalid("class", format!("{other:?} is not one of KEPT, VOLATILE"))),
                };
                let waits = match self.wait_for.as_deref() {
                    None | Some("ACCEPTED") => self.wait_timeout.is_some(),
                    Some("WRITTEN" | "ACKED") => true,
                    Some(other) => {
                        return Err(ApiError::invalid("wait_for", format!("{other:?} is not one of ACCEPTED, WRITTEN, ACKED")));
                    }
                };
                Ok(Options {
                    body: body_of(self.message.as_deref(), self.json.as_deref(), self.binary.as_deref())?,
                    class,
                    ttl: parse_ttl(self.ttl.as_deref())?,
                    collapse_key: self.collapse_key.clone().unwrap_or_default(),
                    idempotency_key: self.idempotency_key.clone().unwrap_or_default(),
                    waits,
                    deadline: Instant::now() + CALL_TIMEOUT,
                })
            }
        }
    };
}

message_request!(PushRequest {
    #[serde(alias = "userId")]
    user_id: String
});
message_request!(PublishRequest { channel: String });
message_request!(BroadcastRequest {
    #[serde(default, alias = "userIds")]
    user_ids: Vec<String>,
    #[serde(default)]
    everyone: bool
});

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketRequest {
    #[serde(alias = "userId")]
    pub(super) user_id: String,
    #[serde(default)]
    pub(super) device: Option<String>,
    #[serde(default)]
    pub(super) channels: Vec<String>,
    #[serde(default)]
    pub(super) since: Option<String>,
    #[serde(default)]
    pub(super) claims: Option<Box<RawValue>>,
    #[serde(default)]
    pub(super) origins: Vec<String>,
    #[serde(default)]
    pub(super) ips: Vec<String>,
    #[serde(default, alias = "sessionSeconds")]
    pub(super) session_seconds: Option<u64>,
    #[serde(default)]
    pub(super) ttl: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubscriptionRequest {
    #[serde(default, alias = "userId")]
    pub(super) user_id: Option<String>,
    #[serde(default)]
    pub(super) connection: Option<String>,
    pub(super) channel: String,
    #[serde(default)]
    pub(super) reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DisconnectRequest {
    #[serde(default, alias = "userId")]
    pub(super) user_id: Option<String>,
    #[serde(default)]
    pub(super) connection: Option<String>,
    #[serde(default)]
    pub(super) reason: String,
}

pub(super) fn parse_ttl(ttl: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let ttl = ttl.map(units::parse_duration).transpose();
    ttl.map_err(|e| ApiError::invalid("ttl", e))
}

/// `null` is a message too.
fn given<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

/// The one body that is given. `message` may be any JSON: a string is text, all else is taken byte for byte.
fn body_of(
    message: Option<&RawValue>,
    json: Option<&str>,
    binary: Option<&str>,
) -> Result<Option<Given>, ApiError> {
    match (message, json, binary) {
        (None, None, None) => Ok(None),
        (Some(raw), None, None) => Ok(Some(match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => Given::Text(text),
            Err(_) => Given::Json(raw.get().to_owned()),
        })),
        (None, Some(text), None) => Ok(Some(Given::Json(text.to_owned()))),
        (None, None, Some(text)) => LENIENT
            .decode(text)
            .map(|bytes| Some(Given::Binary(bytes.into())))
            .map_err(|e| ApiError::invalid("binary", format!("is not base64: {e}"))),
        _ => Err(ApiError::invalid(
            "message",
            "must be the only body: give one of message, json and binary",
        )),
    }
}

/// Reads and parses a request's JSON.
pub(super) async fn read<T: DeserializeOwned>(api: &Api, request: Request) -> Result<T, ApiError> {
    let json = |value: &http::HeaderValue| {
        value
            .to_str()
            .is_ok_and(|v| v.starts_with("application/json"))
    };
    if !request.headers().get(CONTENT_TYPE).is_some_and(json) {
        return Err(ApiError::new(
            Code::InvalidArgument,
            "send Content-Type: application/json",
        ));
    }
    // JSON may write each byte of a text as six.
    let most = api.limits.now().message_bytes * 6 + BODY_EXTRA_BYTES;
    let body = Limited::new(request.into_body(), most).collect();
    let bytes = tokio::time::timeout(BODY_TIMEOUT, body)
        .await
        .map_err(|_| ApiError::new(Code::InvalidArgument, "the body took too long to come"))?
        .map_err(|_| {
            ApiError::new(
                Code::InvalidArgument,
                format!("the body is over {most} bytes, or was cut off"),
            )
        })?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| {
        ApiError::new(
            Code::InvalidArgument,
            format!("the body is not what this call takes: {e}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(text: &str) -> Result<Options, String> {
        let request: PushRequest = serde_json::from_str(text).map_err(|e| e.to_string())?;
        request.options().map_err(|e| e.detail)
    }

    #[test]
    fn a_message_is_any_json_and_a_string_is_never_parsed_again() {
        let body = |text: &str| push(text).map(|options| options.body);
        assert!(
            matches!(body(r#"{"user_id":"4","message":"{\"a\":1}"}"#), Ok(Some(Given::Text(t))) if t == r#"{"a":1}"#)
        );
        assert!(
            matches!(body(r#"{"userId":"4","message":{ "a":1.0 }}"#), Ok(Some(Given::Json(t))) if t == r#"{ "a":1.0 }"#)
        );
        assert!(
            matches!(body(r#"{"user_id":"4","message":null}"#), Ok(Some(Given::Json(t))) if t == "null")
        );
        assert!(
            matches!(body(r#"{"user_id":"4","binary":"AQI"}"#), Ok(Some(Given::Binary(b))) if b[..] == [1, 2])
        );
        assert!(matches!(body(r#"{"user_id":"4"}"#), Ok(None)));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let cases = [
            (r#"{"user_id":"4","message":1,"prority":1}"#, "prority"),
            (r#"{"message":1}"#, "user_id"),
            (r#"{"user_id":4,"message":1}"#, "string"),
            (r#"{"user_id":"4","message":1,"json":"2"}"#, "only body"),
            (r#"{"user_id":"4","binary":"?"}"#, "binary is not base64"),
            (
                r#"{"user_id":"4","message":1,"class":"kept"}"#,
                "class \"kept\" is not one of KEPT, VOLATILE",
            ),
            (r#"{"user_id":"4","message":1,"wait_for":"X"}"#, "wait_for"),
        ];
        for (text, sentence) in cases {
            let error = push(text).err().expect(text);
            assert!(error.contains(sentence), "{text}: {error}");
        }
    }
}
