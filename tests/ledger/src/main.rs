//! The ledger of Tidings, the independent witness: producers and clients of its own write down what they were answered
//! and what they saw, and a checker holds the two against each other. It knows the contract and none of the code.

mod body;
mod cast;
mod checker;
mod client;
mod clock;
mod crowd;
mod fleet;
mod http;
mod ledger;
mod mutants;
mod producer;
mod torture;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
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
