use std::io::ErrorKind;
use std::time::Duration;

use clap::Args;
use http::header::{AUTHORIZATION, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::exit::{Failure, block_on, say};
use crate::fleet::Outlook;
use crate::model::Secret;

/// How long one question to the admin door may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a node that leaves is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How many questions in a row may fail before the node counts as lost and not as left.
const FAILURES: u32 = 10;

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The admin door of the node that is to leave.
    #[arg(
        long,
        env = "TIDINGS_ADMIN",
        default_value = "http://127.0.0.1:8082",
        value_name = "URL"
    )]
    admin: String,
    /// An API key with the scope admin, where the door is not on loopback.
    #[arg(long, env = "TIDINGS_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Says how long it would take and how many would move, and changes nothing.
    #[arg(long, conflicts_with = "no_wait")]
    dry_run: bool,
    /// Begins the drain and does not wait for its end.
    #[arg(long)]
    no_wait: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Why a question has no answer.
enum NoAnswer {
    /// Nothing listens there.
    Gone(Failure),
    Failed(Failure),
}

impl From<NoAnswer> for Failure {
    fn from(no_answer: NoAnswer) -> Self {
        match no_answer {
            NoAnswer::Gone(failure) | NoAnswer::Failed(failure) => failure,
        }
    }
}

pub(super) fn drain(args: DrainArgs) -> Result<(), Failure> {
    block_on(async {
        if args.dry_run {
            let outlook = args.ask(Method::GET).await?;
            return args.tell(&outlook, foreseen);
        }
        let outlook = args.ask(Method::POST).await?;
        args.tell(&outlook, begun)?;
        match args.no_wait {
            true => Ok(()),
            false => args.watch(outlook).await,
        }
    })
}

impl DrainArgs {
    /// Shows how far the node is until nothing answers there any more.
    async fn watch(&self, mut last: Outlook) -> Result<(), Failure> {
        let mut failures = 0;
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            match self.ask(Method::GET).await {
                Ok(now) => {
                    failures = 0;
                    if (&now.phase, now.connections) != (&last.phase, last.connections) {
                        self.tell(&now, progress)?;
                    }
                    last = now;
                }
                Err(NoAnswer::Gone(_)) => {
                    return match self.json {
                        true => Ok(()),
                        false => say("the node has left"),
                    };
                }
                // It closes its doors while it is asked.
                Err(NoAnswer::Failed(failure)) => {
                    failures += 1;
                    if failures == FAILURES {
                        return Err(failure);
                    }
                }
            }
        }
    }

    fn tell(&self, outlook: &Outlook, words: fn(&Outlook) -> String) -> Result<(), Failure> {
        match self.json {
            true => {
                let json = serde_json::to_string(outlook);
                say(&json.map_err(|e| Failure::failed(e.to_string()))?)
            }
            false => say(&words(outlook)),
        }
    }

    /// One question, on a connection of its own.
    async fn ask(&self, method: Method) -> Result<Outlook, NoAnswer> {
        let asking = tokio::time::timeout(PATIENCE, self.try_ask(method)).await;
        asking.unwrap_or_else(|_| {
            let admin = &self.admin;
            let why = format!("{admin} did not answer within {} s", PATIENCE.as_secs());
            Err(NoAnswer::Failed(Failure::unreachable(why)))
        })
    }

    async fn try_ask(&self, method: Method) -> Result<Outlook, NoAnswer> {
        let admin = &self.admin;
        let usage =
            |why: String| NoAnswer::Failed(Failure::usage(format!("--admin {admin}: {why}")));
        let uri: Uri = admin.parse().map_err(|_| usage("not a URL".into()))?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(usage("write a URL, as in http://127.0.0.1:8082".into()));
        };
        let host = authority.host().trim_matches(['[', ']']);
        let place = (host, authority.port_u16().unwrap_or(80));
        let failed = |why: String| {
            let why = format!("{admin}: {why}");
            NoAnswer::Failed(Failure::unreachable(why))
        };
        let stream = TcpStream::connect(place).await.map_err(|error| {
            let why = format!("nothing answers at {admin}; is the node running? ({error})");
            match error.kind() {
                ErrorKind::ConnectionRefused => NoAnswer::Gone(Failure::unreachable(why)),
                _ => NoAnswer::Failed(Failure::unreachable(why)),
            }
        })?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|e| failed(e.to_string()))?;
        let mut request = Request::builder()
            .method(method)
            .uri("/drain")
            .header(HOST, authority.as_str());
        if let Some(key) = self.key.clone().map(Secret::new) {
            request = request.header(AUTHORIZATION, format!("Bearer {}", key.expose()));
        }
        let request = request.body(Empty::<bytes::Bytes>::new());
        let request = request.map_err(|_| {
            let why = "the API key holds characters that no key has";
            NoAnswer::Failed(Failure::usage(why))
        })?;
        let answering = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        // The connection may end as soon as the answer is there, and ends the question if it ends before.
        let driving = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        let answered = tokio::select! {
            answered = answering => answered,
            () = driving => return Err(failed("closed".into())),
        };
        let (status, body) = answered.map_err(|e| failed(e.to_string()))?;
        if !status.is_success() {
            return Err(NoAnswer::Failed(refused(status, &body)));
        }
        serde_json::from_slice(&body).map_err(|e| failed(format!("no answer of a node: {e}")))
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let said = String::from_utf8_lossy(body);
    let advice = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; give an API key with the scope admin, with --key or TIDINGS_API_KEY"
        }
        StatusCode::NOT_FOUND => "; is it an admin door, and of this version?",
        _ => "",
    };
    Failure::refused(format!("refused with {status}: {said}{advice}"))
}

fn foreseen(outlook: &Outlook) -> String {
    let others = match outlook.others_ready {
        None => "whether another node could take them is not known: the backplane does not answer"
            .to_owned(),
        Some(0) => "no other node is ready to take them".to_owned(),
        Some(ready) => format!("{ready} other node(s) could take them"),
    };
    format!(
        "a drain would take up to {:.0} s: {} WebSocket(s) would move, {} event stream(s) would come back; {others}",
        outlook.seconds, outlook.websocket, outlook.events
    )
}

fn begun(outlook: &Outlook) -> String {
    format!(
        "draining: {} connection(s), up to {:.0} s",
        outlook.connections, outlook.seconds
    )
}

fn progress(outlook: &Outlook) -> String {
    let Outlook {
        phase,
        connections,
        told,
        ..
    } = outlook;
    let others = match phase.as_str() {
        "waiting" => ", until another node is ready",
        _ => "",
    };
    format!("{phase}{others}: {connections} connection(s) left, {told} told to go")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_happen_is_said_in_one_line() {
        let mut outlook = Outlook {
            phase: "serving".into(),
            connections: 12,
            websocket: 10,
            events: 2,
            told: 0,
            seconds: 41.0,
            others_ready: Some(2),
        };
        assert_eq!(
            foreseen(&outlook),
            "a drain would take up to 41 s: 10 WebSocket(s) would move, 2 event stream(s) would come back; 2 other node(s) could take them"
        );
        outlook.others_ready = None;
        assert!(foreseen(&outlook).ends_with("the backplane does not answer"));
        outlook.phase = "waiting".into();
        assert_eq!(
            progress(&outlook),
            "waiting, until another node is ready: 12 connection(s) left, 0 told to go"
        );
    }
}
