//! What is measured: a file per question.

pub mod broadcast;
pub mod envelopes;
pub mod fanout;
pub mod idle;
pub mod latency;
pub mod pushes;
pub mod storm;

use std::error::Error;
use std::path::PathBuf;

use clap::Args;

use crate::crowd::Crowd;
use crate::process::Node;

pub type Outcome = Result<(), Box<dyn Error>>;

#[derive(Debug, Args)]
pub struct Common {
    /// The binary that is measured.
    #[arg(long, default_value = "target/release/tidings")]
    server: PathBuf,
    /// Fewer connections and seconds: to see that it works.
    #[arg(long)]
    short: bool,
}

impl Common {
    fn seconds(&self) -> u64 {
        if self.short { 2 } else { 5 }
    }
}

/// The core of the server that is measured alone; the load belongs on another (`taskset -c 1`).
const SERVER_CORE: Option<u8> = Some(0);

/// Names of users.
fn users(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| format!("u{n}")).collect()
}

/// Opens a connection for each user, and waits until each was welcomed.
fn connect(
    crowd: &mut Crowd,
    node: &Node,
    users: &[String],
    query: &str,
) -> Result<(), Box<dyn Error>> {
    let tickets = crate::http::Http::connect(node.service, &node.key)?.tickets(users)?;
    let paths = tickets
        .into_iter()
        .map(|ticket| format!("/ws?ticket={ticket}{query}"));
    Ok(crowd.open(node.public, paths)?)
}
