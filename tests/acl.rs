//! The rights in Redis that the docs name are enough, and no more than that.

use serde_json::json;
use tidings::backplane::{Append, BackplaneKind, BackplaneUrl, Keep, Once};
use tidings::model::sha256;

use crate::backplane::{soon, user};
use crate::sources::{heard_by, source};
use crate::streams::{MANY, after, append, device, redis_at, text};
use crate::support::redis::RedisServer;
use crate::support::resp::{Reply, Resp};
use crate::support::{connect, next, node_with, refused, until};

/// The lines of a page that make a Redis user, with the password filled in.
fn rights(page: &str) -> Vec<String> {
    let lines = page.lines().map(|line| line.trim_matches('`'));
    lines
        .filter(|line| line.starts_with("ACL SETUSER "))
        .map(|line| line.trim_end_matches("`.").replace("PASSWORD", "secret"))
        .collect()
}

async fn grant(redis: &RedisServer, line: &str) {
    redis.command(&words(line)).await;
}

/// A connection as one of those users.
async fn login(redis: &RedisServer, user: &str) -> Resp {
    let mut connection = redis.connect().await.expect("connected");
    assert_eq!(
        tell(&mut connection, &format!("AUTH {user} secret")).await,
        Ok(())
    );
    connection
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// What Redis says to a command: the code of its error.
async fn tell(connection: &mut Resp, line: &str) -> Result<(), String> {
    match connection.command(&words(line)).await.expect("answered") {
        Reply::Error(error) => Err(error.split(' ').next().unwrap_or_default().into()),
        _ => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auth_service_may_issue_tickets_in_redis_and_nothing_else() {
    let redis = RedisServer::start().await;
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
async fn a_node_keeps_messages_and_cursors_with_the_rights_of_a_node() {
    let redis = RedisServer::start().await;
    let lines = rights(include_str!("../docs/cluster.md"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    grant(&redis, &lines[0]).await;
    let url = redis.url().replace("redis://", "redis://tidings:secret@");
    let end = redis_at(&url, |config| config.min_replicas = 0).await;
    let to = user("42");
    end.streams.listen(to.clone()).await.expect("listened");
    let message = text(&to, "0");
    let once = Some(Once {
        key: [1; 32],
        asked: [2; 32],
    });
    for (once, again) in [(None, false), (None, true), (once, false), (once, true)] {
        for keep in [Some(MANY), None] {
            let append = Append {
                keep,
                once,
                again,
                ..append(&message)
            };
            let done = end.streams.append(append, soon()).await;
            assert!(done.is_ok(), "{done:?}");
        }
    }
    // One that has to look for what there is, and one that makes room.
    redis.command(&["DEL", "tidings:t:{user:42}"]).await;
    let one = Keep {
        messages: 1,
        ..MANY
    };
    let last = Append {
        keep: Some(one),
        ..append(&text(&to, "1"))
    };
    let last = end.push(last).await.position.expect("it is kept");
    assert_eq!(end.kept(&to, 0).await, ["1"]);
    for n in 0..20 {
        let name = n.to_string();
        end.ack(&to, Some(&name), last).await;
    }
    assert_eq!(end.open(&to, device("19")).await, (last, Some(true)));
    assert_eq!(end.top(&to, last).await, last);
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let opened = end.streams.open(to, std::time::Duration::ZERO, after(last));
    assert_eq!(opened.await.map(|opened| opened.start), Ok(last));
    end.streams.close().await;
    let mut node = login(&redis, "tidings").await;
    for other in ["GET other", "KEYS *", "FLUSHALL", "CONFIG GET *"] {
        let denied = tell(&mut node, other).await;
        assert_eq!(denied, Err("NOPERM".into()), "{other}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_and_its_publisher_need_the_topic_and_nothing_else() {
    let redis = RedisServer::start().await;
    let lines = rights(include_str!("../docs/sources.md"));
    assert_eq!(lines.len(), 4, "{lines:?}");
    for line in &lines {
        grant(&redis, line).await;
    }
    let url = |user: &str| {
        let login = format!("redis://{user}:secret@");
        redis.url().replace("redis://", &login)
    };
    let node = node_with(|config| {
        let keys = format!(
            "topic = \"orders.completed\"\nurl = {:?}",
            url("tidings-source")
        );
        let stream = format!(
            "kind = \"redis-stream\"\ntopic = \"orders.completed\"\nurl = {:?}",
            url("tidings-stream")
        );
        config.sources = vec![source(&keys), toml::from_str(&stream).expect("a source")];
    })
    .await;
    let (mut socket, _) = node.join("42", "").await;
    heard_by(&redis, "orders.completed", 1).await;
    let mut orders = login(&redis, "orders").await;
    let event = json!({"user_id": "42", "message": "shipped"});
    let publish = format!("PUBLISH orders.completed {event}");
    assert_eq!(tell(&mut orders, &publish).await, Ok(()));
    assert_eq!(next(&mut socket).await["data"], "shipped");
    let mut log = login(&redis, "orders-log").await;
    for event in ["nonsense", &event.to_string()] {
        let add = format!("XADD orders.completed * data {event}");
        assert_eq!(tell(&mut log, &add).await, Ok(()));
    }
    assert_eq!(next(&mut socket).await["data"], "shipped");
    until("the malformed one is a dead letter", async || {
        let dead = redis.command(&["XLEN", "orders.completed.dead"]).await;
        let pending = redis.command(&["XPENDING", "orders.completed", "tidings"]);
        dead.int() == 1 && pending.await.items()[0].int() == 0
    })
    .await;
    for other in ["XRANGE orders.completed - +", "XADD other * data x"] {
        assert_eq!(tell(&mut log, other).await, Err("NOPERM".into()), "{other}");
    }
    for other in ["PUBLISH tidings:m:{everyone} x", "SET tidings:nodes x"] {
        assert_eq!(
            tell(&mut orders, other).await,
            Err("NOPERM".into()),
            "{other}"
        );
    }
}
