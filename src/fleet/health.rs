use std::sync::atomic::{AtomicU8, Ordering};

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not everything is bound yet.
    Starting,
    /// It serves.
    Serving,
    /// It was told to leave.
    Draining,
}

/// What `/readyz` tells: why this node should get no new connections. Empty = it should.
#[derive(Debug)]
pub struct Health(AtomicU8);

impl Default for Health {
    fn default() -> Self {
        Self(AtomicU8::new(Phase::Starting as u8))
    }
}

impl Health {
    /// The node enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    /// Why it is not ready.
    pub fn reasons(&self) -> Vec<&'static str> {
        match self.0.load(Ordering::Acquire) {
            1 => Vec::new(),
            0 => vec!["starting"],
            _ => vec!["draining"],
        }
    }
}
