//! The torture run: three real nodes, a real Redis, a crowd, and one disturbance after the other.

mod blow;
mod stage;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use crate::cast::{Size, cast};
use crate::checker::{Disturbance, Evidence, check};
use crate::client::Order;
use crate::crowd::Crowd;
use crate::fleet::Result;
use crate::ledger::{ClientLog, Ledger};
use blow::Blow;
use stage::Stage;

/// By when everyone is connected and has everything, after the last of it.
const BOUND: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Torture {
    pub(crate) seed: u64,
    /// New disturbances begin for so long, and at least until each kind was there once.
    pub(crate) length: Duration,
    pub(crate) size: Size,
    /// Whether the disturbances are brief.
    pub(crate) brief: bool,
}

impl Torture {
    /// The long form.
    pub(crate) fn long(seed: u64, length: Duration, clients: usize) -> Self {
        Self {
            seed,
            length,
            size: Size {
                clients,
                channels: 24,
                producers: 24,
                pace: Duration::from_millis(80),
            },
            brief: false,
        }
    }

    /// Each kind of disturbance twice or so, with few clients.
    pub(crate) fn short(seed: u64) -> Self {
        Self {
            seed,
            length: Duration::from_secs(50),
            size: Size {
                clients: 240,
                channels: 8,
                producers: 12,
                pace: Duration::from_millis(80),
            },
            brief: true,
        }
    }
}

/// Runs it and prints the table; false if something was not as promised.
pub(crate) async fn run(binary: &Path, torture: Torture) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let result = within(binary, folder.path(), torture).await;
    if !matches!(result, Ok(true)) {
        let folder = folder.keep();
        println!("\nwhat the servers said is kept in {}", folder.display());
        println!("the same again: --seed {}", torture.seed);
    }
    result
}

async fn within(binary: &Path, folder: &Path, torture: Torture) -> Result<bool> {
    let began = Instant::now();
    let mut rng = StdRng::seed_from_u64(torture.seed);
    let mut stage = Stage::build(binary, folder, torture.brief).await?;
    let cast = cast(torture.seed, torture.size);
    println!(
        "seed {}: {} clients, {} producers, 3 nodes",
        torture.seed,
        cast.clients.len(),
        cast.producers.len()
    );
    let logs = cast.clients.iter();
    let logs = logs.map(|client| ClientLog::new(client.name(), client.follows()));
    let ledger = Arc::new(Ledger::new(logs.collect()));
    let doors = stage.doors();
    let gather = Crowd::gather(cast, ledger.clone(), doors.clone(), doors, BOUND);
    let mut crowd = gather.await?;
    println!(
        "{:>9}  everyone is connected",
        ledger.clock.now().to_string()
    );

    let mut disturbances = Vec::new();
    let until = Instant::now() + torture.length;
    loop {
        let mut blows = Blow::ALL;
        blows.shuffle(&mut rng);
        for blow in blows {
            rest(&mut rng, torture.brief).await;
            let disturbance = strike(&mut stage, &mut crowd, blow, &mut rng).await?;
            println!(
                "{:>9}  {}: over after {:.1} s, {}",
                disturbance.began.to_string(),
                blow.name(),
                disturbance.ended.after(disturbance.began).as_secs_f64(),
                match disturbance.settled {
                    Some(at) => {
                        let took = at.after(disturbance.ended);
                        format!("settled {:.1} s later", took.as_secs_f64())
                    }
                    None => "never settled".into(),
                }
            );
            disturbances.push(disturbance);
        }
        if Instant::now() >= until {
            break;
        }
    }
    rest(&mut rng, torture.brief).await;
    let (pushes, clients, settled) = crowd.finish(BOUND).await;
    if let (None, Some(last)) = (settled, disturbances.last_mut()) {
        last.settled = None;
    }
    let report = check(&Evidence {
        pushes,
        clients,
        disturbances,
        bound: BOUND,
        trimmed: false,
    });
    let good = report.kinds().is_empty() && report.due > 0;
    println!(
        "\n{report}\nseed {}, {} s: {}",
        torture.seed,
        began.elapsed().as_secs(),
        if good {
            "as promised"
        } else {
            "NOT AS PROMISED"
        }
    );
    Ok(good)
}

/// Calm, so that what comes next does not mix with what was.
async fn rest(rng: &mut StdRng, brief: bool) {
    let most = if brief { 1500 } else { 4000 };
    sleep(Duration::from_millis(rng.random_range(500..most))).await;
}

/// One disturbance, from its beginning until everything is well again.
async fn strike(
    stage: &mut Stage,
    crowd: &mut Crowd,
    blow: Blow,
    rng: &mut StdRng,
) -> Result<Disturbance> {
    let began = crowd.ledger.clock.now();
    // Whatever happens, some are away meanwhile, and some of their streams have nobody left.
    let share = if blow == Blow::Vanish { 0.5 } else { 0.15 };
    let away: Vec<usize> = (0..crowd.client_count())
        .filter(|_| rng.random_bool(share))
        .collect();
    for client in &away {
        crowd.order(*client, Order::Vanish);
    }
    stage.strike(blow, rng).await?;
    for client in &away {
        crowd.order(*client, Order::Stay);
    }
    let ended = crowd.ledger.clock.now();
    // A node that still looks for what was lost says so.
    stage.until_ready().await?;
    let settled = crowd.settle(BOUND).await;
    if let Err(awaited) = &settled {
        println!("still awaited: {awaited}");
    }
    Ok(Disturbance {
        name: blow.name(),
        keeps: blow.keeps(),
        began,
        ended,
        settled: settled.ok(),
    })
}
