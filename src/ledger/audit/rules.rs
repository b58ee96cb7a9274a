//! The rules about one row, apart from the books they are applied in.

use super::super::rows::{ChannelRow, FinalRow, OpenRow, Outcome};
use super::super::sums::Counts;
use crate::types::MicroUsd;

/// What vouchers may add up to: the newest deposit and what was settled since it was agreed.
pub(super) fn limit_of(row: &ChannelRow, settled_since: i64) -> MicroUsd {
    row.deposit
        .saturating_add(MicroUsd::from_i64(settled_since))
}

/// Whether what was booked may have been booked.
pub(super) fn judge(open: &OpenRow, booked: &FinalRow, has_receipt: bool) -> Result<(), String> {
    let id = open.attempt_id;
    let billed = booked.billed;
    if booked.outcome != Outcome::Accepted || billed == MicroUsd::ZERO {
        return Ok(());
    }
    if billed > open.max_cost {
        let most = open.max_cost;
        return Err(format!(
            "attempt {id} billed {billed} USD, above its limit of {most} USD"
        ));
    }
    if let Some(usage) = &booked.usage {
        let cost = open.price.cost(usage);
        if billed > cost {
            return Err(format!(
                "attempt {id} billed {billed} USD, but its usage costs {cost} USD (I8)"
            ));
        }
    }
    if !has_receipt && booked.error.is_none() {
        return Err(format!(
            "attempt {id} billed {billed} USD without a receipt"
        ));
    }
    Ok(())
}

/// What a booking adds to the sums.
pub(super) fn final_counts(booked: &FinalRow) -> Counts {
    let one = |yes: bool| i64::from(yes);
    let usage = booked.usage.unwrap_or_default();
    let int = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let billed = booked.billed.to_i64();
    let is = |outcome| booked.outcome == outcome;
    [
        one(is(Outcome::Accepted)),
        one(is(Outcome::Failed)),
        one(is(Outcome::WrittenOff)),
        one(booked.usage.is_some()),
        int(usage.input),
        int(usage.cache_read),
        int(usage.cache_write),
        int(usage.output),
        int(usage.reasoning),
        if is(Outcome::Accepted) { billed } else { 0 },
        if is(Outcome::WrittenOff) { billed } else { 0 },
        0,
        one(booked.disputed),
    ]
}
