//! Certificates of services at the service door.

use std::path::PathBuf;

use rcgen::SanType;
use serde_json::{Value, json};
use tidings::config::Config;
use tidings::doors::config::{ClientConfig, Scope, ServiceTlsConfig};
use tidings::proto::tidings::v1 as pb;
use tidings::proto::tidings::v1::notification_client::NotificationClient;
use tidings::tls::ClientAuth;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::reload::reload;
use crate::support::certs::{BOTH, Ca, Pair, dial};
use crate::support::{KEY, TestNode, node_with, until};

/// A node whose service door takes certificates of an issuer: `orders.internal` may push, a SPIFFE id may all but admin.
async fn node(ca: &Ca, auth: ClientAuth, change: impl FnOnce(&mut Config)) -> TestNode {
    let (cert_file, key_file) = ca.install("service", &ca.issue(&["localhost"]));
    let client = |name: &str, scopes: &[Scope]| ClientConfig {
        name: name.into(),
        scopes: scopes.into(),
        addresses: vec!["user:*".into()],
        pushes_per_second: 0,
    };
    node_with(|c| {
        c.service.tls = Some(ServiceTlsConfig {
            cert_file,
            key_file,
            client_ca_file: Some(ca.file()),
            client_auth: auth,
            clients: vec![
                client("Orders.internal", &[Scope::Push]),
                client("spiffe://prod/billing", &[Scope::Push, Scope::Read]),
            ],
        });
        change(c);
    })
    .await
}

/// A push by HTTP/JSON: status and body. `key` = with that API key.
async fn push(node: &TestNode, http: &reqwest::Client, key: Option<&str>) -> (u16, Value) {
    push_with(node, http, key, json!({"user_id": "42", "message": "hi"})).await
}

async fn push_with(
    node: &TestNode,
    http: &reqwest::Client,
    key: Option<&str>,
    body: Value,
) -> (u16, Value) {
    let port = node.at.service.port();
    let mut request = http
        .post(format!("https://localhost:{port}/v1/push"))
        .header("content-type", "application/json")
        .body(body.to_string());
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let response = request.send().await.expect("answered");
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).expect("JSON"))
}

/// The same by gRPC.
async fn push_grpc(node: &TestNode, ca: &Ca, pair: &Pair) -> Result<(), tonic::Status> {
    let (client, address) = (ca.client(Some(pair), "h2", BOTH), node.at.service);
    let connector = tower::service_fn(move |_: http::Uri| {
        let client = client.clone();
        async move {
            let stream = dial(&client, address).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("https://localhost");
    let channel = endpoint.connect_with_connector(connector).await;
    let mut client = NotificationClient::new(channel.expect("connected"));
    let request = pb::PushRequest {
        user_id: "42".into(),
        body: Some(pb::push_request::Body::Message("hi".into())),
        ..Default::default()
    };
    client.push_notification(request).await.map(|_| ())
}

fn spiffe(ca: &Ca, ids: &[&str]) -> Pair {
    ca.issue_with(&["orders.internal"], |params| {
        for id in ids {
            let id = rcgen::string::Ia5String::try_from(*id).expect("ascii");
            params.subject_alt_names.push(SanType::URI(id));
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listed_certificate_counts_as_an_api_key() {
    let ca = Ca::new();
    let node = node(&ca, ClientAuth::Optional, |_| {}).await;
    let orders = ca.issue(&["other.internal", "orders.INTERNAL"]);
    let billing = spiffe(&ca, &["spiffe://prod/billing"]);
    for pair in [&orders, &billing] {
        let (status, body) = push(&node, &ca.https(Some(pair)), None).await;
        assert_eq!(status, 200, "{body}");
        push_grpc(&node, &ca, pair).await.expect("pushed");
    }
    // What it lacks is told by its name, in both protocols' one way.
    let nodes = format!("https://localhost:{}/v1/nodes", node.at.service.port());
    let asked = async |pair| {
        let answer = ca.https(Some(pair)).get(&nodes).send().await;
        let answer = answer.expect("answered");
        (
            answer.status().as_u16(),
            answer.text().await.expect("a body"),
        )
    };
    assert_eq!(asked(&billing).await.0, 200);
    let (status, body) = asked(&orders).await;
    assert_eq!(status, 403);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let told = body["detail"].as_str().expect("a sentence");
    assert!(
        told.contains("client certificate \"orders.internal\"") && told.contains("\"read\""),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_listed_is_denied_by_its_name() {
    let ca = Ca::new();
    let node = node(&ca, ClientAuth::Optional, |_| {}).await;
    let strangers = [
        (ca.issue(&["stranger.internal"]), "stranger.internal"),
        // Its SPIFFE id is its name, also beside a DNS name that is listed.
        (spiffe(&ca, &["spiffe://prod/x"]), "spiffe://prod/x"),
        (spiffe(&ca, &["spiffe://a/x", "spiffe://a/y"]), "no usable"),
    ];
    for (pair, name) in &strangers {
        let (status, body) = push(&node, &ca.https(Some(pair)), None).await;
        assert_eq!((status, &body["code"]), (403, &json!("PERMISSION_DENIED")));
        assert!(
            body["detail"].as_str().expect("one").contains(name),
            "{body}"
        );
        let denied = push_grpc(&node, &ca, pair).await.expect_err("denied");
        assert_eq!(denied.code(), Code::PermissionDenied);
        assert!(denied.message().contains(name), "{denied:?}");
        // The API key wins, for good and for bad.
        let https = ca.https(Some(pair));
        assert_eq!(push(&node, &https, Some(KEY)).await.0, 200);
        assert_eq!(push(&node, &https, Some("wrong")).await.0, 401);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_a_key_does_unless_one_is_required() {
    let ca = Ca::new();
    let optional = node(&ca, ClientAuth::Optional, |_| {}).await;
    let https = ca.https(None);
    assert_eq!(push(&optional, &https, None).await.0, 401);
    assert_eq!(push(&optional, &https, Some(KEY)).await.0, 200);

    let required = node(&ca, ClientAuth::Required, |_| {}).await;
    let url = format!(
        "https://localhost:{}/openapi.json",
        required.at.service.port()
    );
    let answered = https.get(&url).send().await;
    assert!(answered.is_err(), "{answered:?}");
    let good = ca.https(Some(&ca.issue(&["orders.internal"])));
    assert_eq!(push(&required, &good, None).await.0, 200);
    let metrics = required.metrics().await;
    let failed = "tidings_tls_failures_total{door=\"service\",reason=\"handshake\"} ";
    assert!(metrics.contains(failed), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_issuer_fails_the_handshake() {
    let ca = Ca::new();
    let foreign = Ca::new().issue(&["orders.internal"]);
    for auth in [ClientAuth::Optional, ClientAuth::Required] {
        let node = node(&ca, auth, |_| {}).await;
        let url = format!("https://localhost:{}/openapi.json", node.at.service.port());
        let answered = ca.https(Some(&foreign)).get(url).send().await;
        assert!(answered.is_err(), "{answered:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_and_a_certificate_of_one_name_do_not_share_idempotency() {
    let ca = Ca::new();
    let node = node(&ca, ClientAuth::Optional, |c| {
        c.api_keys[0].name = "orders.internal".into();
    })
    .await;
    let by_certificate = ca.https(Some(&ca.issue(&["orders.internal"])));
    let by_key = ca.https(None);
    let body = json!({"user_id": "42", "message": "hi", "idempotency_key": "7"});
    let mut told = Vec::new();
    for (http, key) in [(&by_key, Some(KEY)), (&by_certificate, None)] {
        for _ in 0..2 {
            let (status, answer) = push_with(&node, http, key, body.clone()).await;
            assert_eq!(status, 200, "{answer}");
            told.push(answer["duplicate"] == true);
        }
    }
    assert_eq!(told, [false, true, false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_issuer_of_clients_is_taken_up_and_the_old_one_is_not_trusted_any_more() {
    let (ca, next) = (Ca::new(), Ca::new());
    let mut node = node(&ca, ClientAuth::Optional, |_| {}).await;
    let old = ca.issue(&["orders.internal"]);
    let connected = ca.https(Some(&old));
    assert_eq!(push(&node, &connected, None).await.0, 200);
    ca.write("ca.pem", &next.pem());
    reload(&mut node, |_| {}).await.expect("taken up");
    // Who is connected stays so; who comes is looked at anew.
    assert_eq!(push(&node, &connected, None).await.0, 200);
    let new = next.issue(&["orders.internal"]);
    // The door's own certificate is of the first issuer still.
    assert_eq!(push(&node, &ca.https(Some(&new)), None).await.0, 200);
    let url = format!("https://localhost:{}/openapi.json", node.at.service.port());
    let answered = ca.https(Some(&old)).get(url).send().await;
    assert!(answered.is_err(), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_calls_over_tls_with_a_certificate() {
    let ca = Ca::new();
    let node = node(&ca, ClientAuth::Required, |_| {}).await;
    let (cert, key) = ca.install("orders", &ca.issue(&["orders.internal"]));
    let server = format!("https://localhost:{}", node.at.service.port());
    let ca_file = ca.file();
    let run = async |args: &[&str], files: &[(&str, &PathBuf)]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(args).args(["--server", &server]);
        for (flag, file) in files {
            command.arg(flag).arg(file);
        }
        let output = command.kill_on_drop(true).output().await.expect("it ran");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), told)
    };
    let push = ["push", "42", "hello"];
    let trusting = ("--ca-file", &ca_file);
    let known = [trusting, ("--cert-file", &cert), ("--key-file", &key)];
    let (code, told) = run(&push, &known).await;
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = run(&["nodes"], &known).await;
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("lacks the scope"), "{told}");
    // A refusal that meets the call under way may be lost with its connection.
    until("it says what is missing", async || {
        let (code, told) = run(&push, &[trusting]).await;
        assert!(matches!(code, Some(1 | 3 | 4)), "{told}");
        told.contains("--cert-file")
    })
    .await;
    let (code, told) = run(&push, &known[1..]).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("--ca-file"), "{told}");
}
