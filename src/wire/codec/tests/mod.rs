//! The decoder by rule of the RFC, and by property. What one file promises alone is tested in that file.

mod closing;
mod memory;
mod properties;
mod rules;
mod text;

use super::fuzz::{Outcome, decode};
use super::{Close, CloseCode, Decoder, Event, Limits, ProtocolError, Role};

const LIMITS: Limits = Limits {
    message_bytes: 70_000,
    fragments: 8,
};
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CONTINUATION: u8 = 0x0;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const FIN: u8 = 0x80;

/// A frame with this first byte and this payload, right or wrong, as a client sends it. Written without the encoder.
fn sent(first: u8, payload: &[u8]) -> Vec<u8> {
    sent_masked(first, payload, KEY)
}

fn sent_masked(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = unmasked(first, payload);
    let start = frame.len() - payload.len();
    frame[1] |= 0x80;
    for (at, byte) in frame[start..].iter_mut().enumerate() {
        *byte ^= key[at % 4];
    }
    frame.splice(start..start, key);
    frame
}

/// The same, as a server sends it.
fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(len as u8),
        len @ 126..=0xffff => {
            frame.push(126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// What a server makes of these frames, in one read and byte by byte alike.
fn received(frames: &[Vec<u8>]) -> Outcome {
    let stream = frames.concat();
    let whole = decode(Role::Server, LIMITS, &stream, &[usize::MAX]);
    assert_eq!(decode(Role::Server, LIMITS, &stream, &[1]), whole);
    whole
}

/// The error that a server must give, and how many of these bytes it needs to see for it.
fn refused_after(bytes: &[u8]) -> (usize, ProtocolError) {
    refusal(&mut Decoder::new(Role::Server, LIMITS), bytes).expect("no rule was broken")
}

fn refusal(decoder: &mut Decoder, bytes: &[u8]) -> Option<(usize, ProtocolError)> {
    let mut bytes = bytes.to_vec();
    for (at, mut input) in bytes.chunks_mut(1).enumerate() {
        loop {
            match decoder.next(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return Some((at + 1, error)),
            }
        }
    }
    None
}

fn good(events: Vec<Event<'static>>) -> Outcome {
    Outcome {
        events,
        error: None,
    }
}

fn text(text: &str) -> Event<'static> {
    Event::Text(text.to_owned().into())
}

fn binary(bytes: &[u8]) -> Event<'static> {
    Event::Binary(bytes.to_vec().into())
}

fn ping(bytes: &[u8]) -> Event<'static> {
    Event::Ping(bytes.to_vec().into())
}

fn pong(bytes: &[u8]) -> Event<'static> {
    Event::Pong(bytes.to_vec().into())
}

fn close(code: u16, reason: &str) -> Event<'static> {
    Event::Close(Some(Close {
        code: CloseCode::new(code).unwrap(),
        reason: reason.to_owned().into(),
    }))
}
