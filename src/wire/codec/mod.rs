//! RFC 6455, the WebSocket protocol, without a socket: bytes in, events out; messages in, frames out.
//!
//! The decoder works on the caller's read buffer. A message that lies whole in it is unmasked where it lies and borrowed,
//! and only what is incomplete is copied and kept, so an idle connection costs the [`Decoder`] itself and nothing more. It is
//! strict: what breaks a rule ends the connection at the first byte that shows it, with the close code that the RFC names.
//!
//! Absent on purpose: sending fragments, extensions (a reserved bit is an error), and the closing handshake: the caller
//! answers a [`Event::Close`] and closes the socket.

mod close;
mod decoder;
mod encode;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handshake;
mod header;
mod mask;
mod message;
#[cfg(test)]
mod tests;
mod utf8;

pub use close::{Close, CloseCode};
pub use decoder::{Decoder, Limits};
pub use encode::{
    EncodedHeader, FrameBuilder, close_frame, close_payload, frame, header, masked_frame,
};
pub use error::ProtocolError;
pub use event::Event;
pub use handshake::{accept_key, is_valid_key};
pub use header::{Opcode, Role};
