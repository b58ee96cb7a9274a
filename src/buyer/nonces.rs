//! Nonces of request heads: 8 random bytes for this process, then a counter.

use std::sync::atomic::{AtomicU64, Ordering};

/// Gives each head of this process its own nonce.
pub(super) struct Nonces {
    process: [u8; 8],
    counter: AtomicU64,
}

impl Nonces {
    pub fn new() -> Self {
        Self {
            process: rand::random(),
            counter: AtomicU64::new(1),
        }
    }
    pub fn next(&self) -> [u8; 16] {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut nonce = [0; 16];
        if let Some((process, rest)) = nonce.split_first_chunk_mut::<8>() {
            *process = self.process;
            rest.copy_from_slice(&counter);
        }
        nonce
    }
}
