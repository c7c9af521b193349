//! The `tidings` command.

use std::process::ExitCode;

// The smallest idle connection of the allocators that were measured.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    tidings::cli::run()
}
