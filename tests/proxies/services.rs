use hyper_util::rt::TokioIo;
use serde_json::json;
use tidings::proto::tidings::v1 as pb;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{HERE, behind, through};
use crate::support::proxy::{Kind, Proxy};
use crate::support::{KEY, next_of};

through!(services_push_by_grpc_and_by_http);

/// A gRPC channel through a proxy.
async fn channel(proxy: &Proxy) -> Channel {
    // Plain to tonic: TLS is the stream's.
    let endpoint = Endpoint::from_static("http://localhost");
    let dialed = proxy.dial_service().await.expect("TLS");
    let mut dialed = Some(TokioIo::new(dialed));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = dialed.take().ok_or_else(|| std::io::Error::other("once"));
        std::future::ready(stream)
    });
    let connecting = endpoint.connect_with_connector(connector);
    connecting.await.expect("HTTP/2")
}

fn with_key<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let key = format!("Bearer {KEY}").parse().expect("a value");
    request.metadata_mut().insert("authorization", key);
    request
}

fn push(n: u64) -> pb::PushRequest {
    pb::PushRequest {
        user_id: "42".into(),
        body: Some(pb::push_request::Body::Json(n.to_string())),
        ..Default::default()
    }
}

async fn services_push_by_grpc_and_by_http(kind: Kind) {
    let (node, proxy) = behind(kind, |_| {}).await;
    let mut socket = proxy.join(&node, "42").await;
    next_of(&mut socket, "welcome").await;
    let channel = channel(&proxy).await;
    let mut client = pb::notification_client::NotificationClient::new(channel);
    let answer = client.push_notification(with_key(push(0))).await;
    let answer = answer.expect("accepted").into_inner();
    assert_eq!(answer.local_connections, 1);
    assert_eq!(
        next_of(&mut socket, "message").await["id"],
        answer.message_id
    );
    // A refusal is in the trailers.
    let refused = client.push_notification(push(0)).await;
    let code = refused.expect_err("no key").code();
    assert_eq!(code, tonic::Code::Unauthenticated);
    // A stream: the next item goes out once the last one was answered.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let items = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let item = |n: u64| pb::PushItem {
        r#ref: n.to_string(),
        push: Some(push(n)),
    };
    sender.send(item(1)).await.expect("taken");
    let results = client.push_notifications(with_key(items)).await;
    let mut results = results.expect("a stream").into_inner();
    for n in 1..10 {
        let result = results.message().await.expect("a result").expect("one");
        assert_eq!(result.r#ref, n.to_string());
        assert_eq!(next_of(&mut socket, "message").await["data"], n);
        sender.send(item(n + 1)).await.expect("taken");
    }
    let url = format!("https://localhost:{}/v1/push", proxy.services);
    let request = proxy.http(HERE).post(url);
    let request = request
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {KEY}"))
        .body(json!({"user_id": "42", "message": "by HTTP"}).to_string());
    let response = request.send().await.expect("answered");
    assert_eq!(response.status(), 200);
    next_of(&mut socket, "message").await;
    assert_eq!(next_of(&mut socket, "message").await["data"], "by HTTP");
}
