use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::forwarded::{forwarded, x_forwarded_for};
use super::proxy_header::{self, NoHeader};
use crate::doors::config::PublicConfig;
use crate::model::IpPrefix;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies that are believed who their client is, and how they say it.
pub(super) struct Proxies {
    trusted: Box<[IpPrefix]>,
    header_first: bool,
}

impl Proxies {
    pub(super) fn new(config: &PublicConfig) -> Self {
        Self {
            trusted: config.trusted_proxies.as_slice().into(),
            header_first: config.proxy_protocol,
        }
    }

    /// Whether a connection of this peer begins with a PROXY header.
    pub(super) fn expects_header(&self, peer: SocketAddr) -> bool {
        self.header_first && self.trusts(peer.ip())
    }

    /// The client of a request that came over a connection from `peer`. Only what a trusted proxy says counts:
    /// `X-Forwarded-For`, and `Forwarded` (RFC 7239) where that is absent. From the right, which the nearest proxy wrote,
    /// trusted addresses are passed over, and the first other one is the client; what cannot be read ends the walk, and the
    /// last good address counts.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let hops = match headers.contains_key(X_FORWARDED_FOR) {
            true => x_forwarded_for(headers.get_all(X_FORWARDED_FOR)),
            false => forwarded(headers.get_all(FORWARDED)),
        };
        for hop in hops.into_iter().rev() {
            let Some(ip) = hop else { break };
            client = ip;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }

    fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|prefix| prefix.contains(ip))
    }
}

/// Reads the PROXY header that a trusted proxy's connection begins with: whose connection it is.
pub(super) async fn read_header(
    stream: &TcpStream,
    peer: SocketAddr,
    deadline: Instant,
) -> Result<SocketAddr, NoHeader> {
    let read = timeout_at(deadline, proxy_header::read(stream)).await;
    // The proxy itself, as in a health check, says nothing of a client.
    Ok(read.unwrap_or(Err(NoHeader::Late))?.unwrap_or(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn proxies() -> Proxies {
        let trusted = ["10.0.0.0/8", "2001:db8:ffff::/48"];
        Proxies::new(&PublicConfig {
            trusted_proxies: trusted
                .into_iter()
                .map(|p| IpPrefix::parse(p).expect("valid"))
                .collect(),
            ..PublicConfig::default()
        })
    }

    fn client(peer: &str, headers: &[(&'static str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a header value"));
        }
        let peer = peer.parse().expect("an address");
        proxies().client(peer, &map).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let says = [("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4")];
        for says in says {
            assert_eq!(client("9.9.9.9", &[says]), "9.9.9.9");
            assert_eq!(client(PROXY, &[says]), "1.2.3.4");
            assert_eq!(client("::ffff:10.0.0.1", &[says]), "1.2.3.4");
        }
        assert_eq!(client(PROXY, &[]), PROXY);
        assert_eq!(client("::ffff:9.9.9.9", &[]), "9.9.9.9");
    }

    #[test]
    fn the_first_address_from_the_right_that_is_no_trusted_proxy_is_the_client() {
        for (chain, expected) in [
            // Whoever sends the header itself only adds to the left.
            ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("1.2.3.4, 10.0.0.2, 10.0.0.3", "1.2.3.4"),
            ("10.0.0.4, 10.0.0.2", "10.0.0.4"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("[2001:db8::7]:5678, 2001:db8:ffff::1", "2001:db8::7"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
        ] {
            assert_eq!(
                client(PROXY, &[("x-forwarded-for", chain)]),
                expected,
                "{chain}"
            );
        }
        let several = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "1.2.3.4, 10.0.0.2"),
        ];
        assert_eq!(client(PROXY, &several), "1.2.3.4");
    }

    #[test]
    fn at_what_cannot_be_read_the_last_good_address_counts() {
        for (chain, expected) in [
            ("1.2.3.4, unknown, 10.0.0.2", "10.0.0.2"),
            ("1.2.3.4, , 10.0.0.2", "10.0.0.2"),
            ("1.2.3.4, evil.example", PROXY),
            ("1.2.3.4, 1.2.3", PROXY),
            ("1.2.3.4, 1.2.3.4:99999", PROXY),
            ("", PROXY),
            ("\u{e9}", PROXY),
        ] {
            assert_eq!(
                client(PROXY, &[("x-forwarded-for", chain)]),
                expected,
                "{chain}"
            );
        }
        for (chain, expected) in [
            ("for=1.2.3.4, for=unknown, for=10.0.0.2", "10.0.0.2"),
            ("for=1.2.3.4, for=_hidden;proto=https", PROXY),
            ("for=1.2.3.4, proto=https", PROXY),
            // A quote that a client opens ends what its proxy says of it, and gains it nothing.
            ("for=6.6.6.6;by=\", for=1.2.3.4", PROXY),
            ("for=6.6.6.6;by=\", for=\"[2001:db8::7]\"", PROXY),
            ("for=6.6.6.6;by=\"\\, for=\"[2001:db8::7]\"", PROXY),
        ] {
            assert_eq!(client(PROXY, &[("forwarded", chain)]), expected, "{chain}");
        }
    }

    #[test]
    fn forwarded_is_read_where_x_forwarded_for_is_absent() {
        for (chain, expected) in [
            ("for=1.2.3.4", "1.2.3.4"),
            (
                "For=\"[2001:db8::7]:4711\";proto=https;by=10.0.0.9",
                "2001:db8::7",
            ),
            ("for=6.6.6.6, for=\"1.2.3.4:80\" , for=10.0.0.2", "1.2.3.4"),
            ("host=\"a,b;\\\"c\";for=1.2.3.4", "1.2.3.4"),
        ] {
            assert_eq!(client(PROXY, &[("forwarded", chain)]), expected, "{chain}");
        }
        let both = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(client(PROXY, &both), "1.2.3.4");
    }
}
