//! What `/api` says, as text for people: money from integers, times, short names. What is not
//! reported is `–`, never 0.

use rust_decimal::prelude::ToPrimitive as _;
use serde_json::Value;

use crate::types::MicroUsd;

/// Not reported.
pub(super) const NONE: &str = "–";

/// Micro-USD as dollars.
pub(super) fn usd(value: Option<&Value>) -> String {
    let micro = value.and_then(Value::as_u64);
    micro.map_or_else(|| NONE.to_owned(), dollars)
}

/// Micro-USD as dollars: to the cent from a dollar up, else as exact as they are, with cents.
pub(super) fn dollars(micro: u64) -> String {
    let exact = MicroUsd(micro).to_string();
    let cents = exact.len().saturating_sub(4);
    let shown = match micro {
        0 => "0",
        1_000_000.. => exact.get(..cents).unwrap_or(&exact),
        _ => {
            let digits = exact.trim_end_matches('0').len().max(cents);
            exact.get(..digits).unwrap_or(&exact)
        }
    };
    format!("${shown}")
}

/// A whole number with spaces between the thousands.
pub(super) fn number(value: Option<&Value>) -> String {
    match value {
        Some(Value::Number(number)) => match number.as_u64() {
            Some(whole) => grouped(whole),
            None => number.to_string(),
        },
        _ => NONE.to_owned(),
    }
}

pub(super) fn grouped(whole: u64) -> String {
    let digits = whole.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Text, or `–`.
pub(super) fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(is)) => if *is { "yes" } else { "no" }.to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        _ => NONE.to_owned(),
    }
}

/// Milliseconds as people read them.
pub(super) fn millis(value: Option<&Value>) -> String {
    match value.and_then(Value::as_u64) {
        None => NONE.to_owned(),
        Some(ms @ 0..1_000) => format!("{ms} ms"),
        Some(ms) => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
    }
}

/// Seconds as people read them.
pub(super) fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The end of a peer id tells peers apart.
pub(super) fn short(value: Option<&Value>) -> String {
    let Some(peer) = value.and_then(Value::as_str) else {
        return NONE.to_owned();
    };
    match peer.char_indices().rev().nth(7) {
        Some((at, _)) if at > 0 => format!("…{}", peer.get(at..).unwrap_or(peer)),
        _ => peer.to_owned(),
    }
}

/// The clock time of an RFC 3339 time, in UTC.
pub(super) fn clock(value: Option<&Value>) -> String {
    let time = value.and_then(Value::as_str).unwrap_or_default();
    time.get(11..19).unwrap_or(NONE).to_owned()
}

/// A number for a plot.
pub(super) fn float(value: Option<&Value>) -> Option<f64> {
    value.and_then(Value::as_f64)
}

/// A whole number for a plot.
pub(super) fn approx(whole: u64) -> f64 {
    whole.to_f64().unwrap_or_default()
}

/// The items of a list in an object.
pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let items = value.get(key).and_then(Value::as_array);
    items.map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_exact_where_it_matters_and_absent_ones_are_no_zero() {
        assert_eq!(dollars(0), "$0");
        assert_eq!(dollars(7), "$0.000007");
        assert_eq!(dollars(250_000), "$0.25");
        assert_eq!(dollars(100_000), "$0.10");
        assert_eq!(dollars(1_239_999), "$1.23");
        assert_eq!(usd(Some(&Value::Null)), NONE);
        assert_eq!(number(Some(&json!(1_234_567))), "1\u{202f}234\u{202f}567");
        assert_eq!(number(None), NONE);
        assert_eq!(millis(Some(&json!(1_540))), "1.5 s");
        assert_eq!(clock(Some(&json!("2026-01-02T03:04:05Z"))), "03:04:05");
        assert_eq!(uptime(3_700), "1 h 1 min");
    }
}
