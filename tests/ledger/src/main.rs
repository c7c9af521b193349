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

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

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
}

#[derive(Debug, Args)]
struct What {
    /// The node that is run
    #[arg(long, default_value = "target/debug/tidings")]
    binary: PathBuf,
    /// Decides who takes part, and what befalls them
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = async {
        match arguments.run {
            Run::Mutants(what) => mutants::run(&what.binary, what.seed).await,
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
