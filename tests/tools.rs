//! What other tests stand on: servers that fail when told, and a proxy that misbehaves as told.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::redis::{RedisCluster, RedisServer, SLOW_LOAD, Sentinels, TlsRedis};
use crate::support::resp::Reply;
use crate::support::{DEADLINE, until};

/// A server that says back what it hears; at the end of that it says `bye` and ends.
async fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
                let _ = stream.write_all(b"bye").await;
            });
        }
    });
    port
}

async fn connect(proxy: &ChaosProxy) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).await;
    stream.expect("connected")
}

async fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("sent");
}

async fn hear(stream: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    let reading = timeout(DEADLINE, stream.read_exact(&mut bytes)).await;
    reading.expect("in time").expect("bytes");
    String::from_utf8(bytes).expect("text")
}

/// Whether nothing comes for a while.
async fn silent(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    timeout(Duration::from_millis(200), stream.read(&mut byte))
        .await
        .is_err()
}

#[tokio::test]
async fn what_is_cut_one_way_comes_once_it_is_mended() {
    let proxy = ChaosProxy::to(echo().await).await;
    let mut stream = connect(&proxy).await;
    say(&mut stream, "one").await;
    assert_eq!(hear(&mut stream, 3).await, "one");
    for way in [Way::Up, Way::Down] {
        proxy.set(Whom::All, way, Fault::Cut);
        say(&mut stream, "two").await;
        assert!(silent(&mut stream).await, "{way:?}");
        proxy.set(Whom::All, way, Fault::None);
        assert_eq!(hear(&mut stream, 3).await, "two");
    }
}

#[tokio::test]
async fn only_connections_that_sent_the_mark_are_cut() {
    let proxy = ChaosProxy::marking(echo().await, b"SUBSCRIBE").await;
    let (mut marked, mut other) = (connect(&proxy).await, connect(&proxy).await);
    // The mark is found where two reads meet, too.
    say(&mut marked, "hello subsc").await;
    assert_eq!(hear(&mut marked, 11).await, "hello subsc");
    say(&mut marked, "ribe").await;
    assert_eq!(hear(&mut marked, 4).await, "ribe");
    proxy.set(Whom::Marked, Way::Down, Fault::Cut);
    say(&mut marked, "a").await;
    say(&mut other, "a").await;
    assert_eq!(hear(&mut other, 1).await, "a");
    assert!(silent(&mut marked).await);
    proxy.reset(Whom::Marked);
    let mut byte = [0; 1];
    let end = timeout(DEADLINE, marked.read(&mut byte))
        .await
        .expect("in time");
    assert_eq!(
        end.expect_err("reset").kind(),
        std::io::ErrorKind::ConnectionReset
    );
    say(&mut other, "b").await;
    assert_eq!(hear(&mut other, 1).await, "b");
}

#[tokio::test]
async fn a_delay_holds_bytes_back_and_a_slow_line_lets_a_few_pass() {
    let proxy = ChaosProxy::to(echo().await).await;
    let mut stream = connect(&proxy).await;
    let began = Instant::now();
    proxy.set(
        Whom::All,
        Way::Down,
        Fault::Delay(Duration::from_millis(150)),
    );
    say(&mut stream, "late").await;
    assert_eq!(hear(&mut stream, 4).await, "late");
    assert!(began.elapsed() >= Duration::from_millis(150));
    let began = Instant::now();
    proxy.set(Whom::All, Way::Down, Fault::Slow(1000));
    say(&mut stream, &"x".repeat(300)).await;
    hear(&mut stream, 300).await;
    assert!(began.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_half_closed_connection_still_goes_the_other_way() {
    let proxy = ChaosProxy::to(echo().await).await;
    let mut stream = connect(&proxy).await;
    say(&mut stream, "one").await;
    assert_eq!(hear(&mut stream, 3).await, "one");
    proxy.half_close(Whom::All, Way::Up);
    assert_eq!(hear(&mut stream, 3).await, "bye");
    let mut byte = [0; 1];
    let end = timeout(DEADLINE, stream.read(&mut byte))
        .await
        .expect("in time");
    assert_eq!(end.expect("no error"), 0);
    let mut other = connect(&proxy).await;
    say(&mut other, "two").await;
    assert_eq!(hear(&mut other, 3).await, "two");
}

#[tokio::test]
async fn a_refusing_proxy_keeps_its_live_connections_and_accepts_again() {
    let proxy = ChaosProxy::to(echo().await).await;
    let mut stream = connect(&proxy).await;
    say(&mut stream, "one").await;
    assert_eq!(hear(&mut stream, 3).await, "one");
    proxy.refuse(true).await;
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).await;
    assert_eq!(
        refused.expect_err("refused").kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    say(&mut stream, "two").await;
    assert_eq!(hear(&mut stream, 3).await, "two");
    proxy.refuse(false).await;
    let mut stream = connect(&proxy).await;
    say(&mut stream, "three").await;
    assert_eq!(hear(&mut stream, 5).await, "three");
}

#[tokio::test]
async fn a_redis_comes_back_with_its_data_or_without() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes"]).await;
    redis.command(&["SET", "a", "1"]).await;
    redis.restart().await;
    assert_eq!(redis.command(&["GET", "a"]).await, Reply::Bulk(b"1".into()));
    redis.restart_empty().await;
    assert_eq!(redis.command(&["GET", "a"]).await, Reply::Nil);
}

#[tokio::test]
async fn a_frozen_redis_answers_when_it_thaws() {
    let redis = RedisServer::start().await;
    let mut connection = redis.connect().await.expect("connected");
    redis.pause();
    connection.send(&["PING"]).await.expect("sent");
    let reply = timeout(Duration::from_millis(200), connection.receive()).await;
    assert!(reply.is_err(), "{reply:?}");
    redis.resume();
    assert_eq!(connection.receive().await.expect("answered").text(), "PONG");
}

#[tokio::test]
async fn a_redis_with_a_password_refuses_who_does_not_know_it() {
    let mut redis = RedisServer::start_with(&["--requirepass", "first"]).await;
    redis.require_password("second").await;
    assert_eq!(redis.command(&["PING"]).await.text(), "PONG");
    let mut stranger = crate::support::resp::Resp::connect(redis.port)
        .await
        .expect("connected");
    let reply = stranger.command(&["PING"]).await.expect("answered");
    assert!(reply.text().starts_with("NOAUTH"), "{reply:?}");
}

#[tokio::test]
async fn a_redis_loads_for_as_long_as_a_test_wants() {
    let mut redis = RedisServer::start().await;
    redis.fill(500).await;
    redis.restart_loading(SLOW_LOAD).await;
    until("it says LOADING", async || {
        let reply = redis.try_command(&["GET", "filler:1"]).await;
        reply.is_ok_and(|reply| reply.text().starts_with("LOADING"))
    })
    .await;
    redis.finish_loading().await;
    assert_eq!(redis.command(&["DBSIZE"]).await.int(), 500);
}

#[tokio::test]
async fn a_redis_speaks_tls_by_its_certificate() {
    let tls = TlsRedis::start().await;
    let pem = std::fs::read(&tls.certificate).expect("a certificate");
    assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
    TcpStream::connect((Ipv4Addr::LOCALHOST, tls.tls_port))
        .await
        .expect("it listens");
    assert_eq!(tls.redis.command(&["PING"]).await.text(), "PONG");
}

#[tokio::test]
async fn sentinels_make_the_replica_the_primary() {
    let mut sentinels = Sentinels::start().await;
    sentinels.primary.command(&["SET", "a", "1"]).await;
    sentinels.primary.command(&["WAIT", "1", "5000"]).await;
    sentinels.primary.kill().await;
    sentinels.wait_for_failover().await;
    assert_eq!(sentinels.replica.command(&["GET", "a"]).await.text(), "1");
}

#[tokio::test]
async fn a_clusters_slots_can_be_moved() {
    let cluster = RedisCluster::start().await;
    let (owner, slot) = cluster.owner("{user:42}").await;
    let other = (owner + 1) % 3;
    cluster.move_slot(slot, owner, other).await;
    assert_eq!(cluster.owner("{user:42}").await, (other, slot));
    let reply = cluster.primaries[owner]
        .try_command(&["GET", "{user:42}"])
        .await;
    assert!(reply.expect("answered").text().starts_with("MOVED"));
    let reply = cluster.primaries[other]
        .command(&["GET", "{user:42}"])
        .await;
    assert_eq!(reply, Reply::Nil);
}
