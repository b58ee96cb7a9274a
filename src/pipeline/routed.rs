//! Stages at the market for a head that orders them: those on the best way first, then whoever else
//! there is. The list is what the offer book has heard; how fast a stage is, what this head measured
//! of it, if it did, else what the offer claims. Nothing here waits.

use std::sync::Arc;
use std::time::Instant;

use super::chain::Want;
use super::chain::order::Places;
use super::market::{Ask, HOPS_MAX, Offered, route};
use super::trust::{Part, Trust};
use crate::discovery::OfferBook;
use crate::protocol::offer::{SignedOffer, Wires};
use crate::protocol::stage::WireFormat;
use crate::types::{Hash32, PeerId};

/// Stages named for one place: the best and those to try when it refuses.
const CHOICES_MAX: usize = 8;

/// See the module.
pub struct Routed {
    book: OfferBook,
    manifest: Hash32,
    second_worth: u64,
    trust: Trust,
}

impl Routed {
    /// Stages of the model `manifest`, when a second is worth `second_worth` micro-USD; `trust` knows
    /// what was measured of them.
    #[must_use]
    pub const fn new(book: OfferBook, manifest: Hash32, second_worth: u64, trust: Trust) -> Self {
        Self {
            book,
            manifest,
            second_worth,
            trust,
        }
    }
}

/// The offer with the time that a row was measured to take there, its way included, if it was.
fn measured(mut offered: Offered, trust: &Trust, now: Instant) -> Offered {
    let part = Part {
        peer: offered.peer,
        first: offered.terms.first,
        end: offered.terms.end,
    };
    if let Some(row_us) = trust.row_us(&part, now) {
        let rows_per_s = 1_000_000u64.checked_div(row_us).unwrap_or(0).max(1);
        offered.rows_per_s = u32::try_from(rows_per_s).unwrap_or(u32::MAX);
        offered.link_us = 0;
    }
    offered
}

impl Places for Routed {
    fn offers(&self, want: &Want) -> Vec<Arc<SignedOffer>> {
        self.book.want_stages(&self.manifest);
        let live = self.book.stages(&self.manifest);
        let usable = live.iter().filter(|o| !self.book.is_dead(&o.offer.seller));
        let live: Vec<_> = usable.cloned().collect();
        chosen(&live, want, self.second_worth, &self.trust)
    }
}

/// Those of `live` to ask for a place, the best first: the first stages of the best ways, by what was
/// measured of them, or else by what they claim.
#[must_use]
pub fn chosen(
    live: &[Arc<SignedOffer>],
    want: &Want,
    second_worth: u64,
    trust: &Trust,
) -> Vec<Arc<SignedOffer>> {
    let now = Instant::now();
    let claimed = live.iter().filter_map(|offer| Offered::claimed(offer));
    let offered: Vec<Offered> = claimed.map(|one| measured(one, trust, now)).collect();
    let by_hash = |hash: &Hash32| live.iter().find(|offer| offer.hash == *hash);
    choices(&offered, want, second_worth)
        .iter()
        .filter_map(|hash| by_hash(hash).map(Arc::clone))
        .collect()
}

/// The first stages of the best ways, the best first, each of another peer; offers by their hashes.
fn choices(offered: &[Offered], want: &Want, second_worth: u64) -> Vec<Hash32> {
    let mut without: Vec<PeerId> = want.not.iter().copied().collect();
    let mut chosen = Vec::new();
    while chosen.len() < CHOICES_MAX {
        let ask = Ask {
            layers: want.first..want.end,
            positions: want.positions_max,
            wires: match want.wire {
                WireFormat::F16 => Wires::F16,
                WireFormat::F32 => Wires::F32,
                WireFormat::Int8 => Wires::INT8,
            },
            hops_max: HOPS_MAX,
            second_worth,
            without: &without,
        };
        let way = route::best(offered, &ask);
        let first = way.and_then(|way| way.hops.first().and_then(|hop| offered.get(*hop)));
        let Some(first) = first else {
            break;
        };
        without.push(first.peer);
        chosen.push(first.offer);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pipeline::market::tests::{peer, stage};
    use crate::pipeline::session::HopId;
    use crate::protocol::stage::StageSession;

    #[test]
    fn the_best_way_is_named_first_and_each_peer_once() {
        let mut offered = vec![
            stage(1, 30, 0..10, 10),
            stage(2, 30, 10..30, 10),
            stage(3, 30, 0..30, 20),
            stage(4, 30, 0..10, 40),
            stage(5, 30, 0..9, 90),
        ];
        for (at, one) in offered.iter_mut().enumerate() {
            one.offer = Hash32([u8::try_from(at).unwrap(); 32]);
        }
        let want = |not: &[u16]| Want {
            id: HopId(0),
            session: StageSession([0; 16]),
            first: 0,
            end: 30,
            positions_max: 100,
            wire: WireFormat::F16,
            not: not.iter().map(|n| peer(*n)).collect::<BTreeSet<_>>(),
        };
        let named = |not: &[u16]| -> Vec<u8> {
            let chosen = choices(&offered, &want(not), 500);
            chosen.iter().map(|hash| hash.0[0]).collect()
        };
        // Nobody goes on from layer 9, so the quickest is of no use.
        assert_eq!(named(&[]), [2, 3, 0]);
        assert_eq!(named(&[3]), [3, 0]);
        assert_eq!(named(&[2, 3]), [0u8; 0]);
    }
}
