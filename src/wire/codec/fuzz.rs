//! What the fuzz target runs, and a stable property test too: hostile bytes.

use super::{Close, Decoder, Event, Limits, ProtocolError, Role};

/// Decodes bytes in one piece and in pieces of the sizes given (cyclic; none = one piece), for both roles: the verdict
/// must be the same.
///
/// # Panics
/// It is not.
pub fn same_verdict_whatever_the_chunks(bytes: &[u8], chunks: &[u8]) {
    for role in [Role::Server, Role::Client] {
        let whole = decode(role, bytes, &[]);
        let pieces = decode(role, bytes, chunks);
        assert_eq!(whole, pieces);
    }
}

fn decode(role: Role, bytes: &[u8], chunks: &[u8]) -> (Vec<String>, Option<ProtocolError>) {
    let limits = Limits {
        message_bytes: 4096,
        fragments: 8,
    };
    let mut decoder = Decoder::new(role, limits);
    let mut events = Vec::new();
    let mut sizes = chunks.iter().map(|size| usize::from(*size).max(1)).cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let size = if chunks.is_empty() {
            rest.len()
        } else {
            sizes.next().unwrap_or(1)
        };
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        let mut chunk = chunk.to_vec();
        let mut input = &mut chunk[..];
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break,
                Ok(Some(event)) => events.push(note(&event)),
                Err(error) => return (events, Some(error)),
            }
        }
    }
    (events, None)
}

fn note(event: &Event<'_>) -> String {
    match event {
        Event::Close(Some(Close { code, reason })) => format!("close {code} {reason}"),
        other => format!("{other:?}"),
    }
}
