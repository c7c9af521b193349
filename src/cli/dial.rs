use std::path::Path;
use std::sync::Arc;

use http::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::uri::Authority;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::exit::Failure;
use super::listen::End;
use crate::wire::codec;
use crate::wire::frames::{SUBPROTOCOL, TICKET_SUBPROTOCOL};

/// An open WebSocket, before any frame.
pub(super) type Link = TokioIo<Upgraded>;

fn again(why: impl ToString) -> End {
    End::Again(why.to_string(), None)
}

/// Opens a WebSocket at a `ws://` or `wss://` URL. `cacert` names the certificates to trust in place of the system's.
pub(super) async fn dial(url: &str, ticket: &str, cacert: Option<&Path>) -> Result<Link, End> {
    let stop = |why: String| End::Stop(Failure::usage(why));
    let uri: Uri = url
        .parse()
        .map_err(|_| stop(format!("{url:?} is not a URL")))?;
    let (secure, authority) = match (uri.scheme_str(), uri.authority()) {
        (Some("ws"), Some(authority)) => (false, authority),
        (Some("wss"), Some(authority)) => (true, authority),
        _ => return Err(stop(format!("{url:?} must begin with ws:// or wss://"))),
    };
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority
        .port_u16()
        .unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|e| again(format!("{authority} cannot be reached: {e}")))?;
    if !secure {
        return handshake(stream, &uri, authority, ticket).await;
    }
    let config = trusting(cacert).map_err(End::Stop)?;
    let stream = encrypt(stream, host, config).await?;
    handshake(stream, &uri, authority, ticket).await
}

/// What the client trusts: the certificates of a file, or the system's.
pub(super) fn trusting(cacert: Option<&Path>) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    match cacert {
        Some(path) => {
            let fail = |why: String| Failure::usage(format!("--cacert {}: {why}", path.display()));
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|e| fail(e.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|e| fail(e.to_string()))?;
                roots.add(certificate).map_err(|e| fail(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(fail("there is no certificate in it".into()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(Failure::failed(
                    "this system trusts no certificate; install ca-certificates, or name a file with --cacert",
                ));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the ciphers of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A WebSocket is opened by HTTP/1.1 here, also at a server that would rather speak HTTP/2.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn encrypt(
    stream: TcpStream,
    host: &str,
    config: ClientConfig,
) -> Result<TlsStream<TcpStream>, End> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|e| End::Stop(Failure::usage(format!("{host}: {e}"))))?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    connecting.await.map_err(|error| {
        let cause = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        match cause {
            Some(rustls::Error::InvalidCertificate(why)) => End::Stop(Failure::failed(format!(
                "the certificate of {host} is not trusted: {why}; if it should be, name its issuer with --cacert"
            ))),
            _ => again(format!("no TLS with {host}: {error}")),
        }
    })
}

/// The WebSocket handshake; the ticket goes as a subprotocol, out of every URL log.
async fn handshake<S>(
    stream: S,
    uri: &Uri,
    authority: &Authority,
    ticket: &str,
) -> Result<Link, End>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(again)?;
    // Ends with the upgrade or with the sender.
    tokio::spawn(connection.with_upgrades());
    let key = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        rand::random::<[u8; 16]>(),
    );
    let request = Request::get(uri.path_and_query().map_or("/ws", |path| path.as_str()))
        .header(HOST, authority.as_str())
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(
            SEC_WEBSOCKET_PROTOCOL,
            format!("{SUBPROTOCOL}, {TICKET_SUBPROTOCOL}{ticket}"),
        )
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| End::Stop(Failure::usage(e.to_string())))?;
    let response = sender.send_request(request).await.map_err(again)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(response).await);
    }
    let right = response
        .headers()
        .get(SEC_WEBSOCKET_ACCEPT)
        .is_some_and(|v| v == codec::accept_key(&key).as_str());
    if !right {
        let why = format!("{authority} does not speak WebSocket");
        return Err(End::Stop(Failure::usage(why)));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(again)?;
    Ok(TokioIo::new(upgraded))
}

async fn refused(response: Response<Incoming>) -> End {
    let status = response.status();
    let body = response.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let why = format!("refused with {status}: {}", String::from_utf8_lossy(&body));
    match status.as_u16() {
        401 | 429 | 503 => again(why),
        _ => End::Stop(Failure::refused(why)),
    }
}
