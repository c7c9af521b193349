//! Certificates of a test's own issuer, and clients that trust it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore, SupportedProtocolVersion, crypto, version,
};

pub static BOTH: &[&SupportedProtocolVersion] = &[&version::TLS12, &version::TLS13];

/// Who vouches, and a folder for what it issues.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// A certificate and its key, as PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        let name = format!("issuer {:x}", rand::random::<u32>());
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("an issuer"),
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for DNS names or addresses.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, |_| {})
    }

    pub fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let made = params.signed_by(&key, &self.issuer).expect("signed");
        Pair {
            certificate: made.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Where a file of the folder is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the folder as who rotates certificates does: all of it or nothing.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &path).expect("renamed");
        path
    }

    /// Writes a pair; where its certificate and its key are.
    pub fn install(&self, name: &str, pair: &Pair) -> (PathBuf, PathBuf) {
        (
            self.write(&format!("{name}.pem"), &pair.certificate),
            self.write(&format!("{name}.key"), &pair.key),
        )
    }

    /// The issuer's own certificate, in a file.
    pub fn file(&self) -> PathBuf {
        self.write("ca.pem", &self.pem())
    }

    /// A client that trusts this issuer alone.
    pub fn client(
        &self,
        pair: Option<&Pair>,
        protocol: &str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(self.issuer.der().to_vec()))
            .expect("a root");
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes());
                let chain = chain.collect::<Result<Vec<_>, _>>().expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        // Each handshake shows the server's certificate.
        config.resumption = rustls::client::Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }

    /// An HTTPS client that trusts this issuer alone.
    pub fn https(&self, pair: Option<&Pair>) -> reqwest::Client {
        let root = reqwest::Certificate::from_pem(self.pem().as_bytes()).expect("PEM");
        let mut builder = reqwest::Client::builder().tls_certs_only([root]).no_proxy();
        if let Some(pair) = pair {
            let both = format!("{}{}", pair.certificate, pair.key);
            let identity = reqwest::Identity::from_pem(both.as_bytes()).expect("PEM");
            builder = builder.identity(identity);
        }
        builder.build().expect("a client")
    }
}

/// `[….tls]` of a door.
pub fn tls((cert_file, key_file): (PathBuf, PathBuf)) -> tidings::tls::TlsConfig {
    tidings::tls::TlsConfig {
        cert_file,
        key_file,
    }
}

/// A TLS connection to `localhost` at an address.
pub async fn dial(
    client: &TlsConnector,
    address: SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    client
        .connect("localhost".try_into().expect("a name"), stream)
        .await
}

/// The certificate that a server showed.
pub fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let chain = stream.get_ref().1.peer_certificates().expect("a chain");
    chain[0].to_vec()
}

/// The bytes of the first certificate of a PEM text.
pub fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .expect("PEM")
        .to_vec()
}

/// A file's name as a message shows it.
pub fn name(path: &Path) -> String {
    path.display().to_string()
}
