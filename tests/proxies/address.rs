use std::net::Ipv4Addr;

use serde_json::json;
use tidings::config::Config;

use super::{HERE, behind_with, through};
use crate::support::events::Events;
use crate::support::proxy::{Kind, Proxy, Setup};
use crate::support::{TestNode, next_of};

through!(
    a_header_says_who_the_client_is,
    the_proxy_protocol_says_who_the_client_is,
);

/// Where a client is, in the tests; the proxy is at 127.0.0.1.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);
/// Who it says that it is.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);

fn trusting(config: &mut Config) {
    let proxies = json!(["127.0.0.1"]);
    config.public.trusted_proxies = serde_json::from_value(proxies).expect("addresses");
}

/// A ticket that opens a connection from one address alone.
async fn ticket_for(node: &TestNode, address: Ipv4Addr) -> String {
    node.ticket(json!({"user_id": "42", "ips": [address.to_string()]}))
        .await
}

/// A client's address is its own, whatever it says, and the proxy's is nobody's.
async fn assert_seen(node: &TestNode, proxy: &Proxy) {
    let lies = OTHER.to_string();
    let forwarded = format!("for={OTHER}");
    let headers = [
        ("x-forwarded-for", lies.as_str()),
        ("forwarded", &forwarded),
    ];
    for hidden in [HERE, OTHER] {
        let query = format!("ticket={}", ticket_for(node, hidden).await);
        proxy
            .open(&query, CLIENT, &headers)
            .await
            .expect_err("another address");
    }
    let query = format!("ticket={}", ticket_for(node, CLIENT).await);
    let mut socket = proxy.open(&query, CLIENT, &headers).await.expect("let in");
    next_of(&mut socket, "welcome").await;
    let (_, found) = node.get("/v1/users/42/connections").await;
    assert_eq!(found["connections"][0]["ip"], CLIENT.to_string(), "{found}");
    let ticket = ticket_for(node, CLIENT).await;
    let url = format!("https://localhost:{}/sse?ticket={ticket}", proxy.clients);
    let http = proxy.http(CLIENT);
    let mut events = Events::at(&http, &url, &headers).await.expect("let in");
    events.next_of("welcome").await;
}

async fn a_header_says_who_the_client_is(kind: Kind) {
    let (node, proxy) = behind_with(kind, Setup::default(), trusting).await;
    assert_seen(&node, &proxy).await;
}

async fn the_proxy_protocol_says_who_the_client_is(kind: Kind) {
    let older: &[&str] = match kind {
        // It speaks version 1 alone.
        Kind::Nginx => &[],
        Kind::Haproxy => &["send-proxy-v2=send-proxy"],
        Kind::Traefik => &["version: 2=version: 1"],
        Kind::Envoy => &["V2=V1"],
    };
    let both = [older, &[]];
    let versions = if older.is_empty() { &both[..1] } else { &both };
    for words in versions {
        let setup = Setup {
            proxy_protocol: true,
            words,
        };
        let (node, proxy) = behind_with(kind, setup, |c| {
            trusting(c);
            c.public.proxy_protocol = true;
        })
        .await;
        assert_seen(&node, &proxy).await;
    }
}
