//! What only Redis can do to streams: scripts that it forgot, keys that vanish, data that comes back older, slots on other
//! primaries.

use tidings::backplane::redis::Redis;
use tidings::backplane::{
    Append, AppendError, Backplane, BackplaneKind, BackplaneUrl, Envelope, EnvelopeError, From,
    Keep, Once, Sealer,
};
use tidings::config::Mode;
use tidings::model::{Address, Position};
use tidings::node::Node;
use tidings::telemetry::Metrics;

use crate::backplane::{Inbox, soon, user};
use crate::streams::{End, HOUR, MANY, after, append, redis_at, text};
use crate::support::redis::{RedisCluster, RedisServer};
use crate::support::resp::Reply;
use crate::support::{config, until};

fn key(kind: &str, address: &Address) -> String {
    format!("tidings:{kind}:{{{address}}}")
}

fn again(append: Append) -> Append {
    Append {
        again: true,
        ..append
    }
}

async fn start() -> (RedisServer, End) {
    let server = RedisServer::start().await;
    let end = redis_at(&server.url(), |_| {}).await;
    (server, end)
}

/// One that keeps a snapshot of these bodies, and then had one more.
async fn behind_by_one(to: &Address) -> (RedisServer, End, Position) {
    let (server, end) = start().await;
    end.say(to, "0").await;
    end.say(to, "1").await;
    server.command(&["SAVE"]).await;
    let top = end.say(to, "2").await;
    (server, end, top)
}

async fn until_it_is_linked(end: &End) {
    until("the node is linked", async || {
        end.streams.ailments().is_empty()
            && end.streams.tops(Vec::new()).await.is_ok()
            && end
                .streams
                .append(append(&text(&user("x"), "")), soon())
                .await
                .is_ok()
    })
    .await;
}

#[tokio::test]
async fn scripts_that_redis_has_forgotten_are_given_again() {
    let (server, end) = start().await;
    let to = user("42");
    end.say(&to, "0").await;
    server.command(&["SCRIPT", "FLUSH"]).await;
    let top = end.say(&to, "1").await;
    server.command(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(end.kept(&to, 0).await, ["0", "1"]);
    assert_eq!(end.top(&to, top).await, top);
}

#[tokio::test]
async fn a_first_attempt_that_comes_after_its_retry_does_nothing() {
    let (_server, end) = start().await;
    let to = user("42");
    let message = text(&to, "once");
    let retry = end.push(again(append(&message))).await;
    for n in 0..5 {
        let first = end.push(append(&message)).await;
        assert_eq!((first.id, first.position), (retry.id, retry.position));
        let another = end.push(again(append(&message))).await;
        assert_eq!(another.position, retry.position);
        end.say(&to, &n.to_string()).await;
    }
    assert_eq!(end.kept(&to, 0).await, ["once", "0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_retry_whose_first_attempt_may_have_had_to_go_is_unknown() {
    let (_server, end) = start().await;
    let to = user("42");
    let two = |message: &tidings::model::Message| Append {
        keep: Some(Keep {
            messages: 2,
            ..MANY
        }),
        ..append(message)
    };
    let message = text(&to, "first");
    end.push(two(&message)).await;
    for n in 0..3 {
        end.push(two(&text(&to, &n.to_string()))).await;
    }
    let retry = end.streams.append(again(two(&message)), soon()).await;
    assert!(matches!(retry, Err(AppendError::Unknown(_))), "{retry:?}");
    assert_eq!(end.kept(&to, 0).await, ["1", "2"]);
}

#[tokio::test]
async fn a_stream_without_its_meta_goes_on_in_a_new_epoch() {
    let (server, end) = start().await;
    let to = user("42");
    let first = end.say(&to, "0").await;
    let old = end.say(&to, "1").await;
    server.command(&["DEL", &key("t", &to)]).await;
    let new = end.say(&to, "2").await;
    assert_ne!(new.epoch, old.epoch);
    assert_eq!(new.offset, 3);
    assert_eq!(end.kept(&to, 0).await, ["0", "1", "2"]);
    let page = end.streams.read(to.clone(), 2, 9).await.expect("read");
    assert_eq!((page.top.began.offset, page.top.began.tag), (2, old.tag));
    assert_eq!(
        page.messages[0].place.map(|place| place.previous),
        Some(old.tag)
    );
    for position in [first, old] {
        assert_eq!(end.open(&to, after(position)).await.1, Some(false));
    }
    assert_eq!(end.open(&to, after(new)).await, (new, Some(true)));
    // Whoever asks first begins it, not only an append.
    server.command(&["DEL", &key("t", &to)]).await;
    let began = end.top(&to, new).await;
    assert_ne!(began.epoch, new.epoch);
    assert_eq!((began.offset, began.tag), (3, new.tag));
}

#[tokio::test]
async fn a_stream_above_its_meta_goes_on_in_a_new_epoch() {
    let (server, end) = start().await;
    let to = user("42");
    let old = end.say(&to, "0").await;
    end.say(&to, "1").await;
    server.command(&["HSET", &key("t", &to), "o", "0"]).await;
    let new = end.say(&to, "2").await;
    assert_ne!(new.epoch, old.epoch);
    assert_eq!(new.offset, 3);
    assert_eq!(end.kept(&to, 0).await, ["0", "1", "2"]);
    assert_eq!(end.open(&to, after(old)).await.1, Some(false));
}

#[tokio::test]
async fn a_stream_that_is_gone_goes_on_and_who_misses_nothing_is_told_so() {
    let (server, end) = start().await;
    let to = user("42");
    let first = end.say(&to, "0").await;
    let top = end.say(&to, "1").await;
    server.command(&["DEL", &key("s", &to)]).await;
    assert_eq!(end.open(&to, after(top)).await, (top, Some(true)));
    assert_eq!(end.open(&to, after(first)).await, (top, Some(false)));
    let next = end.say(&to, "2").await;
    assert_eq!((next.epoch, next.offset), (top.epoch, 3));
    assert_eq!(end.kept(&to, 0).await, ["2"]);
    assert_eq!(end.open(&to, after(top)).await, (top, Some(true)));
    // It has a life again.
    let life = server.command(&["PTTL", &key("s", &to)]).await.int();
    assert!(life > 0, "{life}");
}

#[tokio::test]
async fn what_is_written_has_a_life() {
    let (server, end) = start().await;
    let to = user("42");
    let once = Append {
        once: Some(Once {
            key: [1; 32],
            asked: [2; 32],
        }),
        ..append(&text(&to, "0"))
    };
    let first = end.push(once.clone()).await;
    end.push(again(append(&text(&to, "1")))).await;
    end.open(&to, From::Cursor(None)).await;
    let keys = server.command(&["KEYS", "*"]).await.items();
    assert_eq!(keys.len(), 4, "{keys:?}");
    let hour = i64::try_from(HOUR.as_millis()).expect("it fits");
    for key in keys {
        let key = key.text();
        let life = server.command(&["PTTL", &key]).await.int();
        let bounds = match &key[..10] {
            "tidings:s:" => hour..=hour * 9 / 8,
            "tidings:t:" => 29 * 24 * hour..=30 * 24 * hour,
            "tidings:i:" => 1..=60_000,
            "tidings:k:" => 240_000..=300_000,
            _ => panic!("{key}"),
        };
        assert!(bounds.contains(&life), "{key}: {life}");
        if key.starts_with("tidings:k:") {
            server.command(&["DEL", &key]).await;
        }
    }
    // A key that has had its time is no key.
    let message = text(&to, "2");
    let anew = Append { message, ..once };
    let anew = end.push(anew).await;
    assert!(!anew.duplicate);
    assert_ne!(anew.id, first.id);
}

#[tokio::test]
async fn a_node_without_streams_skips_what_is_kept_as_another_version() {
    let (server, end) = start().await;
    let to = user("42");
    let channel = key("m", &to);
    let mut old = server.connect().await.expect("connected");
    let subscribed = old.command(&["SUBSCRIBE", &channel]).await;
    subscribed.expect("subscribed");
    let message = append(&text(&to, "0"));
    let pushed = end.push(message).await;
    assert_eq!(pushed.published.listeners, 1);
    let heard = old.receive().await.expect("published").items();
    let [.., payload] = <[_; 3]>::try_from(heard).expect("a message");
    let opened = Sealer::new(None).open(&to, payload.bytes().into());
    assert_eq!(opened, Err(EnvelopeError::Version));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_spread_over_a_cluster() {
    let cluster = RedisCluster::start().await;
    let end = redis_at(&cluster.url(), |_| {}).await;
    for n in 0..20 {
        let to = user(&n.to_string());
        end.streams.listen(to.clone()).await.expect("listened");
        let start = end.open(&to, From::Cursor(None)).await.0;
        let message = Append {
            once: (n % 2 == 0).then_some(Once {
                key: [1; 32],
                asked: [2; 32],
            }),
            ..append(&text(&to, "hi"))
        };
        let first = end.push(message.clone()).await;
        assert_eq!(first.published.listeners, 1);
        end.inbox.next().await;
        let retry = end.push(again(message)).await;
        assert_eq!(retry.position, first.position);
        // Of a retry that did get through, who listens now.
        assert_eq!(retry.published.listeners, 1);
        assert_eq!(end.kept(&to, 0).await, ["hi"]);
        assert_eq!(end.open(&to, after(start)).await, (start, Some(true)));
    }
}

#[tokio::test]
async fn a_redis_that_evicts_is_refused_until_it_does_not() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let mut refused = config();
    refused.backplane.kind = BackplaneKind::Redis;
    refused.backplane.url = Some(BackplaneUrl::new(server.url()));
    let place = refused.backplane.clone();
    let problem = match Node::start(refused, Mode::Dev).await {
        Err(problem) => problem,
        Ok(_) => panic!("a node started that would lose what it keeps"),
    };
    for part in [
        "allkeys-lru",
        "CONFIG SET maxmemory-policy noeviction",
        "[inbox]",
    ] {
        assert!(problem.contains(part), "{problem}");
    }
    let at = |keeps| {
        let metrics = Metrics::new().backplane;
        Redis::new(&place, 1, keeps, metrics, Inbox::new()).expect("valid")
    };
    let nothing_is_kept = at(false);
    assert_eq!(nothing_is_kept.wait_until_whole().await, Ok(()));
    let keeps = at(true);
    assert!(keeps.wait_until_whole().await.is_err());
    let ailments = keeps.ailments();
    assert!(ailments[0].contains("allkeys-lru"), "{ailments:?}");
    let words = ["CONFIG", "SET", "maxmemory-policy", "noeviction"];
    server.command(&words).await;
    until("it is fit", async || keeps.ailments().is_empty()).await;
}

#[tokio::test]
async fn a_stream_that_comes_back_older_begins_anew_though_nobody_asks() {
    let to = user("42");
    let (mut server, end, top) = behind_by_one(&to).await;
    server.restart().await;
    until_it_is_linked(&end).await;
    let epoch = server.command(&["HGET", &key("t", &to), "e"]).await.bytes();
    assert_ne!(epoch, top.epoch.to_be_bytes());
    assert_eq!(end.open(&to, after(top)).await.1, Some(false));
    // A first message of the new epoch stands where the lost one stood.
    let next = end.say(&to, "another 2").await;
    assert_eq!((next.offset, next.epoch == top.epoch), (3, false));
    assert_eq!(end.open(&to, after(top)).await.1, Some(false));
    assert_eq!(end.kept(&to, 0).await, ["0", "1", "another 2"]);
    // The node remembers all that it appended to.
    assert!(server.command(&["GET", "tidings:era"]).await == Reply::Nil);
}

/// A node that remembers few addresses, and messages for more of them than that, of which a snapshot has the first: the
/// positions just behind those.
async fn forgetful(options: &[&str]) -> (RedisServer, End, Vec<(Address, Position)>) {
    let server = RedisServer::start_with(options).await;
    let end = redis_at(&server.url(), |c| c.remembered_addresses = 2).await;
    let mut first = Vec::new();
    for n in 0..10 {
        let to = user(&format!("forgotten-{n}"));
        let position = end.say(&to, "0").await;
        first.push((to, position));
    }
    server.command(&["SAVE"]).await;
    for (to, _) in &first[..7] {
        end.say(to, "1").await;
    }
    (server, end, first)
}

#[tokio::test]
async fn who_missed_what_no_node_remembers_is_told_so() {
    let (mut server, end, first) = forgetful(&[]).await;
    server.restart().await;
    until_it_is_linked(&end).await;
    // The message behind this position is lost, and the node has forgotten that there was one.
    let (to, position) = &first[0];
    let (start, recovered) = end.open(to, after(*position)).await;
    assert_eq!(recovered, Some(false));
    assert_eq!(end.kept(to, 0).await, ["0"]);
    // What is of the new era is believed.
    assert_eq!(end.open(to, after(start)).await, (start, Some(true)));
    let top = end.say(to, "2").await;
    assert_eq!(end.open(to, after(top)).await, (top, Some(true)));
    // Another node, that comes later, knows of it; by an append as well.
    let other = redis_at(&server.url(), |_| {}).await;
    let (to, position) = &first[8];
    let next = other.say(to, "1").await;
    assert_eq!(next.offset, position.offset + 1);
    assert_eq!(other.open(to, after(*position)).await.1, Some(false));
    let (to, position) = &first[9];
    assert_eq!(other.open(to, after(*position)).await.1, Some(false));
}

#[tokio::test]
async fn nobody_is_told_of_what_a_node_has_forgotten_while_redis_kept_it() {
    let (mut server, end, first) =
        forgetful(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    server.restart().await;
    until_it_is_linked(&end).await;
    for (to, position) in &first {
        assert_eq!(
            end.open(to, after(*position)).await,
            (*position, Some(true))
        );
    }
    assert!(server.command(&["GET", "tidings:era"]).await == Reply::Nil);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_comes_back_twice_from_the_same_older_data_is_not_taken_for_the_first() {
    let to = user("42");
    let (mut server, end) = start().await;
    end.say(&to, "0").await;
    let early = end.say(&to, "1").await;
    server.command(&["SAVE"]).await;
    end.say(&to, "2").await;
    server.restart().await;
    until_it_is_linked(&end).await;
    // Accepted in the epoch that began then, and lost with it.
    let lost = end.say(&to, "lost").await;
    assert_eq!(end.open(&to, after(lost)).await.1, Some(true));
    server.restart().await;
    until_it_is_linked(&end).await;
    // Redis has the first epoch again, as if nothing had been behind it.
    for position in [early, lost] {
        assert_eq!(end.open(&to, after(position)).await.1, Some(false));
    }
}

#[tokio::test]
async fn a_stream_that_comes_back_whole_goes_on() {
    let to = user("42");
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = RedisServer::start_with(&options).await;
    let end = redis_at(&server.url(), |_| {}).await;
    end.say(&to, "0").await;
    let top = end.say(&to, "1").await;
    server.restart().await;
    until_it_is_linked(&end).await;
    assert_eq!(end.open(&to, after(top)).await, (top, Some(true)));
    let next = end.say(&to, "2").await;
    assert_eq!((next.epoch, next.offset), (top.epoch, 3));
}

#[tokio::test]
async fn a_retry_that_meets_another_run_of_redis_is_unknown_unless_it_finds_the_first() {
    let to = user("42");
    let (mut server, end) = start().await;
    let (kept, lost) = (append(&text(&to, "kept")), append(&text(&to, "lost")));
    end.push(kept.clone()).await;
    server.command(&["SAVE"]).await;
    end.push(lost.clone()).await;
    server.restart().await;
    until_it_is_linked(&end).await;
    end.push(again(kept)).await;
    let key = Some(Once {
        key: [1; 32],
        asked: [2; 32],
    });
    for (keep, once) in [(Some(MANY), None), (Some(MANY), key), (None, key)] {
        let retry = Append {
            keep,
            once,
            ..again(lost.clone())
        };
        let retry = end.streams.append(retry, soon()).await;
        assert!(matches!(retry, Err(AppendError::Unknown(_))), "{retry:?}");
    }
    // What was accepted since is none of that.
    end.push(again(append(&text(&to, "later")))).await;
    assert_eq!(end.kept(&to, 0).await, ["kept", "later"]);
}

#[tokio::test]
async fn a_stream_of_a_redis_that_comes_back_empty_begins_anew() {
    let to = user("42");
    let (mut server, end, top) = behind_by_one(&to).await;
    server.restart_empty().await;
    until_it_is_linked(&end).await;
    let (start, recovered) = end.open(&to, after(top)).await;
    assert_eq!((start.offset, recovered), (0, Some(false)));
    assert_ne!(start.epoch, top.epoch);
}

#[tokio::test]
async fn a_link_that_is_whole_again_says_what_it_may_have_missed() {
    let (server, end) = start().await;
    let to = user("42");
    assert_eq!(end.inbox.missed(), []);
    end.streams.listen(to.clone()).await.expect("listened");
    let words = ["CLIENT", "KILL", "TYPE", "pubsub"];
    server.command(&words).await;
    let mut missed = Vec::new();
    until("it is told", async || {
        missed.extend(end.inbox.missed());
        !missed.is_empty()
    })
    .await;
    // Neither what goes to everyone nor to this node has a stream.
    assert_eq!(missed, [to]);
}

#[tokio::test]
async fn a_new_epoch_is_told_to_every_node_that_listens() {
    let to = user("42");
    let (server, end) = start().await;
    let other = redis_at(&server.url(), |_| {}).await;
    other.streams.listen(to.clone()).await.expect("listened");
    let top = end.say(&to, "0").await;
    until("what it may have missed before is told", async || {
        other.inbox.missed();
        end.streams.ailments().is_empty()
    })
    .await;
    // It knows of more than Redis has: that was rolled back.
    let known = Position {
        offset: top.offset + 1,
        ..top
    };
    let tops = end.streams.tops(vec![(to.clone(), known)]).await;
    assert_ne!(tops.expect("answered")[0].position.epoch, top.epoch);
    let mut missed = Vec::new();
    until("the other node is told", async || {
        missed.extend(other.inbox.missed());
        !missed.is_empty()
    })
    .await;
    assert_eq!(missed, [to]);
}

#[tokio::test]
async fn without_the_right_to_ask_which_run_it_is_streams_are_compared_at_every_connection() {
    let to = user("42");
    let (server, end) = start().await;
    let rights = "ACL SETUSER node on >p ~* &* +@all -info";
    let words: Vec<_> = rights.split(' ').collect();
    server.command(&words).await;
    let url = server.url().replace("redis://", "redis://node:p@");
    let other = redis_at(&url, |_| {}).await;
    let top = other.say(&to, "0").await;
    // As a failover would, but that the run is the same.
    let meta = key("t", &to);
    server.command(&["HSET", &meta, "o", "0"]).await;
    server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    until("the streams were compared", async || {
        let epoch = server.command(&["HGET", &meta, "e"]).await.bytes();
        epoch != top.epoch.to_be_bytes()
    })
    .await;
    drop(end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_keep_up_says_what_it_may_have_missed_once_it_has() {
    let (server, end) = start().await;
    let to = user("42");
    end.streams.listen(to.clone()).await.expect("listened");
    // More than its inbox and the link's queue hold, while nobody reads.
    let envelope = Sealer::new(None).seal(&to, &Envelope::Message(text(&to, "x")));
    let mut publisher = server.connect().await.expect("connected");
    let channel = key("m", &to);
    let publish: [&[u8]; 3] = [b"PUBLISH", channel.as_bytes(), &envelope];
    for _ in 0..20 {
        for _ in 0..1000 {
            publisher.send(&publish).await.expect("sent");
        }
        for _ in 0..1000 {
            publisher.receive().await.expect("published");
        }
    }
    assert_eq!(end.inbox.missed(), []);
    let mut heard = 0;
    let mut missed = Vec::new();
    until("it is told", async || {
        while !end.inbox.is_empty().await {
            end.inbox.next().await;
            heard += 1;
        }
        missed.extend(end.inbox.missed());
        !missed.is_empty()
    })
    .await;
    // Once, or once more where it went on.
    assert!(missed.iter().all(|address| *address == to), "{missed:?}");
    assert!((16_384..20_000).contains(&heard), "{heard}");
}
