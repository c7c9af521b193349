use std::net::IpAddr;

use super::Patient;
use super::advice::{Trouble, advice};
use super::hop::Hop;
use super::report::Finding;
use super::upgrade::Opened;
use crate::cli::call::{Server, refused};
use crate::cli::exit::Failure;
use crate::proto::tidings::v1 as pb;

const CHECK: &str = "address";

/// Whether the node sees the client's address, or a proxy's.
pub(super) async fn check(patient: &Patient, hop: &Hop, opened: &Opened) -> Finding {
    let Some(server) = patient.tickets.server() else {
        return Finding::skipped(
            CHECK,
            "only a service may ask which address a node saw",
            "give --server and --key in place of --ticket; or issue a ticket with ips = your address: it opens only if that is what the node sees",
        );
    };
    let seen = match ask(server, &patient.tickets.user, &opened.connection).await {
        Ok(Some(seen)) => seen,
        Ok(None) => {
            let found = "the service door says no address: is the node older than this doctor?";
            return Finding::warn(CHECK, found);
        }
        Err(failure) => return Finding::warn(CHECK, failure.message),
    };
    let ours = opened.local.ip().to_canonical();
    if seen == ours {
        return Finding::ok(
            CHECK,
            format!("the node sees {seen}, which is this machine"),
        );
    }
    let hidden = seen == opened.peer.ip().to_canonical() || is_inside(seen);
    if hidden {
        let found = format!(
            "the node sees {seen} and not this machine ({ours}): a proxy does not hand it on, or is not trusted"
        );
        return Finding::fail(CHECK, found)
            .advise(advice(hop.kind, Trouble::Address))
            .advise([format!(
                "and in tidings.toml: [public] trusted_proxies = [\"{seen}\"] (and proxy_protocol = true, where it speaks that)"
            )]);
    }
    let found = format!("the node sees {seen}, this machine is {ours}");
    Finding::warn(CHECK, found)
        .advise(["right, if that is how this machine looks from outside (a NAT); else a proxy between does not hand it on"])
}

/// An address that is nobody's on the Internet: a client that came from outside does not have it.
fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

async fn ask(server: &Server, user: &str, connection: &str) -> Result<Option<IpAddr>, Failure> {
    let channel = server.channel().await?;
    let mut client = pb::connections_client::ConnectionsClient::new(channel);
    let request = server.request(pb::WhereIsRequest {
        user_id: user.into(),
    })?;
    let answer = client.where_is(request).await.map_err(|s| refused(&s))?;
    let connections = answer.into_inner().connections;
    let mut ours = connections
        .into_iter()
        .filter(|c| c.connection == connection);
    Ok(ours.next().and_then(|found| found.ip.parse().ok()))
}
