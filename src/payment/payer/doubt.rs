//! What an attempt in doubt costs: pure rules for after a crash or a cut (PAYMENTS, crash safety).
//!
//! (a) the buyer counted the answer itself: the receipt, at most its own count; (b) it only knows
//! that it began: the receipt, up to what it had promised plus one window, never above `max_cost`;
//! (c) no receipt, the seller died: its own count, 0 if none; (d) unknown to the seller: 0.

use crate::ledger::{AttemptState, DeliveredRow, FinalRow, Outcome};
use crate::protocol::SignedReceipt;
use crate::types::{AttemptId, MicroUsd, UnixMs};

/// What the buyer knows of an attempt that has no final row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The answer ended here; this is the bound by the buyer's own count.
    Counted(MicroUsd),
    /// Only that it began.
    Begun {
        /// Promised since it began: vouchers, at least the prefill.
        promised: MicroUsd,
        /// One stream's window.
        window: MicroUsd,
        /// Never more than this.
        max_cost: MicroUsd,
    },
}

/// What the seller shows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A verified receipt over this cost.
    Receipt(MicroUsd),
    /// It knows the attempt, but died before it had a receipt.
    Lost,
    /// It never heard of the attempt, or forgot it: it could not book a cost either.
    Unknown,
}

/// The accepted cost.
#[must_use]
pub fn accepted_cost(known: Known, shown: Shown) -> MicroUsd {
    match (known, shown) {
        (Known::Counted(own), Shown::Receipt(claim)) => claim.min(own),
        (Known::Counted(own), Shown::Lost) => own,
        (
            Known::Begun {
                promised,
                window,
                max_cost,
            },
            Shown::Receipt(claim),
        ) => claim.min(promised.saturating_add(window)).min(max_cost),
        (Known::Begun { .. }, Shown::Lost) | (_, Shown::Unknown) => MicroUsd::ZERO,
    }
}

/// What an ACCEPT says again of an attempt that is over: the cost that was booked; 0 for one that
/// this ledger never ordered, because nothing is booked that cannot be explained.
#[must_use]
pub fn repeated_cost(known: Option<&AttemptState>) -> Option<MicroUsd> {
    match known {
        Some(known) => known.final_row.as_ref().map(|row| row.billed),
        None => Some(MicroUsd::ZERO),
    }
}

/// What was agreed when an attempt began.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub prefill: MicroUsd,
    pub max_cost: MicroUsd,
    pub voucher_before: MicroUsd,
    pub window: MicroUsd,
}

/// An attempt without a final row that no longer runs.
#[derive(Clone, Debug)]
pub(super) struct Doubtful {
    pub began: Live,
    pub counted: Option<DeliveredRow>,
    pub model: String,
    pub status: u16,
}

impl Doubtful {
    /// What is known of it, with `signed` promised in all by now.
    pub fn known(&self, signed: MicroUsd) -> Known {
        self.counted.as_ref().map_or_else(
            || Known::Begun {
                promised: signed
                    .saturating_sub(self.began.voucher_before)
                    .max(self.began.prefill),
                window: self.began.window,
                max_cost: self.began.max_cost,
            },
            |row| Known::Counted(row.cost),
        )
    }

    pub fn into_final(
        self,
        attempt: AttemptId,
        billed: MicroUsd,
        shown: Shown,
        receipt: Option<SignedReceipt>,
        now_ms: UnixMs,
    ) -> FinalRow {
        let counted = self.counted.as_ref();
        FinalRow {
            at_ms: now_ms,
            attempt_id: attempt,
            outcome: if billed == MicroUsd::ZERO {
                Outcome::Failed
            } else {
                Outcome::Accepted
            },
            status: receipt
                .as_ref()
                .map_or(self.status, |signed| signed.receipt.status),
            billed,
            usage: receipt.as_ref().map(|signed| signed.receipt.usage),
            own_input: counted.and_then(|row| row.own_input),
            own_output: counted.and_then(|row| row.own_output),
            model_served: self.model,
            ttft_ms: None,
            total_ms: 0,
            disputed: matches!(shown, Shown::Receipt(claim) if claim > billed),
            receipt: receipt.map(|signed| signed.bytes.to_vec()),
            error: Some("settled_after_interruption".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_settled_by_the_rules() {
        let m = MicroUsd;
        let receipt = |claim| Shown::Receipt(m(claim));
        let counted = Known::Counted(m(10));
        assert_eq!(accepted_cost(counted, receipt(12)), m(10));
        assert_eq!(accepted_cost(counted, receipt(8)), m(8));
        assert_eq!(accepted_cost(counted, Shown::Lost), m(10));
        assert_eq!(accepted_cost(counted, Shown::Unknown), m(0));
        let begun = Known::Begun {
            promised: m(100),
            window: m(50),
            max_cost: m(120),
        };
        assert_eq!(accepted_cost(begun, receipt(500)), m(120));
        assert_eq!(accepted_cost(begun, receipt(70)), m(70));
        assert_eq!(accepted_cost(begun, Shown::Lost), m(0));
        assert_eq!(accepted_cost(begun, Shown::Unknown), m(0));
    }
}
