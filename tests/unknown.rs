//! An answer that is lost is no answer that is wrong.

use serde_json::json;

use crate::support::chaos::{ChaosProxy, Fault, Way, Whom};
use crate::support::fleet::{USER, devices, fleet_with, node_at, push_as};
use crate::support::heard::Heard;
use crate::support::redis::{RedisServer, Sentinels};
use crate::support::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_asked_for_until_it_is_known_and_the_message_comes_once() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::marking(redis.port, b"SUBSCRIBE").await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let (there, here) = (
        node_at(&redis.url(), "a", |_| {}).await,
        node_at(&url, "b", |_| {}).await,
    );
    let device = Heard::on(there.join(USER, "").await.0);
    // By this Redis knows the script: a first append takes two commands.
    let (_, first) = push_as(&here, None, json!("first")).await;
    device.until_it_has(&first).await;
    // Redis gets the commands of this node, and its answers do not come back.
    proxy.set(Whom::Unmarked, Way::Down, Fault::Cut);
    let lose = async {
        until("Redis has done it", async || device.count() == 2).await;
        // First: what was held back would pass otherwise.
        proxy.reset(Whom::Unmarked);
        until("the answer is lost", async || {
            here.counter("tidings_append_retries_total").await > 0
        })
        .await;
        proxy.set(Whom::Unmarked, Way::Down, Fault::None);
    };
    let ((status, answer), ()) = tokio::join!(push_as(&here, None, json!("once")), lose);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["durability"], "STORED");
    assert!(answer.get("duplicate").is_none());
    device.until_it_has(&answer).await;
    let (_, last) = push_as(&here, None, json!("last")).await;
    device.until_it_has(&last).await;
    assert_eq!(device.data(), ["first", "once", "last"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_min_replicas_a_push_is_replicated_or_unknown_and_never_twice() {
    let sentinels = Sentinels::start().await;
    let nodes = fleet_with(&sentinels.url(), |c| c.backplane.min_replicas = 1).await;
    let devices = devices(&nodes).await;
    let (status, answer) = push_as(&nodes[0], None, json!("kept")).await;
    assert_eq!(
        (status, &answer["durability"]),
        (200, &json!("REPLICATED")),
        "{answer}"
    );
    // The replica stays connected and confirms nothing: it is on the primary, and nobody knows what a failover would leave.
    sentinels.replica.pause();
    let (status, unknown) = push_as(&nodes[0], None, json!("unknown")).await;
    assert_eq!(
        (status, &unknown["code"]),
        (504, &json!("ABORTED")),
        "{unknown}"
    );
    sentinels.replica.resume();
    until("a push is replicated again", async || {
        push_as(&nodes[0], None, json!("last")).await.0 == 200
    })
    .await;
    for device in &devices {
        device.until_it_has(&answer).await;
        device.until_it_has(&unknown).await;
        device.assert_no_doubles();
    }
}
