use std::time::{Duration, Instant};

use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::{timeout, timeout_at};

use super::advice::{Trouble, advice};
use super::hop::{Hop, Kind};
use super::report::Finding;
use super::watch::seconds;
use super::{Patient, no_ticket};

const CHECK: &str = "events";
/// Bytes of a gzip stream that say nothing yet (RFC 1952, 2.3).
const GZIP_HEADER: usize = 10;

/// Whether server-sent events come as they are sent, and for how long.
pub(super) async fn check(patient: &Patient, hop: &Hop) -> Finding {
    let ticket = match patient.tickets.next().await {
        Ok(Some(ticket)) => ticket,
        Ok(None) => return no_ticket(CHECK),
        Err(failure) => return Finding::fail(CHECK, failure.message),
    };
    let began = Instant::now();
    let response = match timeout(patient.timeout, ask(patient, &ticket)).await {
        Ok(Ok(response)) => response,
        Ok(Err(why)) => return Finding::fail(CHECK, format!("no answer: {why}")),
        Err(_) => {
            let found = "not even the answer's headers came in time: it is held back";
            return Finding::fail(CHECK, found).advise(advice(hop.kind, Trouble::Buffered));
        }
    };
    let kind = hop.of(response.headers());
    if let Some(finding) = wrong(&response, kind) {
        return finding;
    }
    let encoding = header(&response, CONTENT_ENCODING).to_owned();
    let headers_after = began.elapsed();
    let mut body = response.into_body();
    match timeout(patient.timeout, first_bytes(&mut body)).await {
        Ok(true) => {}
        Ok(false) => return Finding::fail(CHECK, "the stream ended before the first event"),
        Err(_) => {
            let how = if encoding.is_empty() {
                ""
            } else {
                "compressed and "
            };
            let found = format!(
                "{how}buffered: the headers came after {} ms, and no event within {}",
                headers_after.as_millis(),
                seconds(patient.timeout)
            );
            return Finding::fail(CHECK, found).advise(advice(kind, Trouble::Buffered));
        }
    }
    if !encoding.is_empty() {
        let found = format!("compressed on the way ({encoding}): events may be held back");
        return Finding::warn(CHECK, found).advise(advice(kind, Trouble::Buffered));
    }
    let first_after = began.elapsed();
    watch(patient, kind, body, first_after).await
}

/// Waits for more than the header of a compressed stream; whether that came.
async fn first_bytes(body: &mut Incoming) -> bool {
    let mut bytes = 0;
    while bytes <= GZIP_HEADER {
        match body.frame().await {
            Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, |data| data.len()),
            _ => return false,
        }
    }
    true
}

async fn ask(patient: &Patient, ticket: &str) -> Result<Response<Incoming>, String> {
    let target = &patient.target;
    let reached = target.open().await.map_err(|e| e.to_string())?;
    let io = TokioIo::new(reached.way);
    let shaken = hyper::client::conn::http1::handshake(io).await;
    let (mut sender, connection) = shaken.map_err(|e| e.to_string())?;
    // Ends with the body.
    tokio::spawn(connection);
    let query: String = form_urlencoded::byte_serialize(ticket.as_bytes()).collect();
    let request = Request::get(format!("{}?ack=client&ticket={query}", target.events_path))
        .header(HOST, target.authority.as_str())
        .header(ACCEPT, "text/event-stream")
        // As a browser: who compresses a stream holds it back.
        .header(ACCEPT_ENCODING, "gzip")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| e.to_string())?;
    sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string())
}

/// An answer that is no stream of events as it was sent.
fn wrong(response: &Response<Incoming>, kind: Kind) -> Option<Finding> {
    if response.status() != StatusCode::OK {
        let found = format!(
            "{} in place of 200, from {}",
            response.status(),
            kind.name()
        );
        return Some(Finding::fail(CHECK, found));
    }
    let content = header(response, CONTENT_TYPE);
    (!content.starts_with("text/event-stream"))
        .then(|| Finding::fail(CHECK, format!("{content:?} in place of text/event-stream")))
}

fn header(response: &Response<Incoming>, name: HeaderName) -> &str {
    let value = response.headers().get(name);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// Reads on until the time is over.
async fn watch(
    patient: &Patient,
    kind: Kind,
    mut body: Incoming,
    first_after: Duration,
) -> Finding {
    let began = Instant::now();
    let until = tokio::time::Instant::now() + patient.watch;
    let mut more = 0;
    loop {
        match timeout_at(until, body.frame()).await {
            Err(_) => break,
            Ok(Some(Ok(_))) => more += 1,
            Ok(end) => {
                let how = match end {
                    Some(Err(error)) => error.to_string(),
                    _ => "it ended".into(),
                };
                let found = format!(
                    "cut after {}, {more} heartbeats or events later: {how}",
                    seconds(began.elapsed())
                );
                return Finding::fail(CHECK, found).advise(advice(kind, Trouble::Events));
            }
        }
    }
    let found = format!(
        "the first came after {} ms, and {more} more in {}",
        first_after.as_millis(),
        seconds(patient.watch)
    );
    Finding::ok(CHECK, found)
}
