//! Sellers that failed: set aside for 30 s, doubling to an hour while they keep failing, forgiven when they answer.
//!
//! Invariant: at most [`PEERS_MAX`] entries, least recently used forgotten first. Called by `offer_book` and the buyer.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::types::{Clock, PeerId, UnixMs};

/// First pause, in ms.
pub const DEAD_MS_MIN: u64 = 30 * 1_000;
/// A peer that is set aside may be tried this often by those who have nobody else, in ms.
pub const PROBE_MS: u64 = 2_000;
/// Longest pause, in ms.
pub const DEAD_MS_MAX: u64 = 60 * 60 * 1_000;
/// Failed peers remembered.
const PEERS_MAX: usize = 4_096;

#[derive(Clone, Copy)]
struct Dead {
    until: UnixMs,
    pause: u64,
    probed: UnixMs,
}

/// The negative cache. Cheap to clone.
#[derive(Clone)]
pub struct PeerBook {
    clock: Arc<dyn Clock>,
    dead: Arc<Mutex<LruCache<PeerId, Dead>>>,
}

impl PeerBook {
    /// An empty book.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let size = NonZeroUsize::new(PEERS_MAX).unwrap_or(NonZeroUsize::MIN);
        let dead = Arc::new(Mutex::new(LruCache::new(size)));
        Self { clock, dead }
    }
    /// Sets a peer aside; a failure during its pause changes nothing, one after it doubles the pause.
    pub fn mark_dead(&self, peer: &PeerId) {
        let now = self.clock.now_ms();
        let mut dead = self.dead.lock();
        let pause = match dead.get(peer) {
            Some(entry) if entry.until > now => return,
            Some(entry) => entry.pause.saturating_mul(2).min(DEAD_MS_MAX),
            None => DEAD_MS_MIN,
        };
        let until = now.saturating_add(pause);
        let probed = now;
        dead.put(
            *peer,
            Dead {
                until,
                pause,
                probed,
            },
        );
    }
    /// True when a peer that is set aside is due for a try by somebody who has no other: once in
    /// `PROBE_MS`, so that a burst of requests does not wait for it.
    #[must_use]
    pub fn may_probe(&self, peer: &PeerId) -> bool {
        let now = self.clock.now_ms();
        let mut dead = self.dead.lock();
        match dead.peek_mut(peer) {
            Some(entry) if now.saturating_sub(entry.probed) < PROBE_MS => false,
            Some(entry) => {
                entry.probed = now;
                true
            }
            None => true,
        }
    }
    /// It answered: all is forgiven.
    pub fn mark_alive(&self, peer: &PeerId) {
        self.dead.lock().pop(peer);
    }
    /// True while a peer is set aside.
    #[must_use]
    pub fn is_dead(&self, peer: &PeerId) -> bool {
        self.dead_until(peer).is_some()
    }
    /// When the pause of a peer ends.
    #[must_use]
    pub fn dead_until(&self, peer: &PeerId) -> Option<UnixMs> {
        let now = self.clock.now_ms();
        let dead = self.dead.lock();
        dead.peek(peer)
            .map(|d| d.until)
            .filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ManualClock;

    #[test]
    fn the_pause_doubles_to_an_hour_and_is_forgiven() {
        let clock = ManualClock::new(1);
        let book = PeerBook::new(Arc::new(clock.clone()));
        let peer = PeerId::random();
        assert!(!book.is_dead(&peer));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            book.mark_dead(&peer);
            book.mark_dead(&peer);
            let pause = book.dead_until(&peer).unwrap() - clock.now_ms();
            pauses.push(pause / 1_000);
            clock.advance(pause);
            assert!(!book.is_dead(&peer));
        }
        assert_eq!(
            pauses,
            [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]
        );
        book.mark_alive(&peer);
        book.mark_dead(&peer);
        assert_eq!(book.dead_until(&peer), Some(clock.now_ms() + DEAD_MS_MIN));
        assert!(!book.may_probe(&peer));
        clock.advance(PROBE_MS);
        assert!(book.may_probe(&peer) && !book.may_probe(&peer));
    }
}
