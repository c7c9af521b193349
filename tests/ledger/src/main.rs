//! The ledger of Tidings, the independent witness: producers and clients of its own write down what they were answered
//! and what they saw, and a checker holds the two against each other. It knows the contract and none of the code.

mod body;
mod cast;
mod checker;
mod client;
mod clock;
mod crash;
mod crowd;
mod fleet;
mod frame;
mod http;
mod ledger;
mod machines;
mod mixed;
mod mover;
mod mutants;
mod producer;
mod publisher;
mod roll;
mod scene;
mod spans;
mod torture;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use crash::Crash;
use roll::Roll;
use tokio::signal::unix::{SignalKind, signal};
use torture::Torture;

/// Proves that nothing is lost in silence, doubled or out of order.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Holds the ledger against nodes that do wrong: it must find each fault, and nothing in a node that does right
    Mutants(What),
    /// Three nodes, a Redis and a crowd: what happens to them, and whether anything was lost in silence
    Torture {
        #[command(flatten)]
        what: What,
        /// How long new disturbances begin; each kind comes at least once
        #[arg(long, default_value_t = 20)]
        minutes: u64,
        /// How many ends of users
        #[arg(long, default_value_t = 2000)]
        clients: usize,
        /// Brief disturbances and few clients, two minutes in all: what CI runs
        #[arg(long, conflicts_with_all = ["minutes", "clients"])]
        short: bool,
    },
    /// Replaces three nodes behind a HAProxy one after the other, under load: nobody may notice
    Roll {
        #[command(flatten)]
        what: What,
        /// Clients that obey `goaway`
        #[arg(long, default_value_t = 5000)]
        clients: usize,
        /// Clients that do not know it
        #[arg(long, default_value_t = 500)]
        stubborn: usize,
        /// Few clients and a brief drain, a minute and a half in all: what CI runs
        #[arg(long, conflicts_with_all = ["clients", "stubborn"])]
        short: bool,
        /// Begins when a third of the clients is there and the rest is coming
        #[arg(long)]
        early: bool,
        /// Redis stands still for so many milliseconds while each node's clients go
        #[arg(long, default_value_t = 0)]
        freeze: u64,
    },
    /// Kills one of three nodes: how its clients come back, and what publishers notice
    Crash {
        #[command(flatten)]
        what: What,
        /// Clients of all three
        #[arg(long, default_value_t = 9000)]
        clients: usize,
        /// Few clients: what CI runs
        #[arg(long, conflicts_with = "clients")]
        short: bool,
    },
    /// A node of a commit before and one of this in one cluster: what they owe each other, and each leaves in turn
    Mixed {
        #[command(flatten)]
        what: What,
        /// The node of a commit before
        #[arg(long)]
        old: PathBuf,
    },
}

#[derive(Debug, Args)]
struct What {
    /// The node that is run; by default the one that was built beside this program
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Decides who takes part, and what befalls them
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl What {
    fn binary(&self) -> PathBuf {
        let own =
            || std::env::current_exe().unwrap_or_else(|_| "target/debug/tidings-ledger".into());
        let given = self.binary.clone();
        given.unwrap_or_else(|| own().with_file_name("tidings"))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = async {
        match arguments.run {
            Run::Mutants(what) => mutants::run(&what.binary(), what.seed).await,
            Run::Torture {
                what,
                minutes,
                clients,
                short,
            } => {
                let torture = match short {
                    true => Torture::short(what.seed),
                    false => {
                        let length = Duration::from_secs(minutes * 60);
                        Torture::long(what.seed, length, clients)
                    }
                };
                torture::run(&what.binary(), torture).await
            }
            Run::Roll {
                what,
                clients,
                stubborn,
                short,
                early,
                freeze,
            } => {
                let mut roll = match short {
                    true => Roll::short(what.seed),
                    false => Roll::long(what.seed, clients, stubborn),
                };
                if early {
                    roll = roll.early();
                }
                roll.freeze = Duration::from_millis(freeze);
                roll::run(&what.binary(), roll).await
            }
            Run::Crash {
                what,
                clients,
                short,
            } => {
                let crash = match short {
                    true => Crash::short(what.seed),
                    false => Crash::long(what.seed, clients),
                };
                crash::run(&what.binary(), crash).await
            }
            Run::Mixed { what, old } => mixed::run(&old, &what.binary(), what.seed).await,
        }
    };
    // Whoever ends this ends its servers too: they are dropped with the run.
    let result = tokio::select! {
        result = run => result,
        () = ended() => Err("ended by a signal".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// SIGINT or SIGTERM.
async fn ended() {
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
