//! The header of the PROXY protocol, version 1 or 2 (haproxy.org/download/2.8/doc/proxy-protocol.txt): what a balancer says of a
//! connection before its first byte.

use std::net::SocketAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::net::TcpStream;

/// The most bytes of a header: room for what balancers add in version 2, a client's certificate included.
const MAX_BYTES: usize = 16 << 10;
/// Bytes that are looked at, at once; most headers are shorter.
const LOOK_BYTES: usize = 256;

/// Why a connection has no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoHeader {
    /// It ended before its first byte, as a balancer's look whether the port is open does. That is no refusal.
    Nothing,
    /// What it begins with is no header.
    Malformed,
    /// It ended within its header.
    CutOff,
    /// The header did not come in time.
    Late,
}

impl NoHeader {
    /// For the log.
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::Nothing => "it ended before its first byte",
            Self::Malformed => {
                "it begins with no PROXY header; does the proxy send one (send-proxy)?"
            }
            Self::CutOff => "it ended within its PROXY header",
            Self::Late => "its PROXY header did not come in time",
        }
    }
}

/// Reads the header and not one byte more, so that TLS and HTTP find theirs where they are: in the socket. None = the
/// connection is the proxy's own (`LOCAL`, `UNKNOWN`).
pub(super) async fn read(stream: &TcpStream) -> Result<Option<SocketAddr>, NoHeader> {
    let mut header: Vec<u8> = Vec::with_capacity(LOOK_BYTES);
    loop {
        let known = header.len();
        header.resize(known + LOOK_BYTES, 0);
        // A reset is an end too.
        let seen = stream.peek(&mut header[known..]).await.unwrap_or(0);
        if seen == 0 {
            return Err(match known {
                0 => NoHeader::Nothing,
                _ => NoHeader::CutOff,
            });
        }
        header.truncate(known + seen);
        let parsed = parse(&header)?;
        let ours = parsed.map_or(seen, |(_, length)| length - known);
        take(stream, &mut header[known..known + ours])?;
        if let Some((client, _)) = parsed {
            return Ok(client);
        }
    }
}

/// Who the client is and how long the header; none = more of it is to come.
fn parse(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, NoHeader> {
    if !may_begin(bytes) {
        return Err(NoHeader::Malformed);
    }
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    match ProxyHeader::parse(bytes, config) {
        Ok((_, length)) if length > MAX_BYTES => Err(NoHeader::Malformed),
        Ok((header, length)) => {
            let source = header.proxied_address().map(|address| address.source);
            let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
            Ok(Some((source.map(canonical), length)))
        }
        // A line that has ended does not go on, however little of it there is.
        Err(Error::BufferTooShort)
            if bytes.len() < MAX_BYTES && !(bytes[0] == b'P' && bytes.contains(&b'\n')) =>
        {
            Ok(None)
        }
        Err(_) => Err(NoHeader::Malformed),
    }
}

/// Whether it is, or may become, a header: the parser waits for more bytes than it takes to see that.
fn may_begin(bytes: &[u8]) -> bool {
    let signatures: [&[u8]; 2] = [b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"];
    signatures.iter().any(|signature| {
        let both = signature.len().min(bytes.len());
        signature[..both] == bytes[..both]
    })
}

/// Takes what was seen out of the socket.
fn take(stream: &TcpStream, into: &mut [u8]) -> Result<(), NoHeader> {
    let wanted = into.len();
    match stream.try_read(into) {
        Ok(taken) if taken == wanted => Ok(()),
        _ => Err(NoHeader::CutOff),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proxy_header::{ProxiedAddress, Tlv};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    type Read = Result<Option<SocketAddr>, NoHeader>;

    /// What is read of bytes that come in these pieces, and what is left for HTTP.
    async fn read_in_pieces(bytes: &[u8], pieces: &[usize]) -> (Read, Vec<u8>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, (mut server, _)) =
            (client.expect("connected"), accepted.expect("accepted"));
        client.set_nodelay(true).expect("set");
        let writing = async move {
            let (mut rest, mut pieces) = (bytes, pieces.iter().cycle());
            while !rest.is_empty() {
                let piece = pieces
                    .next()
                    .map_or(rest.len(), |n| (*n).clamp(1, rest.len()));
                // Who refused it has hung up.
                if client.write_all(&rest[..piece]).await.is_err() {
                    break;
                }
                rest = &rest[piece..];
                tokio::task::yield_now().await;
            }
            let _ = client.shutdown().await;
            client
        };
        let reading = async {
            let client = read(&server).await;
            let mut rest = Vec::new();
            if client.is_ok() {
                server.read_to_end(&mut rest).await.expect("read");
            }
            (client, rest)
        };
        let (_client, read) = tokio::join!(writing, reading);
        read
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(work)
    }

    fn encoded(source: SocketAddr, version: u8, padding: usize) -> Vec<u8> {
        let destination = match source {
            SocketAddr::V4(_) => "10.0.0.1:443".parse(),
            SocketAddr::V6(_) => "[2001:db8::1]:443".parse(),
        };
        let address = ProxiedAddress::stream(source, destination.expect("an address"));
        let mut header = ProxyHeader::with_address(address);
        let mut bytes = Vec::new();
        let written = match version {
            1 => header.encode_v1(&mut bytes),
            _ => {
                header.append_tlv(Tlv::Noop(padding));
                header.encode_v2(&mut bytes)
            }
        };
        written.expect("a header");
        bytes
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_header_is_read_however_it_comes_and_not_a_byte_more(
            source in any_address(),
            version in 1_u8..=2,
            padding in 0_usize..600,
            behind in any::<Vec<u8>>(),
            pieces in prop::collection::vec(1_usize..400, 0..4),
        ) {
            let mut bytes = encoded(source, version, padding);
            bytes.extend_from_slice(&behind);
            let expected = SocketAddr::new(source.ip().to_canonical(), source.port());
            let (read, rest) = run(read_in_pieces(&bytes, &pieces));
            prop_assert_eq!(read, Ok(Some(expected)));
            prop_assert_eq!(rest, behind);
        }

        #[test]
        fn bytes_that_are_no_header_end_it_without_a_panic(
            begin in 0_usize..40,
            bytes in any::<Vec<u8>>(),
            version in 1_u8..=2,
            pieces in prop::collection::vec(1_usize..40, 0..4),
        ) {
            let header = encoded("1.2.3.4:5".parse().expect("an address"), version, 9);
            let cut = begin.min(header.len() - 1);
            let mut all = header[..cut].to_vec();
            all.extend_from_slice(&bytes);
            // What is read of it, if anything, is the same in whatever pieces it comes.
            let whole = run(read_in_pieces(&all, &[]));
            let cut = run(read_in_pieces(&all, &pieces));
            match whole.0 {
                Ok(_) => prop_assert_eq!(whole, cut),
                Err(_) => prop_assert!(cut.0.is_err()),
            }
        }
    }

    #[test]
    fn each_way_to_have_no_header_is_told_apart() {
        let local = [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[0x20, 0, 0, 0]].concat();
        let huge = [
            b"\r\n\r\n\0\r\nQUIT\n".as_slice(),
            &[0x21, 0x11, 0xff, 0xff],
            &[0; 40 << 10],
        ]
        .concat();
        let cases: [(&[u8], Read); 10] = [
            (b"", Err(NoHeader::Nothing)),
            (b"PROXY TCP4 1.2.3.4", Err(NoHeader::CutOff)),
            (b"\r\n\r\n\0\r\nQUIT", Err(NoHeader::CutOff)),
            (b"G", Err(NoHeader::Malformed)),
            (b"GET /ws HTTP/1.1\r\n\r\n", Err(NoHeader::Malformed)),
            (
                b"PROXY TCP4 1.2.3.4 5.6.7.8 80\r\n",
                Err(NoHeader::Malformed),
            ),
            (
                b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
                Err(NoHeader::Malformed),
            ),
            (b"PROXY UNKNOWN ffff::1 whatever\r\n", Ok(None)),
            (&local, Ok(None)),
            (&huge, Err(NoHeader::Malformed)),
        ];
        for (bytes, expected) in cases {
            let (read, _) = run(read_in_pieces(bytes, &[]));
            assert_eq!(
                read,
                expected,
                "{}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(50)])
            );
        }
    }
}
