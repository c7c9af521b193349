use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Client, StatusCode, Url, redirect};
use tokio::io::AsyncReadExt as _;

use crate::model::is_loopback;
use crate::telemetry::logs::chain;

/// How long a connection, and how long a whole fetch, may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of a JWKS.
pub(super) const MAX_BYTES: usize = 256 << 10;

/// Where a JWKS is fetched from.
pub(super) enum Fetch {
    File(PathBuf),
    Url { url: Url, client: Client },
}

impl Fetch {
    /// One that asks a URL.
    pub(super) fn url(text: &str, timeout: Duration) -> Result<Self, String> {
        let fix = |what: &str| {
            format!(
                "[jwt] jwks_url {what}; write it as in \"https://auth.example.com/.well-known/jwks.json\""
            )
        };
        let url = Url::parse(text).map_err(|e| fix(&format!("is not a URL ({e})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(fix("is neither http nor https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(fix(
                "must not hold a user or a password: it is shown in logs",
            ));
        }
        let local = url.host_str().is_some_and(is_loopback);
        let mut builder = Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            // A key comes from where the operator said, and from nowhere else.
            .redirect(redirect::Policy::none())
            // Minutes lie between two fetches: a kept connection would be a dead one.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")));
        if url.scheme() == "http" {
            // No TLS, so a container without root certificates will do.
            builder = builder.tls_certs_only([]);
            if !local {
                tracing::warn!(
                    %url,
                    "[jwt] jwks_url is plain http: whoever can change what it answers can sign tokens; use https"
                );
            }
        }
        if local {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| {
            format!(
                "[jwt] jwks_url cannot be fetched over https: {}; are root certificates installed (ca-certificates)?",
                chain(&e)
            )
        })?;
        Ok(Self::Url { url, client })
    }

    /// One that reads a file.
    pub(super) fn file(path: &Path) -> Self {
        Self::File(path.to_owned())
    }

    /// What it fetches from, for logs.
    pub(super) fn from(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Url { url, .. } => url.to_string(),
        }
    }

    /// Whether HS256 keys may come from there. A secret that is served to whoever asks is none.
    pub(super) fn may_hold_secrets(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Fetches it.
    pub(super) async fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::File(path) => read_file(path).await,
            Self::Url { url, client } => read_url(client, url).await,
        }
    }
}

async fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = async {
        let file = tokio::fs::File::open(path).await?;
        let mut bytes = Vec::new();
        let limit = MAX_BYTES as u64 + 1;
        file.take(limit).read_to_end(&mut bytes).await?;
        Ok(bytes)
    };
    let bytes = read
        .await
        .map_err(|e: std::io::Error| format!("it cannot be read: {e}"))?;
    within_limit(bytes.len()).map(|()| bytes)
}

async fn read_url(client: &Client, url: &Url) -> Result<Vec<u8>, String> {
    let request = client.get(url.clone());
    let request = request.header(
        http::header::ACCEPT,
        "application/jwk-set+json, application/json",
    );
    let mut response = request.send().await.map_err(|e| chain(&e.without_url()))?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => {
            return Err(format!(
                "it answered {status}; write the address that it leads to"
            ));
        }
        status => return Err(format!("it answered {status}")),
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|e| chain(&e.without_url()))?
    {
        within_limit(bytes.len() + chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn within_limit(bytes: usize) -> Result<(), String> {
    match bytes {
        ..=MAX_BYTES => Ok(()),
        _ => Err(format!("it is larger than {} KiB", MAX_BYTES >> 10)),
    }
}
