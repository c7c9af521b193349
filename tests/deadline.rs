//! The answer of a push comes before its caller gives up.

use std::sync::Arc;
use std::time::Duration;

use tidings::backplane::{
    Append, AppendError, Appended, Backplane, CursorMove, Envelope, From, Later, Leases, NodeLease,
    Opened, Page, PublishError, Published, Streams, Top,
};
use tidings::doors;
use tidings::doors::service::{self, Api, ApiKeys, LiveKeys};
use tidings::fleet::Health;
use tidings::hub::{Hub, HubParts, Intake, LiveLimits, Namespaces};
use tidings::model::{Address, NodeId, Position};
use tidings::proto::tidings::v1 as pb;
use tidings::telemetry::Metrics;
use tidings::tickets::{MemoryResume, ResumeTickets, Tickets};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::support::{KEY, config};

/// A backplane that has no room, or that lost the answer.
struct Broken {
    silent: bool,
}

impl Backplane for Broken {
    fn publish(
        &self,
        _: Address,
        _: Envelope,
        deadline: Instant,
    ) -> Later<'_, Result<Published, PublishError>> {
        Box::pin(async move {
            if self.silent {
                tokio::time::sleep_until(deadline).await;
                return Err(PublishError::Busy);
            }
            Err(PublishError::Unknown("the answer was lost".into()))
        })
    }

    fn listen(&self, _: Address) -> Later<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn unlisten(&self, _: &Address) {}

    fn listeners(&self, _: Address) -> Later<'_, Result<u32, String>> {
        Box::pin(std::future::ready(Ok(1)))
    }

    fn is_deaf(&self, _: &Address, _: u64) -> bool {
        false
    }

    fn ailments(&self) -> Vec<String> {
        Vec::new()
    }

    fn close(&self) -> Later<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Leases for Broken {
    fn renew(&self, _: NodeLease) -> Later<'_, Result<(), String>> {
        Box::pin(std::future::ready(Err("nobody is there".into())))
    }

    fn release(&self, _: String) -> Later<'_, Result<(), String>> {
        Box::pin(std::future::ready(Err("nobody is there".into())))
    }

    fn nodes(&self) -> Later<'_, Result<Vec<NodeLease>, String>> {
        Box::pin(async {
            if self.silent {
                std::future::pending::<()>().await;
            }
            Err("nobody is there".into())
        })
    }
}

fn gone<T: Send + 'static>() -> Later<'static, Result<T, String>> {
    Box::pin(std::future::ready(Err("nobody is there".into())))
}

impl Streams for Broken {
    fn append(&self, _: Append, deadline: Instant) -> Later<'_, Result<Appended, AppendError>> {
        Box::pin(async move {
            if self.silent {
                tokio::time::sleep_until(deadline).await;
                return Err(AppendError::Busy);
            }
            Err(AppendError::Unknown("the answer was lost".into()))
        })
    }

    fn open(&self, _: Address, _: Duration, _: From) -> Later<'_, Result<Opened, String>> {
        gone()
    }

    fn tops(&self, _: Vec<(Address, Position)>) -> Later<'_, Result<Vec<Top>, String>> {
        gone()
    }

    fn read(&self, _: Address, _: u64, _: usize) -> Later<'_, Result<Page, String>> {
        gone()
    }

    fn advance(&self, _: Vec<CursorMove>) -> Later<'_, Result<(), String>> {
        gone()
    }
}

/// A service door in front of that backplane.
async fn door(silent: bool) -> Channel {
    let config = config();
    let metrics = Metrics::new();
    let parts = HubParts {
        node: NodeId("test".into()),
        config: config.hub.clone(),
        limits: LiveLimits::new(config.limits.clone()),
        heartbeat: config.heartbeat.clone(),
        inbox: config.inbox.clone(),
        namespaces: Arc::new(Namespaces::new(&config.namespaces, true)),
        metrics: metrics.clone(),
        resume: Arc::new(ResumeTickets::new(
            None,
            Arc::new(MemoryResume::new(10)),
            metrics.clone(),
        )),
    };
    let keys = ApiKeys::new(&config.api_keys).expect("valid");
    let intake = Intake::new(&config.hub, &metrics);
    let backplane = Arc::new(Broken { silent });
    let (hub, _, _) = Hub::new(parts, intake, backplane.clone(), backplane.clone());
    let api = Api {
        router: hub.router.clone(),
        tickets: Arc::new(Tickets::in_memory(&config.tickets).expect("valid")),
        leases: backplane.clone(),
        keys: Arc::new(LiveKeys::new(keys)),
        limits: LiveLimits::new(config.limits.clone()),
        url: None,
        metrics,
    };
    let phases = Health::new(Vec::new).phases();
    let routes = service::routes(Arc::new(api), phases, 16, false)
        .await
        .expect("routes");
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let at = socket.local_addr().expect("an address");
    tokio::spawn(doors::serve(
        "service",
        socket,
        routes,
        None,
        std::future::pending(),
    ));
    let endpoint = Channel::from_shared(format!("http://{at}")).expect("a URL");
    endpoint.connect().await.expect("connected")
}

async fn push(channel: Channel, timeout: Option<&str>) -> Status {
    let mut request = Request::new(pb::PushRequest {
        user_id: "42".into(),
        body: Some(pb::push_request::Body::Message("hello".into())),
        ..Default::default()
    });
    let metadata = request.metadata_mut();
    let key = format!("Bearer {KEY}").parse().expect("a value");
    metadata.insert("authorization", key);
    if let Some(timeout) = timeout {
        metadata.insert("grpc-timeout", timeout.parse().expect("a value"));
    }
    let mut client = pb::notification_client::NotificationClient::new(channel);
    client
        .push_notification(request)
        .await
        .expect_err("the backplane is broken")
}

#[tokio::test]
async fn a_push_is_answered_before_the_callers_deadline() {
    let channel = door(true).await;
    let status = push(channel.clone(), Some("600m")).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let retry = status.get_details_retry_info().expect("when to retry");
    assert_eq!(retry.retry_delay, Some(Duration::from_secs(1)));
    let status = push(channel, Some("soon")).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("grpc-timeout"), "{status:?}");
}

#[tokio::test]
async fn an_unknown_outcome_names_the_message() {
    let status = push(door(false).await, None).await;
    assert_eq!(status.code(), Code::Aborted);
    let id = status.metadata().get("message-id").expect("an id");
    let info = status.get_details_error_info().expect("what happened");
    assert_eq!((&*info.reason, &*info.domain), ("ABORTED", "tidings"));
    assert_eq!(info.metadata["message_id"], id.to_str().expect("ASCII"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_unavailable_while_the_backplane_is() {
    for (silent, sentence) in [
        (false, "nobody is there"),
        (true, "the backplane does not answer"),
    ] {
        let mut client = pb::connections_client::ConnectionsClient::new(door(silent).await);
        let mut request = Request::new(pb::NodesRequest {});
        let key = format!("Bearer {KEY}").parse().expect("a value");
        request.metadata_mut().insert("authorization", key);
        let status = client.nodes(request).await.expect_err("broken");
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), sentence);
        assert!(status.get_details_retry_info().is_some());
    }
}
