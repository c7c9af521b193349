use super::hop::Kind;

/// What a hop does to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It drops `Upgrade`.
    Upgrade,
    /// It cuts a WebSocket that says nothing for a while.
    Silence,
    /// It cuts a stream of events.
    Events,
    /// It holds events back.
    Buffered,
    /// It does not hand on the client's address.
    Address,
}

/// The settings to look at, for the hop that is likely to be the cause; for one that is not known, for each.
pub(super) fn advice(hop: Kind, trouble: Trouble) -> Vec<String> {
    let one = |kind| setting(kind, trouble).map(|setting| format!("{}: {setting}", named(kind)));
    match hop {
        Kind::Tidings | Kind::Unknown => {
            let likely = [
                Kind::Nginx,
                Kind::Haproxy,
                Kind::Traefik,
                Kind::Envoy,
                Kind::Aws,
            ];
            likely.into_iter().filter_map(one).collect()
        }
        kind => one(kind).into_iter().collect(),
    }
}

fn named(kind: Kind) -> &'static str {
    match kind {
        Kind::Aws => "AWS load balancer",
        other => other.name(),
    }
}

/// Names and defaults are those of the vendors' own documentation; docs/proxies.md says of the four in deploy/ what was
/// seen with them.
fn setting(kind: Kind, trouble: Trouble) -> Option<&'static str> {
    use Trouble as T;
    Some(match (kind, trouble) {
        (Kind::Nginx, T::Upgrade) => {
            "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\";"
        }
        (Kind::Nginx, T::Silence) => {
            "raise proxy_read_timeout (60s by default; in a stream block proxy_timeout)"
        }
        (Kind::Nginx, T::Events) => "raise proxy_read_timeout (60s by default)",
        (Kind::Nginx, T::Buffered) => {
            "proxy_buffering off; and no gzip for text/event-stream (or no proxy_ignore_headers X-Accel-Buffering)"
        }
        (Kind::Nginx, T::Address) => {
            "proxy_set_header X-Forwarded-For $remote_addr; (in a stream block proxy_protocol on;)"
        }
        (Kind::Haproxy, T::Upgrade) => {
            "it passes Upgrade on by itself: look for an http-request rule that deletes Upgrade or Connection"
        }
        (Kind::Haproxy, T::Silence) => {
            "raise timeout tunnel (where it is not set, timeout client and timeout server count)"
        }
        (Kind::Haproxy, T::Events) => "raise timeout client and timeout server",
        (Kind::Haproxy, T::Buffered) => {
            "no http-response wait-for-body, and no compression for text/event-stream"
        }
        (Kind::Haproxy, T::Address) => {
            "option forwardfor, or http-request set-header X-Forwarded-For %[src] (in mode tcp: send-proxy-v2)"
        }
        (Kind::Traefik, T::Upgrade) => {
            "it passes Upgrade on by itself: look for a headers middleware that empties Upgrade or Connection"
        }
        (Kind::Traefik, T::Silence) => {
            "it has no idle timeout for WebSockets: what cuts is in front of it or behind it"
        }
        (Kind::Traefik, T::Events) => {
            "entryPoints.<name>.transport.respondingTimeouts.writeTimeout: 0s (the default): it counts from the request on, heartbeats or not"
        }
        (Kind::Traefik, T::Buffered) => {
            "no buffering middleware here, and text/event-stream in excludedContentTypes of a compress middleware"
        }
        (Kind::Traefik, T::Address) => {
            "it says X-Forwarded-For by itself; behind another proxy: forwardedHeaders.trustedIPs"
        }
        (Kind::Envoy, T::Upgrade) => {
            "upgrade_configs: [{upgrade_type: websocket}] in the HttpConnectionManager"
        }
        (Kind::Envoy, T::Silence) => {
            "raise stream_idle_timeout (5m by default) of the HttpConnectionManager, or the route's idle_timeout"
        }
        (Kind::Envoy, T::Events) => {
            "timeout: 0s on the route (15s by default, for the whole answer), and raise stream_idle_timeout"
        }
        (Kind::Envoy, T::Buffered) => "no compressor or buffering filter for text/event-stream",
        (Kind::Envoy, T::Address) => "use_remote_address: true in the HttpConnectionManager",
        (Kind::Aws, T::Silence | T::Events) => {
            "raise idle_timeout.timeout_seconds of an ALB (60 by default); an NLB cuts after 350 s"
        }
        (Kind::Aws, T::Address) => {
            "an ALB says X-Forwarded-For; an NLB needs proxy_protocol_v2.enabled, or preserve_client_ip.enabled"
        }
        (Kind::Cloudflare, T::Upgrade) => "switch WebSockets on (Network)",
        (Kind::Cloudflare, T::Silence | T::Events) => {
            "it cuts after 100 s of silence: heartbeats must come more often"
        }
        (Kind::Google, T::Silence | T::Events) => {
            "raise timeoutSec of the backend service (30 by default): for WebSockets it is the longest life"
        }
        (Kind::Apache, T::Upgrade) => "ProxyPass … upgrade=websocket (2.4.47 or later)",
        (Kind::Apache, T::Silence | T::Events) => "raise ProxyTimeout (60 s by default)",
        (Kind::Caddy, T::Buffered) => "flush_interval -1 in reverse_proxy",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_hop_gets_the_advice_for_each_likely_one() {
        let all = advice(Kind::Unknown, Trouble::Silence).join("\n");
        for setting in [
            "proxy_read_timeout",
            "timeout tunnel",
            "stream_idle_timeout",
            "idle_timeout",
        ] {
            assert!(all.contains(setting), "{all}");
        }
        let one = advice(Kind::Envoy, Trouble::Upgrade);
        assert_eq!(one.len(), 1);
        assert!(one[0].contains("upgrade_configs"));
    }
}
