use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::header::LOCATION;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::advice::{Trouble, advice};
use super::hop::Hop;
use super::link::{Heard, Link};
use super::report::Finding;
use super::{Patient, no_ticket};
use crate::cli::exit::Failure;
use crate::cli::upgrade;

/// Bytes of a refusal's body that are looked at.
const BODY_MAX: usize = 16 << 10;
/// Characters of it that are shown.
const SHOWN: usize = 120;

/// A connection that was welcomed.
pub(super) struct Opened {
    pub(super) link: Link,
    pub(super) connection: String,
    /// How often the node pings; none = never.
    pub(super) heartbeat: Option<Duration>,
    /// When the welcome came.
    pub(super) at: Instant,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    took: Duration,
}

/// Why there is none.
pub(super) enum Refused {
    /// No HTTP came back.
    Silent(String),
    /// An answer that is no upgrade.
    Answered {
        status: StatusCode,
        headers: Box<HeaderMap>,
        body: String,
    },
    /// An upgrade, and no welcome behind it.
    Unwelcome(String),
}

#[derive(serde::Deserialize)]
struct Welcome {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    connection: String,
    #[serde(default)]
    heartbeat_seconds: u64,
}

/// Opens a WebSocket with a ticket and a query, and takes the welcome. The query should say `ack=client`: what is kept for
/// the user is left for whom it is meant.
pub(super) async fn open(patient: &Patient, ticket: &str, query: &str) -> Result<Opened, Refused> {
    let opening = timeout(patient.timeout, handshake(patient, ticket, query));
    opening
        .await
        .unwrap_or_else(|_| Err(Refused::Silent("nothing came in time".into())))
}

async fn handshake(patient: &Patient, ticket: &str, query: &str) -> Result<Opened, Refused> {
    let silent = |e: &dyn std::fmt::Display| Refused::Silent(e.to_string());
    let began = Instant::now();
    let target = &patient.target;
    let reached = target.open().await.map_err(|e| silent(&e))?;
    let io = TokioIo::new(reached.way);
    let shaken = hyper::client::conn::http1::handshake(io).await;
    let (mut sender, connection) = shaken.map_err(|e| silent(&e))?;
    // Ends with the upgrade or with the sender.
    tokio::spawn(connection.with_upgrades());
    let path = format!("{}{query}", target.path);
    let request = upgrade::request(target.authority.as_str(), &path, ticket);
    let (request, accept) = request.map_err(|e| silent(&e))?;
    let response = sender.send_request(request).await.map_err(|e| silent(&e))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(Refused::Answered {
            status: parts.status,
            headers: Box::new(parts.headers),
            body: String::from_utf8_lossy(&body).into_owned(),
        });
    }
    if !accept.is_in(response.headers()) {
        let why = "the 101 answers another handshake than ours (Sec-WebSocket-Accept)";
        return Err(Refused::Unwelcome(why.into()));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| silent(&e))?;
    let mut link = Link::new(upgraded);
    let welcome = welcome(&mut link).await?;
    Ok(Opened {
        link,
        connection: welcome.connection,
        heartbeat: (welcome.heartbeat_seconds > 0)
            .then(|| Duration::from_secs(welcome.heartbeat_seconds)),
        at: Instant::now(),
        local: reached.local,
        peer: reached.peer,
        took: began.elapsed(),
    })
}

async fn welcome(link: &mut Link) -> Result<Welcome, Refused> {
    match link.hear().await {
        Heard::Text(text) => match serde_json::from_str::<Welcome>(&text) {
            Ok(welcome) if welcome.kind == "welcome" => Ok(welcome),
            _ => Err(Refused::Unwelcome(
                "the first frame is no welcome: is that /ws of Tidings?".into(),
            )),
        },
        Heard::Close(code, reason) => {
            Err(Refused::Unwelcome(format!("closed with {code} {reason}")))
        }
        Heard::Cut(why) => Err(Refused::Unwelcome(format!("cut behind the 101: {why}"))),
        other => Err(Refused::Unwelcome(format!(
            "the first frame is no welcome: {other:?}"
        ))),
    }
}

/// Whether an upgrade survives.
pub(super) async fn check(
    patient: &Patient,
    hop: &Hop,
) -> Result<(Option<Opened>, Finding), Failure> {
    let Some(ticket) = patient.tickets.next().await? else {
        return Ok((None, no_ticket("upgrade")));
    };
    Ok(match open(patient, &ticket, "?ack=client").await {
        Ok(opened) => {
            let found = format!("welcomed after {} ms", opened.took.as_millis());
            (Some(opened), Finding::ok("upgrade", found))
        }
        Err(refused) => (None, explain(&refused, hop)),
    })
}

/// What a refusal means, and who gave it.
pub(super) fn explain(refused: &Refused, hop: &Hop) -> Finding {
    let (status, headers, body) = match refused {
        Refused::Silent(why) => {
            return Finding::fail("upgrade", format!("no answer to the handshake: {why}"))
                .advise(advice(hop.kind, Trouble::Upgrade))
                .exits(4);
        }
        Refused::Unwelcome(why) => return Finding::fail("upgrade", why.clone()),
        Refused::Answered {
            status,
            headers,
            body,
        } => (*status, headers, body),
    };
    let kind = hop.of(headers);
    let code = code_of(body);
    let told = format!(
        "{status} in place of 101, from {}: {}",
        who(headers, kind),
        short(body)
    );
    let finding = Finding::fail("upgrade", told);
    match (status.as_u16(), code.as_deref()) {
        // The node itself says that it got no handshake.
        (400, Some("bad_request")) if body.contains("WebSocket endpoint") => Finding::fail(
            "upgrade",
            "a proxy between dropped Upgrade: the node got a plain GET",
        )
        .advise(advice(kind, Trouble::Upgrade)),
        (_, Some("ticket")) => finding
            .advise(["the ticket is unknown, used or expired (30 s): issue a new one; all else of the way works"])
            .exits(3),
        (_, Some("ip")) => finding
            .advise(["the ticket is for another address than the one that the node sees"])
            .advise(advice(kind, Trouble::Address))
            .exits(3),
        (_, Some(_)) => finding.advise(["the node itself says so: the way there works"]).exits(3),
        (301 | 302 | 303 | 307 | 308, _) => {
            let to = headers.get(LOCATION).and_then(|to| to.to_str().ok());
            finding.advise([format!("use the URL that it redirects to: {}", to.unwrap_or("?"))])
        }
        (404, _) => finding.advise(["it has no route for this host and path: look at its rules (server_name, Host(), domains)"]),
        (502..=504, _) => finding.advise(["it finds no node that takes connections: are nodes running, is /readyz green, is the port right?"]),
        // Envoy without upgrade_configs says 403, others 400, 405 or 426.
        _ => finding.advise(advice(kind, Trouble::Upgrade)),
    }
}

/// The code of one of the node's own problem documents.
fn code_of(body: &str) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(problem.get("code")?.as_str()?.to_owned())
}

fn who(headers: &HeaderMap, kind: super::hop::Kind) -> String {
    let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let mut who = said("server").unwrap_or(kind.name()).to_owned();
    if let Some(via) = said("via") {
        who.push_str(&format!(" (via {via})"));
    }
    who
}

fn short(body: &str) -> String {
    let words = body.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(SHOWN) {
        _ if words.is_empty() => "no text".into(),
        Some((at, _)) => format!("{}…", &words[..at]),
        None => words,
    }
}
