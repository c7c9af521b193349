use std::sync::Arc;

use arc_swap::ArcSwap;

use super::keys::ApiKeys;

/// The API keys of a running node, which a reload changes.
pub struct LiveKeys(ArcSwap<ApiKeys>);

impl LiveKeys {
    /// Begins with these.
    pub fn new(keys: ApiKeys) -> Self {
        Self(ArcSwap::from_pointee(keys))
    }

    /// As they are now.
    pub fn now(&self) -> Arc<ApiKeys> {
        self.0.load_full()
    }

    /// Goes on with others. What is the same in both stays as it is, its rate included; what is not, is over.
    pub fn replace(&self, mut keys: ApiKeys) {
        keys.take_over(&self.now());
        self.0.store(Arc::new(keys));
    }
}
