use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::{HERE, behind, through};
use crate::support::events::Events;
use crate::support::proxy::Kind;
use crate::support::{closed, next, next_message, next_of, say, until};

through!(
    frames_pass_both_ways,
    events_arrive_while_the_stream_is_open,
    close_codes_arrive,
    a_node_lets_go_of_who_said_goodbye_before_the_proxy_closes,
    no_ticket_is_in_its_log,
);

async fn frames_pass_both_ways(kind: Kind) {
    let (node, proxy) = behind(kind, |_| {}).await;
    let mut socket = proxy.join(&node, "42").await;
    assert_eq!(next(&mut socket).await["user"], "42");
    say(&mut socket, json!({"type": "subscribe", "channel": "chat"})).await;
    next_of(&mut socket, "subscribed").await;
    // Larger than what is read at once, here and there.
    let large = "x".repeat(60_000);
    let publish = json!({"type": "publish", "ref": "1", "channel": "chat", "data": large});
    say(&mut socket, publish).await;
    assert_eq!(next_of(&mut socket, "message").await["data"], large);
    for n in 0..100 {
        node.push("42", json!(n)).await;
    }
    for n in 0..100 {
        assert_eq!(next_of(&mut socket, "message").await["data"], n);
    }
}

async fn events_arrive_while_the_stream_is_open(kind: Kind) {
    let (node, proxy) = behind(kind, |c| c.heartbeat.interval = SHORT).await;
    let ticket = node.ticket(json!({"user_id": "42"})).await;
    let url = format!("https://localhost:{}/sse?ticket={ticket}", proxy.clients);
    let http = proxy.http(HERE);
    let mut events = Events::at(&http, &url, &[]).await.expect("a stream");
    events.next_of("welcome").await;
    for n in 0..3 {
        node.push("42", json!(n)).await;
        assert_eq!(events.next_of("message").await["data"], n);
    }
    // A heartbeat is a few bytes, which are the first to be held back.
    events.comment().await;
    // The client goes, the proxy tells the node.
    drop(events);
    drop(http);
    until("the node sees it", async || node.node().connections() == 0).await;
}

const SHORT: std::time::Duration = std::time::Duration::from_secs(1);

async fn close_codes_arrive(kind: Kind) {
    let (mut node, proxy) = behind(kind, |_| {}).await;
    let mut first = proxy.join(&node, "42").await;
    let mut second = proxy.join(&node, "43").await;
    let mut third = proxy.join(&node, "44").await;
    for socket in [&mut first, &mut second, &mut third] {
        next_of(socket, "welcome").await;
    }
    let body = json!({"user_id": "42", "reason": "signed out"});
    assert_eq!(node.post("/v1/disconnect", body).await.0, 200);
    let frame = closed(&mut first).await;
    assert_eq!(
        (u16::from(frame.code), frame.reason.as_str()),
        (4501, "signed out")
    );
    for _ in 0..20 {
        say(&mut second, json!({"type": "nonsense"})).await;
    }
    assert_eq!(u16::from(closed(&mut second).await.code), 4500);
    let leaving = node.node.take().expect("it runs");
    let left = tokio::spawn(leaving.leave(std::future::ready(())));
    assert_eq!(u16::from(closed(&mut third).await.code), 1012);
    left.await.expect("it left");
}

/// Envoy delivers the end of a TCP connection late, and others may not at all: the close frame is what counts.
async fn a_node_lets_go_of_who_said_goodbye_before_the_proxy_closes(kind: Kind) {
    let (node, proxy) = behind(kind, |_| {}).await;
    let mut socket = proxy.join(&node, "42").await;
    next_of(&mut socket, "welcome").await;
    say_goodbye(&mut socket).await;
    // Our end of TCP stays open, and so does the proxy's.
    until("the node has let go", async || {
        node.node().connections() == 0
    })
    .await;
    // Who was told goodbye and does not answer: the deadline ends it.
    let mut socket = proxy.join(&node, "42").await;
    next_of(&mut socket, "welcome").await;
    let body = json!({"user_id": "42", "reason": "signed out"});
    assert_eq!(node.post("/v1/disconnect", body).await.0, 200);
    until("the node has let go", async || {
        node.node().connections() == 0
    })
    .await;
    drop(socket);
}

async fn say_goodbye(socket: &mut crate::support::proxy::Proxied) {
    socket.close(None).await.expect("sent");
    let answer = next_message(socket).await;
    assert!(matches!(answer, Some(Message::Close(_))), "{answer:?}");
}

async fn no_ticket_is_in_its_log(kind: Kind) {
    let (mut node, proxy) = behind(kind, |_| {}).await;
    let http = proxy.http(HERE);
    let (used, unknown) = (node.ticket(json!({"user_id": "42"})).await, "T".repeat(43));
    let mut socket = proxy
        .open(&format!("ticket={used}"), HERE, &[])
        .await
        .expect("an upgrade");
    next_of(&mut socket, "welcome").await;
    say_goodbye(&mut socket).await;
    // Traefik logs it once both ends of TCP are closed.
    drop(socket);
    let url = format!("https://localhost:{}/sse?ticket={unknown}", proxy.clients);
    assert_eq!(
        Events::at(&http, &url, &[]).await.err().expect("refused").0,
        401
    );
    // What fails is logged by some, and more of it.
    let leaving = node.node.take().expect("it runs");
    leaving.leave(std::future::ready(())).await;
    let gone = format!("ticket={unknown}");
    proxy
        .open(&gone, HERE, &[])
        .await
        .expect_err("nobody there");
    let refused = Events::at(&http, &url, &[]).await.err().expect("refused").0;
    assert!((500..505).contains(&refused), "{refused}");
    until("all four are logged", async || {
        let log = proxy.log();
        let status = |status: &str| log.matches(status).count();
        // Traefik says no status of what it upgraded.
        let upgraded = status("101") + status("\"DownstreamStatus\":0,");
        // The proxy may have found out in between that there is no node.
        let failed = ["502", "503", "504"].map(status).iter().sum::<usize>();
        // A port or a time may have these digits too.
        log.lines().count() > 3 && upgraded > 0 && status("401") > 0 && failed > 1
    })
    .await;
    let log = proxy.log();
    assert!(!log.contains(&used), "{log}");
    assert!(!log.contains(&unknown), "{log}");
    assert!(!log.contains("ticket="), "{log}");
}
