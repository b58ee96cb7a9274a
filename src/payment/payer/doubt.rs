//! What an attempt in doubt costs: pure rules for after a crash or a cut (PAYMENTS, crash safety).
//!
//! (a) the buyer counted the answer itself: the receipt, at most its own count; (b) it only knows
//! that it began: the receipt, up to what it had promised plus one window, never above `max_cost`;
//! (c) no receipt, the seller died: its own count, 0 if none; (d) unknown to the seller: 0.

use crate::types::MicroUsd;

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

/// The accepted cost; `receipt` is the seller's verified claim, if it has one.
#[must_use]
pub fn accepted_cost(known: Known, receipt: Option<MicroUsd>) -> MicroUsd {
    match (known, receipt) {
        (Known::Counted(own), Some(claim)) => claim.min(own),
        (Known::Counted(own), None) => own,
        (
            Known::Begun {
                promised,
                window,
                max_cost,
            },
            Some(claim),
        ) => claim.min(promised.saturating_add(window)).min(max_cost),
        (Known::Begun { .. }, None) => MicroUsd::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_settled_by_the_rules() {
        let m = MicroUsd;
        assert_eq!(accepted_cost(Known::Counted(m(10)), Some(m(12))), m(10));
        assert_eq!(accepted_cost(Known::Counted(m(10)), Some(m(8))), m(8));
        assert_eq!(accepted_cost(Known::Counted(m(10)), None), m(10));
        let begun = Known::Begun {
            promised: m(100),
            window: m(50),
            max_cost: m(120),
        };
        assert_eq!(accepted_cost(begun, Some(m(500))), m(120));
        assert_eq!(accepted_cost(begun, Some(m(70))), m(70));
        assert_eq!(accepted_cost(begun, None), m(0));
    }
}
