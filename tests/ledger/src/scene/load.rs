//! Who takes part in a roll or a crash: one end a user, a channel for each fifty, and publishers at a steady rate.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::body::Stream;
use crate::mover::Mover;
use crate::publisher::{Answers, Publisher};

/// How many follow a channel.
const CHANNEL: usize = 50;
/// From one address so many connections, of the 28,000 ports that it has.
const PER_ADDRESS: usize = 4000;
/// How often each publisher pushes.
const EVERY: Duration = Duration::from_millis(100);

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) seed: u64,
    /// Clients that obey.
    pub(crate) obeying: usize,
    /// Clients that do not.
    pub(crate) stubborn: usize,
    pub(crate) pushes_per_second: u32,
    /// Whether clients and balancer take only what nodes, Redis and publishers leave of the cores.
    pub(crate) stands_back: bool,
    /// How many clients come in a second at first.
    pub(crate) arrivals_per_second: u32,
}

impl Load {
    pub(crate) fn clients(&self) -> usize {
        self.obeying + self.stubborn
    }

    /// How long the clients take to come.
    pub(crate) fn arriving(&self) -> Duration {
        Duration::from_secs(1) * self.clients() as u32 / self.arrivals_per_second.max(1)
    }

    fn channels(&self) -> usize {
        self.clients().div_ceil(CHANNEL)
    }

    pub(crate) fn movers(&self) -> Vec<Mover> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let apart = Duration::from_secs(1) / self.arrivals_per_second.max(1);
        (0..self.clients())
            .map(|at| Mover {
                user: format!("u{at}"),
                channels: vec![format!("kept:{}", at % self.channels())],
                // Spread over all, so that each node has some of both.
                obeys: at * self.stubborn / self.clients().max(1)
                    == (at + 1) * self.stubborn / self.clients().max(1),
                from: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2 + (at / PER_ADDRESS) as u8)),
                comes_after: apart.saturating_mul(at as u32),
                seed: rng.random_range(0..u64::MAX),
            })
            .collect()
    }

    pub(crate) fn publishers(&self, answers: &Arc<Mutex<Answers>>) -> Vec<Publisher> {
        let mut rng = StdRng::seed_from_u64(self.seed + 1);
        let users = (0..self.clients()).map(|at| format!("user:u{at}").into());
        let mut streams: Vec<Stream> = users.collect();
        // One push in twenty is for a channel.
        for at in 0..self.clients().div_ceil(19) {
            streams.push(format!("channel:kept:{}", at % self.channels()).into());
        }
        let streams = Arc::new(streams);
        let count = self.pushes_per_second * EVERY.as_millis() as u32 / 1000;
        (0..count.max(1))
            .map(|number| Publisher {
                number,
                seed: rng.random_range(0..u64::MAX),
                streams: streams.clone(),
                every: EVERY,
                answers: answers.clone(),
            })
            .collect()
    }
}
