//! The running meter: what a stream is worth so far, as one integer that both sides compute from
//! the same body bytes, whatever their chunks.
//!
//! `prefill + ⌈text bytes ÷ 4⌉ × output price`, from RESP_HEAD on. It drives vouchers only; the
//! cost comes from the receipt.

use crate::llm_api::AnswerMeter;
use crate::types::{MicroUsd, PriceTable};

/// One stream's meter.
#[derive(Clone, Debug)]
pub struct RunningMeter {
    price: PriceTable,
    prefill: MicroUsd,
    meter: AnswerMeter,
}

impl RunningMeter {
    /// A meter that stands at `prefill`.
    #[must_use]
    pub fn new(price: PriceTable, prefill: MicroUsd) -> Self {
        Self {
            price,
            prefill,
            meter: AnswerMeter::new(),
        }
    }
    /// Counts more of the body.
    pub fn push(&mut self, bytes: &[u8]) {
        self.meter.push(bytes);
    }
    /// What the stream is worth so far.
    #[must_use]
    pub fn running(&self) -> MicroUsd {
        let output = self.price.cost_in_out(0, self.meter.estimated_tokens());
        self.prefill.saturating_add(output)
    }
    /// True once any text-bearing byte was seen.
    #[must_use]
    pub fn has_text(&self) -> bool {
        self.meter.text_bytes() > 0
    }
}

/// What a whole answer is worth after `sent` of `length` bytes.
#[must_use]
pub fn slice_worth(cost: MicroUsd, sent: u64, length: u64) -> MicroUsd {
    cost.mul_div_ceil(sent.min(length), length)
}
