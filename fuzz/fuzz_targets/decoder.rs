//! Hostile bytes on a connection. What must hold is written, and run on stable too, in `src/wire/codec/fuzz.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings::wire::codec::fuzz;

fuzz_target!(|bytes: &[u8]| fuzz::decoder(bytes));
