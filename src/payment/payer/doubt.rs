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
