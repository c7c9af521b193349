//! What a node is linked by: one backplane in all its roles.

use std::sync::Arc;

use crate::backplane::redis::Redis;
use crate::backplane::{Backplane, BackplaneKind, Budget, Leases, Memory, Streams};
use crate::config::Config;
use crate::hub::Intake;
use crate::telemetry::Metrics;
use crate::tickets::{
    MemoryResume, MemoryTickets, RedisResume, RedisTickets, ResumeStore, SlotStore, TicketStore,
};

/// What a node is linked by, and what is kept there.
pub(super) struct Links {
    pub(super) backplane: Arc<dyn Backplane>,
    pub(super) streams: Arc<dyn Streams>,
    pub(super) leases: Arc<dyn Leases>,
    pub(super) budget: Arc<dyn Budget>,
    pub(super) store: Arc<dyn TicketStore>,
    pub(super) slots: Arc<dyn SlotStore>,
    pub(super) resume: Arc<dyn ResumeStore>,
    pub(super) redis: Option<Arc<Redis>>,
}

impl Links {
    pub(super) fn new(config: &Config, intake: &Intake, metrics: &Metrics) -> Result<Self, String> {
        let arrivals = intake.delivery.clone();
        Ok(match config.backplane.kind {
            BackplaneKind::Memory => {
                let memory = Arc::new(Memory::new(arrivals));
                let tickets = Arc::new(MemoryTickets::new(config.tickets.max_pending));
                Self {
                    backplane: memory.clone(),
                    streams: memory.clone(),
                    leases: memory.clone(),
                    budget: memory,
                    store: tickets.clone(),
                    slots: tickets,
                    resume: Arc::new(MemoryResume::new(config.tickets.max_pending)),
                    redis: None,
                }
            }
            BackplaneKind::Redis => {
                let links = metrics.backplane.clone();
                let keeps = config.keeps();
                let (place, run) = (&config.backplane, intake.incarnation);
                let redis = Arc::new(Redis::new(place, run, keeps, links, arrivals)?);
                let tickets = Arc::new(RedisTickets::new(redis.clone(), metrics.clone()));
                Self {
                    backplane: redis.clone(),
                    streams: redis.clone(),
                    leases: redis.clone(),
                    budget: redis.clone(),
                    store: tickets.clone(),
                    slots: tickets,
                    resume: Arc::new(RedisResume::new(redis.clone())),
                    redis: Some(redis),
                }
            }
        })
    }
}
