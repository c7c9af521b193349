use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use super::ConsulConfig;
use super::agent::{Agent, Fault};
use super::config::is_local;
use super::registration::{About, Registration};
use crate::backplane::redis::Backoff;
use crate::fleet::{Health, Phase};
use crate::telemetry::ConsulMetrics;

/// How often the agent is asked whether it still knows the node.
const LOOK: Duration = Duration::from_secs(5);
/// The least time between two changes of a weight, and the least change of it: 1 to 100.
const WEIGHT_EVERY: Duration = Duration::from_secs(10);
const WEIGHT_STEP: u8 = 10;
/// The weight of the service door: what a connection costs does not matter there.
const WEIGHT_MAX: u8 = 100;

/// What a node bound.
#[derive(Debug, Clone, Copy)]
pub struct Doors {
    /// Clients.
    pub public: SocketAddr,
    /// Services.
    pub service: SocketAddr,
    /// Where `/readyz` is: the probe door, else the admin door.
    pub probe: SocketAddr,
}

/// Keeps a node's doors registered at the agent.
pub struct Registrar {
    config: ConsulConfig,
    agent: Agent,
    doors: Doors,
    node: String,
    health: Arc<Health>,
    /// How much of the node is free: 0 to 1.
    free: Box<dyn Fn() -> f64 + Send + Sync>,
    metrics: ConsulMetrics,
    kept: Vec<Kept>,
    /// What was last complained of, so that it is said once.
    complaint: Option<&'static str>,
}

/// Something failed, and it was said.
struct Complained;

/// A door that is kept registered.
struct Kept {
    registration: Registration,
    of_services: bool,
    /// The weight that the agent was told, and when.
    told: Option<(u8, Instant)>,
}

impl Registrar {
    /// Of a node that has bound its doors. `free` says how much of it is free: 0 to 1.
    ///
    /// # Errors
    /// A certificate or key cannot be read.
    pub fn new(
        config: &ConsulConfig,
        doors: Doors,
        node: &str,
        health: Arc<Health>,
        free: impl Fn() -> f64 + Send + Sync + 'static,
        metrics: ConsulMetrics,
    ) -> Result<Self, String> {
        Ok(Self {
            agent: Agent::new(config)?,
            config: config.clone(),
            doors,
            node: node.into(),
            health,
            free: Box::new(free),
            metrics,
            kept: Vec::new(),
            complaint: None,
        })
    }

    /// Keeps the doors registered until the node drains, then takes them out, and ends once that is done.
    pub async fn run(mut self) {
        let mut phases = self.health.phases();
        let mut backoff = Backoff::default();
        while self.health.phase() < Phase::Draining {
            // Not cut short by the drain: a registration that is under way must not come after the end of it.
            let pause = match self.look().await {
                Ok(()) => {
                    backoff.reset();
                    LOOK.mul_f64(rand::random_range(0.8..=1.2))
                }
                Err(Complained) => backoff.next(),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = phases.reached(Phase::Draining) => {}
            }
        }
        let mut backoff = Backoff::default();
        while self.withdraw().await.is_err() {
            tokio::time::sleep(backoff.next()).await;
        }
        tracing::info!("taken out of Consul");
    }

    /// Registers what the agent does not know, and what has changed.
    async fn look(&mut self) -> Result<(), Complained> {
        if self.kept.is_empty() {
            self.kept = match self.registrations().await {
                Ok(kept) => kept,
                Err(fault) => return Err(self.complain(&fault, 0)),
            };
        }
        let mut outcome = Ok(());
        for door in 0..self.kept.len() {
            if let Err(fault) = self.keep(door).await {
                outcome = Err(self.complain(&fault, door));
            }
        }
        let registered = self.kept.iter().filter(|kept| kept.told.is_some()).count();
        self.metrics
            .registered
            .set(i64::try_from(registered).unwrap_or(0));
        if outcome.is_ok() && self.complaint.take().is_some() {
            tracing::info!(agent = %self.agent.url, "registered at Consul again");
        }
        outcome
    }

    async fn keep(&mut self, door: usize) -> Result<(), Fault> {
        let kept = &mut self.kept[door];
        let (weight, ready) = match kept.of_services {
            true => (WEIGHT_MAX, self.health.service_reasons().is_empty()),
            false => (weight((self.free)()), self.health.reasons().is_empty()),
        };
        let registration = &kept.registration;
        if let Some((told, at)) = kept.told {
            if !self.agent.knows(&registration.id).await? {
                tracing::warn!(service = %registration.name, "the Consul agent has forgotten this node; registering again");
                kept.told = None;
            } else if told.abs_diff(weight) < WEIGHT_STEP || at.elapsed() < WEIGHT_EVERY {
                return Ok(());
            }
        }
        let body = registration.body(&self.config, &self.node, weight, ready);
        self.agent.register(&body).await?;
        if kept.told.is_none() {
            self.metrics.registrations.inc();
            tracing::info!(service = %registration.name, id = %registration.id, "registered at Consul");
        }
        kept.told = Some((weight, Instant::now()));
        Ok(())
    }

    /// Takes out what was registered. That it is out is looked at: a registration whose answer was lost may have come
    /// after all.
    async fn withdraw(&mut self) -> Result<(), Complained> {
        for door in 0..self.kept.len() {
            let id = self.kept[door].registration.id.clone();
            let gone = async {
                self.agent.deregister(&id).await?;
                self.agent.knows(&id).await
            };
            match gone.await {
                Ok(false) => {}
                Ok(true) => return Err(Complained),
                // Who may not register has nothing there to take out.
                Err(Fault::Denied) if self.kept[door].told.is_none() => {}
                Err(fault) => return Err(self.complain(&fault, door)),
            }
        }
        self.metrics.registered.set(0);
        Ok(())
    }

    async fn registrations(&self) -> Result<Vec<Kept>, Fault> {
        let (doors, config) = (self.doors, &self.config);
        let wildcard = [doors.public, doors.service, doors.probe]
            .iter()
            .any(|door| door.ip().is_unspecified());
        let asked = wildcard && !is_local(&self.agent.url) && config.address.is_none();
        let here = match asked {
            true => Some(
                self.here()
                    .await
                    .map_err(|e| Fault::Away(format!("no way to it: {e}")))?,
            ),
            false => None,
        };
        let about = About {
            config,
            agent: &self.agent.url,
            here,
            probe: doors.probe,
        };
        let kept = |name: &str, door, query, of_services| Kept {
            registration: Registration::new(&about, name, door, query),
            of_services,
            told: None,
        };
        let mut all = vec![kept(&config.service, doors.public, "", false)];
        if config.service_door.is_empty() {
            return Ok(all);
        }
        if about.misleads(doors.service, doors.public) {
            tracing::warn!(
                "the service door listens on loopback alone, so Consul is not told of it: others would call their own; set [service] listen, or [consul] service_door = \"\""
            );
            return Ok(all);
        }
        all.push(kept(
            &config.service_door,
            doors.service,
            "?door=service",
            true,
        ));
        Ok(all)
    }

    /// The address of this machine on the way to the agent. A datagram socket that is connected sends nothing.
    async fn here(&self) -> std::io::Result<IpAddr> {
        let url = &self.agent.url;
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or(8500);
        let mut last = std::io::Error::other("its name has no address");
        for agent in tokio::net::lookup_host((host, port)).await? {
            let any: IpAddr = match agent {
                SocketAddr::V4(_) => [0; 4].into(),
                SocketAddr::V6(_) => [0; 16].into(),
            };
            let connected = async {
                let socket = UdpSocket::bind((any, 0)).await?;
                socket.connect(agent).await?;
                socket.local_addr()
            };
            match connected.await {
                Ok(here) => return Ok(here.ip()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Counts a fault, and warns of it unless that was the last one too.
    fn complain(&mut self, fault: &Fault, door: usize) -> Complained {
        let reason = fault.reason();
        self.metrics.failed(reason);
        let service = match self.kept.get(door) {
            Some(kept) => &kept.registration.name,
            None => &self.config.service,
        };
        let sentence = fault.sentence(&self.agent.url, service);
        if self.complaint.replace(reason) == Some(reason) {
            tracing::debug!("{sentence}");
        } else {
            tracing::warn!("{sentence}");
        }
        Complained
    }
}

/// From 1 to 100.
fn weight(free: f64) -> u8 {
    // Within 1 and 100 nothing is cut off but the fraction.
    (free * f64::from(WEIGHT_MAX)).clamp(1.0, f64::from(WEIGHT_MAX)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_from_1_to_100() {
        for (free, wanted) in [(-1.0, 1), (0.0, 1), (0.5, 50), (1.0, 100), (2.0, 100)] {
            assert_eq!(weight(free), wanted, "{free}");
        }
    }
}
