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
pub struct Health {
    phase: watch::Sender<Phase>,
    ailments: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl Health {
    /// That of a node that starts; `ailments` says why it should get no new connections while it serves.
    pub fn new(ailments: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Starting),
            ailments: Box::new(ailments),
        }
    }

    /// The node enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// The phase that it is in.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// For those who wait for a phase.
    pub fn phases(&self) -> Phases {
        Phases(self.phase.subscribe())
    }

    /// Why this node should get no new connections of clients. Empty = it should.
    pub fn reasons(&self) -> Vec<String> {
        match self.phase() {
            Phase::Starting => vec!["starting".into()],
            Phase::Serving => (self.ailments)(),
            Phase::Draining | Phase::Closing => vec!["draining".into()],
        }
    }

    /// Why services should not call this node. A node that drains is still called: it answers as long as it accepts.
    pub fn service_reasons(&self) -> Vec<String> {
        match self.phase() {
            Phase::Starting => vec!["starting".into()],
            // Without a backplane too: it is green to refuse honestly.
            Phase::Serving | Phase::Draining => Vec::new(),
            Phase::Closing => vec!["closed".into()],
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
