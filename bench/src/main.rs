//! Load for a Tidings node, from a process of its own: one thread, one read buffer, frames counted by their headers.
//! docs/benchmarks.md names the command of each figure.

mod client;
mod floor;
mod node;
mod runs;

use clap::{Parser, Subcommand};

/// Measures a Tidings node.
#[derive(Debug, Parser)]
struct Bench {
    #[command(subcommand)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Bytes of resident memory per idle connection with its session and inbox.
    Idle(runs::Common),
    /// Frames per second of the node's CPU time: one channel, many subscribers.
    Fanout {
        #[command(flatten)]
        common: runs::Common,
        /// Messages that may be on their way at once; 1 = nothing can be coalesced.
        #[arg(long, default_value_t = 1)]
        window: usize,
        /// How long.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Measures the bare write loop without any logic instead of a node.
        #[arg(long)]
        floor: bool,
    },
    /// From the intended moment of a push to the frame at the client, at a fixed rate.
    Latency {
        #[command(flatten)]
        common: runs::Common,
        /// Pushes a second.
        #[arg(long, default_value_t = 500)]
        rate: u64,
        /// How long.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// The bare write loop: accepts clients and, for each request, writes a fixed frame to all. Started by `fanout`.
    #[command(hide = true)]
    Floor,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        match Bench::parse().run {
            Run::Idle(common) => runs::idle(common).await,
            Run::Fanout {
                common,
                window,
                seconds,
                floor,
            } => runs::fanout(common, window, seconds, floor).await,
            Run::Latency {
                common,
                rate,
                seconds,
            } => runs::latency(common, rate, seconds).await,
            Run::Floor => floor::serve(),
        }
    })
}
