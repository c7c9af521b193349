//! Mixed versions: a node of a commit before and one of this tree in one cluster. First what they owe each other, both
//! ways; then each leaves in turn, under a load that the ledger watches.

mod checks;
mod ends;

use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::clock::Stamp;
use crate::fleet::{Kept, Node, Redis, Result, Setup};
use crate::scene::{Folder, Load, Outcome, Scene, pushes};
use crate::verdict::Verdict;
use checks::Pair;

const OLD: &str = "old";
const NEW: &str = "new";
const CALM: Duration = Duration::from_secs(1);
/// Both versions know these.
const DRAIN: &str = "[drain]\nderegister_delay = \"3s\"\nspread = \"4s\"\ngrace = \"2s\"\n";
const LEAVES: Duration = Duration::from_secs(40);

/// Runs both parts and prints the table; false if a promise was broken.
pub(crate) async fn run(old: &Path, new: &Path, seed: u64) -> Result<bool> {
    let folder = Folder::new()?;
    let path = folder.path();
    let owed = owed(old, new, &path).await;
    let good = match owed {
        Ok(true) => under_load(old, new, &path, seed).await,
        other => other,
    };
    folder.keep_unless(matches!(good, Ok(true)), seed);
    good
}

async fn owed(old: &Path, new: &Path, folder: &Path) -> Result<bool> {
    let folder = folder.join("pair");
    std::fs::create_dir_all(&folder)?;
    let redis = Redis::start(&folder, "redis").await?;
    let setup = Setup {
        redis: Some(redis.port),
        kept: Kept(1000),
        more: String::new(),
    };
    let old = Node::start(old, &folder, OLD, setup.clone()).await?;
    let new = Node::start(new, &folder, NEW, setup).await?;
    let mut good = true;
    for (asks, serves) in [(&old, &new), (&new, &old)] {
        let pair = Pair {
            asks,
            serves,
            user: format!("of-{}", serves.name),
        };
        for (what, found) in checks::all(&pair).await {
            let word = if found.is_ok() { "ok  " } else { "FAIL" };
            println!("{word} the {} node {what}", asks.name);
            if let Err(why) = found {
                println!("     {why}");
                good = false;
            }
        }
    }
    Ok(good)
}

async fn under_load(old: &Path, new: &Path, folder: &Path, seed: u64) -> Result<bool> {
    let load = Load {
        seed,
        obeying: 150,
        stubborn: 30,
        pushes_per_second: 60,
        stands_back: false,
        arrivals_per_second: 60,
    };
    let nodes = [(OLD, old), (NEW, new)];
    let mut scene = Scene::build(&nodes, folder, load, DRAIN.into()).await?;
    scene.gather().await?;
    scene.publish();
    let mut left = Vec::new();
    for (at, (name, _)) in nodes.into_iter().enumerate() {
        sleep(CALM).await;
        let from = scene.now();
        scene.nodes[at].leave(LEAVES).await?;
        left.push((name, from, scene.now()));
        scene.settle(LEAVES).await?;
        scene.nodes[at].restart().await?;
        scene.haproxy.until(name, true).await?;
    }
    sleep(CALM).await;
    let outcome = scene.finish().await;
    let mut verdict = Verdict::default();
    pushes(&mut verdict, &outcome);
    for (node, from, to) in left {
        moved(&mut verdict, &outcome, node, from, to);
    }
    Ok(verdict.tell(&outcome.report, seed))
}

/// How the clients that obey went from a node that left.
fn moved(verdict: &mut Verdict, outcome: &Outcome, node: &str, from: Stamp, to: Stamp) {
    let (mut ended, mut told, mut cut) = (0, 0, 0);
    let obeying = outcome.clients.iter().filter(|client| client.obeys);
    for span in obeying.flat_map(|client| &client.spans) {
        let Some(end) = span.end else { continue };
        if (from..to).contains(&end) {
            ended += 1;
            told += u64::from(span.told);
            cut += u64::from(span.code.is_none());
        }
    }
    verdict.promise(
        &format!("clients that the {node} node had"),
        ended,
        ended > 0,
    );
    verdict.nothing("  closed by it with 1006", cut);
    // What a commit before did not know it need not do.
    match node {
        NEW => verdict.nothing("  not told to go away", ended - told),
        _ => verdict.figure("  not told to go away", ended - told),
    }
}
