use http::HeaderMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::Patient;
use super::report::Finding;

/// What no server takes for a request. What it answers, and how, says who is there: most proxies answer it themselves.
const NO_REQUEST: &[u8] = b"TIDINGS-DOCTOR\r\n\r\n";
/// How hyper answers it, and so a node.
const HYPER: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n";
/// Bytes of the answer that are looked at.
const ANSWER_MAX: u64 = 8 << 10;

/// Who answers first on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nginx,
    Haproxy,
    Envoy,
    /// A server in Go: Traefik, as a rule, or Caddy.
    Traefik,
    Caddy,
    Apache,
    Aws,
    Cloudflare,
    Google,
    /// Nobody between, or somebody who passes on what it does not understand.
    Tidings,
    Unknown,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::Traefik => "Traefik",
            Self::Caddy => "Caddy",
            Self::Apache => "Apache",
            Self::Aws => "AWS",
            Self::Cloudflare => "Cloudflare",
            Self::Google => "Google Cloud",
            Self::Tidings => "Tidings",
            Self::Unknown => "unknown",
        }
    }

    /// By the `server` and `via` headers of an answer.
    pub(super) fn of_headers(headers: &HeaderMap) -> Option<Self> {
        let said = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_ascii_lowercase()
        };
        let (server, via) = (said("server"), said("via"));
        let known = [
            ("nginx", Self::Nginx),
            ("openresty", Self::Nginx),
            ("envoy", Self::Envoy),
            ("caddy", Self::Caddy),
            ("apache", Self::Apache),
            ("awselb", Self::Aws),
            ("cloudflare", Self::Cloudflare),
            ("google", Self::Google),
            ("haproxy", Self::Haproxy),
            ("traefik", Self::Traefik),
        ];
        let mut found = known.into_iter().filter(|(word, _)| {
            // Istio's sidecar calls itself istio-envoy.
            server.contains(word) || via.contains(word)
        });
        found.next().map(|(_, kind)| kind)
    }

    /// By how it answers what is no request.
    fn of_answer(answer: &str) -> Self {
        let lower = answer.to_ascii_lowercase();
        let signs = [
            ("server: envoy", Self::Envoy),
            ("server: istio-envoy", Self::Envoy),
            ("server: awselb", Self::Aws),
            ("server: cloudflare", Self::Cloudflare),
            ("<center>cloudflare</center>", Self::Cloudflare),
            ("<center>nginx", Self::Nginx),
            ("<center>openresty", Self::Nginx),
            ("server: nginx", Self::Nginx),
            ("server: apache", Self::Apache),
            ("server: caddy", Self::Caddy),
            // Its page of that name, which it sends as long as nobody wrote another.
            ("your browser sent an invalid request", Self::Haproxy),
            // What Go's own HTTP server says. Caddy says its name with what it does understand.
            ("\r\n\r\n400 bad request", Self::Traefik),
        ];
        let mut found = signs.into_iter().filter(|(sign, _)| lower.contains(sign));
        match found.next() {
            Some((_, kind)) => kind,
            // hyper's: nothing but a status and no length, in small letters.
            None if answer.starts_with(HYPER) => Self::Tidings,
            None => Self::Unknown,
        }
    }
}

/// The first hop, and what it called itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hop {
    pub(super) kind: Kind,
}

impl Hop {
    /// Asks what no server understands.
    pub(super) async fn find(patient: &Patient) -> Self {
        let asking = async {
            let mut way = patient.target.open().await?.way;
            way.write_all(NO_REQUEST).await?;
            way.flush().await?;
            let mut answer = Vec::new();
            // An end without a word is an answer too, and so is one that was cut.
            let _ = way.take(ANSWER_MAX).read_to_end(&mut answer).await;
            std::io::Result::Ok(answer)
        };
        let kind = match timeout(patient.timeout, asking).await {
            Ok(Ok(answer)) => Kind::of_answer(&String::from_utf8_lossy(&answer)),
            Ok(Err(_)) | Err(_) => Kind::Unknown,
        };
        Self { kind }
    }

    pub(super) fn finding(self) -> Finding {
        let found = match self.kind {
            Kind::Tidings => {
                "a node of Tidings itself, or who passes TCP on without looking into it".into()
            }
            Kind::Unknown => {
                "who answers first does not say what it is; what is advised names the likely ones"
                    .into()
            }
            Kind::Traefik => "Traefik, or another server in Go".into(),
            kind => kind.name().to_owned(),
        };
        Finding::ok("hop", found)
    }

    /// This hop, unless an answer says that another one gave it.
    pub(super) fn of(self, headers: &HeaderMap) -> Kind {
        Kind::of_headers(headers).unwrap_or(self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answers_in_its_own_way() {
        for (answer, kind) in [
            (
                "<html>\r\n<head><title>400 Bad Request</title></head>\r\n<hr><center>nginx</center>",
                Kind::Nginx,
            ),
            (
                "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request",
                Kind::Traefik,
            ),
            (
                "HTTP/1.1 400 Bad request\r\n\r\n<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>\n",
                Kind::Haproxy,
            ),
            (
                "HTTP/1.1 400 Bad Request\r\nserver: envoy\r\n\r\nBad Request",
                Kind::Envoy,
            ),
            (
                "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n",
                Kind::Tidings,
            ),
            ("", Kind::Unknown),
        ] {
            assert_eq!(Kind::of_answer(answer), kind, "{answer}");
        }
    }
}
