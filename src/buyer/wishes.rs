//! What the user wants of sellers: it may change while the node runs, and a request keeps what held
//! when it looked.

use std::sync::Arc;

use parking_lot::RwLock;

use super::names::Names;
use super::route::Policy;

/// What the user accepts, and the user's own names for models.
#[derive(Debug)]
pub(super) struct Wishes {
    pub policy: Policy,
    pub names: Names,
}

/// The wishes in force.
#[derive(Debug)]
pub(super) struct Current(RwLock<Arc<Wishes>>);

impl Current {
    pub fn new(policy: Policy, names: Names) -> Self {
        Self(RwLock::new(Arc::new(Wishes { policy, names })))
    }
    pub fn get(&self) -> Arc<Wishes> {
        Arc::clone(&self.0.read())
    }
    pub fn set(&self, policy: Policy, names: Names) {
        *self.0.write() = Arc::new(Wishes { policy, names });
    }
}
