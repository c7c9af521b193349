//! Each mutant in turn under a short calm load, and the right node too.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use super::mutant::{Den, Mutant};
use super::relay::Relay;
use crate::cast::{Size, cast};
use crate::checker::{Evidence, Fault, Report, check};
use crate::client::Order;
use crate::crowd::Crowd;
use crate::fleet::{Doors, Kept, Node, Result, Setup};
use crate::ledger::{ClientLog, Ledger};

const SIZE: Size = Size {
    clients: 48,
    channels: 3,
    producers: 6,
    pace: Duration::from_millis(12),
};
const LOAD: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(20);
/// A calm node delivers in milliseconds.
const BOUND: Duration = Duration::from_secs(10);
/// How long it is waited for what a mutant may have eaten.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than any stream gets.
const PLENTY: Kept = Kept(10_000);
/// Less than a stream gets while a client is away for long.
const FEW: Kept = Kept(10);

/// What happens besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calm {
    /// Nobody leaves.
    Still,
    /// Clients vanish and come back.
    Churn,
    /// They are away for longer than their streams are kept.
    Overflow,
}

/// Runs all of it; false if the ledger did not find what it must, or found more.
pub(crate) async fn run(binary: &Path, seed: u64) -> Result<bool> {
    let mut runs = vec![
        (None, Calm::Still),
        (None, Calm::Churn),
        (None, Calm::Overflow),
    ];
    runs.extend(Mutant::ALL.map(|mutant| {
        let calm = match mutant {
            Mutant::Swap => Calm::Still,
            Mutant::ClaimRecovered => Calm::Overflow,
            _ => Calm::Churn,
        };
        (Some(mutant), calm)
    }));
    let mut good = true;
    for (mutant, calm) in runs {
        let began = Instant::now();
        let (report, changed) = one(binary, seed, mutant, calm).await?;
        let expected: &[Fault] = mutant.map_or(&[], Mutant::faults);
        let right = report.kinds() == expected && is_telling(&report, calm);
        let name = mutant.map_or("none", Mutant::name);
        let found: Vec<String> = report
            .kinds()
            .iter()
            .map(|kind| format!("{kind}: {}", report.count(*kind)))
            .collect();
        println!(
            "{} {name:<30} {calm:<9?} accepted {:>5}, due {:>6}, seen {:>6}, told {:>4}, changed {changed:>4}, found [{}] in {:.1} s",
            if right { "ok  " } else { "FAIL" },
            report.accepted,
            report.due,
            report.seen,
            report.recovered_false,
            found.join(", "),
            began.elapsed().as_secs_f64(),
        );
        if !right {
            println!("expected {expected:?} and nothing else:\n{report}");
        }
        good &= right;
    }
    Ok(good)
}

/// Whether the run had in it what it is there for.
fn is_telling(report: &Report, calm: Calm) -> bool {
    let resumed = match calm {
        Calm::Still => true,
        Calm::Churn => report.recovered_true > 0,
        Calm::Overflow => report.recovered_true + report.recovered_false > 0,
    };
    report.accepted > 100 && report.refused > 0 && report.due > report.accepted && resumed
}

async fn one(
    binary: &Path,
    seed: u64,
    mutant: Option<Mutant>,
    calm: Calm,
) -> Result<(Report, u64)> {
    let folder = tempfile::tempdir()?;
    let kept = if calm == Calm::Overflow { FEW } else { PLENTY };
    let setup = Setup {
        redis: None,
        kept,
        more: String::new(),
    };
    let node = Node::start(binary, folder.path(), "a", setup).await?;
    let cast = cast(seed, SIZE);
    let logs = cast
        .clients
        .iter()
        .map(|client| ClientLog::new(client.name(), client.follows()));
    let ledger = Arc::new(Ledger::new(logs.collect()));
    let den = Arc::new(Den::new(mutant, ledger.clone()));
    let relay = Relay::start(node.doors.public, den.clone()).await?;
    let relayed = Doors {
        public: relay.address,
        ..node.doors.clone()
    };
    let doors = vec![node.doors.clone()];
    let crowd = Crowd::gather(cast, ledger, vec![relayed], doors, CONNECT).await?;
    pass(&crowd, calm, seed).await;
    let (pushes, clients, _) = crowd.finish(PATIENCE).await;
    let report = check(&Evidence {
        pushes,
        clients,
        disturbances: Vec::new(),
        // Who is away sees nothing.
        bound: BOUND,
        trimmed: calm == Calm::Overflow,
    });
    Ok((report, den.changed()))
}

/// Lets time pass.
async fn pass(crowd: &Crowd, calm: Calm, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let until = Instant::now() + LOAD;
    if calm == Calm::Still {
        return sleep(LOAD).await;
    }
    let away = match calm {
        Calm::Overflow => Duration::from_millis(1500),
        _ => Duration::from_millis(200),
    };
    while Instant::now() < until {
        let some: Vec<usize> = (0..crowd.client_count())
            .filter(|_| rng.random_bool(0.2))
            .collect();
        for client in &some {
            crowd.order(*client, Order::Vanish);
        }
        sleep(away).await;
        for client in &some {
            crowd.order(*client, Order::Stay);
        }
        sleep(Duration::from_millis(300)).await;
    }
}
