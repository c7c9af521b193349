use tokio::sync::watch;

/// Where a node is in its life, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not everything is bound yet.
    Starting,
    /// It serves.
    Serving,
    /// It was told to leave: balancers should send nobody here, and whoever comes is served.
    Draining,
    /// No door accepts connections any more; calls in flight finish.
    Closing,
}

/// What probes are told, and what doors wait for: the one place that knows the node's phase.
#[derive(Debug)]
pub struct Health(watch::Sender<Phase>);

impl Default for Health {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }
}

impl Health {
    /// The node enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.0.send_replace(phase);
    }

    /// For those who wait for a phase.
    pub fn phases(&self) -> Phases {
        Phases(self.0.subscribe())
    }

    /// Why this node should get no new connections of clients. Empty = it should.
    pub fn reasons(&self) -> Vec<&'static str> {
        match *self.0.borrow() {
            Phase::Starting => vec!["starting"],
            Phase::Serving => Vec::new(),
            Phase::Draining | Phase::Closing => vec!["draining"],
        }
    }

    /// Why services should not call this node. A node that drains is still called: it answers as long as it accepts.
    pub fn service_reasons(&self) -> Vec<&'static str> {
        match *self.0.borrow() {
            Phase::Starting => vec!["starting"],
            Phase::Serving | Phase::Draining => Vec::new(),
            Phase::Closing => vec!["closed"],
        }
    }
}

/// Sees a node's phases come.
#[derive(Debug, Clone)]
pub struct Phases(watch::Receiver<Phase>);

impl Phases {
    /// Resolves once the node is in this phase or beyond, or is gone.
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the node is gone.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}
