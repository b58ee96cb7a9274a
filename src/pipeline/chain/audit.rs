//! Has a stage's work done again by another, and says whether the two agree.
//!
//! What went in was shown by the stage before (or is the head's own), what came out by the stage
//! itself; both are what they had said when they sent it (`auditing` sees to that). A third peer
//! computes it once more, for pay. Machines differ in their last bits, so rows are compared within a
//! tolerance. Where two disagree the model's file decides, if this head has it; else a fourth peer.
//! Who disagrees with one other is left alone in this session; who is found wrong by the file, or by
//! two who agree, is also not paid what is still owed, and not asked again by this head.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::again::{Computed, again};
use super::find::{Finder, NO_HOP};
use super::{Candidate, Want};
use crate::pipeline::error::PipelineError;
use crate::pipeline::patron::Patron;
use crate::pipeline::rows;
use crate::pipeline::session::{HopId, Piece, index};
use crate::pipeline::trust::compare::agree;
use crate::protocol::stage::{StageSession, WireFormat};
use crate::types::PeerId;

/// Rows that the head computes itself at most, where there is nobody else to ask: it reads the layers
/// from disk and has other things to do.
const OWN_ROWS_MAX: u32 = 512;

/// A stage's work: what went in, and what came out.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    /// Whose.
    pub hop: HopId,
    /// Who that is.
    pub peer: PeerId,
    /// Its layers.
    pub first: u16,
    /// The layer after its last.
    pub end_layer: u16,
    /// Whose results went in; none when these are the head's rows.
    pub before: Option<(HopId, PeerId)>,
    /// The first row that is looked at.
    pub from: u32,
    /// The position after the last.
    pub end: u32,
    /// How the rows travelled.
    pub wire: WireFormat,
    /// What it said to have taken, from position 0 to `end`.
    pub pieces: Vec<Piece>,
    /// Rows shown by the stage before, by position, from 0 on.
    pub input: BTreeMap<u32, Bytes>,
    /// Rows shown by the stage, by position, from `from` on.
    pub output: BTreeMap<u32, Bytes>,
}

/// What an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another gets the same.
    Honest,
    /// The one who was asked gets something else, and the file agrees with the audited.
    Slandered(PeerId),
    /// One other gets something else.
    Doubtful,
    /// It says to have taken other rows than the one before it sent: one of the two lies.
    Quarrel(PeerId),
    /// It computed something else.
    Guilty,
    /// Nobody was there to ask.
    Unknown,
}

impl Evidence {
    /// All rows of `shown` in one piece.
    fn joined(shown: &BTreeMap<u32, Bytes>) -> Bytes {
        let mut all = BytesMut::new();
        shown.values().for_each(|rows| all.extend_from_slice(rows));
        all.freeze()
    }

    /// Whether the stage said to have taken what it was sent.
    fn taken(&self, input: &Bytes, row_bytes: usize) -> Option<Verdict> {
        let took = |piece: &Piece| {
            let (from, end) = (index(piece.pos) * row_bytes, index(piece.end()) * row_bytes);
            end > input.len() || piece.took(&input.slice(from..end))
        };
        if self.pieces.iter().all(took) {
            return None;
        }
        Some(match self.before {
            Some((_, peer)) => Verdict::Quarrel(peer),
            None => Verdict::Guilty,
        })
    }
}

/// Judges it; see the module.
pub(super) async fn judge(finder: Finder, evidence: Evidence, not: Vec<PeerId>) -> Verdict {
    let (hidden, wire) = (finder.settings.hidden, evidence.wire);
    let row_bytes = wire.row_bytes(hidden);
    let mut input = Evidence::joined(&evidence.input);
    input.truncate(index(evidence.end) * row_bytes);
    if let Some(verdict) = evidence.taken(&input, row_bytes) {
        return verdict;
    }
    let output = Evidence::joined(&evidence.output);
    let Some(claimed) = rows::from_bytes(&output, hidden, wire) else {
        return Verdict::Guilty;
    };
    let mut others = Others {
        finder: &finder,
        evidence: &evidence,
        input: &input,
        not,
    };
    others.not.push(evidence.peer);
    let Ok((first, who)) = others.ask().await else {
        let is_small = evidence.end <= OWN_ROWS_MAX;
        return match others.own().await.filter(|_| is_small) {
            None => Verdict::Unknown,
            Some(own) if agree(&claimed, &own, hidden) => Verdict::Honest,
            Some(_) => Verdict::Guilty,
        };
    };
    if agree(&claimed, &first, hidden) {
        return Verdict::Honest;
    }
    if let Some(own) = others.own().await {
        return if agree(&claimed, &own, hidden) {
            Verdict::Slandered(who)
        } else {
            Verdict::Guilty
        };
    }
    match others.ask().await {
        Ok((second, _)) if agree(&claimed, &second, hidden) => Verdict::Honest,
        Ok((second, _)) if agree(&first, &second, hidden) => Verdict::Guilty,
        _ => Verdict::Doubtful,
    }
}

/// Who can be asked about the same rows.
struct Others<'a> {
    finder: &'a Finder,
    evidence: &'a Evidence,
    input: &'a Bytes,
    not: Vec<PeerId>,
}

impl Others<'_> {
    /// The rows that are looked at by the next who has just these layers, and who that is.
    async fn ask(&mut self) -> Result<(Vec<f32>, PeerId), PipelineError> {
        let evidence = self.evidence;
        let want = Want {
            id: NO_HOP,
            session: StageSession(rand::random()),
            first: evidence.first,
            end: evidence.end_layer,
            positions_max: evidence.end,
            wire: evidence.wire,
            not: self.not.iter().copied().collect(),
            patron: Patron::default(),
        };
        let (hidden, from) = (self.finder.settings.hidden, evidence.from);
        let row_bytes = evidence.wire.row_bytes(hidden);
        let mut why = PipelineError::Lost("nobody else serves just these layers".to_owned());
        let has_all = |at: &Candidate| at.end == want.end;
        for at in self
            .finder
            .source
            .candidates(&want)
            .into_iter()
            .filter(has_all)
        {
            let peer = at.peer;
            if want.not.contains(&peer) || self.finder.trust.is_distrusted(&peer) {
                continue;
            }
            self.not.push(peer);
            if let Err(error) = self.finder.check(&want, &at).await {
                why = error;
                continue;
            }
            let source = &*self.finder.source;
            match again(source, self.input, row_bytes, from, want.clone(), at).await {
                Ok(Computed { rows, .. }) => {
                    let numbers = rows::from_bytes(&rows, hidden, evidence.wire);
                    return Ok((numbers.unwrap_or_default(), peer));
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// The same by the model's file, where this head has it.
    async fn own(&self) -> Option<Vec<f32>> {
        let reference = self.finder.reference.as_ref()?;
        let evidence = self.evidence;
        let hidden = self.finder.settings.hidden;
        let input = rows::from_bytes(self.input, hidden, evidence.wire)?;
        let computed = reference.compute(evidence.first, evidence.end_layer, input);
        let mut all = computed.await.ok()?;
        Some(all.split_off((index(evidence.from) * hidden).min(all.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::session::digest_of;

    /// A stage took two pieces of two rows of four bytes, by its own word.
    fn evidence(before: Option<(HopId, PeerId)>) -> Evidence {
        let piece = |pos: u32, rows: &'static [u8]| {
            let digest = digest_of(&Bytes::from_static(rows));
            Piece {
                pos,
                n: 2,
                said: Some((digest, digest)),
            }
        };
        Evidence {
            hop: HopId(1),
            peer: PeerId::random(),
            first: 2,
            end_layer: 4,
            before,
            from: 0,
            end: 4,
            wire: WireFormat::F16,
            pieces: vec![piece(0, b"aaaabbbb"), piece(2, b"ccccdddd")],
            input: BTreeMap::new(),
            output: BTreeMap::new(),
        }
    }

    #[test]
    fn who_took_other_rows_than_were_sent_quarrels_with_the_sender_or_lies_about_the_head() {
        let sender = PeerId::random();
        let sent = Bytes::from_static(b"aaaabbbbccccdddd");
        let altered = Bytes::from_static(b"aaaabbbbccccdddX");
        let of_stage = evidence(Some((HopId(0), sender)));
        assert_eq!(of_stage.taken(&sent, 4), None);
        assert_eq!(of_stage.taken(&altered, 4), Some(Verdict::Quarrel(sender)));
        let of_head = evidence(None);
        assert_eq!(of_head.taken(&sent, 4), None);
        assert_eq!(of_head.taken(&altered, 4), Some(Verdict::Guilty));
        // Pieces that are not all there say nothing.
        assert_eq!(of_head.taken(&altered.slice(..12), 4), None);
    }
}
