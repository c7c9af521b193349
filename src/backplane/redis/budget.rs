use redis::Value;
use tokio::time::Instant;

use super::{Failure, Redis};
use crate::backplane::budget::millis;
use crate::backplane::{Budget, Later, LeaseError, Leased, Pace, Wanted};

impl Budget for Redis {
    fn now(&self) -> u64 {
        self.clock().now()
    }

    fn lease(
        &self,
        pace: Pace,
        wanted: Wanted,
        deadline: Instant,
    ) -> Later<'_, Result<Leased, LeaseError>> {
        Box::pin(async move {
            let shared = &self.shared;
            let fabric = shared.fabric().map_err(lost)?;
            let call = shared.scripts.lease.on([shared.keys.budget()]);
            let call = call
                .bytes(format!("{:.3}", pace.interval()).into_bytes())
                .number(Pace::BURST.as_micros())
                .number(Pace::HORIZON.as_micros())
                .number(wanted.tokens)
                .number(wanted.slots);
            let asked = std::time::Instant::now();
            let done = shared.eval(&fabric, &call, false, deadline).await;
            let leased = parse(pace, &done.map_err(lost)?).ok_or_else(|| {
                LeaseError::Away(format!(
                    "what Redis keeps at {} is no handshake budget",
                    shared.keys.budget()
                ))
            })?;
            self.clock().learn(leased.now, asked);
            Ok(leased)
        })
    }
}

fn parse(pace: Pace, said: &Value) -> Option<Leased> {
    let Value::Array(said) = said else {
        return None;
    };
    let [Value::Int(tokens), Value::Int(slots), first, free, now] = &said[..] else {
        return None;
    };
    let micros = |value: &Value| match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse::<f64>().ok(),
        _ => None,
    };
    Some(Leased {
        tokens: u32::try_from(*tokens).ok()?,
        slots: pace.slots(micros(first)?, u32::try_from(*slots).ok()?),
        now: (micros(now)? / 1_000.0) as u64,
        free: millis(micros(free)?),
    })
}

/// Why Redis refuses what it would do a moment later.
const PASSING: [&str; 8] = [
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MOVED",
    "READONLY",
    "TRYAGAIN",
];

fn lost(failure: Failure) -> LeaseError {
    match failure {
        // A primary that moves, loads or is busy is there again in a moment.
        Failure::Refused(code, why) if PASSING.contains(&code.as_str()) => LeaseError::Late(why),
        // Somebody keeps something else there, or this login may not.
        Failure::NotSent(why) | Failure::Refused(_, why) => LeaseError::Away(why),
        Failure::Busy | Failure::Unknown(_) => LeaseError::Late(failure.into_problem()),
    }
}
