//! The command line. Human output on a terminal, `--json` for programs.

mod call;
mod config;
mod dial;
mod doctor;
mod drain;
mod exit;
mod follow;
mod history;
mod listen;
mod nodes;
mod presence;
mod secure;
mod serve;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use exit::Failure;

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 failed, 2 wrong usage or configuration, 3 refused by the server, 4 the server cannot be reached or does not answer.";

/// The real-time notification gateway of a microservice fleet.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_CODES)]
struct Tidings {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one node on loopback with a playground: nothing else is needed.
    Dev(Run),
    /// Runs a node in production.
    Serve(Run),
    /// Issues a one-time ticket.
    Ticket(call::TicketArgs),
    /// Pushes a message to a user.
    Push(call::PushArgs),
    /// Publishes a message to a channel.
    Publish(call::PublishArgs),
    /// Connects as a user and prints what comes, reconnecting.
    Listen(listen::ListenArgs),
    /// Connects as a client through whatever stands between, and says what it does to connections.
    Doctor(doctor::DoctorArgs),
    /// Makes a node leave, and waits until it has; or says how long that would take.
    Drain(drain::DrainArgs),
    /// Lists the nodes of the cluster.
    Nodes(nodes::NodesArgs),
    /// Lists who subscribes to a channel, on all nodes.
    Presence(presence::PresenceArgs),
    /// Prints what is kept of a user's or a channel's messages, oldest first.
    History(history::HistoryArgs),
    /// Checks, shows and makes configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

/// How a node is configured.
#[derive(Debug, Args)]
struct Run {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides one key, as in --set heartbeat.interval=10s; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
    /// Prints what was bound as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command that the process was called with.
pub fn run() -> ExitCode {
    let outcome = match Tidings::parse().command {
        Command::Dev(args) => serve::dev(args),
        Command::Serve(args) => serve::serve(args),
        Command::Ticket(args) => call::ticket(args),
        Command::Push(args) => call::push(args),
        Command::Publish(args) => call::publish(args),
        Command::Listen(args) => listen::listen(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Drain(args) => drain::drain(args),
        Command::Nodes(args) => nodes::nodes(args),
        Command::Presence(args) => presence::presence(args),
        Command::History(args) => history::history(args),
        Command::Config(command) => config::run(command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            for line in message.lines() {
                eprintln!("tidings: {line}");
            }
            ExitCode::from(code)
        }
    }
}
