//! `tidings doctor`: connects as a client through whatever stands between, and finds out what it does to connections.
//!
//! It knows the public door alone, as a client does, and asks the service door only for tickets and for the address that
//! the node saw. Each check makes one [`Finding`]; `advice` says which setting of which hop to change.

mod address;
mod advice;
mod events;
mod hop;
mod link;
mod reach;
mod report;
mod upgrade;
mod watch;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use clap::Args;

use super::call::{Server, issue};
use super::exit::{Failure, block_on};
use crate::model::units::parse_duration;
use crate::proto::tidings::v1 as pb;
use reach::Target;
use report::{Finding, Report};

/// How long a node keeps a connection without heartbeats: no longer can be looked.
const LONGEST: Duration = crate::hub::SILENT_MAX;
/// Silent connections, each of which is asked for a sign of life at another moment.
const SILENT_LINKS: u32 = 3;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Where clients connect, as in wss://push.example.com/ws.
    url: String,
    /// A ticket to connect with; may be repeated, as each opens one connection. Without one, the service door is asked
    /// for all that are needed.
    // One in 64 begins with a hyphen.
    #[arg(long = "ticket", value_name = "TICKET", allow_hyphen_values = true)]
    tickets: Vec<String>,
    /// As whom, where tickets are asked for.
    #[arg(long, default_value = "tidings-doctor")]
    user: String,
    /// How long to watch, as in 90s; at most 10m. What lives longer than that is not found.
    #[arg(long = "for", default_value = "90s", value_name = "DURATION")]
    watch: String,
    /// How long one step may take.
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    timeout: String,
    /// A PEM file of the certificates to trust, in place of the system's.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The address of this machine to connect from.
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    #[command(flatten)]
    server: Server,
}

/// What all checks go by.
struct Patient {
    target: Target,
    /// How long to watch.
    watch: Duration,
    /// How long one step may take.
    timeout: Duration,
    tickets: Tickets,
}

/// Tickets that were given, or the service door's.
struct Tickets {
    given: Option<Mutex<Vec<String>>>,
    user: String,
    server: Server,
}

impl Tickets {
    /// One more; none = all that were given are spent.
    async fn next(&self) -> Result<Option<String>, Failure> {
        if let Some(given) = &self.given {
            let mut given = given.lock().unwrap_or_else(|e| e.into_inner());
            return Ok(given.pop());
        }
        let request = pb::IssueTicketRequest {
            user_id: self.user.clone(),
            ..Default::default()
        };
        issue(&self.server, request)
            .await
            .map(|issued| Some(issued.ticket))
    }

    /// Who is asked about the user; nobody where tickets were given.
    fn server(&self) -> Option<&Server> {
        self.given.is_none().then_some(&self.server)
    }
}

pub(super) fn doctor(args: DoctorArgs) -> Result<(), Failure> {
    let duration = |flag: &str, text: &str| {
        parse_duration(text).map_err(|e| Failure::usage(format!("{flag}: {e}")))
    };
    let watch = duration("--for", &args.watch)?;
    if watch.is_zero() || watch > LONGEST {
        return Err(Failure::usage("--for: between 1s and 10m"));
    }
    let timeout = duration("--timeout", &args.timeout)?.max(Duration::from_millis(1));
    let target = Target::parse(&args.url, args.cacert.as_deref(), args.from)?;
    let mut given = args.tickets;
    given.reverse();
    let json = args.server.json;
    let patient = Patient {
        target,
        watch,
        timeout,
        tickets: Tickets {
            given: (!given.is_empty()).then(|| Mutex::new(given)),
            user: args.user,
            server: args.server,
        },
    };
    let mut report = Report::new(args.url, json);
    block_on(async {
        examine(&patient, &mut report).await?;
        report.finish()
    })
}

/// All checks, what is needed by others first. An error = it could not even be tried.
async fn examine(patient: &Patient, report: &mut Report) -> Result<(), Failure> {
    if !report.add_all(reach::check(patient).await)? {
        return Ok(());
    }
    let hop = hop::Hop::find(patient).await;
    report.add(hop.finding())?;
    let (opened, found) = upgrade::check(patient, &hop).await?;
    report.add(found)?;
    if opened.is_some() {
        report.watching(patient.watch);
    }
    let first = async {
        match opened {
            None => Vec::new(),
            Some(opened) => watch::first(patient, &hop, opened).await,
        }
    };
    let (first, events) = tokio::join!(first, events::check(patient, &hop));
    for finding in first {
        report.add(finding)?;
    }
    report.add(events)
}

/// A check that needs a ticket more than there is.
fn no_ticket(check: &'static str) -> Finding {
    Finding::skipped(
        check,
        "no ticket is left for it",
        "repeat --ticket, one for each connection (5 in all), or give --server and --key",
    )
}
