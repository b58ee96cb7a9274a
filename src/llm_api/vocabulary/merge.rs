//! Byte-pair merging of one piece: repeatedly the adjacent pair whose token has the lowest rank
//! becomes one part, until no pair is a token. n log n, so that no text makes it slow.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No neighbour, or no longer a part.
const NONE: u32 = u32::MAX;

/// Working memory, kept from piece to piece.
#[derive(Default)]
pub(super) struct Merger {
    parts: Vec<Part>,
    /// Pairs that are tokens: rank, then the place of the left part (leftmost first at equal rank).
    pairs: BinaryHeap<Reverse<(u32, u32)>>,
}

/// A run of bytes that is one token so far, named by the place of its first byte.
#[derive(Clone, Copy)]
struct Part {
    /// Place of the part before; [`NONE`] at the start.
    before: u32,
    /// Place of the part behind, the piece's length at the end; [`NONE`] once merged away.
    behind: u32,
    /// Rank of the token that this part and the one behind it make; [`NONE`] if they make none.
    rank: u32,
}

impl Merger {
    /// The number of parts that are left of `piece` (at least 2 bytes, at most 4 GiB).
    pub(super) fn count(&mut self, piece: &[u8], rank: impl Fn(&[u8]) -> Option<u32>) -> usize {
        let length = u32::try_from(piece.len()).unwrap_or(NONE - 1);
        self.pairs.clear();
        self.parts.clear();
        self.parts.extend((0..length).map(|at| Part {
            before: at.checked_sub(1).unwrap_or(NONE),
            behind: at + 1,
            rank: NONE,
        }));
        for at in 0..length {
            self.pair(piece, at, &rank);
        }
        let mut left = piece.len();
        while let Some(Reverse((pair_rank, at))) = self.pairs.pop() {
            let Some(part) = self.part(at).filter(|part| part.rank == pair_rank) else {
                continue; // one of the two was merged meanwhile
            };
            let Some(gone) = self.part(part.behind) else {
                continue;
            };
            if let Some(dead) = self.part_mut(part.behind) {
                (dead.behind, dead.rank) = (NONE, NONE);
            }
            if let Some(grown) = self.part_mut(at) {
                grown.behind = gone.behind;
            }
            if let Some(next) = self.part_mut(gone.behind) {
                next.before = at;
            }
            left -= 1;
            self.pair(piece, at, &rank);
            self.pair(piece, part.before, &rank);
        }
        left
    }

    /// Looks up what the part at `at` and the one behind it make.
    fn pair(&mut self, piece: &[u8], at: u32, rank: impl Fn(&[u8]) -> Option<u32>) {
        let Some(part) = self.part(at) else { return };
        let both = self
            .part(part.behind)
            .and_then(|next| piece.get(index(at)..index(next.behind)));
        let found = both.and_then(rank);
        if let Some(part) = self.part_mut(at) {
            part.rank = found.unwrap_or(NONE);
        }
        if let Some(found) = found {
            self.pairs.push(Reverse((found, at)));
        }
    }

    fn part(&self, at: u32) -> Option<Part> {
        self.parts.get(index(at)).copied()
    }
    fn part_mut(&mut self, at: u32) -> Option<&mut Part> {
        self.parts.get_mut(index(at))
    }
}

fn index(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
