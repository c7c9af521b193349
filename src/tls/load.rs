use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, InconsistentKeys, RootCertStore, ServerConfig};

use super::ClientAuth;
use crate::model::sha256;

/// The most bytes of a file: a chain and its key are a few KiB.
const FILE_MAX: u64 = 1 << 20;

/// What a door wants to show.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The door's section.
    pub door: &'static str,
    /// Where its chain is.
    pub cert_file: PathBuf,
    /// Where its key is.
    pub key_file: PathBuf,
    /// Who may show a certificate to it.
    pub clients: Option<ClientCa>,
    /// What it speaks (ALPN, RFC 7301).
    pub protocols: &'static [&'static str],
    /// Whether clients may resume a TLS session. Not where they show a certificate: it would not be looked at again.
    pub resumes: bool,
}

/// Who vouches for clients.
#[derive(Debug, Clone)]
pub struct ClientCa {
    /// A PEM file of the issuers' certificates.
    pub file: PathBuf,
    /// Whether a certificate has to be shown.
    pub auth: ClientAuth,
}

/// What was read and is good.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    /// Of the files' content.
    pub(super) digest: [u8; 32],
    /// From and until when the certificate is good, in Unix seconds.
    pub(super) validity: (i64, i64),
    /// Its end, for people.
    pub(super) until: String,
}

impl Loaded {
    pub(super) fn is_expired(&self, now: i64) -> bool {
        self.validity.1 < now
    }
}

pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// What the files hold now.
pub(super) struct Files {
    chain: Vec<u8>,
    key: Vec<u8>,
    issuers: Option<Vec<u8>>,
}

impl Files {
    /// Reads them.
    pub(super) fn read(wanted: &Wanted) -> Result<Self, String> {
        let ca_file = wanted.clients.as_ref().map(|clients| &clients.file);
        Ok(Self {
            chain: read(&wanted.cert_file)?,
            key: read(&wanted.key_file)?,
            issuers: ca_file.map(|file| read(file)).transpose()?,
        })
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        let issuers = self.issuers.as_deref().unwrap_or_default();
        let each = [sha256(&self.chain), sha256(&self.key), sha256(issuers)];
        sha256(&each.concat())
    }

    /// Checks them, and builds what a handshake needs.
    pub(super) fn load(&self, wanted: &Wanted) -> Result<Loaded, String> {
        let cert_file = wanted.cert_file.display();
        let chain = certificates(&wanted.cert_file, &self.chain)?;
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0])
            .map_err(|e| format!("{cert_file}: its first certificate cannot be read: {e}"))?;
        let validity = leaf.validity();
        let (from, until) = (validity.not_before, validity.not_after);
        let key = private_key(&wanted.key_file, &self.key)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let builder = match (&wanted.clients, &self.issuers) {
            (Some(clients), Some(issuers)) => {
                builder.with_client_cert_verifier(verifier(clients, issuers, provider)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain.clone(), key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                    "{cert_file}: its first certificate is not for the key in {}; they have to be renewed together",
                    wanted.key_file.display()
                ),
                other => format!("{cert_file}: {other}"),
            })?;
        let names = wanted.protocols.iter();
        config.alpn_protocols = names.map(|name| name.as_bytes().to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = usize::from(wanted.resumes);
        if wanted.resumes {
            // Sealed for the client to keep: the server remembers nothing.
            config.ticketer = aws_lc_rs::Ticketer::new().map_err(|e| e.to_string())?;
        }
        Ok(Loaded {
            config: Arc::new(config),
            digest: self.digest(),
            validity: (from.timestamp(), until.timestamp()),
            until: until.to_string(),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let fail = |e: std::io::Error| {
        format!(
            "{} cannot be read: {e}; it has to be there, and readable by the node's user",
            path.display()
        )
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!(
            "{} is larger than 1 MiB; it should hold PEM certificates or a PEM key",
            path.display()
        ));
    }
    Ok(bytes)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    // What is wrong with it is not shown: a key may be in the wrong file.
    let found =
        found.map_err(|_| format!("{shown} is not PEM, or is cut off; write all of it again"))?;
    match found.is_empty() {
        true => Err(format!(
            "{shown}: there is no certificate in it (-----BEGIN CERTIFICATE-----)"
        )),
        false => Ok(found),
    }
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => format!(
            "{shown}: there is no private key in it that can be used; one with a passphrase has to be written without it (openssl pkey)"
        ),
        _ => format!("{shown} is not PEM, or is cut off; write all of it again"),
    })
}

fn verifier(
    clients: &ClientCa,
    issuers: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, String> {
    let shown = clients.file.display();
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&clients.file, issuers)? {
        let added = roots.add(certificate);
        added.map_err(|e| format!("{shown}: a certificate in it cannot be used: {e}"))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match clients.auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::Required => builder,
    };
    builder.build().map_err(|e| format!("{shown}: {e}"))
}
