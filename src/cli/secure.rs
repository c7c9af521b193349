//! TLS to a node: whom the command line trusts, and who it says it is.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use clap::Args;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig, RootCertStore};

use super::exit::Failure;

/// Whom to trust at `https://` and `wss://`, and what to show there.
#[derive(Debug, Default, Args)]
pub(super) struct TlsArgs {
    /// A PEM file of the certificates to trust at https:// and wss:// URLs, in place of the system's.
    #[arg(long, alias = "cacert", env = "TIDINGS_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A PEM file with the certificate to show to the service door.
    #[arg(
        long,
        env = "TIDINGS_CERT_FILE",
        value_name = "FILE",
        requires = "key_file"
    )]
    cert_file: Option<PathBuf>,
    /// A PEM file with its private key.
    #[arg(
        long,
        env = "TIDINGS_KEY_FILE",
        value_name = "FILE",
        requires = "cert_file"
    )]
    key_file: Option<PathBuf>,
}

/// Why TLS ended the command's latest connection. With TLS 1.3 a server refuses a certificate after the handshake, and what
/// speaks HTTP/2 there loses the cause on its way to the call.
static ENDED: Mutex<Option<rustls::Error>> = Mutex::new(None);

/// A connection that remembers why TLS ended it.
pub(super) struct Watched(pub(super) TlsStream<TcpStream>);

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.0).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &polled
            && let Some(cause) = rustls_error(error)
        {
            *ended() = Some(cause.clone());
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn ended() -> MutexGuard<'static, Option<rustls::Error>> {
    ENDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why there is no TLS.
pub(super) enum NoTls {
    /// It would not be otherwise next time.
    Stop(Failure),
    /// It may be better next time.
    Again(String),
}

impl TlsArgs {
    /// Whom to trust, unless the system's.
    pub(super) fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Whether a certificate is shown.
    pub(super) fn shows_certificate(&self) -> bool {
        self.cert_file.is_some()
    }

    /// Encrypts a connection to a host. `shows` = with the client's certificate, if there is one.
    pub(super) async fn encrypt(
        &self,
        stream: TcpStream,
        host: &str,
        protocol: &str,
        shows: bool,
    ) -> Result<TlsStream<TcpStream>, NoTls> {
        let config = self.config(protocol, shows).map_err(NoTls::Stop)?;
        *ended() = None;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|e| NoTls::Stop(Failure::usage(format!("{host}: {e}"))))?;
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        connecting.await.map_err(|error| {
            match rustls_error(&error) {
                Some(rustls::Error::InvalidCertificate(why)) => NoTls::Stop(Failure::failed(format!(
                    "the certificate of {host} is not trusted: {why}; if it should be, name its issuer with --ca-file"
                ))),
                _ => match alert(&error) {
                    Some(why) => NoTls::Stop(Failure::refused(why)),
                    None => NoTls::Again(format!("no TLS with {host}: {error}")),
                },
            }
        })
    }

    fn config(&self, protocol: &str, shows: bool) -> Result<ClientConfig, Failure> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the ciphers of TLS 1.2 and 1.3")
            .with_root_certificates(self.roots()?);
        let mut config = match (&self.cert_file, &self.key_file) {
            (Some(cert_file), Some(key_file)) if shows => {
                let chain = certificates("--cert-file", cert_file)?;
                let key = PrivateKeyDer::from_pem_file(key_file).map_err(|e| {
                    Failure::usage(format!("--key-file {}: {e}", key_file.display()))
                })?;
                let built = builder.with_client_auth_cert(chain, key);
                built.map_err(|e| {
                    Failure::usage(format!("--cert-file {}: {e}", cert_file.display()))
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        // A server that would rather speak another one does not.
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(config)
    }

    /// The certificates of a file, or the system's.
    fn roots(&self) -> Result<RootCertStore, Failure> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca_file else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return match roots.is_empty() {
                true => Err(Failure::failed(
                    "this system trusts no certificate; install ca-certificates, or name a file with --ca-file",
                )),
                false => Ok(roots),
            };
        };
        for certificate in certificates("--ca-file", path)? {
            let added = roots.add(certificate);
            added.map_err(|e| Failure::usage(format!("--ca-file {}: {e}", path.display())))?;
        }
        Ok(roots)
    }
}

/// A client of HTTP/1.1 that trusts the certificates of a file, or the system's.
pub(super) fn trusting(ca_file: Option<&Path>) -> Result<ClientConfig, Failure> {
    let args = TlsArgs {
        ca_file: ca_file.map(Path::to_path_buf),
        ..TlsArgs::default()
    };
    args.config("http/1.1", false)
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let fail = |why: String| Failure::usage(format!("{flag} {}: {why}", path.display()));
    let read = CertificateDer::pem_file_iter(path).map_err(|e| fail(e.to_string()))?;
    let found = read.collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|e| fail(e.to_string()))?;
    match found.is_empty() {
        true => Err(fail("there is no certificate in it".into())),
        false => Ok(found),
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What the server said of our certificate, if that is why it hung up.
pub(super) fn alert(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(rustls_error);
        if let Some(found) = inner.and_then(told) {
            return Some(found);
        }
        cause = error.source();
    }
    ended().as_ref().and_then(told)
}

fn told(error: &rustls::Error) -> Option<String> {
    match error {
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => Some(
            "the service door wants a certificate of yours; give it with --cert-file and --key-file"
                .into(),
        ),
        rustls::Error::AlertReceived(other) => Some(format!(
            "the server ended TLS with {other:?}; is the certificate of --cert-file from an issuer that it trusts?"
        )),
        _ => None,
    }
}
