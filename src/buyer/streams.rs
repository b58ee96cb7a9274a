//! Infer streams that ended a request well, kept for the next one to the same seller.
//!
//! Opening a stream costs a negotiation, two timers and a packet of its own each way: a third of a
//! small request's CPU. A stream carries one request at a time. A kept one may have died unseen
//! (the seller restarted, or closed it as idle): an order on it that gets no first frame is sent
//! once more on a fresh stream, and the seller's replay window makes that harmless.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::wire::OrderWire;
use crate::types::PeerId;

/// A kept stream is used within this; sellers keep their end for twice as long.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// Streams kept for one seller: a burst of requests, and no more than a seller keeps for a buyer.
const KEPT_PER_SELLER_MAX: usize = 64;

/// The kept streams of all sellers.
#[derive(Default)]
pub(super) struct KeptStreams {
    inner: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    of: HashMap<PeerId, Vec<(OrderWire, Instant)>>,
    swept: Option<Instant>,
}

impl KeptStreams {
    /// The stream to `seller` that was used last, if one is fresh enough.
    pub fn take(&self, seller: &PeerId) -> Option<OrderWire> {
        let mut inner = self.inner.lock();
        let (wire, kept_at) = inner.of.get_mut(seller)?.pop()?;
        (kept_at.elapsed() < KEPT_FOR).then_some(wire)
    }

    /// Keeps a stream whose request is over on both sides.
    pub fn put(&self, seller: PeerId, mut wire: OrderWire) {
        wire.is_kept = true;
        let now = Instant::now();
        let mut inner = self.inner.lock();
        inner.sweep(now);
        let kept = inner.of.entry(seller).or_default();
        if kept.len() < KEPT_PER_SELLER_MAX {
            kept.push((wire, now));
        }
    }

    /// Drops all streams to a seller that seems to be gone.
    pub fn forget(&self, seller: &PeerId) {
        self.inner.lock().of.remove(seller);
    }
}

impl Kept {
    /// Drops what nobody came back for, now and then.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now < at + KEPT_FOR) {
            return;
        }
        self.swept = Some(now);
        self.of.retain(|_, kept| {
            kept.retain(|(_, kept_at)| now < *kept_at + KEPT_FOR);
            !kept.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Protocol;
    use crate::network::tests::{QUIC, echo, run, settings};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn kept_streams_are_bounded_marked_and_forgotten() {
        let mut seller = run(settings(31, &[QUIC], &[]));
        echo(&mut seller);
        let buyer = run(settings(32, &[QUIC], &[]));
        let peer = seller.handle.local_peer();
        let addresses = seller.handle.listeners().await;
        buyer.handle.dial(&peer, addresses).await.unwrap();
        let kept = KeptStreams::default();
        assert!(kept.take(&peer).is_none());
        for _ in 0..=KEPT_PER_SELLER_MAX {
            let stream = buyer.handle.open(&peer, Protocol::Infer).await.unwrap();
            kept.put(peer, OrderWire::new(stream));
        }
        assert!(kept.take(&peer).unwrap().is_kept);
        let mut left = 0;
        while kept.take(&peer).is_some() {
            left += 1;
        }
        assert_eq!(left, KEPT_PER_SELLER_MAX - 1);
        let stream = buyer.handle.open(&peer, Protocol::Infer).await.unwrap();
        kept.put(peer, OrderWire::new(stream));
        kept.forget(&peer);
        assert!(kept.take(&peer).is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stream_kept_for_too_long_is_not_used() {
        let mut seller = run(settings(33, &[QUIC], &[]));
        echo(&mut seller);
        let buyer = run(settings(34, &[QUIC], &[]));
        let peer = seller.handle.local_peer();
        let addresses = seller.handle.listeners().await;
        buyer.handle.dial(&peer, addresses).await.unwrap();
        let kept = KeptStreams::default();
        let stream = buyer.handle.open(&peer, Protocol::Infer).await.unwrap();
        kept.put(peer, OrderWire::new(stream));
        if let Some(all) = kept.inner.lock().of.get_mut(&peer) {
            all[0].1 -= KEPT_FOR;
        }
        assert!(kept.take(&peer).is_none());
    }
}
