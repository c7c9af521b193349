use std::io::Read as _;

use clap::{Args, ValueEnum};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::exit::{Failure, block_on};
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
    /// Prints JSON.
    #[arg(long)]
    json: bool,
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

impl Server {
    async fn channel(&self) -> Result<Channel, Failure> {
        let endpoint = Endpoint::from_shared(self.server.clone())
            .map_err(|e| Failure::usage(format!("--server {}: {e}", self.server)))?;
        endpoint.connect().await.map_err(|_| {
            Failure::unreachable(format!(
                "nothing answers at {}; is the node running? `tidings dev` starts one",
                self.server
            ))
        })
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let local = ["127.0.0.1", "localhost", "[::1]"]
            .iter()
            .any(|host| self.server.contains(host));
        let key = match &self.key {
            Some(key) => Secret::new(key.clone()),
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
fn refused(status: &Status) -> Failure {
    let message = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Failure::unreachable(message),
        _ => Failure::refused(message),
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
    let ttl = args.ttl.as_deref().map(parse_duration).transpose();
    let ttl = ttl.map_err(|e| Failure::usage(format!("--ttl: {e}")))?;
    let request = pb::IssueTicketRequest {
        user_id: args.user,
        device: args.device.unwrap_or_default(),
        channels: args.channels,
        ttl: ttl.and_then(|ttl| ttl.try_into().ok()),
        ..Default::default()
    };
    let issued = block_on(issue(&args.server, request))?;
    if args.server.json {
        println!(
            "{}",
            serde_json::json!({"ticket": issued.ticket, "url": issued.url})
        );
    } else {
        println!("{}", issued.ticket);
    }
    Ok(())
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
    print_answer(
        &args.server,
        answer.status(),
        &answer.message_id,
        answer.local_connections,
    );
    Ok(())
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
    print_answer(
        &args.server,
        answer.status(),
        &answer.message_id,
        answer.local_connections,
    );
    Ok(())
}

fn print_answer(server: &Server, status: pb::Status, id: &str, connections: u32) {
    let status = status.as_str_name();
    if server.json {
        let answer = serde_json::json!({"status": status, "message_id": id, "local_connections": connections});
        println!("{answer}");
    } else {
        println!("{status}: {connections} connection(s), message {id}");
    }
}
