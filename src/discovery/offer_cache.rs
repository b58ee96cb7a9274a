//! Where the buyer's offers survive a restart: the face that the offer book calls and `node` fills.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::protocol::offer::SignedOffer;

/// Where offers survive a restart (the node implements it with the rebuildable cache database).
pub trait OfferCache: Send + Sync + 'static {
    /// All saved offers that have not expired, newest first.
    fn load(&self) -> BoxFuture<'_, Vec<Bytes>>;
    /// Saves new offers, replacing the older one of the same seller and model.
    fn save(&self, offers: Vec<Arc<SignedOffer>>) -> BoxFuture<'_, ()>;
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl OfferCache for NoCache {
    fn load(&self) -> BoxFuture<'_, Vec<Bytes>> {
        async { Vec::new() }.boxed()
    }
    fn save(&self, _: Vec<Arc<SignedOffer>>) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}
