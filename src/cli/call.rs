use std::io::{self, ErrorKind, Read as _};
use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::exit::{Failure, block_on, say};
use super::secure::{NoTls, TlsArgs, Watched, alert};
use crate::doors::config::DEVELOPMENT_KEY;
use crate::model::Secret;
use crate::model::units::parse_duration;
use crate::proto::tidings::v1 as pb;

/// Where the service door is and what opens it.
#[derive(Debug, Args)]
pub(super) struct Server {
    /// The service door.
    #[arg(long, env = "TIDINGS_SERVER", default_value = "http://127.0.0.1:8081")]
    server: String,
    /// The API key; on loopback the development key unless given.
    #[arg(long, env = "TIDINGS_API_KEY", hide_env_values = true)]
    key: Option<String>,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// Prints JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Where the service door is: whether by TLS, host and port.
struct Place {
    secure: bool,
    host: String,
    port: u16,
}

#[derive(Debug, Args)]
pub(super) struct TicketArgs {
    /// Whose connection it opens.
    #[arg(long)]
    user: String,
    /// Which of the user's ends it is.
    #[arg(long)]
    device: Option<String>,
    /// A channel to subscribe to at once; may be repeated.
    #[arg(long = "channel")]
    channels: Vec<String>,
    /// Its life, as in 30s.
    #[arg(long)]
    ttl: Option<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The user.
    user: String,
    #[command(flatten)]
    message: Message,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// The channel.
    channel: String,
    #[command(flatten)]
    message: Message,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
struct Message {
    /// The message; - reads it from standard input. JSON arrives as JSON, all else as text.
    message: String,
    /// Sends it as text, even if it is JSON.
    #[arg(long)]
    text: bool,
    /// Whether it is stored.
    #[arg(long)]
    class: Option<Class>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Class {
    Kept,
    Volatile,
}

/// How long a connection, and then a call, may take. The node answers a call without a deadline within 5 s.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));

impl Server {
    pub(super) async fn channel(&self) -> Result<Channel, Failure> {
        let server = &self.server;
        let place = self.place()?;
        let endpoint = Endpoint::from_shared(server.clone())
            .map_err(|e| Failure::usage(format!("--server {server}: {e}")))?
            .connect_timeout(PATIENCE.0)
            .timeout(PATIENCE.1);
        let silent = || {
            Failure::unreachable(format!(
                "nothing answers at {server}; is the node running? `tidings dev` starts one"
            ))
        };
        if !place.secure {
            return endpoint.connect().await.map_err(|_| silent());
        }
        let dialing = async {
            let stream = TcpStream::connect((place.host.as_str(), place.port)).await;
            let stream = stream.map_err(|_| silent())?;
            let encrypted = self.tls.encrypt(stream, &place.host, "h2", true).await;
            encrypted.map_err(|error| match error {
                NoTls::Stop(failure) => failure,
                NoTls::Again(why) => Failure::unreachable(why),
            })
        };
        let stream = tokio::time::timeout(PATIENCE.0, dialing).await;
        // One connection is all that a command needs.
        let mut stream = Some(Watched(stream.map_err(|_| silent())??));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.take().map(TokioIo::new);
            std::future::ready(stream.ok_or(io::Error::from(ErrorKind::NotConnected)))
        });
        let connected = endpoint.connect_with_connector(connector).await;
        connected.map_err(|error| match alert(&error) {
            Some(why) => Failure::refused(why),
            None => Failure::unreachable(format!("no gRPC at {server}: {error}")),
        })
    }

    /// What the URL says.
    fn place(&self) -> Result<Place, Failure> {
        let server = &self.server;
        let uri: Uri = server.parse().unwrap_or_default();
        let (secure, port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => (false, 0),
        };
        match uri.host() {
            Some(host) if port > 0 => Ok(Place {
                secure,
                host: host.trim_matches(['[', ']']).to_owned(),
                port: uri.port_u16().unwrap_or(port),
            }),
            _ => Err(Failure::usage(format!(
                "--server {server}: write a URL, as in http://127.0.0.1:8081"
            ))),
        }
    }

    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let Place { host, .. } = self.place()?;
        let local = host == "localhost"
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        let key = match &self.key {
            Some(key) => Secret::new(key.clone()),
            // It says who calls.
            None if self.tls.shows_certificate() => return Ok(Request::new(message)),
            None if local => Secret::new(DEVELOPMENT_KEY),
            None => {
                return Err(Failure::usage(
                    "give the API key with --key or TIDINGS_API_KEY",
                ));
            }
        };
        let value: AsciiMetadataValue = format!("Bearer {}", key.expose())
            .parse()
            .map_err(|_| Failure::usage("the API key holds characters that no key has"))?;
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// A call's refusal, as a person reads it.
pub(super) fn refused(status: &Status) -> Failure {
    let said = status.message();
    if let Some(why) = alert(status) {
        return Failure::refused(why);
    }
    match status.code() {
        Code::Unauthenticated => Failure::refused(format!(
            "{said}; give one that it knows with --key or TIDINGS_API_KEY"
        )),
        Code::Unavailable => Failure::unreachable(format!("the node is unavailable: {said}")),
        // The first is what our own patience ends with.
        Code::Cancelled | Code::DeadlineExceeded => Failure::unreachable(format!(
            "no answer within {} s: whether the node did it is not known",
            PATIENCE.1.as_secs()
        )),
        Code::Aborted | Code::Internal | Code::Unknown | Code::DataLoss => {
            Failure::failed(format!("the node failed: {said}"))
        }
        _ => Failure::refused(format!("the node refused: {said}")),
    }
}

/// A ticket for a user, and the URL where it opens a connection.
pub(super) async fn issue(
    server: &Server,
    request: pb::IssueTicketRequest,
) -> Result<pb::IssueTicketResponse, Failure> {
    let mut client = pb::tickets_client::TicketsClient::new(server.channel().await?);
    let issued = client.issue_ticket(server.request(request)?).await;
    Ok(issued.map_err(|status| refused(&status))?.into_inner())
}

pub(super) fn ticket(args: TicketArgs) -> Result<(), Failure> {
    let ttl = args.ttl.as_deref().map(|text| {
        let ttl = parse_duration(text)?;
        prost_types::Duration::try_from(ttl).map_err(|_| format!("{text:?} is too long"))
    });
    let ttl = ttl
        .transpose()
        .map_err(|e| Failure::usage(format!("--ttl: {e}")))?;
    let request = pb::IssueTicketRequest {
        user_id: args.user,
        device: args.device.unwrap_or_default(),
        channels: args.channels,
        ttl,
        ..Default::default()
    };
    let issued = block_on(issue(&args.server, request))?;
    if !args.server.json {
        return say(&issued.ticket);
    }
    let expires_at = issued.expires_at.map(|at| at.to_string());
    let answer =
        serde_json::json!({"ticket": issued.ticket, "expires_at": expires_at, "url": issued.url});
    say(&answer.to_string())
}

impl Message {
    fn read(self) -> Result<(Body, i32), Failure> {
        let mut text = self.message;
        if text == "-" {
            text.clear();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Failure::usage(format!("standard input: {e}")))?;
        }
        let class = match self.class {
            None => pb::push_request::Class::Unspecified,
            Some(Class::Kept) => pb::push_request::Class::Kept,
            Some(Class::Volatile) => pb::push_request::Class::Volatile,
        };
        let json = !self.text && serde_json::from_str::<serde_json::Value>(&text).is_ok();
        Ok((
            if json {
                Body::Json(text)
            } else {
                Body::Text(text)
            },
            class as i32,
        ))
    }
}

enum Body {
    Json(String),
    Text(String),
}

pub(super) fn push(args: PushArgs) -> Result<(), Failure> {
    use pb::push_request::Body as Wire;
    let (body, class) = args.message.read()?;
    let request = pb::PushRequest {
        user_id: args.user,
        body: Some(match body {
            Body::Json(text) => Wire::Json(text),
            Body::Text(text) => Wire::Message(text),
        }),
        class,
        ..Default::default()
    };
    let answer = block_on(async {
        let mut client =
            pb::notification_client::NotificationClient::new(args.server.channel().await?);
        let answer = client
            .push_notification(args.server.request(request)?)
            .await;
        Ok(answer.map_err(|status| refused(&status))?.into_inner())
    })?;
    let accepted = Accepted {
        status: answer.status().as_str_name(),
        message_id: answer.message_id,
        local_connections: answer.local_connections,
        other_nodes: answer.other_nodes,
        degraded: answer.degraded,
    };
    accepted.say(&args.server)
}

pub(super) fn publish(args: PublishArgs) -> Result<(), Failure> {
    use pb::publish_request::Body as Wire;
    let (body, class) = args.message.read()?;
    let request = pb::PublishRequest {
        channel: args.channel,
        body: Some(match body {
            Body::Json(text) => Wire::Json(text),
            Body::Text(text) => Wire::Message(text),
        }),
        class,
        ..Default::default()
    };
    let answer = block_on(async {
        let mut client =
            pb::notification_client::NotificationClient::new(args.server.channel().await?);
        let answer = client.publish(args.server.request(request)?).await;
        Ok(answer.map_err(|status| refused(&status))?.into_inner())
    })?;
    let accepted = Accepted {
        status: answer.status().as_str_name(),
        message_id: answer.message_id,
        local_connections: answer.local_connections,
        other_nodes: answer.other_nodes,
        degraded: answer.degraded,
    };
    accepted.say(&args.server)
}

/// What a push or a publish was answered.
#[derive(serde::Serialize)]
struct Accepted {
    status: &'static str,
    message_id: String,
    local_connections: u32,
    other_nodes: u32,
    degraded: bool,
}

impl Accepted {
    fn say(&self, server: &Server) -> Result<(), Failure> {
        if server.json {
            let json = serde_json::to_string(self).map_err(|e| Failure::failed(e.to_string()))?;
            return say(&json);
        }
        let Self {
            status,
            message_id,
            local_connections,
            other_nodes,
            degraded,
        } = self;
        let others = match other_nodes {
            0 => String::new(),
            others => format!(", {others} other node(s)"),
        };
        let degraded = if *degraded { ", degraded" } else { "" };
        say(&format!(
            "{status}: {local_connections} connection(s) here{others}{degraded}, message {message_id}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str, key: Option<&str>) -> Server {
        Server {
            server: url.into(),
            key: key.map(Into::into),
            tls: TlsArgs::default(),
            json: false,
        }
    }

    #[test]
    fn the_development_key_goes_to_loopback_alone() {
        for local in [
            "http://127.0.0.1:8081",
            "http://localhost:1",
            "http://[::1]:1",
        ] {
            let request = server(local, None).request(()).expect("a key");
            let shown = request.metadata().get("authorization").expect("there");
            assert_eq!(shown, &format!("Bearer {DEVELOPMENT_KEY}"), "{local}");
        }
        for other in [
            "http://127.0.0.1.example.com",
            "http://10.0.0.1",
            "http://a.b/?127.0.0.1",
        ] {
            let refused = server(other, None).request(()).expect_err("no key");
            assert_eq!(refused.code, 2, "{other}");
            assert!(server(other, Some("tk_1")).request(()).is_ok());
        }
    }

    #[test]
    fn a_server_that_cannot_be_called_is_wrong_usage() {
        for (url, sentence) in [
            ("ftp://a.b", "write a URL"),
            ("a.b:8081", "write a URL"),
            ("", "write a URL"),
        ] {
            let failure = server(url, None).place().err().expect("wrong");
            assert!(
                failure.code == 2 && failure.message.contains(sentence),
                "{url}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn exit_codes_tell_refused_from_failed_and_unreachable() {
        for (code, exit) in [
            (Code::InvalidArgument, 3),
            (Code::Unauthenticated, 3),
            (Code::PermissionDenied, 3),
            (Code::ResourceExhausted, 3),
            (Code::Unimplemented, 3),
            (Code::Unavailable, 4),
            (Code::Cancelled, 4),
            (Code::Aborted, 1),
            (Code::Internal, 1),
        ] {
            assert_eq!(refused(&Status::new(code, "why")).code, exit, "{code:?}");
        }
    }
}
