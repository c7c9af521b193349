//! Who takes part in a run: users with several ends, subscribers of channels, producers. The seed decides.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::body::Stream;
use crate::client::{Client, Resume};
use crate::producer::Producer;

/// How big a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) clients: usize,
    pub(crate) channels: usize,
    pub(crate) producers: u32,
    /// The mean pause of each producer.
    pub(crate) pace: Duration,
}

/// Everyone.
#[derive(Debug, Clone)]
pub(crate) struct Cast {
    pub(crate) clients: Vec<Client>,
    pub(crate) producers: Vec<Producer>,
}

/// Chooses everyone.
pub(crate) fn cast(seed: u64, size: Size) -> Cast {
    let mut rng = StdRng::seed_from_u64(seed);
    let channels: Vec<String> = (0..size.channels).map(|n| format!("kept:{n}")).collect();
    let mut clients = Vec::new();
    let mut streams: Vec<Stream> = Vec::new();
    let mut users = 0;
    while clients.len() < size.clients {
        let user = format!("u{users}");
        users += 1;
        streams.push(format!("user:{user}").into());
        for end in 0..rng.random_range(1..=4) {
            clients.push(an_end(&user, end, &channels, &mut rng));
        }
    }
    // A channel gets as much as several users.
    for channel in &channels {
        for _ in 0..1 + users / (4 * size.channels.max(1)) {
            streams.push(format!("channel:{channel}").into());
        }
    }
    let producers = (0..size.producers)
        .map(|number| Producer {
            number,
            seed: rng.random_range(0..u64::MAX),
            streams: streams.clone(),
            pace: size.pace,
            keyed: number % 2 == 1,
        })
        .collect();
    Cast { clients, producers }
}

fn an_end(user: &str, end: u32, channels: &[String], rng: &mut StdRng) -> Client {
    let device = rng.random_bool(0.6).then(|| format!("d{end}"));
    let resume = match &device {
        Some(_) if rng.random_bool(0.5) => Resume::Cursor,
        _ => Resume::Since,
    };
    let (mut named, mut later) = (Vec::new(), Vec::new());
    for channel in channels {
        // Each of them follows two channels, more or less.
        if rng.random_bool((2.0 / channels.len() as f64).min(0.5)) {
            match rng.random_bool(0.6) {
                true => named.push(channel.clone()),
                false => later.push(channel.clone()),
            }
        }
    }
    Client {
        user: user.into(),
        device,
        resume,
        channels: named,
        later,
        seed: rng.random_range(0..u64::MAX),
    }
}
