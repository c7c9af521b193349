use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Limits, LiveLimits};

/// Descriptors that a node keeps for itself: listeners, the service and admin doors, the backplane.
const DESCRIPTORS_RESERVED: usize = 256;

/// The node's limits on connections, shared by its shards.
pub struct Admission {
    connections: AtomicUsize,
    arriving: AtomicUsize,
    limits: LiveLimits,
    /// What `connections` is, unless set.
    connections_derived: usize,
    per_ip: Mutex<HashMap<IpAddr, u32>>,
    handshakes: Mutex<Bucket>,
}

/// Why there is no place. The word is the reason in metrics and in the `refused` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// The node holds as many connections as it may.
    NodeFull,
    /// The address holds as many connections as it may.
    IpFull,
    /// More handshakes a second than the node takes.
    OverBudget,
}

/// A connection's place on the node; gives it back when dropped.
pub struct PlaceGuard {
    admission: Arc<Admission>,
    ip: IpAddr,
    /// It counts against the limit of its address.
    counted: bool,
}

impl PlaceGuard {
    /// The client's address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }
}

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        self.admission.connections.fetch_sub(1, Ordering::AcqRel);
        if self.counted {
            let mut per_ip = self
                .admission
                .per_ip
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = per_ip.get_mut(&self.ip) {
                *count -= 1;
                if *count == 0 {
                    per_ip.remove(&self.ip);
                }
            }
        }
    }
}

/// Somebody is on the way in and has no place yet; ends when dropped.
pub struct ArrivalGuard(Arc<Admission>);

impl Drop for ArrivalGuard {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A token bucket: a rate a second with a burst of one second.
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: u32, now: Instant) -> Self {
        Self {
            rate: f64::from(rate),
            tokens: f64::from(rate),
            filled: now,
        }
    }

    /// Takes some tokens, or none if there are fewer.
    pub fn take(&mut self, count: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.tokens = (self.tokens + passed * self.rate).min(self.rate);
        let enough = self.tokens >= count;
        if enough {
            self.tokens -= count;
        }
        enough
    }

    /// Goes on with another rate; what is there beyond it goes.
    pub fn set_rate(&mut self, rate: u32) {
        self.rate = f64::from(rate);
        self.tokens = self.tokens.min(self.rate);
    }

    /// Gives tokens back.
    pub fn give_back(&mut self, count: f64) {
        self.tokens = (self.tokens + count).min(self.rate);
    }
}

impl Admission {
    /// A limit of 0 connections is derived from the descriptor limit.
    pub fn new(limits: LiveLimits) -> Self {
        let rate = limits.now().handshakes_per_second;
        Self {
            connections: AtomicUsize::new(0),
            arriving: AtomicUsize::new(0),
            limits,
            connections_derived: descriptor_limit()
                .saturating_sub(DESCRIPTORS_RESERVED)
                .max(1),
            per_ip: Mutex::default(),
            handshakes: Mutex::new(Bucket::new(rate, Instant::now())),
        }
    }

    /// Connections and handshakes under way.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Accepted connections whose first request is not answered yet, and listeners in whose backlog there may be more.
    pub fn arriving(&self) -> usize {
        self.arriving.load(Ordering::Acquire)
    }

    /// Somebody is on the way in.
    pub fn arrive(self: &Arc<Self>) -> ArrivalGuard {
        self.arriving.fetch_add(1, Ordering::AcqRel);
        ArrivalGuard(self.clone())
    }

    /// The most connections.
    pub fn connections_max(&self) -> usize {
        self.most(&self.limits.now())
    }

    fn most(&self, limits: &Limits) -> usize {
        match limits.connections {
            0 => self.connections_derived,
            set => set,
        }
    }

    /// A place for one connection, by the limits of node and IP, and a token from the handshake budget.
    ///
    /// # Errors
    /// Which limit was met; nothing was taken.
    pub fn take(self: &Arc<Self>, ip: IpAddr) -> Result<PlaceGuard, NoPlace> {
        let limits = self.limits.now();
        if self.connections.fetch_add(1, Ordering::AcqRel) >= self.most(&limits) {
            self.connections.fetch_sub(1, Ordering::AcqRel);
            return Err(NoPlace::NodeFull);
        }
        let mut place = PlaceGuard {
            admission: self.clone(),
            ip,
            counted: false,
        };
        if limits.connections_per_ip > 0 {
            let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
            let count = per_ip.entry(ip).or_default();
            if *count >= limits.connections_per_ip {
                drop(per_ip);
                return Err(NoPlace::IpFull);
            }
            *count += 1;
            place.counted = true;
        }
        let rate = limits.handshakes_per_second;
        if rate > 0 {
            let mut bucket = self.bucket();
            bucket.set_rate(rate);
            if !bucket.take(1.0, Instant::now()) {
                return Err(NoPlace::OverBudget);
            }
        }
        Ok(place)
    }

    /// Gives the token of a handshake back: its ticket was not known.
    pub fn give_back(&self) {
        self.bucket().give_back(1.0);
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Raises this process's soft limit of descriptors to the hard one. Shells and systemd begin with 1,024, for programs that
/// use `select`; we do not.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it is refused the old one stays.
    let _ = setrlimit(Resource::Nofile, raised);
}

fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit
        .current
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(change: impl FnOnce(&mut Limits)) -> Arc<Admission> {
        let mut limits = Limits::default();
        change(&mut limits);
        Arc::new(Admission::new(LiveLimits::new(limits)))
    }

    #[test]
    fn a_place_is_given_back_when_its_guard_goes() {
        let admission = admission(|l| l.connections = 1);
        let ip = IpAddr::from([127, 0, 0, 1]);
        let place = admission.take(ip).unwrap_or_else(|_| panic!("a place"));
        assert_eq!(admission.take(ip).err(), Some(NoPlace::NodeFull));
        drop(place);
        assert!(admission.take(ip).is_ok());
        assert_eq!(admission.connections(), 0);
    }

    #[test]
    fn an_address_has_its_own_limit() {
        let admission = admission(|l| l.connections_per_ip = 1);
        let (a, b) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let first = admission.take(a).unwrap_or_else(|_| panic!("a place"));
        assert_eq!(admission.take(a).err(), Some(NoPlace::IpFull));
        assert!(admission.take(b).is_ok());
        drop(first);
        assert!(admission.take(a).is_ok());
        assert!(admission.per_ip.lock().expect("no panic").is_empty());
    }

    #[test]
    fn the_budget_refuses_what_is_over_it_and_takes_tokens_back() {
        let admission = admission(|l| l.handshakes_per_second = 1);
        let ip = IpAddr::from([127, 0, 0, 1]);
        let _first = admission.take(ip).unwrap_or_else(|_| panic!("a place"));
        assert_eq!(admission.take(ip).err(), Some(NoPlace::OverBudget));
        admission.give_back();
        assert!(admission.take(ip).is_ok());
    }
}
