//! What must hold for any bytes: the body of the fuzz target, and a property test of every build.

use super::{
    Decoder, Event, Limits, Opcode, ProtocolError, Role, close_frame, close_payload, frame,
    masked_frame,
};

/// All that a decoder said of a stream of bytes.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// What it gave, in order.
    pub events: Vec<Event<'static>>,
    /// What ended it.
    pub error: Option<ProtocolError>,
}

/// Decodes `stream` in reads as long as `reads` says, over and over (a length of 0 is taken as 1).
pub fn decode(role: Role, limits: Limits, stream: &[u8], reads: &[usize]) -> Outcome {
    let mut decoder = Decoder::new(role, limits);
    let mut stream = stream.to_vec();
    let mut rest = stream.as_mut_slice();
    let mut events = Vec::new();
    for read in reads.iter().cycle() {
        let read = (*read).max(1).min(rest.len());
        let (mut input, after) = rest.split_at_mut(read);
        rest = after;
        loop {
            match decoder.next(&mut input) {
                Ok(Some(event)) => events.push(event.into_owned()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next(&mut input), Err(error), "an error is final");
                    assert_eq!(decoder.held_bytes(), 0, "nothing is kept after an error");
                    let error = Some(error);
                    return Outcome { events, error };
                }
            }
        }
        assert!(input.is_empty(), "all was taken if more is asked for");
        assert!(
            decoder.held_bytes() <= 2 * limits.message_bytes + 400,
            "no more is kept than is promised"
        );
        if rest.is_empty() {
            break;
        }
    }
    let error = None;
    Outcome { events, error }
}

/// Takes the first bytes as role, limits and lengths of reads, and the rest as what the other side sent. Panics where a
/// promise of the decoder is broken.
pub fn decoder(bytes: &[u8]) {
    let Some((&[choice, first, second, third], stream)) = bytes.split_first_chunk() else {
        return;
    };
    let role = match choice & 1 {
        0 => Role::Server,
        _ => Role::Client,
    };
    let limits = Limits {
        message_bytes: [10, 200, 3000, 1 << 20][usize::from(choice >> 1 & 3)],
        fragments: [1, 2, 5, 64][usize::from(choice >> 3 & 3)],
    };
    let whole = decode(role, limits, stream, &[usize::MAX]);
    let cuts = [first, second, third].map(usize::from);
    assert_eq!(decode(role, limits, stream, &cuts), whole, "cut in reads");
    assert_eq!(decode(role, limits, stream, &[1]), whole, "byte by byte");

    for event in &whole.events {
        if let Event::Text(_) | Event::Binary(_) = event {
            let len = encode(event).1.len();
            assert!(len <= limits.message_bytes, "the limit holds");
        }
        comes_back(event);
    }
}

/// Sends the event on, in both directions, and expects the same to arrive.
fn comes_back(event: &Event<'static>) {
    let (opcode, payload) = encode(event);
    let limits = Limits {
        message_bytes: payload.len(),
        fragments: 1,
    };
    let sent = Outcome {
        events: vec![event.clone()],
        error: None,
    };
    let masked = masked_frame(opcode, &payload, [0x37, 0xfa, 0x21, 0x3d]);
    let to_server = decode(Role::Server, limits, &masked, &[usize::MAX]);
    assert_eq!(to_server, sent, "to a server");
    let to_client = match event {
        Event::Close(Some(close)) => close_frame(close.code, &close.reason),
        _ => frame(opcode, &payload),
    };
    let to_client = decode(Role::Client, limits, &to_client, &[usize::MAX]);
    assert_eq!(to_client, sent, "to a client");
}

fn encode(event: &Event<'_>) -> (Opcode, Vec<u8>) {
    match event {
        Event::Text(text) => (Opcode::Text, text.as_bytes().to_vec()),
        Event::Binary(bytes) => (Opcode::Binary, bytes.to_vec()),
        Event::Ping(bytes) => (Opcode::Ping, bytes.to_vec()),
        Event::Pong(bytes) => (Opcode::Pong, bytes.to_vec()),
        Event::Close(None) => (Opcode::Close, Vec::new()),
        Event::Close(Some(close)) => (Opcode::Close, close_payload(close.code, &close.reason)),
    }
}
