//! The other shapes of Redis: Sentinel, Cluster, TLS, users with passwords.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::support::fleet::{
    USER, assert_honest, devices, fleet, fleet_with, heard_again, load, push_as, reunited,
};
use crate::support::heard::Heard;
use crate::support::redis::{RedisCluster, RedisServer, Sentinels, TlsRedis};
use crate::support::{connect, refused, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_follow_the_sentinels_to_the_new_primary_under_load() {
    let mut sentinels = Sentinels::start().await;
    let nodes = fleet(&sentinels.url()).await;
    let devices = devices(&nodes).await;
    let stop = AtomicBool::new(false);
    let pushers = load(&nodes, None, &stop);
    let scenario = async {
        heard_again(&devices).await;
        sentinels.primary.kill().await;
        sentinels.wait_for_failover().await;
        heard_again(&devices).await;
        stop.store(true, Ordering::Release);
    };
    let (outcomes, ()) = tokio::join!(pushers, scenario);
    reunited(&nodes, &devices).await;
    assert_honest(&outcomes, &devices);
    // A ticket is written to, and taken from, the new one.
    let url = nodes[0].url("43", "").await;
    connect(&url).await.expect("a good ticket");
    assert_eq!(refused(&url, &[]).await.0, 401);
    // The old primary comes back as a replica, and nobody stays with it.
    sentinels.primary.restart().await;
    until("the old primary follows", async || {
        let role = sentinels.primary.try_command(&["ROLE"]).await;
        role.is_ok_and(|role| role.text().starts_with("slave"))
    })
    .await;
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_leave_a_frozen_primary_and_do_not_go_back_to_it() {
    let sentinels = Sentinels::start().await;
    let nodes = fleet(&sentinels.url()).await;
    let devices = devices(&nodes).await;
    sentinels.primary.pause();
    sentinels.wait_for_failover().await;
    reunited(&nodes, &devices).await;
    sentinels.primary.resume();
    until("the old primary follows", async || {
        let role = sentinels.primary.try_command(&["ROLE"]).await;
        role.is_ok_and(|role| role.text().starts_with("slave"))
    })
    .await;
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_three_primaries_links_the_nodes() {
    let cluster = RedisCluster::start().await;
    let nodes = fleet(&cluster.url()).await;
    // Forty users fall on all three primaries.
    let mut users = Vec::new();
    for n in 0..40 {
        let user = format!("u{n}");
        let (socket, _) = nodes[n % 3].join(&user, "&channels=orders:eu").await;
        users.push((user, Heard::on(socket)));
    }
    for (n, (user, device)) in users.iter().enumerate() {
        for pusher in &nodes {
            let answer = pusher.push(user, json!(n)).await;
            device.until_it_has(&answer).await;
        }
        assert_eq!(device.data(), vec![json!(n); 3]);
    }
    let answer = nodes[1].publish("orders:eu", json!("a channel's")).await;
    let (status, broadcast) = nodes[2]
        .post("/v1/broadcast", json!({"everyone": true, "message": "all"}))
        .await;
    assert_eq!(status, 200, "{broadcast}");
    for (_, device) in &users {
        device.until_it_has(&answer).await;
        device.until_it_has(&broadcast).await;
        device.assert_no_doubles();
    }
    let (_, answer) = nodes[0].get("/v1/users/u1/connections").await;
    assert_eq!(answer["connections"][0]["node"], "b", "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_slot_moves_to_another_primary_under_load() {
    let cluster = RedisCluster::start().await;
    let nodes = fleet(&cluster.url()).await;
    let devices = devices(&nodes).await;
    let stop = AtomicBool::new(false);
    let pushers = load(&nodes, None, &stop);
    let scenario = async {
        heard_again(&devices).await;
        for _ in 0..2 {
            let (owner, slot) = cluster.owner(&format!("{{user:{USER}}}")).await;
            cluster.move_slot(slot, owner, (owner + 1) % 3).await;
            heard_again(&devices).await;
        }
        stop.store(true, Ordering::Release);
    };
    let (outcomes, ()) = tokio::join!(pushers, scenario);
    reunited(&nodes, &devices).await;
    assert_honest(&outcomes, &devices);
    // Links that a change ended are not counted on: two to each of three primaries.
    for node in &nodes {
        until("every link is whole, and no more are counted", async || {
            node.counter("tidings_backplane_links").await == 6
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_of_a_cluster_that_dies_and_comes_back_is_found_again() {
    let mut cluster = RedisCluster::start().await;
    let nodes = fleet(&cluster.url()).await;
    let devices = devices(&nodes).await;
    let (owner, _) = cluster.owner(&format!("{{user:{USER}}}")).await;
    cluster.primaries[owner].kill().await;
    for node in &nodes {
        until("a push is refused", async || {
            let (status, answer) = push_as(node, None, json!("refused")).await;
            assert!([503, 504].contains(&status), "{status} {answer}");
            status == 503
        })
        .await;
    }
    cluster.primaries[owner].restart().await;
    cluster.wait_until_ok().await;
    reunited(&nodes, &devices).await;
    assert!(
        !devices
            .iter()
            .any(|device| device.data().contains(&json!("refused")))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_speak_tls_to_a_redis_that_a_certificate_vouches_for() {
    let tls = TlsRedis::start().await;
    let nodes = fleet_with(&tls.url(), |c| {
        c.backplane.ca_file = Some(tls.certificate.clone())
    })
    .await;
    let devices = devices(&nodes).await;
    reunited(&nodes, &devices).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_log_in_with_a_password_or_as_a_user_with_few_rights() {
    let redis = RedisServer::start_with(&["--requirepass", "s3cret"]).await;
    let url = format!("redis://:s3cret@127.0.0.1:{}", redis.port);
    let nodes = fleet(&url).await;
    reunited(&nodes, &devices(&nodes).await).await;
    // Nothing but our own keys and Pub/Sub channels, and nothing dangerous.
    let rights = [
        "on",
        ">pass",
        "resetchannels",
        "~tidings:*",
        "&tidings:*",
        "+@all",
        "-@dangerous",
        "-@admin",
    ];
    let words: Vec<_> = ["ACL", "SETUSER", "tidings"]
        .into_iter()
        .chain(rights)
        .collect();
    redis.command(&words).await;
    let url = format!("redis://tidings:pass@127.0.0.1:{}", redis.port);
    let nodes = fleet(&url).await;
    reunited(&nodes, &devices(&nodes).await).await;
}
