use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use http::Uri;
use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, CertificateError, ClientConfig};

use super::Patient;
use super::report::Finding;
use crate::cli::dial::trusting;
use crate::cli::exit::Failure;

/// Addresses of one name that are tried.
const ADDRESSES: usize = 8;

/// A way to the other side, with TLS or without.
pub(super) trait Way: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Way for T {}

/// Where the doctor connects to.
pub(super) struct Target {
    pub(super) authority: Authority,
    /// The path of WebSockets, with the query of the URL.
    pub(super) path: String,
    /// The path of events.
    pub(super) events_path: String,
    host: String,
    port: u16,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    from: Option<IpAddr>,
}

/// An open way, and its two ends.
pub(super) struct Reached {
    pub(super) way: Box<dyn Way>,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}

impl Target {
    /// From a URL: `ws`, `wss`, `http` or `https`; without a path it is `/ws`.
    pub(super) fn parse(
        url: &str,
        cacert: Option<&Path>,
        from: Option<IpAddr>,
    ) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::usage(format!("{url:?} {why}"));
        let uri: Uri = url.parse().map_err(|_| wrong("is not a URL"))?;
        let secure = match uri.scheme_str() {
            Some("ws" | "http") => false,
            Some("wss" | "https") => true,
            _ => return Err(wrong("must begin with ws:// or wss://")),
        };
        let authority = uri
            .authority()
            .cloned()
            .ok_or_else(|| wrong("names no host"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let path = match uri.path() {
            "" | "/" => "/ws",
            path => path,
        };
        if uri.query().is_some() {
            return Err(wrong("has a query; tickets are given with --ticket"));
        }
        let events_path = match path.strip_suffix("/ws") {
            Some(base) => format!("{base}/sse"),
            None => "/sse".into(),
        };
        let tls = match secure {
            false => None,
            true => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|e| wrong(&format!("has no name for a certificate: {e}")))?;
                Some((Arc::new(trusting(cacert)?), name))
            }
        };
        Ok(Self {
            port: authority
                .port_u16()
                .unwrap_or(if secure { 443 } else { 80 }),
            path: path.to_owned(),
            authority,
            events_path,
            host,
            tls,
            from,
        })
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        let fits = |address: &SocketAddr| {
            self.from
                .is_none_or(|from| from.is_ipv4() == address.is_ipv4())
        };
        Ok(found.filter(fits).take(ADDRESSES).collect())
    }

    async fn tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(from) = self.from {
            socket.bind((from, 0).into())?;
        }
        socket.connect(address).await
    }

    /// Opens a way to the first address that answers.
    pub(super) async fn open(&self) -> io::Result<Reached> {
        let mut last = io::Error::other("the name has no address");
        for address in self.addresses().await? {
            match self.tcp(address).await {
                Ok(stream) => return self.secure(stream).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn secure(&self, stream: TcpStream) -> io::Result<Reached> {
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let way: Box<dyn Way> = match &self.tls {
            None => Box::new(stream),
            Some((config, name)) => {
                let connector = TlsConnector::from(config.clone());
                Box::new(connector.connect(name.clone(), stream).await?)
            }
        };
        Ok(Reached { way, local, peer })
    }
}

/// Name, TCP and TLS.
pub(super) async fn check(patient: &Patient) -> Vec<Finding> {
    let target = &patient.target;
    let addresses = match timeout(patient.timeout, target.addresses()).await {
        Ok(Ok(addresses)) if !addresses.is_empty() => addresses,
        Ok(Ok(_)) => {
            let found = format!("{} has no address", target.host);
            return vec![Finding::fail("dns", found).exits(4)];
        }
        Ok(Err(error)) => {
            let found = format!("{} cannot be resolved: {error}", target.host);
            let advice = "look at the name, and at this machine's resolver";
            return vec![Finding::fail("dns", found).advise([advice]).exits(4)];
        }
        Err(_) => {
            let found = format!("no answer for {} in time", target.host);
            return vec![Finding::fail("dns", found).exits(4)];
        }
    };
    let list = addresses.iter().map(|a| a.ip().to_string());
    let list = list.collect::<Vec<_>>().join(", ");
    let mut findings = vec![Finding::ok("dns", format!("{}: {list}", target.host))];
    let (tcp, reached) = check_tcp(patient, &addresses).await;
    findings.push(tcp);
    if let (Some(address), Some(_)) = (reached, &target.tls) {
        findings.push(check_tls(patient, address).await);
    }
    findings
}

/// Each address is tried: a client gets any of them.
async fn check_tcp(patient: &Patient, addresses: &[SocketAddr]) -> (Finding, Option<SocketAddr>) {
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for &address in addresses {
        let began = Instant::now();
        match timeout(patient.timeout, patient.target.tcp(address)).await {
            Ok(Ok(_)) => answers.push((address, began.elapsed())),
            Ok(Err(error)) => silent.push(format!("{address}: {error}")),
            Err(_) => silent.push(format!("{address}: no answer in time")),
        }
    }
    let Some(&(address, took)) = answers.first() else {
        let found = format!("nobody takes connections: {}", silent.join("; "));
        let advice = "is the proxy running, and does a firewall let you through?";
        let finding = Finding::fail("tcp", found).advise([advice]).exits(4);
        return (finding, None);
    };
    let finding = if silent.is_empty() {
        Finding::ok("tcp", format!("{address} in {} ms", took.as_millis()))
    } else {
        // A client that is unlucky waits for long.
        Finding::warn(
            "tcp",
            format!("not every address answers: {}", silent.join("; ")),
        )
        .advise(["mend what is there, or take the address out of the DNS"])
    };
    (finding, Some(address))
}

async fn check_tls(patient: &Patient, address: SocketAddr) -> Finding {
    let target = &patient.target;
    let secured = async { target.secure(target.tcp(address).await?).await };
    let began = Instant::now();
    match timeout(patient.timeout, secured).await {
        Ok(Ok(_)) => Finding::ok(
            "tls",
            format!(
                "the certificate is trusted; {} ms",
                began.elapsed().as_millis()
            ),
        ),
        Err(_) => Finding::fail("tls", "no TLS handshake in time")
            .advise(["does that port speak TLS at all? with ws:// it is tried without"])
            .exits(4),
        Ok(Err(error)) => {
            let (found, advice) = tls_problem(&target.host, &error);
            Finding::fail("tls", found).advise([advice])
        }
    }
}

/// What is wrong with a certificate, for the one who renews it.
fn tls_problem(host: &str, error: &io::Error) -> (String, String) {
    let cause = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = cause else {
        let advice = "does that port speak TLS at all? with ws:// it is tried without";
        return (format!("no TLS: {error}"), advice.into());
    };
    use CertificateError as E;
    let advice = match why {
        E::Expired | E::ExpiredContext { .. } => "renew it, and have the proxy read it again",
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "it begins later: look at the clocks of this machine and of the one that made it"
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "it is another name's: put the name into it, or let the proxy choose by the name that the client says (SNI)"
        }
        E::UnknownIssuer => {
            "its chain does not end at who is trusted here: the proxy must show the intermediate certificates too (fullchain.pem), or, for an authority of your own, name it with --cacert"
        }
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "it is an authority's own: sign one for the name with it, and show that one"
        }
        _ => "make a new one",
    };
    (
        format!("the certificate of {host} is not trusted: {why}"),
        advice.into(),
    )
}
