//! What is measured: a file per question.

pub mod broadcast;
pub mod envelopes;
pub mod fanout;
pub mod idle;
pub mod inbox;
pub mod latency;
pub mod pushes;
pub mod resume;
pub mod storm;

use std::error::Error;
use std::path::PathBuf;

use clap::Args;

use crate::crowd::Crowd;
use crate::http::Http;
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
        if self.short { 1 } else { 5 }
    }
}

/// The core of the server that is measured alone; the load belongs on another (`taskset -c 1`).
const SERVER_CORE: Option<u8> = Some(0);

/// Names of users.
fn users(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| format!("u{n}")).collect()
}

/// Opens a connection for each user, a few at once, so that a node's memory is that of its connections and not of tickets
/// and handshakes that waited.
fn connect(
    crowd: &mut Crowd,
    node: &Node,
    users: &[String],
    query: &str,
) -> Result<(), Box<dyn Error>> {
    let mut http = Http::connect(node.service, &node.key)?;
    for some in users.chunks(16) {
        let tickets = http.tickets(some)?.into_iter();
        let paths = tickets.map(|ticket| format!("/ws?ticket={ticket}{query}"));
        crowd.open(node.public, paths)?;
    }
    Ok(())
}
