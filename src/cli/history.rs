use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use super::call::{Server, refused};
use super::exit::{Failure, block_on, columns, say};
use crate::proto::tidings::v1::connections_client::ConnectionsClient;
use crate::proto::tidings::v1::history_response::{Entry, entry::Body};
use crate::proto::tidings::v1::{HistoryRequest, HistoryResponse};

#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// user:<id> or channel:<name>.
    address: String,
    /// The position behind which it begins; without one, with the oldest message.
    #[arg(long, value_name = "POSITION")]
    since: Option<String>,
    /// Messages at most: 1 to 1000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    server: Server,
}

pub(super) fn history(args: HistoryArgs) -> Result<(), Failure> {
    let server = &args.server;
    let request = HistoryRequest {
        address: args.address,
        since: args.since.unwrap_or_default(),
        limit: args.limit,
    };
    let answer = block_on(async {
        let mut client = ConnectionsClient::new(server.channel().await?);
        let answer = client.history(server.request(request)?).await;
        Ok(answer.map_err(|status| refused(&status))?.into_inner())
    })?;
    match server.json {
        true => say(&json(&answer)),
        false => say(&table(&answer)),
    }
}

/// As `GET /v1/history` answers: JSON byte for byte.
#[derive(Serialize)]
struct Answer<'a> {
    entries: Vec<Line<'a>>,
    position: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
}

#[derive(Serialize)]
struct Line<'a> {
    message_id: &'a str,
    position: &'a str,
    time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<String>,
}

fn json(answer: &HistoryResponse) -> String {
    let answer = Answer {
        entries: answer.entries.iter().map(line).collect(),
        position: &answer.position,
        recovered: answer.recovered,
    };
    serde_json::to_string(&answer).expect("plain values under names")
}

fn line(entry: &Entry) -> Line<'_> {
    let Entry {
        message_id,
        position,
        body,
        ..
    } = entry;
    let (message, binary) = match body {
        Some(Body::Json(text)) => (serde_json::from_str(text).ok(), None),
        Some(Body::Binary(bytes)) => (None, Some(STANDARD.encode(bytes))),
        None => (None, None),
    };
    Line {
        message_id,
        position,
        time: millis(entry),
        message,
        binary,
    }
}

fn millis(entry: &Entry) -> Option<u64> {
    let time = entry.time.and_then(|at| SystemTime::try_from(at).ok())?;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// A line for each message below a line of titles; then where to go on.
fn table(answer: &HistoryResponse) -> String {
    let mut rows = vec![["TIME", "ID", "POSITION", "MESSAGE"].map(String::from)];
    rows.extend(answer.entries.iter().map(|entry| {
        [
            entry.time.map(|at| at.to_string()).unwrap_or_default(),
            entry.message_id.clone(),
            entry.position.clone(),
            match &entry.body {
                Some(Body::Json(text)) => text.clone(),
                Some(Body::Binary(bytes)) => format!("{} bytes", bytes.len()),
                None => String::new(),
            },
        ]
    }));
    let mut text = columns(&rows);
    if answer.recovered == Some(false) {
        text += "\nmessages are missing behind the position that was asked for";
    }
    text + &format!("\ngo on with --since {}", answer.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_a_table_for_people_and_json_for_programs() {
        let entry = |body| Entry {
            message_id: "AQ".into(),
            position: "p1".into(),
            time: Some(prost_types::Timestamp {
                seconds: 1_764_000_000,
                nanos: 0,
            }),
            body: Some(body),
        };
        let answer = HistoryResponse {
            entries: vec![
                entry(Body::Json("{\"n\": 1.50}".into())),
                entry(Body::Binary(vec![1, 2].into())),
            ],
            position: "p2".into(),
            recovered: Some(false),
        };
        let lines = [
            "TIME                  ID  POSITION  MESSAGE",
            "2025-11-24T16:00:00Z  AQ  p1        {\"n\": 1.50}",
            "2025-11-24T16:00:00Z  AQ  p1        2 bytes",
            "messages are missing behind the position that was asked for",
            "go on with --since p2",
        ];
        assert_eq!(table(&answer), lines.join("\n"));
        assert_eq!(
            json(&answer),
            r#"{"entries":[{"message_id":"AQ","position":"p1","time":1764000000000,"message":{"n": 1.50}},{"message_id":"AQ","position":"p1","time":1764000000000,"binary":"AQI="}],"position":"p2","recovered":false}"#
        );
    }
}
