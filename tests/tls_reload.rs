//! Certificates that are replaced while a node runs: by their files alone, and as a part of a reload.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio_rustls::TlsConnector;

use crate::reload::reload;
use crate::support::certs::{BOTH, Ca, der, dial, name, shown};
use crate::support::secure::{join, open, secure};
use crate::support::served::{Served, key, key_block};
use crate::support::{next, next_of, until};

/// The certificate that a door shows now.
async fn shown_at(client: &TlsConnector, door: SocketAddr) -> Vec<u8> {
    shown(&dial(client, door).await.expect("TLS"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_to_who_comes_and_who_is_connected_stays() {
    let ca = Ca::new();
    let node = secure(&ca, |c| c.tls.watch_interval = Duration::from_millis(200)).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let mut old = join(&node, &client, "42").await;
    let new = ca.issue(&["localhost"]);
    ca.install("public", &new);
    until("the new one is shown", async || {
        let stream = dial(&client, node.at.public).await.expect("TLS");
        shown(&stream) == der(&new.certificate)
    })
    .await;
    assert_ne!(shown(old.get_ref()), der(&new.certificate));
    node.push("42", json!("still here")).await;
    assert_eq!(next(&mut old).await["data"], "still here");
    let metrics = node.metrics().await;
    assert!(
        metrics.contains("tidings_certificate_expiry_seconds{door=\"public\"} 67"),
        "{metrics}"
    );
    let taken = "tidings_certificate_reloads_total{door=\"public\",outcome=\"taken\"} ";
    assert!(metrics.contains(taken), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_file_that_is_not_good_leaves_the_old_certificate() {
    let ca = Ca::new();
    let mut node = secure(&ca, |c| c.tls.watch_interval = Duration::ZERO).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let first = shown(&dial(&client, node.at.public).await.expect("TLS"));
    let (good, other) = (ca.issue(&["localhost"]), ca.issue(&["localhost"]));
    let expired = ca.issue_with(&["localhost"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let file = name(&ca.path("public.pem"));
    let cases = [
        ("nonsense", &good.key, "there is no certificate"),
        (&good.certificate[..100], &good.key, "cut off"),
        (&good.certificate, &other.key, "is not for the key in"),
        (&expired.certificate, &expired.key, "expired"),
    ];
    for (certificate, key, sentence) in cases {
        ca.write("public.pem", certificate);
        ca.write("public.key", key);
        let told = reload(&mut node, |_| {}).await.expect_err("not good");
        assert!(told.contains(sentence) && told.contains(&file), "{told}");
        let stream = dial(&client, node.at.public).await.expect("TLS");
        assert_eq!(shown(&stream), first, "{sentence}");
    }
    std::fs::remove_file(ca.path("public.key")).expect("removed");
    let told = reload(&mut node, |_| {}).await.expect_err("not there");
    assert!(told.contains("public.key cannot be read"), "{told}");
    let refused = "tidings_certificate_reloads_total{door=\"public\",outcome=\"refused\"}";
    assert_eq!(node.counter(refused).await, 5);

    ca.install("public", &good);
    reload(&mut node, |_| {}).await.expect("taken up");
    let stream = dial(&client, node.at.public).await.expect("TLS");
    assert_eq!(shown(&stream), der(&good.certificate));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_up_certificates_and_configuration_together_or_neither() {
    let ca = Ca::new();
    let mut node = secure(&ca, |c| c.tls.watch_interval = Duration::ZERO).await;
    let client = ca.client(None, "http/1.1", BOTH);
    let door = node.at.public;
    let first = shown_at(&client, door).await;
    let (next, other) = (ca.issue(&["localhost"]), ca.issue(&["localhost"]));
    let push = json!({"user_id": "42", "message": 1});

    // A certificate that is not good: the key does not count either.
    ca.write("public.pem", &next.certificate);
    ca.write("public.key", &other.key);
    let second = || key("second", "k2", &["push"]);
    let told = reload(&mut node, |c| c.api_keys.push(second())).await;
    let told = told.expect_err("the certificate is not for the key");
    let file = name(&ca.path("public.pem"));
    assert!(
        told.starts_with("[public.tls] ") && told.contains(&file),
        "{told}"
    );
    assert_eq!(node.post_as("k2", "/v1/push", push.clone()).await.0, 401);
    assert_eq!(shown_at(&client, door).await, first);

    // A good certificate beside what is not allowed; both are told where both are wrong.
    let told = reload(&mut node, |c| c.hub.shards = 1000).await;
    let told = told.expect_err("neither is good");
    assert!(
        told.contains("shards") && told.contains(&file),
        "both are told: {told}"
    );
    ca.install("public", &next);
    let told = reload(&mut node, |c| c.hub.shards = 1000).await;
    assert!(told.expect_err("too many").contains("shards"));
    assert_eq!(shown_at(&client, door).await, first);

    let added = reload(&mut node, |c| c.api_keys.push(second())).await;
    assert_eq!(added.expect("applied").applied, ["[[api_keys]]"]);
    assert_eq!(node.post_as("k2", "/v1/push", push).await.0, 200);
    assert_eq!(shown_at(&client, door).await, der(&next.certificate));
    let refused = "tidings_reloads_total{outcome=\"refused\"}";
    assert_eq!(node.counter(refused).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_shows_new_certificates_refuses_broken_ones_and_drops_nobody() {
    let ca = Ca::new();
    let pairs = [(); 3].map(|()| ca.issue(&["localhost"]));
    let (cert, private) = ca.install("public", &pairs[0]);
    let file = |keys: &[&str]| {
        let keys = keys.iter().map(|text| key_block(text, text));
        format!(
            "[tls]\nwatch_interval = \"0s\"\n[public.tls]\ncert_file = {cert:?}\nkey_file = {private:?}\n{}",
            keys.collect::<String>()
        )
    };
    let served = Served::start(&file(&[])).await;
    let (client, door) = (
        ca.client(None, "http/1.1", BOTH),
        served.running.node.at.public,
    );
    let stream = dial(&client, door).await.expect("TLS");
    let mut socket = open(stream, &format!("ticket={}", served.ticket().await)).await;
    assert_eq!(next(&mut socket).await["type"], "welcome");
    let mut lives = async || {
        assert_eq!(served.push("k1").await, 200);
        next_of(&mut socket, "message").await;
        assert_eq!(shown(socket.get_ref()), der(&pairs[0].certificate));
    };
    lives().await;

    ca.install("public", &pairs[1]);
    served.running.signal(Signal::HUP);
    served
        .running
        .logged(&["a new certificate is shown", "INFO"])
        .await;
    assert_eq!(shown_at(&client, door).await, der(&pairs[1].certificate));
    lives().await;

    // Cut off, as a disk that is full leaves it: nothing of this reload is taken up.
    let cut = &pairs[2].certificate[..100];
    ca.write("public.pem", cut);
    served.write(&file(&["k2"]));
    served.running.signal(Signal::HUP);
    served
        .running
        .logged(&["ERROR", "refused", "send SIGHUP"])
        .await;
    let line = served.running.logged(&["[public.tls]", &name(&cert)]).await;
    assert!(
        line.contains("is cut off") && line.contains("write all of it again"),
        "{line}"
    );
    assert_eq!(shown_at(&client, door).await, der(&pairs[1].certificate));
    assert_eq!(served.push("k2").await, 401);
    lives().await;

    ca.install("public", &pairs[2]);
    served.running.signal(Signal::HUP);
    until("the third is shown", async || {
        shown_at(&client, door).await == der(&pairs[2].certificate)
    })
    .await;
    until("the key counts", async || served.push("k2").await == 200).await;
    let metrics = served.running.node.metrics().await;
    for line in [
        "tidings_reloads_total{outcome=\"applied\"} 2\n",
        "tidings_reloads_total{outcome=\"refused\"} 1\n",
        "tidings_certificate_reloads_total{door=\"public\",outcome=\"refused\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
}
