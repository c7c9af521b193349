//! The rights in Redis that the docs name are enough, and no more than that.

use redis::aio::MultiplexedConnection;
use redis::cmd;
use serde_json::json;
use tidings::backplane::{BackplaneKind, BackplaneUrl};
use tidings::model::sha256;

use crate::sources::{Redis, source};
use crate::support::{connect, next, node_with, refused};

/// The lines of a page that make a Redis user, with the password filled in.
fn rights(page: &str) -> Vec<String> {
    let lines = page.lines().map(|line| line.trim_matches('`'));
    lines
        .filter(|line| line.starts_with("ACL SETUSER "))
        .map(|line| line.trim_end_matches("`.").replace("PASSWORD", "secret"))
        .collect()
}

async fn grant(redis: &Redis, line: &str) {
    let mut admin = redis.connect().await.expect("connected");
    let words: Vec<&str> = line.split(' ').collect();
    let grant = cmd(words[0]).arg(&words[1..]).to_owned();
    let _: () = grant.query_async(&mut admin).await.expect(line);
}

/// A connection as one of those users.
async fn login(redis: &Redis, user: &str) -> MultiplexedConnection {
    let mut connection = redis.connect().await.expect("connected");
    let auth = cmd("AUTH").arg(user).arg("secret").to_owned();
    let _: () = auth.query_async(&mut connection).await.expect("a login");
    connection
}

/// What Redis says to a command.
async fn tell(connection: &mut MultiplexedConnection, line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split(' ').collect();
    let told = cmd(words[0]).arg(&words[1..]).to_owned();
    let said: redis::RedisResult<()> = told.query_async(connection).await;
    said.map_err(|e| e.code().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auth_service_may_issue_tickets_in_redis_and_nothing_else() {
    let redis = Redis::start().await;
    let node = node_with(|config| {
        config.backplane.kind = BackplaneKind::Redis;
        config.backplane.url = Some(BackplaneUrl::new(redis.url()));
    })
    .await;
    let lines = rights(include_str!("../docs/tickets.md"));
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (n, line) in lines.iter().enumerate() {
        grant(&redis, line).await;
        let mut auth = login(&redis, "auth").await;
        let ticket = format!("{n}{}", "A".repeat(42));
        let hash = sha256(ticket.as_bytes())
            .map(|byte| format!("{byte:02x}"))
            .concat();
        let value = json!({"user_id": "42", "claims": {"role": "buyer"}});
        let issue = format!("SET tidings:ticket:{hash} {value} PX 30000");
        assert_eq!(tell(&mut auth, &issue).await, Ok(()));
        for other in [
            format!("GET tidings:ticket:{hash}"),
            format!("DEL tidings:ticket:{hash}"),
            "SET tidings:nodes x".into(),
            "SET other x PX 30000".into(),
            "KEYS *".into(),
            "PUBLISH tidings:m:{everyone} x".into(),
            "SUBSCRIBE tidings:m:{everyone}".into(),
            "CONFIG GET *".into(),
        ] {
            assert_eq!(
                tell(&mut auth, &other).await,
                Err("NOPERM".into()),
                "{line}: {other}"
            );
        }
        let read_back = format!("SET tidings:ticket:{hash} {value} PX 30000 GET");
        let writes_alone = line.contains("%W~");
        assert_eq!(
            tell(&mut auth, &read_back).await.is_err(),
            writes_alone,
            "{line}"
        );
        let url = format!("ws://{}/ws?ticket={ticket}", node.at.public);
        let mut socket = connect(&url).await.expect("an upgrade");
        assert_eq!(next(&mut socket).await["user"], "42");
        assert_eq!(refused(&url, &[]).await.0, 401);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_and_its_publisher_need_the_topic_and_nothing_else() {
    let redis = Redis::start().await;
    let lines = rights(include_str!("../docs/sources.md"));
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        grant(&redis, line).await;
    }
    let url = redis
        .url()
        .replace("redis://", "redis://tidings-source:secret@");
    let node = node_with(|config| {
        let keys = format!("topic = \"orders.completed\"\nurl = {url:?}");
        config.sources = vec![source(&keys)];
    })
    .await;
    let (mut socket, _) = node.join("42", "").await;
    redis.heard_by("orders.completed", 1).await;
    let mut orders = login(&redis, "orders").await;
    let event = json!({"user_id": "42", "message": "shipped"});
    let publish = format!("PUBLISH orders.completed {event}");
    assert_eq!(tell(&mut orders, &publish).await, Ok(()));
    assert_eq!(next(&mut socket).await["data"], "shipped");
    for other in ["PUBLISH tidings:m:{everyone} x", "SET tidings:nodes x"] {
        assert_eq!(
            tell(&mut orders, other).await,
            Err("NOPERM".into()),
            "{other}"
        );
    }
}
