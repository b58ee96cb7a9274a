//! Token buckets per peer, for everything that costs before it can be checked (signatures, catalogue answers).
//!
//! Invariant: at most [`SOURCES_REMEMBERED_MAX`] buckets; the least recently used is forgotten. Called by the runner.

use std::num::NonZeroUsize;

use libp2p::PeerId;
use lru::LruCache;

use super::limits::SOURCES_REMEMBERED_MAX;
use crate::types::UnixMs;

/// Buckets of the same size for many peers.
pub(super) struct Buckets {
    burst: u64,
    per_second: u64,
    peers: LruCache<PeerId, (u64, UnixMs)>,
}

/// Bucket contents are kept in thousandths, so that one millisecond adds `per_second` of them.
const MILLI: u64 = 1_000;

impl Buckets {
    /// `burst` at once, `per_second` in the long run.
    pub(super) fn new(burst: u64, per_second: u64) -> Self {
        let size = NonZeroUsize::new(SOURCES_REMEMBERED_MAX).unwrap_or(NonZeroUsize::MIN);
        Self {
            burst,
            per_second,
            peers: LruCache::new(size),
        }
    }
    /// Takes `cost`, or says no.
    pub(super) fn take(&mut self, peer: &PeerId, cost: u64, now_ms: UnixMs) -> bool {
        let full = self.burst.saturating_mul(MILLI);
        let (level, since) = self.peers.get(peer).copied().unwrap_or((full, now_ms));
        let added = now_ms.saturating_sub(since).saturating_mul(self.per_second);
        let level = level.saturating_add(added).min(full);
        let rest = level.checked_sub(cost.saturating_mul(MILLI));
        self.peers.put(*peer, (rest.unwrap_or(level), now_ms));
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_refills() {
        let mut buckets = Buckets::new(4, 2);
        let peer = PeerId::random();
        assert!(buckets.take(&peer, 4, 1_000));
        assert!(!buckets.take(&peer, 1, 1_100));
        assert!(buckets.take(&peer, 1, 1_600));
        assert!(buckets.take(&PeerId::random(), 4, 1_600));
        assert!(!buckets.take(&peer, 5, 1_000_000));
        assert!(buckets.take(&peer, 4, 2_000_000));
    }
}
