//! Load for Tidings nodes, from a process of its own: one thread, raw sockets under one epoll, frames told apart by their
//! headers. docs/benchmarks.md names the command of each figure.

mod callers;
mod clock;
mod crowd;
mod floor;
mod http;
mod process;
mod pushes;
mod report;
mod resp;
mod runs;
mod tls;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::runs::Common;

/// A node's, since parts of a node run here too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures Tidings nodes. Each run prints a table in Markdown.
#[derive(Debug, Parser)]
struct Bench {
    #[command(subcommand)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Bytes of resident memory per idle connection with its session and inbox, and the floor's; without and with TLS.
    Idle(Common),
    /// Frames per second of the server's CPU time: one channel, many subscribers; a node and the floor in turn.
    Fanout(Common),
    /// Push to screen on one node.
    Latency(Common),
    /// Push to screen across two nodes.
    RedisLatency(Common),
    /// VOLATILE pushes through gRPC streams, by nodes that Redis links.
    RedisPushes(Common),
    /// Envelopes in and out of Redis per second of a node's CPU time.
    RedisEnvelopes(Common),
    /// KEPT pushes into full inboxes through gRPC streams, by nodes that Redis links; VOLATILE beside it.
    RedisKept(Common),
    /// Push to screen for both classes, on one node and across two.
    KeptLatency(Common),
    /// All who missed messages come back at once, while others' live pushes go on.
    Resume(Common),
    /// Bytes in Redis per inbox and per message.
    InboxBytes(Common),
    /// Everybody connects at once, and everybody goes.
    RedisStorm(Common),
    /// A broadcast to 10,000 named users on two nodes.
    RedisBroadcast(Common),
    /// The floor itself. Started by the runs that measure it.
    #[command(hide = true)]
    Floor {
        /// The length of a frame, with its header.
        #[arg(long, default_value_t = 132)]
        frame_bytes: usize,
        /// With TLS: where its certificate is, and where its key.
        #[arg(long, num_args = 2, value_names = ["CERT", "KEY"])]
        tls: Vec<PathBuf>,
    },
    /// One side of `redis-envelopes`, in its own process.
    #[command(hide = true, subcommand)]
    Part(runs::envelopes::Part),
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Bench::parse().run {
        Run::Idle(common) => runs::idle::run(&common),
        Run::Fanout(common) => runs::fanout::run(&common),
        Run::Latency(common) => runs::latency::alone(&common),
        Run::RedisLatency(common) => runs::latency::across(&common),
        Run::RedisPushes(common) => runs::pushes::volatile(&common),
        Run::RedisKept(common) => runs::pushes::kept(&common),
        Run::KeptLatency(common) => runs::latency::kept(&common),
        Run::Resume(common) => runs::resume::run(&common),
        Run::InboxBytes(common) => runs::inbox::run(&common),
        Run::RedisEnvelopes(common) => runs::envelopes::run(&common),
        Run::RedisStorm(common) => runs::storm::run(&common),
        Run::RedisBroadcast(common) => runs::broadcast::run(&common),
        Run::Floor { frame_bytes, tls } => {
            let tls = match &tls[..] {
                [cert, key] => Some(tls::server(cert, key)?),
                _ => None,
            };
            floor::serve(frame_bytes, tls)
        }
        Run::Part(part) => part.run(),
    }
}
