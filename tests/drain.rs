//! How a node leaves.

use std::time::Duration;

use serde_json::json;

use tidings::proto::tidings::v1 as pb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{KEY, TestNode, closed, node_with, until};

/// What a probe of the admin door answers; `None` = nobody is there.
async fn probe(node: &TestNode, path: &str) -> Option<u16> {
    let url = format!("http://{}{path}", node.at.admin);
    let answered = node.http.get(url).send().await;
    answered.ok().map(|response| response.status().as_u16())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_red_accepts_on_and_closes_with_1012() {
    let mut node = node_with(|c| {
        c.drain.deregister_delay = Duration::from_millis(800);
        c.drain.spread = Duration::from_millis(300);
    })
    .await;
    let (mut socket, _) = node.join("42", "").await;
    let ready = format!("http://{}/readyz", node.at.admin);
    assert_eq!(
        node.http
            .get(&ready)
            .send()
            .await
            .expect("answered")
            .status(),
        200
    );
    let leaving = tokio::spawn(
        node.node
            .take()
            .expect("it runs")
            .leave(std::future::pending()),
    );
    until("readiness is red", async || {
        node.http
            .get(&ready)
            .send()
            .await
            .is_ok_and(|r| r.status() == 503)
    })
    .await;
    let body = node
        .http
        .get(&ready)
        .send()
        .await
        .expect("answered")
        .text()
        .await
        .expect("text");
    assert_eq!(body, r#"{"ready":false,"reasons":["draining"]}"#);
    let (mut late, _) = node.join("43", "").await;
    assert_eq!(node.push("42", json!(1)).await["local_connections"], 1);
    for socket in [&mut socket, &mut late] {
        assert_eq!(u16::from(closed(socket).await.code), 1012);
    }
    leaving.await.expect("it left");
    assert!(
        tokio::net::TcpStream::connect(node.at.public)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_means_now() {
    let mut node = node_with(|c| c.drain.deregister_delay = Duration::from_secs(3600)).await;
    let (mut socket, _) = node.join("42", "").await;
    let (now, when) = tokio::sync::oneshot::channel::<()>();
    let leaving = node.node.take().expect("it runs").leave(async {
        let _ = when.await;
    });
    let leaving = tokio::spawn(leaving);
    now.send(()).expect("it listens");
    assert_eq!(u16::from(closed(&mut socket).await.code), 1012);
    leaving.await.expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_sessions_leaves_at_once() {
    let mut node = node_with(|c| c.drain.deregister_delay = Duration::from_secs(3600)).await;
    let leaving = node
        .node
        .take()
        .expect("it runs")
        .leave(std::future::pending());
    tokio::time::timeout(crate::support::DEADLINE, leaving)
        .await
        .expect("at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_turns_first_and_calls_are_served_until_the_service_door_closes() {
    let mut node = node_with(|c| {
        c.drain.deregister_delay = Duration::from_millis(2500);
        c.drain.spread = Duration::from_millis(1500);
    })
    .await;
    let (_socket, _) = node.join("42", "").await;
    let endpoint = Channel::from_shared(format!("http://{}", node.at.service)).expect("a URL");
    let channel = endpoint.connect().await.expect("connected");
    let mut health = HealthClient::new(channel.clone());
    let request = |service: &str| HealthCheckRequest {
        service: service.into(),
    };
    let watch = health.watch(request("tidings.v1.Tickets")).await;
    let mut watch = watch.expect("a stream").into_inner();
    let mut next = async || watch.message().await.expect("no error");
    let serving = next().await.expect("a status");
    assert_eq!(serving.status(), ServingStatus::Serving);
    let leaving = node.node.take().expect("it runs");
    let leaving = tokio::spawn(leaving.leave(std::future::pending()));
    let told = next().await.expect("a status");
    assert_eq!(told.status(), ServingStatus::NotServing);
    for service in ["", "tidings.v1.Notification", "tidings.v1.Connections"] {
        let answer = health.check(request(service)).await.expect("answered");
        let status = answer.into_inner().status();
        assert_eq!(status, ServingStatus::NotServing, "{service:?}");
    }
    assert_eq!(node.push("42", json!(1)).await["local_connections"], 1);
    assert_eq!(probe(&node, "/readyz?door=service").await, Some(200));
    assert_eq!(probe(&node, "/readyz").await, Some(503));
    until("the service door is red", async || {
        probe(&node, "/readyz?door=service").await == Some(503)
    })
    .await;
    assert!(next().await.is_none(), "the watch of health ends");
    until("the service door is closed", async || {
        let connected = tokio::net::TcpStream::connect(node.at.service).await;
        connected.is_err()
    })
    .await;
    leaving.await.expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_cuts_calls_in_flight() {
    let mut node = node_with(|_| {}).await;
    let mut call = tokio::net::TcpStream::connect(node.at.service)
        .await
        .expect("connected");
    // A body that never comes: such a call may take 10 s.
    let head = format!(
        "POST /v1/push HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: 9\r\n\r\n"
    );
    call.write_all(head.as_bytes()).await.expect("sent");
    // It says so once the call is under way.
    let mut begun = [0; 12];
    call.read_exact(&mut begun).await.expect("100 Continue");
    let leaving = node.node.take().expect("it runs");
    tokio::time::timeout(
        Duration::from_secs(5),
        leaving.leave(std::future::ready(())),
    )
    .await
    .expect("long before the call's own end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_pushes_goes_on_in_a_drain_and_ends_when_the_door_closes() {
    let mut node = node_with(|c| {
        c.drain.deregister_delay = Duration::from_millis(2500);
        c.drain.spread = Duration::from_millis(300);
    })
    .await;
    let (_socket, _) = node.join("42", "").await;
    let endpoint = Channel::from_shared(format!("http://{}", node.at.service)).expect("a URL");
    let channel = endpoint.connect().await.expect("connected");
    let (items, sent) = tokio::sync::mpsc::channel(1);
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(sent));
    let key = format!("Bearer {KEY}").parse().expect("a value");
    request.metadata_mut().insert("authorization", key);
    let mut client = pb::notification_client::NotificationClient::new(channel);
    let stream = client.push_notifications(request).await;
    let mut results = stream.expect("a stream").into_inner();
    let leaving = node.node.take().expect("it runs");
    let leaving = tokio::spawn(leaving.leave(std::future::pending()));
    until("readiness is red", async || {
        probe(&node, "/readyz").await == Some(503)
    })
    .await;
    let push = pb::PushRequest {
        user_id: "42".into(),
        body: Some(pb::push_request::Body::Message("late".into())),
        ..Default::default()
    };
    let item = pb::PushItem {
        r#ref: "late".into(),
        push: Some(push),
    };
    items.send(item).await.expect("the stream is open");
    let answer = results
        .message()
        .await
        .expect("no error")
        .expect("a result");
    assert!(
        matches!(answer.result, Some(pb::push_result::Result::Response(_))),
        "{answer:?}"
    );
    assert!(results.message().await.expect("no error").is_none());
    leaving.await.expect("it left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_http_connection_is_answered_and_told_to_end() {
    let mut node = node_with(|c| c.drain.deregister_delay = Duration::from_secs(3600)).await;
    let (_socket, _) = node.join("42", "").await;
    let mut kept = tokio::net::TcpStream::connect(node.at.public)
        .await
        .expect("connected");
    let mut ask = async || {
        let request = b"OPTIONS /v1/tickets HTTP/1.1\r\nhost: x\r\norigin: http://x\r\n\
            access-control-request-method: POST\r\n\r\n";
        kept.write_all(request).await.expect("sent");
        let mut answer = String::new();
        while !answer.contains("\r\n\r\n") {
            let mut bytes = [0; 1024];
            let count = kept.read(&mut bytes).await.expect("read");
            assert!(count > 0, "closed early: {answer}");
            answer += &String::from_utf8_lossy(&bytes[..count]);
        }
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        answer.to_lowercase()
    };
    assert!(!ask().await.contains("connection: close"));
    let (now, when) = tokio::sync::oneshot::channel::<()>();
    let leaving = node.node.take().expect("it runs").leave(async {
        let _ = when.await;
    });
    let leaving = tokio::spawn(leaving);
    until("readiness is red", async || {
        probe(&node, "/readyz").await == Some(503)
    })
    .await;
    assert!(ask().await.contains("connection: close"));
    now.send(()).expect("it listens");
    leaving.await.expect("it left");
}
