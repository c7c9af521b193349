use std::net::IpAddr;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    AUTHORIZATION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, ORIGIN,
};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use tower::ServiceExt as _;

use super::refusal::{Kind, Refusal};
use crate::model::{Origin, Secret, sha256};

const PAGE: &str = include_str!("playground/index.html");

/// The page at `/` in dev, and the routes that it calls: `/dev/info`, and the service API under `/dev/v1/`, with the
/// development key added here. Same origin and loopback hosts only, so that no other page of the browser can use them.
pub struct Playground {
    service: axum::Router,
    key: HeaderValue,
    info: String,
    policy: HeaderValue,
}

impl Playground {
    /// For the service door's routes, a key and what `/dev/info` tells.
    pub fn new(service: axum::Router, key: &Secret, info: &serde_json::Value) -> Self {
        let policy = format!(
            "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash_of("style"),
            hash_of("script"),
        );
        Self {
            service,
            key: HeaderValue::from_str(&format!("Bearer {}", key.expose()))
                .expect("the development key is plain ASCII"),
            info: info.to_string(),
            policy: HeaderValue::from_str(&policy).expect("hashes are base64"),
        }
    }

    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        if !is_local(&request) {
            return Err(Refusal::new(
                Kind::Forbidden,
                "the playground answers its own page on a loopback address alone",
            ));
        }
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::GET, "/") => {
                let mut response = Response::new(Body::from(PAGE));
                let headers = response.headers_mut();
                headers.insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("text/html; charset=utf-8"),
                );
                headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
                Ok(response)
            }
            (&Method::GET, "/dev/info") => {
                let mut response = Response::new(Body::from(self.info.clone()));
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Ok(response)
            }
            _ if path.starts_with("/dev/v1/") => self.forward(request).await,
            _ => Err(super::not_found()),
        }
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        match path.strip_prefix("/dev").unwrap_or(path).parse::<Uri>() {
            Ok(uri) => parts.uri = uri,
            Err(_) => return Err(super::not_found()),
        }
        parts.headers.insert(AUTHORIZATION, self.key.clone());
        let request = Request::from_parts(parts, Body::new(body));
        match self.service.clone().oneshot(request).await {
            Ok(response) => Ok(response),
            Err(never) => match never {},
        }
    }
}

/// Whether a request is for a loopback host (no name that someone rebinds) and not from another page.
fn is_local(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(host) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    let loopback = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let own = headers.get(ORIGIN).is_none_or(|origin| {
        let theirs = origin
            .to_str()
            .ok()
            .and_then(|text| Origin::parse(text).ok());
        let ours = Origin::parse(&format!("http://{host}")).ok();
        theirs.is_some() && theirs == ours
    });
    loopback && own
}

/// The hash of the page's only element of a kind, for its content security policy (CSP level 3, section 2.3.1).
fn hash_of(element: &str) -> String {
    let open = PAGE
        .find(&format!("<{element}>"))
        .map(|at| at + element.len() + 2);
    let content = open.and_then(|from| {
        let length = PAGE[from..].find(&format!("</{element}>"))?;
        Some(&PAGE[from..from + length])
    });
    let content = content.expect("the page has one of each");
    format!("sha256-{}", STANDARD.encode(sha256(content.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_style_and_one_script_and_calls_nobody() {
        for element in ["style", "script"] {
            assert_eq!(PAGE.matches(&format!("<{element}>")).count(), 1);
            assert_eq!(PAGE.matches(&format!("<{element} ")).count(), 0);
            assert!(hash_of(element).starts_with("sha256-"));
        }
        for outside in ["src=\"http", "href=\"http", "url(http", "@import"] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }
}
