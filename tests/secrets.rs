//! No ticket and no key is ever logged: every flow at trace level, with secrets that can be told.

use futures_util::SinkExt as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::process::{Running, dev};
use crate::support::{KEY, connect, connect_with, next};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ticket_and_no_key_is_ever_logged() {
    let mut command = dev();
    command.args(["--set", "log.level=trace"]);
    let running = Running::start(&mut command).await;
    let (public, service) = (running.node.at.public, running.node.at.service);
    let http = reqwest::Client::new();
    let post = |key: String, path: &str, body: Value| {
        let request = http
            .post(format!("http://{service}{path}"))
            .header("authorization", format!("Bearer {key}"));
        request
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
    };
    let mut secrets = vec![
        KEY.to_owned(),
        "marker-wrong-key".into(),
        "M".repeat(43),
        "marker.jwt.token".into(),
    ];
    let mut tickets = Vec::new();
    for _ in 0..4 {
        let answer = post(KEY.into(), "/v1/tickets", json!({"user_id": "42"}))
            .await
            .expect("answered");
        let answer: Value =
            serde_json::from_str(&answer.text().await.expect("text")).expect("JSON");
        tickets.push(answer["ticket"].as_str().expect("a ticket").to_owned());
    }
    secrets.extend(tickets.iter().cloned());
    post(
        "marker-wrong-key".into(),
        "/v1/push",
        json!({"user_id": "42", "message": 1}),
    )
    .await
    .expect("answered");
    let ws = format!("ws://{public}/ws");
    let mut socket = connect(&format!("{ws}?ticket={}", tickets[0]))
        .await
        .expect("an upgrade");
    next(&mut socket).await;
    let offered = format!("tidings.v1, tidings.ticket.{}", tickets[1]);
    connect_with(&ws, &[("sec-websocket-protocol", &offered)])
        .await
        .expect("an upgrade");
    for bad in [
        format!("ticket={}", tickets[0]),
        format!("ticket={}", "M".repeat(43)),
        format!("ticket={}&x=1", tickets[2]),
    ] {
        assert!(connect(&format!("{ws}?{bad}")).await.is_err());
    }
    // What an event stream comes back with, twice, and once as if it were another's.
    let sse = format!("http://{public}/sse?ticket={}", tickets[2]);
    let mut last = String::new();
    for _ in 0..3 {
        let request = http.get(&sse).header("last-event-id", &last);
        let mut events = request.send().await.expect("answered");
        assert_eq!(events.status(), 200);
        let first = events.chunk().await.expect("whole").expect("events");
        let first = String::from_utf8(first.into()).expect("text");
        let id = first.lines().find_map(|line| line.strip_prefix("id: "));
        last = id.expect("an id").to_owned();
        let (ticket, _) = last.split_once('~').expect("a ticket and positions");
        secrets.push(ticket.to_owned());
    }
    let tampered = http
        .get(&sse)
        .header("last-event-id", last.replacen("r1.", "r1.A", 1));
    assert_eq!(tampered.send().await.expect("answered").status(), 401);
    let origin = [("origin", "https://evil.example")];
    assert!(
        connect_with(&format!("{ws}?ticket={}", tickets[3]), &origin)
            .await
            .is_err()
    );
    let bearer = [("authorization", "Bearer marker.jwt.token")];
    assert!(connect_with(&ws, &bearer).await.is_err());
    post(
        KEY.into(),
        "/v1/push",
        json!({"user_id": "42", "message": 1}),
    )
    .await
    .expect("answered");
    socket.send(Message::text("garbage")).await.expect("sent");
    next(&mut socket).await;
    let disconnect = json!({"user_id": "42", "reason": "logged out"});
    post(KEY.into(), "/v1/disconnect", disconnect)
        .await
        .expect("answered");
    running.signal(Signal::TERM);
    let (status, log) = running.ended().await;
    assert!(status.success(), "{status}");
    assert!(
        log.contains("refused a client") && log.contains("a call was refused"),
        "{log}"
    );
    let audit = log
        .lines()
        .find(|line| line.contains("a service disconnected connections"))
        .expect("an audit line");
    for part in ["user:42", "logged out", "development"] {
        assert!(audit.contains(part), "{audit}");
    }
    for secret in secrets {
        assert!(!log.contains(&secret), "logged: {secret}");
    }
}
