//! Messages of a stage session: rows of hidden numbers on their way through a model's layers.
//!
//! A *stage* computes a range of layers, a *head* asks for rows and pays. The head's order (an infer
//! stream) opens a session: its body is [`StageOpen`]. Then both directions of that stream carry
//! [`StageMessage`]s, and stages push rows to each other on streams of their own, which begin with
//! [`Push`]. The rules that these messages follow are in `pipeline::session`.
//!
//! On the wire a message is `header length u16 ‖ rows length u32 ‖ header ‖ rows`, big-endian; the
//! header is postcard. Lengths are checked before anything is kept.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::limits::{
    STAGE_HEADER_BYTES_MAX, STAGE_LAYERS_MAX, STAGE_POSITIONS_MAX, STAGE_ROWS_BYTES_MAX,
};
use super::signature::peer_bytes;
use super::{DecodeError, decode, encode};
use crate::types::{Hash32, PeerId};

/// Bytes before a message's header.
const PREFIX_BYTES: usize = 6;

/// Names one session at one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageSession(pub [u8; 16]);

/// What a stage that pushes rows to another must know: the head tells it to both.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushKey(pub [u8; 16]);

impl std::fmt::Debug for PushKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PushKey(..)")
    }
}

/// The first bytes of sha256 over rows as they travel: no other rows are found in time that have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsDigest(pub [u8; 16]);

/// How the numbers of a row travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WireFormat {
    /// 16-bit floats: half the bytes, and less error than 8-bit weights make.
    #[default]
    F16,
    /// 32-bit floats: exact.
    F32,
    /// 8-bit integers with a 32-bit scale per row; only where the offer lists it.
    Int8,
}

impl WireFormat {
    /// Bytes of a row of `hidden` numbers.
    #[must_use]
    pub const fn row_bytes(self, hidden: usize) -> usize {
        match self {
            Self::F16 => hidden.saturating_mul(2),
            Self::F32 => hidden.saturating_mul(4),
            Self::Int8 => hidden.saturating_add(4),
        }
    }
}

/// Why rows are computed; prices differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StepKind {
    /// Many known rows at once, or rows computed again for a stage that took another's place.
    Prefill,
    /// The newest row.
    Decode,
    /// Guessed rows: every result is wanted, and some are taken back by a later step.
    Verify,
}

/// The order's body: what a session is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageOpen {
    /// The session's name, chosen by the head.
    pub session: StageSession,
    /// The model.
    pub manifest: Hash32,
    /// First layer.
    pub first: u16,
    /// The layer after the last.
    pub end: u16,
    /// Positions to reserve.
    pub positions_max: u32,
    /// How rows travel, in and out.
    pub wire: WireFormat,
}

/// The first message on a stream of pushed rows: which session they are for, and the proof that its
/// head named the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// The receiver's session.
    pub session: StageSession,
    /// The route they belong to.
    pub epoch: u32,
    /// From the head's HALT to the receiver.
    pub key: PushKey,
}

/// Head or stage → stage: `n` rows of positions `pos..pos + n` follow; compute them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The route; rows of another are not computed.
    pub epoch: u32,
    /// Counts this link's steps from 0 within an epoch.
    pub seq: u32,
    /// Where they begin; what was there and behind it is forgotten.
    pub pos: u32,
    /// Rows, at least 1.
    pub n: u32,
    /// Why.
    pub kind: StepKind,
}

/// Stage → head: results of positions up to `pos + n`; the last `rows` of them follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Out {
    /// The route.
    pub epoch: u32,
    /// Counts this stage's results from 0 within an epoch.
    pub seq: u32,
    /// Where the positions begin.
    pub pos: u32,
    /// Positions.
    pub n: u32,
    /// Rows that follow: 1..=n.
    pub rows: u32,
    /// As the step said.
    pub kind: StepKind,
}

/// Stage → head: rows were computed, once, and are billed. Precedes their results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Where they begin.
    pub pos: u32,
    /// Rows.
    pub n: u32,
    /// Of the rows as they came: whoever sent them said the same of them, or one of the two lies.
    pub taken: RowsDigest,
    /// Of the results as they are sent: an audit is shown these and no others.
    pub digest: RowsDigest,
}

/// Head → stage: stop sending; rows of older epochs count no more. Answered by [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Above every earlier one.
    pub epoch: u32,
    /// Who pushes rows of this epoch must show it.
    pub key: PushKey,
}

/// Stage → head: halted; nothing older follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// As halted.
    pub epoch: u32,
    /// Positions whose rows are remembered.
    pub length: u32,
}

/// Where a stage's results go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// To another stage, pushed.
    Stage {
        /// Who.
        #[serde(with = "peer_bytes")]
        peer: PeerId,
        /// Its session.
        session: StageSession,
        /// Its key of this epoch.
        key: PushKey,
    },
    /// To the head: every row, because the head passes them on.
    HeadAll,
    /// To the head: the last row of each step, because these are the model's results.
    HeadLast,
}

/// Head → stage: from now on results go there, beginning with what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// As halted.
    pub epoch: u32,
    /// Where to.
    pub next: Next,
    /// Positions that it holds already.
    pub held: u32,
    /// Positions of the receiver's own that still count; the rest was taken back.
    pub keep: u32,
}

/// Stage → head: why a session cannot go on as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StageError {
    /// Rows before those sent are missing: halt and route anew.
    Gap,
    /// The next stage takes no rows.
    NextLost,
    /// The order's most is reached, or no voucher came.
    NoCredit,
    /// No memory for so many positions; another stage please.
    Full,
    /// The session was given up for others.
    Evicted,
    /// The engine failed.
    Failed,
    /// The head broke the protocol.
    Malformed,
}

impl StageError {
    /// The error as it is logged: snake_case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::NextLost => "next_lost",
            Self::NoCredit => "no_credit",
            Self::Full => "full",
            Self::Evicted => "evicted",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageMessage {
    /// First on a stream of pushed rows.
    Push(Push),
    /// See [`Step`]; rows follow.
    Step(Step),
    /// See [`Out`]; rows follow.
    Out(Out),
    /// See [`Done`].
    Done(Done),
    /// See [`Halt`].
    Halt(Halt),
    /// See [`State`].
    State(State),
    /// See [`Route`].
    Route(Route),
    /// Head → stage: show results again, for an audit; answered by an OUT of epoch 0 and this number.
    Show {
        /// Counts what the head asked to be shown.
        seq: u32,
        /// Where they begin.
        pos: u32,
        /// How many.
        n: u32,
    },
    /// Head → stage: where another stage is to be found. Precedes the ROUTE that names it.
    Meet {
        /// Who.
        #[serde(with = "peer_bytes")]
        peer: PeerId,
        /// Its addresses, as its offer has them.
        addresses: Vec<Vec<u8>>,
    },
    /// Head → stage: are you there? Answered at once, also while rows are computed.
    Ping(u32),
    /// Stage → head: yes.
    Pong(u32),
    /// The session cannot go on as it is.
    Error {
        /// The route in which that was so.
        epoch: u32,
        /// Why.
        error: StageError,
    },
}

impl StageMessage {
    /// How many rows follow it.
    #[must_use]
    pub const fn rows(&self) -> u32 {
        match self {
            Self::Step(step) => step.n,
            Self::Out(out) => out.rows,
            _ => 0,
        }
    }

    /// Appends the message with its rows, as it travels.
    pub fn encode_into(&self, rows: &[u8], out: &mut BytesMut) {
        let header = encode(self);
        out.reserve(PREFIX_BYTES + header.len() + rows.len());
        out.put_u16(u16::try_from(header.len()).unwrap_or(u16::MAX));
        out.put_u32(u32::try_from(rows.len()).unwrap_or(u32::MAX));
        out.put_slice(&header);
        out.put_slice(rows);
    }

    /// Decodes a header that says how its `rows_len` bytes are to be read.
    fn decode(header: &[u8], rows_len: usize) -> Result<Self, DecodeError> {
        let message: Self = decode("stage message", header, STAGE_HEADER_BYTES_MAX)?;
        let is_sound = match &message {
            Self::Step(step) => is_span(step.pos, step.n),
            Self::Out(out) => is_span(out.pos, out.n) && (1..=out.n).contains(&out.rows),
            Self::Done(done) => is_span(done.pos, done.n),
            Self::Show { pos, n, .. } => is_span(*pos, *n),
            Self::State(state) => state.length <= STAGE_POSITIONS_MAX,
            Self::Route(route) => route.held.max(route.keep) <= STAGE_POSITIONS_MAX,
            Self::Push(_)
            | Self::Halt(_)
            | Self::Meet { .. }
            | Self::Ping(_)
            | Self::Pong(_)
            | Self::Error { .. } => true,
        };
        let rows = usize::try_from(message.rows()).unwrap_or(usize::MAX);
        let fits = match rows_len.checked_rem(rows) {
            None => rows_len == 0,
            Some(rest) => rest == 0 && rows_len > 0,
        };
        if is_sound && fits {
            Ok(message)
        } else {
            Err(DecodeError::Malformed("stage message"))
        }
    }
}

/// At least one position, and none beyond the limit.
fn is_span(pos: u32, n: u32) -> bool {
    n > 0
        && pos
            .checked_add(n)
            .is_some_and(|end| end <= STAGE_POSITIONS_MAX)
}

impl StageOpen {
    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Decodes and bounds an order's body.
    ///
    /// # Errors
    /// When it is malformed or its numbers are beyond what any session has.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let open: Self = decode("stage order", bytes, STAGE_HEADER_BYTES_MAX)?;
        let layers = open.first < open.end && open.end <= STAGE_LAYERS_MAX;
        let positions = (1..=STAGE_POSITIONS_MAX).contains(&open.positions_max);
        if layers && positions {
            Ok(open)
        } else {
            Err(DecodeError::Malformed("stage order"))
        }
    }
}

/// Puts messages together from the pieces that a stream gives.
#[derive(Debug, Default)]
pub struct StageDecoder {
    buffer: BytesMut,
}

impl StageDecoder {
    /// Takes the stream's next bytes. [`Self::next_message`] must be called until it gives none, so
    /// that no more than one message and one piece are kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message with its rows, if it is here.
    ///
    /// # Errors
    /// When it is malformed or over a limit; the stream is of no more use.
    pub fn next_message(&mut self) -> Result<Option<(StageMessage, Bytes)>, DecodeError> {
        let Some(&[a, b, c, d, e, f]) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let header_len = usize::from(u16::from_be_bytes([a, b]));
        let rows_len = usize::try_from(u32::from_be_bytes([c, d, e, f])).unwrap_or(usize::MAX);
        for (len, max) in [
            (header_len, STAGE_HEADER_BYTES_MAX),
            (rows_len, STAGE_ROWS_BYTES_MAX),
        ] {
            if len > max {
                return Err(DecodeError::TooLong { len, max });
            }
        }
        let whole = PREFIX_BYTES + header_len + rows_len;
        if self.buffer.len() < whole {
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        let header = self.buffer.split_to(header_len);
        let rows = self.buffer.split_to(rows_len).freeze();
        let message = StageMessage::decode(&header, rows_len)?;
        Ok(Some((message, rows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: Step = Step {
        epoch: 1,
        seq: 2,
        pos: 3,
        n: 4,
        kind: StepKind::Prefill,
    };

    #[test]
    fn a_message_that_does_not_fit_its_rows_is_refused() {
        let wire = |message: StageMessage, rows: &[u8]| {
            let mut bytes = BytesMut::new();
            message.encode_into(rows, &mut bytes);
            let mut decoder = StageDecoder::default();
            decoder.push(&bytes);
            decoder.next_message()
        };
        assert!(wire(StageMessage::Step(STEP), &[0; 8]).is_ok_and(|m| m.is_some()));
        assert!(wire(StageMessage::Step(STEP), &[0; 7]).is_err());
        assert!(wire(StageMessage::Step(STEP), &[]).is_err());
        assert!(wire(StageMessage::Step(Step { n: 0, ..STEP }), &[]).is_err());
        let far = Step {
            pos: STAGE_POSITIONS_MAX,
            ..STEP
        };
        assert!(wire(StageMessage::Step(far), &[0; 8]).is_err());
        let state = StageMessage::State(State {
            epoch: 1,
            length: 9,
        });
        assert!(wire(state.clone(), &[]).is_ok_and(|m| m.is_some()));
        assert!(wire(state, &[0]).is_err());
    }

    #[test]
    fn a_length_over_its_limit_is_refused_before_its_bytes_come() {
        let mut decoder = StageDecoder::default();
        let rows = u32::try_from(STAGE_ROWS_BYTES_MAX + 1).unwrap();
        decoder.push(&[0, 9]);
        decoder.push(&rows.to_be_bytes());
        assert!(matches!(
            decoder.next_message(),
            Err(DecodeError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn messages_survive_any_split(ns in proptest::collection::vec(1u32..9, 1..6), cut in 1usize..40) {
            let mut wire = BytesMut::new();
            let mut sent = vec![];
            for n in ns {
                let rows = Bytes::from(vec![7u8; usize::try_from(n).unwrap() * 6]);
                let message = StageMessage::Step(Step { n, ..STEP });
                message.encode_into(&rows, &mut wire);
                sent.push((message, rows));
            }
            let (mut decoder, mut got) = (StageDecoder::default(), vec![]);
            for piece in wire.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    got.push(message);
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut decoder = StageDecoder::default();
            decoder.push(&noise);
            while let Ok(Some(_)) = decoder.next_message() {}
            let _ = StageOpen::decode(&noise);
        }
    }
}
