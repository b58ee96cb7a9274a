//! What was brought to the chain for a channel, so that the same is not sent again at once. Pure.

use crate::types::{MicroUsd, Purpose, UnixMs};

/// The same thing is sent again for a channel after this long without an effect, ms.
const AGAIN_MS: u64 = 60_000;
/// An opening that the contract refuses this often is given up: an RPC node may be a little late
/// with the deposit that it needs.
const REFUSALS_MAX: u32 = 3;

/// What was tried for a channel.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    refusals: u32,
    /// What was sent last, and when.
    sent: Option<(Purpose, MicroUsd, UnixMs)>,
}

impl Tried {
    /// True when the same was sent a moment ago.
    #[must_use]
    pub fn lately(&self, purpose: Purpose, sum: MicroUsd, now_ms: UnixMs) -> bool {
        self.sent.is_some_and(|(what, of, at)| {
            what == purpose && of == sum && now_ms.saturating_sub(at) < AGAIN_MS
        })
    }
    /// It is sent.
    pub const fn note(&mut self, purpose: Purpose, sum: MicroUsd, now_ms: UnixMs) {
        self.refusals = 0;
        self.sent = Some((purpose, sum, now_ms));
    }
    /// The contract refused the opening. True when it is given up.
    pub const fn refused(&mut self) -> bool {
        self.refusals += 1;
        self.refusals >= REFUSALS_MAX
    }
}
