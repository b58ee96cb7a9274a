//! Has rows computed by one stage alone, in a session of their own: what a check and a second opinion
//! are made of. It is paid as any prefill.

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Candidate, Opened, Order, Source, Want};
use crate::pipeline::error::PipelineError;
use crate::pipeline::session::{Log, Rows, index};
use crate::protocol::stage::{Halt, Next, PushKey, Route, StageMessage, Step, StepKind};

/// Rows of one message.
const CHUNK_ROWS: u32 = 16;

/// What it computed.
pub(super) struct Computed {
    /// The last rows, as they travel.
    pub rows: Bytes,
    /// The session: dropping it closes it and pays what is owed.
    pub orders: mpsc::Sender<Order>,
}

/// Rows of positions from 0 on, through all of `want`'s layers at `at`; of the results those from
/// position `from` on are wanted.
///
/// # Errors
/// When it is lost, or does not keep to the rules of a session.
pub(super) async fn again(
    source: &dyn Source,
    input: &Bytes,
    row_bytes: usize,
    from: u32,
    want: Want,
    at: Candidate,
) -> Result<Computed, PipelineError> {
    let lost = || PipelineError::Lost("it did not compute all rows".to_owned());
    let (heard, mut ears) = mpsc::channel(16);
    let Opened { orders, .. } = source.open(want, at, heard).await?;
    let say = |message, rows| {
        // One that is gone is heard of below.
        let _ = orders.try_send(Order::Say(message, rows));
    };
    let key = PushKey(rand::random());
    say(StageMessage::Halt(Halt { epoch: 1, key }), Bytes::new());
    let route = Route {
        epoch: 1,
        next: Next::HeadAll,
        held: from,
        keep: 0,
    };
    say(StageMessage::Route(route), Bytes::new());
    let chunk_bytes = row_bytes.saturating_mul(index(CHUNK_ROWS));
    let (mut rest, mut seq, mut pos) = (input.clone(), 0u32, 0u32);
    while !rest.is_empty() {
        let rows = rest.split_to(chunk_bytes.min(rest.len()));
        let n = u32::try_from(rows.len().checked_div(row_bytes).unwrap_or(0)).unwrap_or(0);
        let step = Step {
            epoch: 1,
            seq,
            pos,
            n,
            kind: StepKind::Prefill,
        };
        say(StageMessage::Step(step), rows);
        seq = seq.saturating_add(1);
        pos = pos.saturating_add(n);
    }
    let all = pos.saturating_sub(from);
    let (mut output, mut done) = (Log::new(row_bytes), Rows::default());
    while output.length() < all {
        let (_, what) = ears.recv().await.ok_or_else(lost)?;
        match what {
            Ok((StageMessage::Done(one), _)) => {
                // It is owed what it was asked for, and no more.
                done.add(one.n.min(CHUNK_ROWS), StepKind::Prefill);
                if done.total() > u64::from(pos) {
                    return Err(lost());
                }
                let _ = orders.try_send(Order::Owe(done));
            }
            Ok((StageMessage::Out(out), rows)) => {
                let n = index(out.rows).checked_mul(row_bytes);
                let at = output.length();
                let is_next = out.pos.checked_sub(from) == Some(at) && n == Some(rows.len());
                if !is_next || !output.put(at, &rows) {
                    return Err(lost());
                }
            }
            Ok((StageMessage::State(_) | StageMessage::Pong(_), _)) => {}
            Ok(_) => return Err(lost()),
            Err(why) => return Err(PipelineError::Lost(why)),
        }
    }
    let rows = output.read(0, all);
    Ok(Computed { rows, orders })
}
