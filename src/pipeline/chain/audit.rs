//! Has a stage's work done again by another, and says whether the two agree.
//!
//! The rows that went in are shown by the stage before (or are the head's own), the rows that came
//! out by the stage itself; a third peer computes them once more, for pay. Machines differ in their
//! last bits, so rows are compared within a tolerance. Who disagrees with one other is left alone in
//! this session; who disagrees with two who agree is also not paid what is still owed, and not asked
//! again by this head.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Opened, Order, Source, Want};
use crate::pipeline::error::PipelineError;
use crate::pipeline::rows;
use crate::pipeline::session::{HopId, Log, Rows};
use crate::protocol::stage::{
    Halt, Next, PushKey, Route, StageMessage, Step, StepKind, WireFormat,
};
use crate::types::PeerId;

/// Rows that are done again at most, from the session's first on: each costs what it cost before.
pub(super) const AUDIT_ROWS_MAX: u32 = 256;
/// Rows of one message.
pub(super) const CHUNK_ROWS: u32 = 16;
/// Least cosine of the angle between two honest results for one row.
const COSINE_MIN: f64 = 0.999;
/// Most that two honest results differ, as a share of their length.
const DISTANCE_MAX: f64 = 0.02;

/// A stage's work: what went in and what came out.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    /// Whose.
    pub hop: HopId,
    /// Who that is.
    pub peer: PeerId,
    /// The one whose results went in; none when these are the head's rows.
    pub before: Option<HopId>,
    /// Rows looked at, from position 0.
    pub end: u32,
    /// What went in, so far.
    pub input: Log,
    /// What came out, so far.
    pub output: Log,
}

impl Evidence {
    /// Takes rows that were shown. False when they are not what comes next.
    pub fn take(&mut self, from: HopId, pos: u32, rows: &Bytes) -> bool {
        let log = if from == self.hop {
            &mut self.output
        } else if Some(from) == self.before {
            &mut self.input
        } else {
            return false;
        };
        log.length() == pos && log.put(pos, rows)
    }
    /// True when all is here.
    pub fn is_complete(&self) -> bool {
        self.input.length() >= self.end && self.output.length() >= self.end
    }
}

/// What an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another gets the same.
    Honest,
    /// One other gets something else.
    Doubtful,
    /// Two others agree on something else.
    Guilty,
    /// Nobody was there to ask.
    Unknown,
}

/// Asks one other, and a second where the first disagrees.
pub(super) async fn judge(
    source: Arc<dyn Source>,
    hidden: usize,
    evidence: Evidence,
    mut want: Want,
) -> Verdict {
    let numbers = |log: &Log| rows::from_bytes(&log.read(0, evidence.end), hidden, want.wire);
    let Some(claimed) = numbers(&evidence.output) else {
        return Verdict::Guilty;
    };
    let (wire, input) = (want.wire, evidence.input.read(0, evidence.end));
    want.not.insert(evidence.peer);
    let Ok((first, first_peer)) = again(&*source, hidden, &input, want.clone()).await else {
        return Verdict::Unknown;
    };
    let first = rows::from_bytes(&first, hidden, wire).unwrap_or_default();
    if agree(&claimed, &first, hidden) {
        return Verdict::Honest;
    }
    want.not.insert(first_peer);
    want.session = crate::protocol::stage::StageSession(rand::random());
    let Ok((second, _)) = again(&*source, hidden, &input, want).await else {
        return Verdict::Doubtful;
    };
    let second = rows::from_bytes(&second, hidden, wire).unwrap_or_default();
    if agree(&claimed, &second, hidden) {
        Verdict::Honest
    } else if agree(&first, &second, hidden) {
        Verdict::Guilty
    } else {
        Verdict::Doubtful
    }
}

/// True when every row of both is the same but for rounding.
pub(super) fn agree(a: &[f32], b: &[f32], hidden: usize) -> bool {
    let rows = a.chunks(hidden.max(1)).zip(b.chunks(hidden.max(1)));
    a.len() == b.len() && !a.is_empty() && rows.into_iter().all(|(a, b)| is_near(a, b))
}

fn is_near(a: &[f32], b: &[f32]) -> bool {
    let (mut dot, mut aa, mut bb, mut apart) = (0.0, 0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        dot += x * y;
        aa += x * x;
        bb += y * y;
        apart += (x - y) * (x - y);
    }
    if aa == 0.0 && bb == 0.0 {
        return true;
    }
    // Infinities and what is no number compare as false.
    dot >= COSINE_MIN * aa.sqrt() * bb.sqrt() && apart.sqrt() <= DISTANCE_MAX * bb.sqrt()
}

/// Has `input` computed by whoever takes `want`'s place, all of it.
async fn again(
    source: &dyn Source,
    hidden: usize,
    input: &Bytes,
    want: Want,
) -> Result<(Bytes, PeerId), PipelineError> {
    let (heard, mut ears) = mpsc::channel(16);
    let wire: WireFormat = want.wire;
    let row_bytes = wire.row_bytes(hidden);
    let end = want.end;
    let Opened {
        peer,
        end: there,
        orders,
        ..
    } = source.open(want, heard).await?;
    if there != end {
        return Err(PipelineError::Lost(
            "nobody serves just these layers".to_owned(),
        ));
    }
    let say = |message, rows| {
        // One that is gone is heard of below.
        let _ = orders.try_send(Order::Say(message, rows));
    };
    let key = PushKey(rand::random());
    say(StageMessage::Halt(Halt { epoch: 1, key }), Bytes::new());
    let route = Route {
        epoch: 1,
        next: Next::HeadAll,
        held: 0,
        keep: 0,
    };
    say(StageMessage::Route(route), Bytes::new());
    let chunk_bytes = row_bytes.saturating_mul(crate::pipeline::session::index(CHUNK_ROWS));
    let (mut rest, mut seq, mut pos) = (input.clone(), 0, 0);
    while !rest.is_empty() {
        let rows = rest.split_to(chunk_bytes.min(rest.len()));
        let n = u32::try_from(rows.len() / row_bytes.max(1)).unwrap_or(0);
        let (epoch, kind) = (1, StepKind::Prefill);
        let step = Step {
            epoch,
            seq,
            pos,
            n,
            kind,
        };
        say(StageMessage::Step(step), rows);
        seq += 1;
        pos += n;
    }
    let (mut output, mut done) = (Log::new(row_bytes), Rows::default());
    while output.length() < pos {
        let lost = || PipelineError::Lost("the second opinion did not come".to_owned());
        let (_, what) = ears.recv().await.ok_or_else(lost)?;
        match what {
            Ok((StageMessage::Done(_), _)) if done.total() >= u64::from(pos) => return Err(lost()),
            Ok((StageMessage::Done(one), _)) => {
                done.add(one.n.min(CHUNK_ROWS), StepKind::Prefill);
                let _ = orders.try_send(Order::Owe(done));
            }
            Ok((StageMessage::Out(out), rows)) => {
                if out.pos != output.length() || !output.put(out.pos, &rows) {
                    return Err(lost());
                }
            }
            Ok((StageMessage::State(_), _)) => {}
            _ => return Err(lost()),
        }
    }
    Ok((output.read(0, pos), peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_forgiven_and_a_change_is_not() {
        let row: Vec<f32> = (0u16..128).map(|i| (f32::from(i) * 0.7).sin()).collect();
        let close: Vec<f32> = row.iter().map(|x| x * 1.001).collect();
        assert!(agree(&row, &close, 64));
        let scaled: Vec<f32> = row.iter().map(|x| x * 1.05).collect();
        assert!(!agree(&row, &scaled, 64));
        let mut one_row = row.clone();
        one_row[64..].iter_mut().for_each(|x| *x = -*x);
        assert!(!agree(&row, &one_row, 64));
        assert!(!agree(&row, &vec![f32::NAN; 128], 64));
        assert!(!agree(&row, &row[..64], 64));
        assert!(agree(&[0.0; 4], &[0.0; 4], 4));
    }
}
