//! The layers on sale, as the status shows them.

use serde_json::{Value, json};

use crate::protocol::offer::SignedOffer;

/// What is offered, and what the desk that serves it says of itself; null when there are none.
pub(super) fn on_sale(
    offers: &[SignedOffer],
    desk: Option<&(dyn Fn() -> Value + Send + Sync)>,
) -> Value {
    let of = |signed: &SignedOffer| {
        let terms = signed.offer.stage?;
        Some(json!({
            "manifest": terms.manifest.to_string(),
            "first": terms.first,
            "end": terms.end,
            "of": terms.layers,
            "free_positions": terms.free_positions,
            "rows_per_second": terms.rows_per_s,
            "price_in_micro_usd": signed.offer.price.input,
            "price_out_micro_usd": signed.offer.price.output,
        }))
    };
    let mut shown = offers.iter().find_map(of).unwrap_or(Value::Null);
    if let (Value::Object(shown), Some(Value::Object(said))) = (&mut shown, desk.map(|desk| desk()))
    {
        shown.extend(said);
    }
    shown
}
