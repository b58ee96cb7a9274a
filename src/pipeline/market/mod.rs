//! Which stages there are, where another is worth most, and through which a model runs best.
//! Pure: no I/O, no clock.
//!
//! A stage runs all of its layers or none, so rows find a way through a model only where one
//! stage's end is another one's beginning. Everything here follows from that:
//!
//! - [`coverage`]: what the stages on offer reach together, layer by layer;
//! - [`placement`]: the layers that a joiner should take: those that complete a way, else those
//!   that least is done for;
//! - [`moves`]: when a stage gives up its place for a better one;
//! - [`route`]: the way of least time and price, of [`HOPS_MAX`] stages at most; also around one
//!   that was lost.
//!
//! Callers: `node contribute` (placement, moves), the head of a pipeline (routes, also while it
//! runs), and the reports of what is on offer.

pub mod coverage;
pub mod moves;
pub mod placement;
pub mod route;
#[cfg(test)]
pub(super) mod tests;

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::protocol::offer::{SignedOffer, StageTerms, Wires};
use crate::types::{Hash32, PeerId, PriceTable};

pub use coverage::Coverage;
pub use moves::{Mover, Pace, Seen, Step};
pub use placement::{Joiner, place};
pub use route::{Ask, Route};

/// Most stages in one way: each adds the time of a link to every token.
pub const HOPS_MAX: usize = 6;
/// One-way time to a peer that was not measured, µs: half of an ordinary round trip on one continent.
pub const LINK_US_DEFAULT: u64 = 25_000;

/// A stage on offer, as far as it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Who.
    pub peer: PeerId,
    /// The offer that an order names.
    pub offer: Hash32,
    /// Layers, room and forms.
    pub terms: StageTerms,
    /// Micro-USD per million block-tokens: `input` prefill, `output` decode.
    pub price: PriceTable,
    /// Decode rows per second: as claimed, or as somebody measured; 0 is never used.
    pub rows_per_s: u32,
    /// One-way time to it from wherever its rows come from, µs.
    pub link_us: u64,
}

impl Offered {
    /// What a live offer of a stage claims; `None` for an offer of anything else.
    #[must_use]
    pub fn claimed(signed: &SignedOffer) -> Option<Self> {
        let terms = signed.offer.stage?;
        Some(Self {
            peer: signed.offer.seller,
            offer: signed.hash,
            terms,
            price: signed.offer.price,
            rows_per_s: terms.rows_per_s,
            link_us: LINK_US_DEFAULT,
        })
    }
    /// One that would be at `range` and computes something; names no offer.
    fn at(peer: PeerId, layers: u16, range: &Range<u16>) -> Self {
        let terms = StageTerms {
            manifest: Hash32([0; 32]),
            first: range.start,
            end: range.end,
            layers,
            free_positions: 0,
            rows_per_s: 1,
            wires: Wires::F16,
        };
        Self {
            peer,
            offer: Hash32([0; 32]),
            terms,
            price: PriceTable::default(),
            rows_per_s: terms.rows_per_s,
            link_us: 0,
        }
    }
    /// Time of one decode row from the stage before to this one's result, µs.
    #[must_use]
    pub fn row_us(&self) -> u64 {
        let compute = 1_000_000 / u64::from(self.rows_per_s.max(1));
        compute.saturating_add(self.link_us)
    }
    /// What a million prefill rows cost here, micro-USD.
    #[must_use]
    pub fn prefill_price(&self) -> u64 {
        self.price.input.saturating_mul(self.terms.width().into())
    }
    /// What a million decode rows cost here, micro-USD.
    #[must_use]
    pub fn row_price(&self) -> u64 {
        self.price.output.saturating_mul(self.terms.width().into())
    }
}

/// A number that two peers never agree on, so that of many that see the same not all do the same.
fn rank(peer: &PeerId, salt: u64) -> u64 {
    let digest: [u8; 32] = Sha256::new()
        .chain_update(salt.to_be_bytes())
        .chain_update(peer.to_bytes())
        .finalize()
        .into();
    digest
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
