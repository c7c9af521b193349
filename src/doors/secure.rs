//! The TLS handshake of an accepted connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls::DoorTls;

/// How long a client may take to read why it is refused.
const LINGER: Duration = Duration::from_secs(1);

/// Runs the handshake. On an error the socket comes back, with the alert on it.
pub(super) async fn handshake(
    tls: &DoorTls,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, (io::Error, TcpStream)> {
    let accepting = TlsAcceptor::from(tls.config()).accept(stream);
    accepting.into_fallible().await
}

/// Lets the client read the alert: were the socket closed at once, what the client sent meanwhile would make the kernel
/// reset it, and take the alert away.
pub(super) async fn linger(mut stream: TcpStream) {
    let ended = async {
        let _ = stream.shutdown().await;
        let mut rest = [0; 512];
        while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    };
    let _ = tokio::time::timeout(LINGER, ended).await;
}
