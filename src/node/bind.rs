//! The sockets of the doors, and what is said where there is none.

use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that may wait to be accepted, per socket.
const BACKLOG: i32 = 4096;

/// A door's one socket.
pub(super) async fn bind(door: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|e| taken(door, address, &e))
}

/// One listening socket per shard on one port. It is bound once without `SO_REUSEPORT` first, so that a port that is
/// taken is still an error.
pub(super) fn bind_public(
    address: SocketAddr,
    shards: usize,
) -> Result<(SocketAddr, Vec<std::net::TcpListener>), String> {
    let open = |address: SocketAddr, reuse_port: bool| -> std::io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let error = |e: std::io::Error| taken("public", address, &e);
    let first = open(address, false).map_err(error)?;
    // With SO_REUSEADDR alone, only listening shows that another process listens.
    first.listen(1).map_err(error)?;
    let bound = first.local_addr().map_err(error)?;
    let bound = bound.as_socket().unwrap_or(address);
    drop(first);
    let mut sockets = Vec::with_capacity(shards);
    for _ in 0..shards {
        let socket = open(bound, true).map_err(error)?;
        socket.listen(BACKLOG).map_err(error)?;
        sockets.push(socket.into());
    }
    Ok((bound, sockets))
}

fn taken(door: &str, address: SocketAddr, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "[{door}] listen: {address} is taken by another process; stop it, or choose another port (port 0 = a free one)"
        ),
        std::io::ErrorKind::AddrNotAvailable => {
            format!(
                "[{door}] listen: this machine has no address {}",
                address.ip()
            )
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("[{door}] listen: {address} needs a privilege; choose a port above 1023")
        }
        _ => format!("[{door}] listen: {address}: {error}"),
    }
}
