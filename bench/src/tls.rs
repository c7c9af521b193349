//! TLS for a node, the floor and their load: a certificate of its own for each run, and a socket with or without TLS on it.

use std::error::Error;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig,
    ServerConnection, SideData, StreamOwned, version,
};

/// What the certificate is for.
const NAME: &str = "localhost";

/// A server's certificate in files, and a client that trusts it alone and speaks TLS 1.3.
pub struct Certificate {
    folder: tempfile::TempDir,
    pub client: Arc<ClientConfig>,
}

impl Certificate {
    pub fn new() -> Result<Self, Box<dyn Error>> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let mut client = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Each connection is one of its own, as a crowd's are.
        client.resumption = rustls::client::Resumption::disabled();
        let certificate = Self {
            folder: tempfile::tempdir()?,
            client: client.into(),
        };
        std::fs::write(certificate.cert_file(), made.cert.pem())?;
        std::fs::write(certificate.key_file(), made.signing_key.serialize_pem())?;
        Ok(certificate)
    }

    pub fn cert_file(&self) -> PathBuf {
        self.folder.path().join("public.pem")
    }

    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("public.key")
    }
}

/// What a node's public door holds a handshake with.
pub fn server(cert_file: &Path, key_file: &Path) -> Result<Arc<ServerConfig>, Box<dyn Error>> {
    let chain = CertificateDer::pem_file_iter(cert_file)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key_file)?;
    let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(config.into())
}

/// A socket, with or without one side of TLS on it.
pub enum Stream<C> {
    Plain(TcpStream),
    Tls(Box<StreamOwned<C, TcpStream>>),
}

impl Stream<ClientConnection> {
    /// The client's side of a socket to a server.
    pub fn to(socket: TcpStream, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let Some(tls) = tls else {
            return Ok(Self::Plain(socket));
        };
        let name = NAME.try_into().map_err(io::Error::other)?;
        let session = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
        Ok(Self::Tls(StreamOwned::new(session, socket).into()))
    }
}

impl Stream<ServerConnection> {
    /// The server's side of a socket that was accepted.
    pub fn of(socket: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Self> {
        let Some(tls) = tls else {
            return Ok(Self::Plain(socket));
        };
        let session = ServerConnection::new(tls.clone()).map_err(io::Error::other)?;
        Ok(Self::Tls(StreamOwned::new(session, socket).into()))
    }
}

impl<C> Stream<C> {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl<C, S> Read for Stream<C>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl<C, S> Write for Stream<C>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write_vectored(slices),
            Self::Tls(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
