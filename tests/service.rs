//! The service door.

use serde_json::{Value, json};
use tidings::proto::tidings::v1 as pb;
use tonic::Request;
use tonic::transport::Channel;

use crate::support::{KEY, TestNode, connect, next, node, node_with, until};

async fn channel(node: &TestNode) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", node.at.service)).expect("a URL");
    endpoint.connect().await.expect("connected")
}

fn with_key<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "authorization",
        format!("Bearer {KEY}").parse().expect("a value"),
    );
    request
}

fn push(user: &str, n: u64) -> pb::PushRequest {
    pb::PushRequest {
        user_id: user.into(),
        body: Some(pb::push_request::Body::Json(n.to_string())),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_pushes_to_a_screen_and_says_where_it_is() {
    let node = node().await;
    let (mut socket, welcome) = node.join("42", "&channels=news&device=phone").await;
    next(&mut socket).await;
    let mut client = pb::notification_client::NotificationClient::new(channel(&node).await);
    let answer = client
        .push_notification(with_key(push("42", 7)))
        .await
        .expect("accepted")
        .into_inner();
    assert_eq!(
        (answer.status(), answer.local_connections),
        (pb::Status::DeliveredLocally, 1)
    );
    assert_eq!(next(&mut socket).await["id"], answer.message_id);
    let mut connections = pb::connections_client::ConnectionsClient::new(channel(&node).await);
    let request = pb::WhereIsRequest {
        user_id: "42".into(),
    };
    let found = connections
        .where_is(with_key(request))
        .await
        .expect("answered")
        .into_inner()
        .connections;
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&json!(found[0].connection), found[0].device.as_str()),
        (&welcome["connection"], "phone")
    );
    assert_eq!(found[0].channels, ["news"]);
    let request = pb::PresenceRequest {
        channel: "news".into(),
    };
    let present = connections.presence(with_key(request)).await;
    let present = present.expect("answered").into_inner();
    assert_eq!((present.total, present.unknown), (1, 0));
    assert_eq!(
        (
            present.members[0].user_id.as_str(),
            &present.members[0].connection
        ),
        ("42", &found[0].connection)
    );
    let request = pb::HistoryRequest {
        address: "user:42".into(),
        ..Default::default()
    };
    let kept = connections.history(with_key(request)).await;
    let kept = kept.expect("answered").into_inner();
    assert_eq!(kept.entries[0].message_id, answer.message_id);
    assert_eq!(kept.entries[0].position, answer.position);
    assert_eq!((kept.position, kept.recovered), (answer.position, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_pushes_keeps_each_users_order_and_answers_every_item() {
    let node = node().await;
    let (mut socket, _) = node.join("42", "").await;
    let items: Vec<_> = (0..500)
        .map(|n| pb::PushItem {
            r#ref: n.to_string(),
            push: Some(push(if n % 5 == 4 { "bad user" } else { "42" }, n)),
        })
        .collect();
    let mut client = pb::notification_client::NotificationClient::new(channel(&node).await);
    let stream = client
        .push_notifications(with_key(tokio_stream::iter(items)))
        .await
        .expect("a stream");
    let mut results = stream.into_inner();
    let (mut good, mut bad) = (0, 0);
    while let Some(result) = results.message().await.expect("a result") {
        let n: u64 = result.r#ref.parse().expect("our ref");
        match result.result.expect("one of both") {
            pb::push_result::Result::Response(_) => good += 1,
            pb::push_result::Result::Error(error) => {
                assert_eq!(
                    (n % 5, error.code),
                    (4, tonic::Code::InvalidArgument as i32)
                );
                assert_eq!(error.details.len(), 2, "{error:?}");
                assert_eq!(
                    error.details[1].type_url,
                    "type.googleapis.com/google.rpc.BadRequest"
                );
                bad += 1;
            }
        }
    }
    assert_eq!((good, bad), (400, 100));
    for n in (0..500).filter(|n| n % 5 != 4) {
        assert_eq!(next(&mut socket).await["data"], n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_see_the_claims_of_a_ticket() {
    let node = node().await;
    // Byte for byte: no number is rounded, no key moves.
    let claims = r#"{"z":12345678901234567890123,"a":"x"}"#;
    let body = format!(r#"{{"user_id":"42","claims":{claims}}}"#);
    let url = format!("http://{}/v1/tickets", node.at.service);
    let request = node.http.post(url).bearer_auth(KEY);
    let request = request.header("content-type", "application/json");
    let answer = request.body(body).send().await;
    let answer = answer.expect("answered").text().await.expect("text");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let ticket = answer["ticket"].as_str().expect("a ticket");
    let url = format!("ws://{}/ws?ticket={ticket}", node.at.public);
    let mut socket = connect(&url).await.expect("an upgrade");
    next(&mut socket).await;
    let _plain = node.join("42", "").await;
    let url = format!("http://{}/v1/users/42/connections", node.at.service);
    let answer = node.http.get(url).bearer_auth(KEY).send().await;
    let answer = answer.expect("answered").text().await.expect("text");
    assert!(
        answer.contains(&format!(r#""claims":{claims}"#)),
        "{answer}"
    );
    assert_eq!(answer.matches("claims").count(), 1, "{answer}");
    let mut connections = pb::connections_client::ConnectionsClient::new(channel(&node).await);
    let request = pb::WhereIsRequest {
        user_id: "42".into(),
    };
    let found = connections.where_is(with_key(request)).await;
    let found = found.expect("answered").into_inner().connections;
    let shown: Vec<_> = found.iter().map(|c| c.claims.as_str()).collect();
    assert!(shown.contains(&claims) && shown.contains(&""), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stream_is_counted_like_any_call() {
    let node = node().await;
    let mut client = pb::notification_client::NotificationClient::new(channel(&node).await);
    let refused = client.push_notifications(tokio_stream::iter([])).await;
    let status = refused.expect_err("no key");
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    let counted = r#"tidings_calls_total{method="PushNotifications",code="UNAUTHENTICATED"} 1"#;
    let metrics = node.metrics().await;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_exist_yet_says_so_and_nothing_is_ignored() {
    let node = node().await;
    let later = [json!({"wait_for": "WRITTEN"}), json!({"waitTimeout": "1s"})];
    for extra in later {
        let mut body = json!({"user_id": "42", "message": 1});
        body.as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        let (status, answer) = node.post("/v1/push", body).await;
        assert_eq!(
            (status, &answer["code"]),
            (501, &json!("UNIMPLEMENTED")),
            "{extra}"
        );
    }
    let path = "/v1/explain?user=42&message_id=x";
    assert_eq!(node.get(path).await.0, 501);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_tell_who_they_are_and_what_they_hold() {
    let node = node_with(|config| config.node.id = Some("node-a".into())).await;
    let _here = node.join("42", "").await;
    let connected = async || node.get("/v1/nodes").await.1["nodes"][0]["connections"] == 1;
    until("the lease tells the connection", connected).await;
    let (status, answer) = node.get("/v1/nodes").await;
    let told = &answer["nodes"][0];
    assert_eq!(status, 200);
    assert_eq!(answer["nodes"].as_array().map(Vec::len), Some(1));
    assert_eq!(told["id"], "node-a");
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(told["draining"], false);
    assert!(told["load"].is_f64() && told["since"].is_u64(), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_request_is_told_its_field() {
    let node = node().await;
    let cases: [(&str, Value, u16, &str); 14] = [
        (
            "/v1/push",
            json!({"user_id": "a b", "message": 1}),
            400,
            "user_id must not contain spaces",
        ),
        (
            "/v1/push",
            json!({"user_id": "42"}),
            400,
            "message is missing",
        ),
        (
            "/v1/push",
            json!({"user_id": "42", "message": 1, "x": 2}),
            400,
            "unknown field `x`",
        ),
        (
            "/v1/push",
            json!({"user_id": "42", "json": "{"}),
            400,
            "json is not valid JSON",
        ),
        (
            "/v1/push",
            json!({"user_id": "42", "message": "x".repeat(65_537)}),
            400,
            "the limit is 65536",
        ),
        (
            "/v1/publish",
            json!({"channel": "a@b", "message": 1}),
            400,
            "channel must not contain '@'",
        ),
        (
            "/v1/publish",
            json!({"channel": "a", "message": 1, "class": "KEPT"}),
            400,
            "class cannot be KEPT",
        ),
        (
            "/v1/broadcast",
            json!({"message": 1}),
            400,
            "user_ids or everyone",
        ),
        (
            "/v1/broadcast",
            json!({"everyone": true, "message": 1, "class": "KEPT"}),
            400,
            "VOLATILE only",
        ),
        (
            "/v1/tickets",
            json!({"user_id": "42", "ttl": "1s"}),
            400,
            "ttl",
        ),
        (
            "/v1/tickets",
            json!({"user_id": "42", "ttl": "30"}),
            400,
            "ttl",
        ),
        (
            "/v1/tickets",
            json!({"user_id": "42", "since": "abc"}),
            400,
            "since",
        ),
        ("/v1/disconnect", json!({}), 400, "user_id or connection"),
        (
            "/v1/disconnect",
            json!({"connection": "x"}),
            400,
            "connection is not a connection's id",
        ),
    ];
    for (path, body, expected, sentence) in cases {
        let (status, answer) = node.post(path, body).await;
        let detail = answer["detail"].as_str().unwrap_or_default();
        assert!(
            status == expected && detail.contains(sentence),
            "{path}: {status} {answer}"
        );
    }
    assert_eq!(node.get("/nothing").await.0, 404);
    assert_eq!(node.get("/v1/push").await.0, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_opens_only_what_its_scopes_say() {
    let node = node_with(|c| {
        let hash = tidings::model::sha256(b"orders-key").iter().map(|b| format!("{b:02x}")).collect::<String>();
        let key = json!({"name": "orders", "sha256": hash, "scopes": ["push"], "addresses": ["user:4*"], "pushes_per_second": 2});
        c.api_keys.push(serde_json::from_value(key).expect("valid"));
    })
    .await;
    let push = |user: &str| json!({"user_id": user, "message": 1});
    let (status, answer) = node.post_as("wrong", "/v1/push", push("42")).await;
    assert_eq!((status, &answer["code"]), (401, &json!("UNAUTHENTICATED")));
    let (status, answer) = node
        .post_as("orders-key", "/v1/tickets", json!({"user_id": "42"}))
        .await;
    assert_eq!(
        (
            status,
            answer["detail"]
                .as_str()
                .is_some_and(|d| d.contains("\"ticket\""))
        ),
        (403, true)
    );
    assert_eq!(
        node.post_as("orders-key", "/v1/push", push("52")).await.0,
        403
    );
    assert_eq!(
        node.post_as("orders-key", "/v1/push", push("42")).await.0,
        200
    );
    assert_eq!(
        node.post_as("orders-key", "/v1/push", push("42")).await.0,
        200
    );
    let (status, answer) = node.post_as("orders-key", "/v1/push", push("42")).await;
    assert_eq!((status, &answer["retry_after_ms"]), (429, &json!(1000)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_answer() {
    use tonic_health::pb::health_client::HealthClient;
    let node = node().await;
    let mut health = HealthClient::new(channel(&node).await);
    let request = tonic_health::pb::HealthCheckRequest {
        service: "tidings.v1.Notification".into(),
    };
    let answer = health.check(request).await.expect("answered").into_inner();
    assert_eq!(
        answer.status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
            channel(&node).await,
        );
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(
                String::new(),
            ),
        ),
    };
    let stream = reflection
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .expect("a stream");
    let answer = stream.into_inner().message().await.expect("an answer");
    assert!(format!("{answer:?}").contains("tidings.v1.Connections"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_playgrounds_routes_are_for_its_own_page_alone() {
    let node = node().await;
    let base = format!("http://{}", node.at.public);
    let page = node.http.get(&base).send().await.expect("answered");
    assert!(page.headers().contains_key("content-security-policy"));
    let push = |origin: &str, host: Option<&str>| {
        let mut request = node
            .http
            .post(format!("{base}/dev/v1/push"))
            .header("origin", origin);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let body = json!({"user_id": "42", "message": 1}).to_string();
        request
            .header("content-type", "application/json")
            .body(body)
            .send()
    };
    assert_eq!(push(&base, None).await.expect("answered").status(), 200);
    assert_eq!(
        push("https://evil.example", None)
            .await
            .expect("answered")
            .status(),
        403
    );
    let rebound = push("http://evil.example", Some("evil.example"))
        .await
        .expect("answered");
    assert_eq!(rebound.status(), 403);
}
