//! The model test: real hubs, whose links and store are simulated, in paused time. Nodes die, links are cut, answers are
//! lost, the store is rolled back, clients come and go; and what each client sees is what the model says that it may see:
//!
//! - of each stream every message behind where it began, in order, once, unless a `gap` or `recovered:false` covers it;
//! - nothing that was refused, and nothing of another stream;
//! - of a loss it is told, and it is told of none where nothing was lost;
//! - in the end everyone has everything.
//!
//! `MODEL_CASES` says how many interleavings; one that fails is made smaller and printed.

mod backplane;
mod client;
mod node;
mod sim;
mod store;
mod world;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use tokio::task::LocalSet;

use self::client::Begin;
use self::sim::Sim;

/// How often an interleaving that failed is tried again while it is made smaller: the jitter of pauses has no seed.
const TRIES: u32 = 5;

const NODES: usize = 3;
const CLIENTS: usize = 6;

/// How the cluster is made.
#[derive(Debug, Clone, Copy)]
struct Shape {
    seed: u64,
    shards: usize,
    /// Messages of each stream.
    keeps: u32,
    /// Whether the store goes back at times; else nobody may be told of a loss of what is kept.
    rollbacks: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Push {
        node: usize,
        to: usize,
        live_only: bool,
    },
    Burst {
        node: usize,
        to: usize,
        count: u64,
    },
    Open {
        client: usize,
        node: usize,
        shard: usize,
        begin: Begin,
    },
    Leave {
        client: usize,
    },
    Ack {
        client: usize,
    },
    Stall {
        client: usize,
        stalled: bool,
    },
    Kill {
        node: usize,
    },
    Start {
        node: usize,
    },
    Cut {
        node: usize,
        drop: bool,
    },
    Heal {
        node: usize,
    },
    Mute {
        node: usize,
        mute: bool,
    },
    Lose {
        node: usize,
        answers: u32,
    },
    Snapshot,
    RollBack {
        to: usize,
        drop: bool,
    },
    Pause {
        millis: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (node, client, to) = (0..NODES, 0..CLIENTS, 0..3usize);
    let begin = prop_oneof![
        4 => Just(Begin::Seen),
        3 => Just(Begin::Cursor),
        1 => Just(Begin::Now),
    ];
    let millis = prop_oneof![4 => 0..5u64, 3 => 5..60u64, 1 => 60..1500u64];
    prop_oneof![
        12 => (node.clone(), to.clone(), prop::bool::weighted(0.15))
            .prop_map(|(node, to, live_only)| Step::Push { node, to, live_only }),
        1 => (node.clone(), to, 2..180u64).prop_map(|(node, to, count)| Step::Burst { node, to, count }),
        9 => (client.clone(), node.clone(), 0..2usize, begin)
            .prop_map(|(client, node, shard, begin)| Step::Open { client, node, shard, begin }),
        4 => client.clone().prop_map(|client| Step::Leave { client }),
        3 => client.clone().prop_map(|client| Step::Ack { client }),
        1 => (client, prop::bool::ANY).prop_map(|(client, stalled)| Step::Stall { client, stalled }),
        1 => node.clone().prop_map(|node| Step::Kill { node }),
        2 => node.clone().prop_map(|node| Step::Start { node }),
        3 => (node.clone(), prop::bool::ANY).prop_map(|(node, drop)| Step::Cut { node, drop }),
        4 => node.clone().prop_map(|node| Step::Heal { node }),
        2 => (node.clone(), prop::bool::weighted(0.4)).prop_map(|(node, mute)| Step::Mute { node, mute }),
        1 => (node, 1..3u32).prop_map(|(node, answers)| Step::Lose { node, answers }),
        1 => Just(Step::Snapshot),
        1 => (0..4usize, prop::bool::ANY).prop_map(|(to, drop)| Step::RollBack { to, drop }),
        14 => millis.prop_map(|millis| Step::Pause { millis }),
    ]
}

fn case() -> impl Strategy<Value = (Shape, Vec<Step>)> {
    let keeps = prop_oneof![Just(5u32), Just(400)];
    let shape = (any::<u64>(), 1..=2usize, keeps, any::<bool>());
    let shape = shape.prop_map(|(seed, shards, keeps, rollbacks)| Shape {
        seed,
        shards,
        keeps,
        rollbacks,
    });
    (shape, prop::collection::vec(step(), 1..90))
}

fn play(shape: Shape, steps: &[Step]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let mut sim = Sim::new(shape);
        for step in steps {
            sim.take(step).await?;
        }
        sim.settle().await
    })
}

#[test]
fn what_a_client_sees_equals_the_model() {
    let set = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let config = Config {
        cases: set("MODEL_CASES").unwrap_or(1500),
        max_shrink_iters: 400,
        failure_persistence: None,
        ..Config::default()
    };
    let seed: u64 = set("MODEL_SEED").map_or_else(rand::random, u64::from);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let failed = Cell::new(false);
    let result = TestRunner::new_with_rng(config, rng).run(&case(), |(shape, steps)| {
        let tries = if failed.get() { TRIES } else { 1 };
        for _ in 0..tries {
            if let Err(problem) = play(shape, &steps) {
                failed.set(true);
                return Err(TestCaseError::fail(problem));
            }
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(problem, (shape, steps))) => {
            let steps: Vec<_> = steps.iter().map(|step| format!("  {step:?}\n")).collect();
            panic!("seed {seed}: {problem}\n{shape:?}\n{}", steps.concat());
        }
        Err(error) => panic!("seed {seed}: {error}"),
    }
}
