//! Through each of the four proxies as they ship in `deploy/`: what a client, a service and an operator see.

mod address;
mod clients;
mod closes;
mod doctor;
mod fleet;
mod services;
mod silence;

use std::net::Ipv4Addr;

use tidings::config::Config;

use crate::support::proxy::{Kind, Place, Proxy, Setup};
use crate::support::{TestNode, node_with};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// One test of each name for each proxy.
macro_rules! through {
    ($($name:ident),* $(,)?) => {
        through!(@of nginx, Nginx, $($name),*);
        through!(@of haproxy, Haproxy, $($name),*);
        through!(@of traefik, Traefik, $($name),*);
        through!(@of envoy, Envoy, $($name),*);
    };
    (@of $module:ident, $kind:ident, $($name:ident),*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(crate::support::proxy::Kind::$kind).await;
                }
            )*
        }
    };
}
use through;

/// A node behind a proxy.
async fn behind(kind: Kind, change: impl FnOnce(&mut Config)) -> (TestNode, Proxy) {
    behind_with(kind, Setup::default(), change).await
}

async fn behind_with(
    kind: Kind,
    setup: Setup<'_>,
    change: impl FnOnce(&mut Config),
) -> (TestNode, Proxy) {
    let place = Place::new();
    let node = node_with(|c| {
        place.take(c, 1);
        change(c);
    })
    .await;
    let proxy = Proxy::start_with(kind, place, &[1], setup).await;
    (node, proxy)
}
