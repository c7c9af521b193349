//! The client wire: what goes over a connection, and how it is written and read. Knows bytes and the words of the model;
//! knows no socket, no runtime and no clock.

pub mod codec;
pub mod events;
pub mod frames;
