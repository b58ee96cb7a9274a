//! What a stage has said of its rows, piece by piece as it computed them: the head keeps it and holds
//! what it is shown later against it.

use bytes::Bytes;

use super::digest_of;
use crate::protocol::stage::{Done, RowsDigest};

/// Rows that were computed together, and what was said of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin.
    pub pos: u32,
    /// Rows.
    pub n: u32,
    /// Of what went in and of what came out; none where a part of what was said is taken back.
    pub said: Option<(RowsDigest, RowsDigest)>,
}

impl Piece {
    /// The position after the last.
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.pos.saturating_add(self.n)
    }
    /// True unless these results are others than were said.
    #[must_use]
    pub fn has_results(&self, rows: &Bytes) -> bool {
        self.said.is_none_or(|(_, out)| out == digest_of(rows))
    }
    /// True unless other rows were said to have come.
    #[must_use]
    pub fn took(&self, rows: &Bytes) -> bool {
        self.said.is_none_or(|(taken, _)| taken == digest_of(rows))
    }
}

/// All that one stage has said and not taken back, without gaps.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    pieces: Vec<Piece>,
}

impl Promises {
    /// DONE: what was at its position and behind it is taken back.
    pub fn add(&mut self, done: &Done) {
        self.truncate(done.pos);
        if done.pos == self.length() {
            self.pieces.push(Piece {
                pos: done.pos,
                n: done.n,
                said: Some((done.taken, done.digest)),
            });
        }
    }

    /// What is at `pos` and behind it counts no more.
    pub fn truncate(&mut self, pos: u32) {
        let kept = self.pieces.partition_point(|piece| piece.pos < pos);
        self.pieces.truncate(kept);
        if let Some(last) = self.pieces.last_mut()
            && last.end() > pos
        {
            // Its digest was made over more rows than are left.
            *last = Piece {
                pos: last.pos,
                n: pos - last.pos,
                said: None,
            };
        }
    }

    /// Positions that were spoken of.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.pieces.last().map_or(0, Piece::end)
    }

    /// The pieces that have rows of `from..end`, in order.
    pub fn over(&self, from: u32, end: u32) -> impl Iterator<Item = &Piece> {
        let first = self.pieces.partition_point(|piece| piece.end() <= from);
        let pieces = self.pieces.get(first..).unwrap_or_default();
        pieces.iter().take_while(move |piece| piece.pos < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(pos: u32, n: u32) -> Done {
        Done {
            pos,
            n,
            taken: RowsDigest([1; 16]),
            digest: digest_of(&Bytes::from_static(b"rows")),
        }
    }

    fn spans(promises: &Promises, from: u32, end: u32) -> Vec<(u32, u32, bool)> {
        let pieces = promises.over(from, end);
        pieces
            .map(|piece| (piece.pos, piece.n, piece.said.is_some()))
            .collect()
    }

    #[test]
    fn what_is_computed_again_replaces_what_was_said_from_there_on() {
        let mut promises = Promises::default();
        for (pos, n) in [(0, 8), (8, 8), (16, 1)] {
            promises.add(&done(pos, n));
        }
        assert_eq!(
            spans(&promises, 7, 17),
            [(0, 8, true), (8, 8, true), (16, 1, true)]
        );
        assert_eq!(spans(&promises, 8, 16), [(8, 8, true)]);
        // Half of a piece is left, and nothing can be said of the half by itself.
        promises.add(&done(12, 2));
        assert_eq!(
            spans(&promises, 0, 99),
            [(0, 8, true), (8, 4, false), (12, 2, true)]
        );
        promises.truncate(8);
        assert_eq!((promises.length(), spans(&promises, 8, 9)), (8, vec![]));
        // Nothing is said over a gap.
        promises.add(&done(10, 1));
        assert_eq!(promises.length(), 8);
    }

    #[test]
    fn only_what_was_sent_can_be_shown() {
        let mut promises = Promises::default();
        promises.add(&done(0, 4));
        let piece = promises.over(0, 4).next().unwrap();
        assert!(piece.has_results(&Bytes::from_static(b"rows")));
        assert!(!piece.has_results(&Bytes::from_static(b"other")));
        assert!(!piece.took(&Bytes::from_static(b"rows")));
    }
}
