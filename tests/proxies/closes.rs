//! A hop that does not let a node's close frames through as they are. None of the four proxies can be made to do that, so
//! this one is the test's own.

use std::io;
use std::net::SocketAddr;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::doctor::{assert_finding, doctor, often};
use crate::support::node_with;

/// The opcode of a close frame (RFC 6455, section 5.2).
const CLOSE: u8 = 8;

#[derive(Debug, Clone, Copy)]
enum Hop {
    /// It ends the connection.
    Cuts,
    /// It keeps the frame to itself, and the connection open.
    Swallows,
    /// It says 1000.
    Rewrites,
}

impl Hop {
    /// Starts it in front of a node; its address.
    async fn start(self, behind: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((outside, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let inside = TcpStream::connect(behind).await.expect("the node");
                    let (mut asks, told) = outside.into_split();
                    let (answers, mut asked) = inside.into_split();
                    // Whichever ends first ends both.
                    tokio::select! {
                        _ = self.answer(BufReader::new(answers), told) => {}
                        _ = copy(&mut asks, &mut asked) => {}
                    }
                });
            }
        });
        at
    }

    async fn answer(
        self,
        mut from: BufReader<OwnedReadHalf>,
        mut to: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(from.read_u8().await?);
        }
        to.write_all(&head).await?;
        if !head.starts_with(b"HTTP/1.1 101") {
            copy(&mut from, &mut to).await?;
            return Ok(());
        }
        loop {
            let Ok(mut frame) = frame(&mut from).await else {
                match self {
                    Self::Swallows => std::future::pending().await,
                    Self::Cuts | Self::Rewrites => return Ok(()),
                }
            };
            if frame[0] & 0xf == CLOSE {
                match self {
                    Self::Cuts => return Ok(()),
                    Self::Swallows => continue,
                    Self::Rewrites => frame[2..4].copy_from_slice(&1000_u16.to_be_bytes()),
                }
            }
            to.write_all(&frame).await?;
        }
    }
}

/// A whole frame of a server, which masks none.
async fn frame(from: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 2];
    from.read_exact(&mut frame).await?;
    let more = match frame[1] {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mut length = vec![0; more];
    from.read_exact(&mut length).await?;
    let payload = match more {
        0 => usize::from(frame[1]),
        _ => length
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    };
    frame.extend(length);
    let head = frame.len();
    frame.resize(head + payload, 0);
    from.read_exact(&mut frame[head..]).await?;
    Ok(frame)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hop_that_does_not_let_a_close_through_as_it_is_is_found() {
    let node = node_with(often).await;
    let server = format!("http://{}", node.at.service);
    let cases = [
        (Hop::Cuts, "clients see 1006"),
        (Hop::Swallows, "the connection stays open"),
        (Hop::Rewrites, "1000 client_errors came in place"),
    ];
    let each = cases.map(|(hop, found)| {
        let (server, behind) = (&server, node.at.public);
        async move {
            let url = format!("ws://{}/ws", hop.start(behind).await);
            let words = ["--server", server, "--for", "1s", "--timeout", "8s"];
            let (code, said) = doctor(&url, &words).await;
            assert_eq!(code, 1, "{hop:?}: {said}");
            let words = [found, "pass WebSocket frames on as they are"];
            assert_finding(&said, "close codes", "fail", &words);
            for check in ["upgrade", "heartbeats", "silence", "events"] {
                assert_finding(&said, check, "ok", &[]);
            }
        }
    });
    join_all(each).await;
}
