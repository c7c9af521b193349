//! A resolver that asks one server one question over UDP (RFC 1035, RFC 2782).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    A = 1,
    Srv = 33,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    A(IpAddr),
    Srv {
        weight: u16,
        port: u16,
        target: String,
    },
}

/// What a server answers; nothing, if it does not within a second.
pub async fn ask(server: SocketAddr, name: &str, kind: Kind) -> Vec<Answer> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a socket");
    let mut query = vec![0, 42, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a label"));
        query.extend(label.bytes());
    }
    query.extend([0, 0, kind as u8, 0, 1]);
    let mut reply = vec![0; 4096];
    let asked = async {
        socket.send_to(&query, server).await?;
        socket.recv(&mut reply).await
    };
    let Ok(Ok(length)) = tokio::time::timeout(Duration::from_secs(1), asked).await else {
        return Vec::new();
    };
    reply.truncate(length);
    answers(&reply, query.len(), kind)
}

fn answers(reply: &[u8], mut at: usize, kind: Kind) -> Vec<Answer> {
    let number = |at: usize| u16::from_be_bytes([reply[at], reply[at + 1]]);
    let mut found = Vec::new();
    for _ in 0..number(6) {
        at = name(reply, at).1;
        let (record, length) = (number(at), usize::from(number(at + 8)));
        at += 10;
        match kind {
            _ if record != kind as u16 => {}
            Kind::A => {
                let octets: [u8; 4] = reply[at..at + 4].try_into().expect("four");
                found.push(Answer::A(IpAddr::from(octets)));
            }
            Kind::Srv => found.push(Answer::Srv {
                weight: number(at + 2),
                port: number(at + 4),
                target: name(reply, at + 6).0,
            }),
        }
        at += length;
    }
    found
}

/// The name at a place, and where what follows it is.
fn name(reply: &[u8], mut at: usize) -> (String, usize) {
    let (mut labels, mut after) = (Vec::new(), None);
    loop {
        let length = usize::from(reply[at]);
        match length {
            0 => return (labels.join("."), after.unwrap_or(at + 1)),
            // A pointer to where the rest stands (RFC 1035 section 4.1.4).
            0xC0.. => {
                after.get_or_insert(at + 2);
                at = (length & 0x3F) << 8 | usize::from(reply[at + 1]);
            }
            _ => {
                labels.push(String::from_utf8_lossy(&reply[at + 1..=at + length]).into_owned());
                at += 1 + length;
            }
        }
    }
}
