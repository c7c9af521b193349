//! Server-sent events: the same messages, and a browser that comes back misses nothing.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::config::Config;
use tidings::hub::{Namespace, PublishRule, SubscribeRule, UserLimit};
use tidings::model::{ChannelName, Origin};

use crate::support::events::Events;
use crate::support::fleet::fleet;
use crate::support::redis::RedisServer;
use crate::support::{TestNode, closed, connect, node, node_with, refused, until};

fn keeps(c: &mut Config) {
    c.namespaces.push(Namespace {
        name: ChannelName::parse("kept").expect("a name"),
        subscribe: SubscribeRule::Any,
        publish: PublishRule::Any,
        max_messages: 100,
        max_age: Duration::from_secs(3600),
        max_bytes: 1 << 20,
    });
}

async fn query(node: &TestNode, user: &str, more: &str) -> String {
    let ticket = node.ticket(json!({"user_id": user})).await;
    format!("ticket={ticket}{more}")
}

/// Opens a stream as a user, and takes its welcome.
async fn join(node: &TestNode, query: &str) -> (Events, Value) {
    let mut events = Events::open(node, query, &[]).await.expect("a good ticket");
    let welcome = events.next_of("welcome").await;
    (events, welcome)
}

/// Comes back, and takes the welcome.
async fn rejoin(node: &TestNode, query: &str, last_id: &str) -> (Events, Value) {
    let mut events = Events::back(node, query, last_id).await.expect("a good id");
    let welcome = events.next_of("welcome").await;
    (events, welcome)
}

async fn status(node: &TestNode, query: &str, headers: &[(&str, &str)]) -> u16 {
    match Events::open(node, query, headers).await {
        Ok(_) => 200,
        Err((status, _)) => status,
    }
}

async fn messages(events: &mut Events, numbers: impl IntoIterator<Item = u32>) {
    for n in numbers {
        assert_eq!(events.next_of("message").await["data"], json!(n));
    }
}

async fn until_nobody_is_there(node: &TestNode) {
    until("the sessions are gone", async || {
        node.counter("tidings_connections").await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_that_comes_back_misses_nothing_and_sees_nothing_twice() {
    let node = node_with(keeps).await;
    let url = query(&node, "42", "&channels=kept:a,live").await;
    let (mut events, welcome) = join(&node, &url).await;
    assert_eq!(welcome["user"], "42");
    assert!((1_000..5_000).contains(&events.retry.expect("a pause")));
    for channel in ["kept:a", "live"] {
        assert_eq!(events.next_of("subscribed").await["channel"], channel);
    }
    for n in 0..2 {
        node.push("42", json!(n)).await;
        node.publish("kept:a", json!(n + 10)).await;
        node.publish("live", json!(n + 20)).await;
        messages(&mut events, [n, n + 10, n + 20]).await;
    }
    let id = events.last_id.clone();
    drop(events);
    node.push("42", json!(2)).await;
    node.publish("kept:a", json!(12)).await;
    node.publish("live", json!(22)).await;
    // The ticket of the URL is spent; the id is what opens.
    assert_eq!(status(&node, &url, &[]).await, 401);
    let (mut events, welcome) = rejoin(&node, &url, &id).await;
    assert_eq!(welcome["recovered"], true);
    let mut subscribed = Vec::new();
    let mut heard = Vec::new();
    node.push("42", json!(3)).await;
    node.publish("kept:a", json!(13)).await;
    while heard.len() < 4 || subscribed.len() < 2 {
        let frame = events.next().await;
        match frame["type"].as_str() {
            Some("subscribed") => subscribed.push(frame),
            Some("message") => heard.push(frame["data"].as_u64().expect("a number")),
            _ => panic!("{frame}"),
        }
    }
    assert_eq!(subscribed[0]["recovered"], true, "{subscribed:?}");
    let of = |low: u64| {
        let theirs = heard.iter().filter(move |n| (low..low + 10).contains(*n));
        theirs.copied().collect::<Vec<_>>()
    };
    assert_eq!((of(0), of(10), of(20)), (vec![2, 3], vec![12, 13], vec![]));
    // By the id in the query, as some libraries do.
    let id = events.last_id.clone();
    drop(events);
    node.push("42", json!(4)).await;
    let (mut events, welcome) = join(&node, &format!("{url}&lastEventId={id}")).await;
    assert_eq!(welcome["recovered"], true);
    for _ in 0..2 {
        events.next_of("subscribed").await;
    }
    messages(&mut events, [4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_are_comments() {
    let node = node_with(|c| c.heartbeat.interval = Duration::from_millis(100)).await;
    let url = query(&node, "42", "").await;
    let (mut events, _) = join(&node, &url).await;
    for _ in 0..3 {
        events.comment().await;
    }
    node.push("42", json!(0)).await;
    messages(&mut events, [0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_is_shown_again_takes_the_place_of_what_it_opened() {
    let node = node().await;
    let url = query(&node, "42", "").await;
    let (first, _) = join(&node, &url).await;
    let id = first.last_id.clone();
    let mut before = first;
    for _ in 0..3 {
        let (now, _) = rejoin(&node, &url, &id).await;
        assert_eq!(before.try_next().await, None);
        assert_eq!(
            before.comments.last().expect("a reason"),
            "closed 1000 resumed"
        );
        before = now;
    }
    until("one is left", async || {
        node.counter("tidings_connections").await == 1
    })
    .await;
    node.push("42", json!(0)).await;
    messages(&mut before, [0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_id_opens_nothing() {
    let node = node().await;
    let url = query(&node, "42", "").await;
    for bad in ["x", "r1.AAAA~", "~", "r1.", "now"] {
        assert_eq!(
            status(&node, &url, &[("last-event-id", bad)]).await,
            401,
            "{bad}"
        );
    }
    // An empty one is none.
    assert_eq!(status(&node, &url, &[("last-event-id", "")]).await, 200);
    assert_eq!(status(&node, "", &[]).await, 401);
    let ticket = format!("ticket={}", "A".repeat(43));
    assert_eq!(status(&node, &ticket, &[]).await, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_allowed_origins_may_read_and_each_only_its_own() {
    let (ours, other) = ("https://a.example", "https://b.example");
    let node = node_with(|c| {
        c.public.allowed_origins = [ours, other]
            .map(|origin| Origin::parse(origin).expect("an origin"))
            .into();
    })
    .await;
    let url = query(&node, "42", "").await;
    assert_eq!(
        status(&node, &url, &[("origin", "https://c.example")]).await,
        403
    );
    let mut events = Events::open(&node, &url, &[("origin", ours)])
        .await
        .expect("a good ticket");
    assert_eq!(events.header("access-control-allow-origin"), Some(ours));
    events.next_of("welcome").await;
    let id = events.last_id.clone();
    let back = |origin| [("origin", origin), ("last-event-id", &*id)];
    assert_eq!(status(&node, &url, &back(other)).await, 403);
    assert_eq!(status(&node, &url, &back(ours)).await, 200);
    let preflight = node
        .http
        .request(
            reqwest::Method::OPTIONS,
            format!("http://{}/sse", node.at.public),
        )
        .header("origin", ours)
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "last-event-id")
        .send()
        .await
        .expect("answered");
    assert_eq!(preflight.status(), 204);
    let headers = preflight.headers();
    assert_eq!(headers["access-control-allow-origin"], ours);
    assert_eq!(headers["access-control-allow-methods"], "GET");
    let allowed = headers["access-control-allow-headers"].to_str();
    assert!(allowed.expect("text").contains("last-event-id"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_websockets_or_too_much_is_a_bad_request() {
    let node = node().await;
    let channels = |count: usize| (0..count).map(|n| format!("c{n}")).collect::<Vec<_>>();
    let ticket = node
        .ticket(json!({"user_id": "42", "channels": channels(9)}))
        .await;
    assert_eq!(status(&node, &format!("ticket={ticket}"), &[]).await, 400);
    let url = query(&node, "42", "").await;
    for bad in [
        "&ping=frame",
        "&format=raw",
        "&refuse=close",
        "&dance=1",
        "&device=a&device=b",
        &format!("&channels={}", channels(9).join(",")),
    ] {
        assert_eq!(
            status(&node, &format!("{url}{bad}"), &[]).await,
            400,
            "{bad}"
        );
    }
    // None of them has spent the ticket.
    let eight = format!(
        "{url}&channels={}&format=json&ack=auto",
        channels(8).join(",")
    );
    let (_events, _) = join(&node, &eight).await;
    let post = node
        .http
        .post(format!("http://{}/sse", node.at.public))
        .send()
        .await
        .expect("answered");
    assert_eq!(post.status(), 405);
    assert_eq!(post.headers()["allow"], "GET, OPTIONS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_taken_now_comes_back_later() {
    let node = node_with(|c| {
        c.limits.connections_per_user = 1;
        c.limits.user_limit = UserLimit::Refuse;
        c.limits.connections_per_ip = 2;
    })
    .await;
    let (first, _) = join(&node, &query(&node, "42", "").await).await;
    // Its ticket is spent, so it is given what opens instead.
    let url = query(&node, "42", "").await;
    let mut second = Events::open(&node, &url, &[]).await.expect("a good ticket");
    assert_eq!(second.try_next().await, None);
    assert!(second.retry.expect("a pause") >= 15_000);
    assert_eq!(second.comments, ["user_limit"]);
    assert_eq!(status(&node, &url, &[]).await, 401);
    let id = second.last_id.clone();
    drop((first, second));
    until_nobody_is_there(&node).await;
    node.push("42", json!(0)).await;
    let (mut third, _) = rejoin(&node, &url, &id).await;
    messages(&mut third, [0]).await;
    // A limit that comes before the ticket does not spend it.
    let (fourth, _) = join(&node, &query(&node, "43", "").await).await;
    let url = query(&node, "44", "").await;
    let mut fifth = Events::open(&node, &url, &[]).await.expect("told later");
    assert_eq!(fifth.try_next().await, None);
    assert!((1_000..5_000).contains(&fifth.retry.expect("a pause")));
    assert_eq!(
        (fifth.comments, fifth.last_id),
        (vec!["overloaded".into()], String::new())
    );
    drop(fourth);
    until("there is room", async || {
        let mut events = Events::open(&node, &url, &[]).await.expect("told later");
        events.try_next().await.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_too_slow_is_closed_and_resumes_from_its_inbox() {
    let node = node_with(|c| {
        c.limits.outbox_bytes = 256 << 10;
        c.inbox.max_messages = 10_000;
        c.inbox.max_bytes = 1 << 30;
    })
    .await;
    let url = query(&node, "42", "").await;
    let (mut events, _) = join(&node, &url).await;
    let filler = "x".repeat(40 << 10);
    let mut pushed = 0;
    while node.node().metrics().slow_consumers.get() == 0 {
        assert!(pushed < 2_000, "it takes everything");
        node.push("42", json!({"n": pushed, "filler": filler}))
            .await;
        pushed += 1;
    }
    let mut heard = Vec::new();
    let number = |frame: &Value| frame["data"]["n"].as_u64().expect("a number");
    while let Some(frame) = events.try_next().await {
        heard.push(number(&frame));
    }
    assert!(heard.len() < pushed);
    let (mut events, welcome) = rejoin(&node, &url, &events.last_id).await;
    assert_eq!(welcome["recovered"], true);
    while heard.len() < pushed {
        heard.push(number(&events.next_of("message").await));
    }
    assert!(heard.iter().copied().eq(0..pushed as u64), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_drains_ends_its_streams() {
    let mut node = node_with(|c| {
        c.drain.deregister_delay = Duration::ZERO;
        c.drain.spread = Duration::from_millis(200);
    })
    .await;
    let (mut events, _) = join(&node, &query(&node, "42", "").await).await;
    let leaving = node.node.take().expect("it runs");
    let leaving = tokio::spawn(leaving.leave(std::future::pending()));
    assert_eq!(events.try_next().await, None);
    assert_eq!(
        events.comments.last().expect("a reason"),
        "closed 1012 restart"
    );
    tokio::time::timeout(Duration::from_secs(5), leaving)
        .await
        .expect("nobody holds it up")
        .expect("it leaves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_device_shows_as_its_last_event_is_acknowledged() {
    let node = node().await;
    let url = query(&node, "42", "&device=phone").await;
    let (mut events, _) = join(&node, &url).await;
    for n in 0..4 {
        node.push("42", json!(n)).await;
    }
    messages(&mut events, 0..2).await;
    let id = events.last_id.clone();
    drop(events);
    // Nothing was acknowledged yet.
    let (mut events, _) = join(&node, &query(&node, "42", "&device=phone").await).await;
    messages(&mut events, 0..4).await;
    drop(events);
    let (mut events, welcome) = rejoin(&node, &url, &id).await;
    assert_eq!(welcome["recovered"], true);
    messages(&mut events, 2..4).await;
    drop(events);
    until("the cursor is stored", async || {
        let (mut events, _) = join(&node, &query(&node, "42", "&device=phone").await).await;
        events.next_of("message").await["data"] == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_ends_a_stream_for_good() {
    let node = node().await;
    let url = query(&node, "42", "").await;
    let (mut events, welcome) = join(&node, &url).await;
    let ask = json!({"connection": welcome["connection"], "reason": "you\nare out"});
    let (status_code, answer) = node.post("/v1/disconnect", ask).await;
    assert_eq!(
        (status_code, &answer["applied"]),
        (200, &json!(1)),
        "{answer}"
    );
    assert_eq!(events.try_next().await, None);
    assert_eq!(
        events.comments.last().expect("a reason"),
        "closed 4501 youare out"
    );
    let id = [("last-event-id", &*events.last_id)];
    assert_eq!(status(&node, &url, &id).await, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_service_subscribes_comes_back_too() {
    let node = node_with(keeps).await;
    let url = query(&node, "42", "").await;
    let (mut events, _) = join(&node, &url).await;
    for (n, channel) in ["kept:a", "kept:b"].into_iter().enumerate() {
        let ask = json!({"user_id": "42", "channel": channel});
        assert_eq!(node.post("/v1/subscribe", ask.clone()).await.0, 200);
        assert_eq!(events.next_of("subscribed").await["channel"], channel);
        if n == 1 {
            assert_eq!(node.post("/v1/unsubscribe", ask).await.0, 200);
            assert_eq!(events.next_of("unsubscribed").await["code"], "revoked");
        }
    }
    let id = events.last_id.clone();
    drop(events);
    node.publish("kept:a", json!(0)).await;
    let (mut events, _) = rejoin(&node, &url, &id).await;
    let subscribed = events.next_of("subscribed").await;
    assert_eq!(
        (&subscribed["channel"], &subscribed["recovered"]),
        (&json!("kept:a"), &json!(true))
    );
    messages(&mut events, [0]).await;
    node.publish("kept:b", json!(1)).await;
    node.push("42", json!(2)).await;
    messages(&mut events, [2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_with_line_breaks_arrives_as_it_was() {
    let node = node().await;
    let (mut events, _) = join(&node, &query(&node, "42", "").await).await;
    let body = "{\"user_id\":\"42\",\"message\":{\n  \"a\": 1,\n\n  \"b\": [2]\n}}";
    let answer = node
        .http
        .post(format!("http://{}/v1/push", node.at.service))
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {}", crate::support::KEY))
        .body(body)
        .send()
        .await
        .expect("answered");
    assert_eq!(answer.status(), 200);
    let text = events.text().await.expect("an event");
    assert!(
        text.contains("\"data\":{\n  \"a\": 1,\n\n  \"b\": [2]\n},"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_opens_a_websocket_as_a_resume_ticket_once() {
    let node = node().await;
    let (mut events, _) = join(&node, &query(&node, "42", "").await).await;
    let (ticket, _) = events.last_id.split_once('~').expect("an id");
    let url = format!("ws://{}/ws?ticket={ticket}", node.at.public);
    let mut socket = connect(&url).await.expect("a good ticket");
    assert_eq!(events.try_next().await, None);
    assert_eq!(refused(&url, &[]).await.0, 401);
    assert_eq!(
        node.post("/v1/disconnect", json!({"user_id": "42"}))
            .await
            .0,
        200
    );
    assert_eq!(u16::from(closed(&mut socket).await.code), 4501);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_redis_it_goes_on_at_another_node() {
    let redis = RedisServer::start().await;
    let mut nodes = fleet(&redis.url()).await;
    let url = query(&nodes[0], "42", "").await;
    let (mut events, _) = join(&nodes[0], &url).await;
    for n in 0..3 {
        nodes[1].push("42", json!(n)).await;
    }
    messages(&mut events, 0..3).await;
    drop(nodes.remove(0));
    while events.try_next().await.is_some() {}
    for n in 3..6 {
        nodes[0].push("42", json!(n)).await;
    }
    let (mut events, welcome) = rejoin(&nodes[1], &url, &events.last_id).await;
    assert_eq!(welcome["recovered"], true);
    messages(&mut events, 3..6).await;
    nodes[0].push("42", json!(6)).await;
    messages(&mut events, [6]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_renews_what_opens_and_is_no_event() {
    let node = node_with(|c| c.heartbeat.renewal = Duration::from_millis(100)).await;
    let url = query(&node, "42", "").await;
    let (mut events, _) = join(&node, &url).await;
    node.push("42", json!(0)).await;
    messages(&mut events, [0]).await;
    for _ in 0..2 {
        events.renewed().await;
    }
    let id = events.last_id.clone();
    drop(events);
    node.push("42", json!(1)).await;
    let (mut events, _) = rejoin(&node, &url, &id).await;
    messages(&mut events, [1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_given_up() {
    let node = node_with(|c| {
        c.heartbeat.interval = Duration::from_millis(200);
        c.heartbeat.pong_timeout = Duration::from_millis(300);
        c.limits.outbox_bytes = 256 << 20;
    })
    .await;
    let (events, _) = join(&node, &query(&node, "42", "").await).await;
    let filler = "x".repeat(60 << 10);
    // More than the kernel takes for both ends.
    for _ in 0..400 {
        let push = json!({"user_id": "42", "message": filler, "class": "VOLATILE"});
        assert_eq!(node.post("/v1/push", push).await.0, 200);
    }
    until_nobody_is_there(&node).await;
    let metrics = node.metrics().await;
    let lost = "tidings_closes_total{code=\"1006\",reason=\"lost\"} 1";
    assert!(metrics.contains(lost), "{metrics}");
    drop(events);
}
