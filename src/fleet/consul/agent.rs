use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, Method, Response, StatusCode, Url, redirect};
use serde_json::Value;

use super::ConsulConfig;
use super::config::is_local;
use crate::model::Secret;
use crate::telemetry::logs::chain;

/// How long one request may take. An agent is a process on the same machine.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much of what the agent says goes into a sentence.
const SAID_MAX: usize = 200;

/// Why the agent did not do what it was asked.
#[derive(Debug)]
pub(super) enum Fault {
    /// It cannot be reached, or does not answer.
    Away(String),
    /// The token does not allow it.
    Denied,
    /// It answered something else.
    Refused(String),
    /// The token cannot be read.
    Token(String),
}

impl Fault {
    /// The reason in metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Away(_) => "unreachable",
            Self::Denied => "denied",
            Self::Refused(_) => "refused",
            Self::Token(_) => "token",
        }
    }

    /// A sentence with the fix; `service` is what was to be registered.
    pub(super) fn sentence(&self, agent: &Url, service: &str) -> String {
        match self {
            Self::Away(why) => format!(
                "the Consul agent at {agent} cannot be reached: {why}; is it running? The node serves without it, and tries again"
            ),
            Self::Denied => format!(
                "the Consul agent at {agent} does not allow the token to register {service:?}: its policy needs the rule service {service:?} {{ policy = \"write\" }}; set [consul] token or token_file"
            ),
            Self::Refused(said) => {
                format!("the Consul agent at {agent} refused to register {service:?}: {said}")
            }
            Self::Token(why) => why.clone(),
        }
    }
}

enum Token {
    None,
    Fixed(Secret),
    File(PathBuf),
}

/// The agent's HTTP API: <https://developer.hashicorp.com/consul/api-docs/agent/service>.
pub(super) struct Agent {
    pub(super) url: Url,
    client: Client,
    token: Token,
}

impl Agent {
    /// Reads the certificates; nothing is sent.
    pub(super) fn new(config: &ConsulConfig) -> Result<Self, String> {
        let url = config.agent()?;
        let mut builder = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(TIMEOUT)
            // The token is for this agent alone.
            .redirect(redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")));
        let has_token = config.token.is_some() || config.token_file.is_some();
        if has_token && url.scheme() == "http" && !is_local(&url) {
            tracing::warn!(%url, "the token goes to the Consul agent in the clear; give [consul] url as https");
        }
        if url.scheme() == "http" {
            // No TLS, so a container without root certificates will do.
            builder = builder.tls_certs_only([]);
        } else if let Some(path) = &config.ca_file {
            let pem = read("ca_file", path)?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|e| format!("[consul] ca_file {}: {}", path.display(), chain(&e)))?;
            if certificates.is_empty() {
                return Err(format!(
                    "[consul] ca_file {}: there is no certificate in it",
                    path.display()
                ));
            }
            builder = builder.tls_certs_only(certificates);
        }
        if let (Some(certificate), Some(key)) = (&config.cert_file, &config.key_file) {
            let mut pem = read("cert_file", certificate)?;
            pem.extend_from_slice(b"\n");
            pem.extend(read("key_file", key)?);
            let identity = Identity::from_pem(&pem)
                .map_err(|e| format!("[consul] cert_file and key_file: {}", chain(&e)))?;
            builder = builder.identity(identity);
        }
        let client = builder.build().map_err(|e| {
            format!("[consul] url cannot be asked over https: {}; are root certificates installed (ca-certificates), or should ca_file name some?", chain(&e))
        })?;
        let token = match (&config.token, &config.token_file) {
            (Some(token), _) => Token::Fixed(token.clone()),
            (None, Some(path)) => Token::File(path.clone()),
            (None, None) => Token::None,
        };
        Ok(Self { url, client, token })
    }

    /// Registers a service, or changes what is said of it.
    pub(super) async fn register(&self, registration: &Value) -> Result<(), Fault> {
        let body = registration.to_string();
        let asked = self.ask(Method::PUT, &["register"], body).await?;
        accepted(asked).await
    }

    /// Takes a service out; one that is not there is no fault.
    pub(super) async fn deregister(&self, id: &str) -> Result<(), Fault> {
        let asked = self
            .ask(Method::PUT, &["deregister", id], String::new())
            .await?;
        match asked.status() {
            StatusCode::NOT_FOUND => Ok(()),
            _ => accepted(asked).await,
        }
    }

    /// Whether the agent has a service.
    pub(super) async fn knows(&self, id: &str) -> Result<bool, Fault> {
        let asked = self.ask(Method::GET, &[id], String::new()).await?;
        match asked.status() {
            StatusCode::NOT_FOUND => Ok(false),
            _ => accepted(asked).await.map(|()| true),
        }
    }

    async fn ask(&self, method: Method, path: &[&str], body: String) -> Result<Response, Fault> {
        let mut url = self.url.clone();
        url.path_segments_mut()
            .map_err(|()| Fault::Refused("its URL has no path".into()))?
            .pop_if_empty()
            .extend(["v1", "agent", "service"])
            .extend(path);
        let mut request = self.client.request(method, url).body(body);
        if let Some(token) = self.token().await? {
            let mut value = http::HeaderValue::from_str(token.expose()).map_err(|_| {
                Fault::Token("[consul] the token holds characters that no token has".into())
            })?;
            value.set_sensitive(true);
            request = request.header("X-Consul-Token", value);
        }
        request
            .send()
            .await
            .map_err(|e| Fault::Away(chain(&e.without_url())))
    }

    async fn token(&self) -> Result<Option<Secret>, Fault> {
        match &self.token {
            Token::None => Ok(None),
            Token::Fixed(token) => Ok(Some(token.clone())),
            Token::File(path) => {
                let text = tokio::fs::read_to_string(path).await.map_err(|e| {
                    let path = path.display();
                    Fault::Token(format!("[consul] token_file {path} cannot be read: {e}"))
                })?;
                Ok(Some(Secret::new(text.trim())))
            }
        }
    }
}

async fn accepted(mut response: Response) -> Result<(), Fault> {
    match response.status() {
        status if status.is_success() => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Fault::Denied),
        status => {
            let said = response.chunk().await.ok().flatten().unwrap_or_default();
            let said = &said[..said.len().min(SAID_MAX)];
            let said = String::from_utf8_lossy(said);
            Err(Fault::Refused(format!("{status}: {}", said.trim())))
        }
    }
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path)
        .map_err(|e| format!("[consul] {key} {} cannot be read: {e}", path.display()))
}
