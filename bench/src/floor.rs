//! The floor: what one thread can write when there is nothing else to do. No HTTP, no hub: a fixed answer to the
//! handshake, then the frame to every socket, as often as a request says, in one vectored write.

use std::error::Error;
use std::io::{IoSlice, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

/// A text frame of 128 bytes.
fn frame() -> Vec<u8> {
    let mut frame = vec![0x81, 126, 0, 128];
    frame.resize(4 + 128, b'x');
    frame
}

/// Serves until the standard input ends. Its lines: `accept N`, then `write K` = K frames to all.
pub fn serve() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!(
        "{}",
        serde_json::json!({"public": listener.local_addr()?.to_string()})
    );
    let frame = frame();
    let mut clients: Vec<TcpStream> = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line?;
        let (word, count) = line.split_once(' ').unwrap_or((&line, "1"));
        let count: usize = count.parse()?;
        if word == "accept" {
            for _ in 0..count {
                let (mut client, _) = listener.accept()?;
                client.set_nodelay(true)?;
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    client.read_exact(&mut byte)?;
                    head.push(byte[0]);
                }
                client.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")?;
                clients.push(client);
            }
        } else {
            let slices: Vec<IoSlice<'_>> = (0..count).map(|_| IoSlice::new(&frame)).collect();
            for client in &mut clients {
                let written = client.write_vectored(&slices)?;
                if written < frame.len() * count {
                    // Blocking sockets take all unless the client is far behind; then the rest goes one by one.
                    let rest: Vec<u8> = frame.repeat(count).split_off(written);
                    client.write_all(&rest)?;
                }
            }
        }
    }
    Ok(())
}
