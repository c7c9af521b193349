use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::{Health, Phase};
use crate::backplane::{Leases, NodeLease};
use crate::hub::Hub;
use crate::model::unix_millis;

/// How often the node looks whether its readiness has changed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Renews the node's lease as long as it runs; at once when it begins to leave, and soon after its readiness changed, since
/// others send clients here by it.
pub async fn hold_lease(leases: Arc<dyn Leases>, hub: Arc<Hub>, health: Arc<Health>) {
    let since = unix_millis();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut phases = health.phases();
    let mut told = Phase::Serving;
    let mut renewed: Option<(Instant, bool)> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // Told at once: others stop sending clients here.
            () = phases.reached(Phase::Draining), if told < Phase::Draining => {
                told = Phase::Draining;
                renewed = None;
            }
        }
        let ready = health.reasons().is_empty();
        let fresh =
            |(at, said): (Instant, bool)| said == ready && at.elapsed() < NodeLease::RENEWAL;
        if renewed.is_some_and(fresh) {
            continue;
        }
        let lease = NodeLease {
            node: hub.node.to_string(),
            incarnation: hub.lease_name(),
            version: env!("CARGO_PKG_VERSION").into(),
            connections: hub.admission.connections() as u64,
            load: hub.load(),
            since,
            draining: health.phase() >= Phase::Draining,
            ready,
        };
        let asked = Instant::now();
        match leases.renew(lease).await {
            Ok(()) => renewed = Some((asked, ready)),
            // Looked at again in half a second.
            Err(problem) => tracing::debug!(%problem, "the node's lease was not renewed"),
        }
    }
}
