//! Nonces seen: 8 random bytes name a buyer's process, a counter its requests. One sliding bit set
//! per live process of a buyer, so memory is bounded whatever a buyer sends.

use std::collections::HashMap;

use crate::protocol::limits::{REPLAY_PROCESSES_MAX, REPLAY_WINDOW};
use crate::types::{PeerId, UnixMs};

/// A process's window is dropped this long after its last head: twice a head's life.
const IDLE_MS: u64 = 120_000;
/// Buyers remembered at once; each holds at most 16 windows of 8 KiB.
const BUYERS_MAX: usize = 4_096;
const WORD_BITS: u64 = 64;

/// What is known of all buyers' nonces.
#[derive(Debug, Default)]
pub struct ReplayGuard {
    buyers: HashMap<PeerId, HashMap<[u8; 8], Window>>,
}

#[derive(Debug)]
struct Window {
    highest: u64,
    bits: Vec<u64>,
    last_ms: UnixMs,
}

/// Why a nonce is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// Seen already, or too far behind to know.
    Seen,
    /// More live processes or buyers than are remembered.
    TooMany,
}

impl ReplayGuard {
    /// Takes a nonce once.
    ///
    /// # Errors
    /// When it was seen, is behind the window, or there is no room to remember it.
    pub fn take(
        &mut self,
        buyer: &PeerId,
        nonce: &[u8; 16],
        now_ms: UnixMs,
    ) -> Result<(), ReplayError> {
        let (process, counter) = split(nonce);
        if !self.buyers.contains_key(buyer) && self.buyers.len() >= BUYERS_MAX {
            self.forget_idle(now_ms);
            if self.buyers.len() >= BUYERS_MAX {
                return Err(ReplayError::TooMany);
            }
        }
        let processes = self.buyers.entry(*buyer).or_default();
        if !processes.contains_key(&process) && processes.len() >= REPLAY_PROCESSES_MAX {
            processes.retain(|_, w| w.last_ms.saturating_add(IDLE_MS) > now_ms);
            if processes.len() >= REPLAY_PROCESSES_MAX {
                return Err(ReplayError::TooMany);
            }
        }
        processes
            .entry(process)
            .or_insert_with(Window::new)
            .take(counter, now_ms)
    }

    fn forget_idle(&mut self, now_ms: UnixMs) {
        self.buyers.retain(|_, processes| {
            processes.retain(|_, w| w.last_ms.saturating_add(IDLE_MS) > now_ms);
            !processes.is_empty()
        });
    }
}

impl Window {
    fn new() -> Self {
        let words = usize::try_from(REPLAY_WINDOW / WORD_BITS).unwrap_or(1);
        Self {
            highest: 0,
            bits: vec![0; words],
            last_ms: 0,
        }
    }

    fn take(&mut self, counter: u64, now_ms: UnixMs) -> Result<(), ReplayError> {
        if counter.saturating_add(REPLAY_WINDOW) <= self.highest {
            return Err(ReplayError::Seen);
        }
        if counter > self.highest {
            self.clear_between(self.highest, counter);
            self.highest = counter;
        }
        let (word, bit) = place(counter);
        let Some(slot) = self.bits.get_mut(word) else {
            return Err(ReplayError::Seen);
        };
        if *slot & bit != 0 {
            return Err(ReplayError::Seen);
        }
        *slot |= bit;
        self.last_ms = now_ms;
        Ok(())
    }

    /// Forgets the counters that fall out when the window moves from `from` to `to`.
    fn clear_between(&mut self, from: u64, to: u64) {
        if to - from >= REPLAY_WINDOW {
            self.bits.fill(0);
            return;
        }
        for counter in from + 1..=to {
            let (word, bit) = place(counter);
            if let Some(slot) = self.bits.get_mut(word) {
                *slot &= !bit;
            }
        }
    }
}

fn place(counter: u64) -> (usize, u64) {
    let slot = counter % REPLAY_WINDOW;
    (
        usize::try_from(slot / WORD_BITS).unwrap_or(0),
        1 << (slot % WORD_BITS),
    )
}

fn split(nonce: &[u8; 16]) -> ([u8; 8], u64) {
    let process = nonce.first_chunk::<8>().copied().unwrap_or_default();
    let counter = nonce.last_chunk::<8>().copied().unwrap_or_default();
    (process, u64::from_be_bytes(counter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nonce(process: u8, counter: u64) -> [u8; 16] {
        let mut out = [process; 16];
        out[8..].copy_from_slice(&counter.to_be_bytes());
        out
    }

    #[test]
    fn a_nonce_works_once_and_old_ones_never() {
        let (mut guard, buyer) = (ReplayGuard::default(), PeerId::random());
        assert_eq!(guard.take(&buyer, &nonce(1, 5), 0), Ok(()));
        assert_eq!(guard.take(&buyer, &nonce(1, 5), 0), Err(ReplayError::Seen));
        assert_eq!(guard.take(&buyer, &nonce(1, 3), 0), Ok(()));
        assert_eq!(guard.take(&buyer, &nonce(2, 5), 0), Ok(()));
        assert_eq!(guard.take(&buyer, &nonce(1, REPLAY_WINDOW + 5), 0), Ok(()));
        assert_eq!(guard.take(&buyer, &nonce(1, 5), 0), Err(ReplayError::Seen));
        assert_eq!(guard.take(&buyer, &nonce(1, 6), 0), Ok(()));
    }

    #[test]
    fn processes_are_bounded_and_idle_ones_make_room() {
        let (mut guard, buyer) = (ReplayGuard::default(), PeerId::random());
        for process in 0..16 {
            assert_eq!(guard.take(&buyer, &nonce(process, 1), 1_000), Ok(()));
        }
        assert_eq!(
            guard.take(&buyer, &nonce(99, 1), 1_000),
            Err(ReplayError::TooMany)
        );
        assert_eq!(guard.take(&buyer, &nonce(99, 1), 1_000 + IDLE_MS), Ok(()));
    }

    proptest! {
        #[test]
        fn no_counter_is_taken_twice(counters in proptest::collection::vec(0u64..200_000, 1..400)) {
            let (mut guard, buyer) = (ReplayGuard::default(), PeerId::random());
            let mut taken = std::collections::HashSet::new();
            for counter in counters {
                if guard.take(&buyer, &nonce(1, counter), 0).is_ok() {
                    prop_assert!(taken.insert(counter));
                }
            }
        }
    }
}
