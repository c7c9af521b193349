//! What one key may push in a second, and what it is told beyond that.

use std::time::Duration;

use serde_json::json;
use tidings::model::sha256;
use tidings::proto::tidings::v1 as pb;
use tidings::proto::tidings::v1::notification_client::NotificationClient;
use tidings::proto::tidings::v1::push_result::Result as Outcome;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::support::{KEY, TestNode, node_with, until};

/// A key that may push once a second, and its text.
const SLOW: &str = "slow-key";

async fn node() -> TestNode {
    node_with(|c| {
        let hash = sha256(SLOW.as_bytes());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let key =
            json!({"name": "slow", "sha256": hash, "scopes": ["push"], "pushes_per_second": 1});
        c.api_keys.push(serde_json::from_value(key).expect("valid"));
    })
    .await
}

fn push() -> pb::PushRequest {
    pb::PushRequest {
        user_id: "42".into(),
        body: Some(pb::push_request::Body::Message("one more".into())),
        ..Default::default()
    }
}

fn by<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let key = format!("Bearer {key}").parse().expect("a value");
    request.metadata_mut().insert("authorization", key);
    request
}

async fn grpc(node: &TestNode) -> NotificationClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{}", node.at.service)).expect("a URL");
    NotificationClient::new(endpoint.connect().await.expect("connected"))
}

#[track_caller]
fn assert_told_when(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("\"slow\""), "{status:?}");
    let retry = status.get_details_retry_info().expect("when to retry");
    assert_eq!(retry.retry_delay, Some(Duration::from_secs(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_over_its_rate_is_told_by_grpc_when_to_retry() {
    let node = node().await;
    let mut client = grpc(&node).await;
    let mut refused = None;
    until("it is over its rate", async || {
        refused = client.push_notification(by(SLOW, push())).await.err();
        refused.is_some()
    })
    .await;
    let refused = refused.expect("just seen");
    assert_told_when(&refused);
    assert_eq!(
        refused.metadata().get("retry-after-ms").expect("there"),
        "1000"
    );
    // Another key is not held back by it.
    for _ in 0..3 {
        let answer = client.push_notification(by(KEY, push())).await;
        answer.expect("accepted");
    }
    // As it was told.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = client.push_notification(by(SLOW, push())).await;
    answer.expect("accepted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_of_a_stream_over_the_rate_is_told_when_to_retry_and_the_stream_goes_on() {
    let node = node().await;
    let items = (0..8).map(|n| pb::PushItem {
        r#ref: n.to_string(),
        push: Some(push()),
    });
    let opening = grpc(&node)
        .await
        .push_notifications(by(SLOW, tokio_stream::iter(items)))
        .await;
    let answers = opening.expect("a stream").into_inner();
    let answers: Vec<_> = answers
        .map(|answer| answer.expect("no error"))
        .collect()
        .await;
    let refused = answers.iter().filter_map(|answer| match &answer.result {
        Some(Outcome::Error(error)) => Some(error),
        _ => None,
    });
    let refused: Vec<_> = refused.collect();
    assert!((1..8).contains(&refused.len()), "{answers:?}");
    for error in refused {
        let details = prost::Message::encode_to_vec(error);
        let code = Code::from_i32(error.code);
        assert_told_when(&Status::with_details(code, &error.message, details.into()));
    }
    assert_eq!(answers.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_over_its_rate_is_told_by_http_when_to_retry() {
    let node = node().await;
    let url = format!("http://{}/v1/push", node.at.service);
    let body = json!({"user_id": "42", "message": 1}).to_string();
    let mut refused = None;
    until("it is over its rate", async || {
        let request = node.http.post(&url).bearer_auth(SLOW);
        let request = request.header("content-type", "application/json");
        let answer = request.body(body.clone()).send().await.expect("answered");
        refused = Some(answer).filter(|answer| answer.status() != 200);
        refused.is_some()
    })
    .await;
    let refused = refused.expect("just seen");
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (429, &"1".parse().expect("a value"))
    );
    let problem: serde_json::Value =
        serde_json::from_str(&refused.text().await.expect("text")).expect("JSON");
    assert_eq!(
        (&problem["code"], &problem["retry_after_ms"]),
        (&json!("RESOURCE_EXHAUSTED"), &json!(1000))
    );
}
