//! Usage objects of the three dialects, converted once into parts that do not overlap.
//!
//! OpenAI's `prompt_tokens` includes cached tokens, Anthropic's `input_tokens` excludes them. A field
//! that is absent is not 0: partial reports of one stream merge by the maximum of each field before
//! anything is subtracted. Callers: the tracker, whole answers at buyer and seller.

use serde_json::Value;

use super::Dialect;
use super::json::find;
use super::splice::USAGE_PATHS;
use crate::types::{MicroUsd, Usage};

/// Largest usage object that is parsed; real ones have a few hundred bytes.
const USAGE_BYTES_MAX: usize = 16 << 10;

/// Token fields as a dialect reports them, absent where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartialUsage {
    input: Option<u64>,
    cached: Option<u64>,
    written: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
    total: Option<u64>,
}

impl PartialUsage {
    /// Reads a usage object (not the answer around it).
    #[must_use]
    pub fn parse(dialect: Dialect, object: &[u8]) -> Option<Self> {
        if object.len() > USAGE_BYTES_MAX {
            return None;
        }
        let value: Value = serde_json::from_slice(object).ok()?;
        value.as_object()?;
        let at = |path: &str| value.pointer(path).and_then(whole_number);
        let read = match dialect {
            Dialect::Chat => Self {
                input: at("/prompt_tokens"),
                cached: at("/prompt_tokens_details/cached_tokens")
                    .or_else(|| at("/prompt_cache_hit_tokens"))
                    .or_else(|| at("/cache_read_input_tokens")),
                written: at("/prompt_tokens_details/cache_write_tokens")
                    .or_else(|| at("/cache_creation_input_tokens")),
                output: at("/completion_tokens"),
                reasoning: at("/completion_tokens_details/reasoning_tokens"),
                total: at("/total_tokens"),
            },
            Dialect::Messages => Self {
                input: at("/input_tokens"),
                cached: at("/cache_read_input_tokens"),
                written: at("/cache_creation_input_tokens"),
                output: at("/output_tokens"),
                reasoning: at("/output_tokens_details/thinking_tokens")
                    .or_else(|| at("/output_tokens_details/reasoning_tokens")),
                total: None,
            },
            Dialect::Responses => Self {
                input: at("/input_tokens"),
                cached: at("/input_tokens_details/cached_tokens"),
                written: at("/input_tokens_details/cache_write_tokens"),
                output: at("/output_tokens"),
                reasoning: at("/output_tokens_details/reasoning_tokens"),
                total: at("/total_tokens"),
            },
        };
        (read.input.is_some() || read.output.is_some()).then_some(read)
    }
    /// The maximum of each field; a field said once stays said.
    pub fn merge(&mut self, other: &Self) {
        self.input = self.input.max(other.input);
        self.cached = self.cached.max(other.cached);
        self.written = self.written.max(other.written);
        self.output = self.output.max(other.output);
        self.reasoning = self.reasoning.max(other.reasoning);
        self.total = self.total.max(other.total);
    }
    /// The disjoint parts.
    #[must_use]
    pub fn to_usage(&self, dialect: Dialect) -> Usage {
        self.parts(dialect).clamped()
    }

    fn parts(&self, dialect: Dialect) -> Usage {
        let input = self.input.unwrap_or(0);
        let (cached, written) = (self.cached.unwrap_or(0), self.written.unwrap_or(0));
        let mut output = self.output.unwrap_or(0);
        let reasoning = self.reasoning.unwrap_or(0);
        if dialect == Dialect::Messages {
            return Usage {
                input,
                cache_read: cached,
                cache_write: written,
                output,
                reasoning: reasoning.min(output),
            };
        }
        // Some upstreams leave reasoning out of the output; their total gives it away.
        let apart = input
            .checked_add(output)
            .and_then(|s| s.checked_add(reasoning));
        if reasoning > 0 && self.total.is_some() && self.total == apart {
            output = output.saturating_add(reasoning);
        }
        let cache_read = cached.min(input);
        let cache_write = written.min(input - cache_read);
        Usage {
            input: input - cache_read - cache_write,
            cache_read,
            cache_write,
            output,
            reasoning: reasoning.min(output),
        }
    }
}

/// The usage of a whole answer, or of one event's JSON payload; `None` when it reports none.
#[must_use]
pub fn extract(dialect: Dialect, json: &[u8]) -> Option<Usage> {
    partial(dialect, json).map(|p| p.to_usage(dialect))
}

/// As [`extract`], not yet converted.
#[must_use]
pub fn partial(dialect: Dialect, json: &[u8]) -> Option<PartialUsage> {
    memchr::memmem::find(json, b"\"usage\"")?;
    USAGE_PATHS.iter().find_map(|path| {
        let span = find(json, path)?;
        PartialUsage::parse(dialect, json.get(span)?)
    })
}

/// A usage object in the dialect's own words, with `cost` (USD) when given.
#[must_use]
pub fn to_json(dialect: Dialect, usage: &Usage, cost: Option<MicroUsd>) -> String {
    let cost = cost.map_or_else(String::new, |c| format!(",\"cost\":{}", c.to_json_number()));
    let Usage {
        input,
        cache_read,
        cache_write,
        output,
        reasoning,
    } = *usage;
    let all = usage.input_total();
    let total = all.saturating_add(output);
    match dialect {
        Dialect::Chat => format!(
            r#"{{"prompt_tokens":{all},"completion_tokens":{output},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":{cache_read},"cache_write_tokens":{cache_write}}},"completion_tokens_details":{{"reasoning_tokens":{reasoning}}}{cost}}}"#
        ),
        Dialect::Messages => {
            let details = if reasoning > 0 {
                format!(r#","output_tokens_details":{{"thinking_tokens":{reasoning}}}"#)
            } else {
                String::new()
            };
            format!(
                r#"{{"input_tokens":{input},"cache_creation_input_tokens":{cache_write},"cache_read_input_tokens":{cache_read},"output_tokens":{output}{details}{cost}}}"#
            )
        }
        Dialect::Responses => format!(
            r#"{{"input_tokens":{all},"input_tokens_details":{{"cached_tokens":{cache_read},"cache_write_tokens":{cache_write}}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":{reasoning}}},"total_tokens":{total}{cost}}}"#
        ),
    }
}

/// A JSON number that is whole and not negative: `12`, `12.0`, `1e3`.
pub(crate) fn whole_number(value: &Value) -> Option<u64> {
    if let Some(n) = value.as_u64() {
        return Some(n);
    }
    let text = value.as_number()?.to_string();
    let exact = rust_decimal::Decimal::from_str_exact(&text)
        .or_else(|_| rust_decimal::Decimal::from_scientific(&text))
        .ok()?;
    (exact.fract().is_zero() && !exact.is_sign_negative())
        .then(|| rust_decimal::prelude::ToPrimitive::to_u64(&exact))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cached_tokens_are_inside_prompt_tokens_and_outside_input_tokens() {
        let chat = br#"{"usage":{"prompt_tokens":100,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":60}}}"#;
        let messages =
            br#"{"usage":{"input_tokens":40,"cache_read_input_tokens":60,"output_tokens":7}}"#;
        let want = Usage {
            input: 40,
            cache_read: 60,
            output: 7,
            ..Usage::default()
        };
        assert_eq!(extract(Dialect::Chat, chat), Some(want));
        assert_eq!(extract(Dialect::Messages, messages), Some(want));
    }

    #[test]
    fn odd_reports_are_read_without_harm() {
        let x = |d, t: &str| extract(d, t.as_bytes());
        assert_eq!(x(Dialect::Chat, r#"{"usage":null}"#), None);
        assert_eq!(x(Dialect::Chat, r#"{"usage":{}}"#), None);
        assert_eq!(x(Dialect::Chat, r#"{"usage":[1]}"#), None);
        assert_eq!(x(Dialect::Chat, "{\"usage\":{\"prompt_tokens\":1"), None);
        let more_cached_than_input = r#"{"usage":{"prompt_tokens":5.0,"completion_tokens":null,"prompt_tokens_details":{"cached_tokens":9}}}"#;
        assert_eq!(
            x(Dialect::Chat, more_cached_than_input).unwrap(),
            Usage {
                cache_read: 5,
                ..Usage::default()
            }
        );
        let apart = r#"{"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":17,"completion_tokens_details":{"reasoning_tokens":10}}}"#;
        assert_eq!(x(Dialect::Chat, apart).unwrap().output, 12);
        let negative = r#"{"usage":{"prompt_tokens":-5,"completion_tokens":2}}"#;
        assert_eq!(x(Dialect::Chat, negative).unwrap().input, 0);
    }

    #[test]
    fn the_same_conversation_costs_the_same_in_every_dialect() {
        // 70 fresh, 20 read from a cache, 10 written to one; 50 out, 15 of them reasoning.
        let reports = [
            (
                Dialect::Chat,
                r#"{"usage":{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,"prompt_tokens_details":{"cached_tokens":20,"cache_write_tokens":10},"completion_tokens_details":{"reasoning_tokens":15}}}"#,
            ),
            (
                Dialect::Messages,
                r#"{"usage":{"input_tokens":70,"cache_read_input_tokens":20,"cache_creation_input_tokens":10,"output_tokens":50,"output_tokens_details":{"thinking_tokens":15}}}"#,
            ),
            (
                Dialect::Responses,
                r#"{"response":{"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":20,"cache_write_tokens":10},"output_tokens":50,"output_tokens_details":{"reasoning_tokens":15},"total_tokens":150}}}"#,
            ),
        ];
        let price = crate::types::PriceTable {
            input: 3_000_000,
            cache_read: 300_000,
            cache_write: 3_750_000,
            output: 15_000_000,
        };
        for (dialect, report) in reports {
            let usage = extract(dialect, report.as_bytes()).unwrap();
            // 210 + 6 + 37.5 + 750 micro-USD, rounded up once.
            assert_eq!(price.cost(&usage), MicroUsd(1_004), "{dialect}");
            assert_eq!(usage.reasoning, 15, "{dialect}");
        }
    }

    proptest! {
        #[test]
        fn every_dialect_reports_the_same_conversation_alike(i in 0u64..1 << 40, r in 0u64..1 << 40, w in 0u64..1 << 40, o in 0u64..1 << 40, t in 0u64..1 << 40) {
            let usage = Usage { input: i, cache_read: r, cache_write: w, output: o, reasoning: t.min(o) };
            for d in [Dialect::Chat, Dialect::Messages, Dialect::Responses] {
                let json = format!("{{\"usage\":{}}}", to_json(d, &usage, Some(MicroUsd(5))));
                prop_assert!(serde_json::from_str::<Value>(&json).is_ok());
                prop_assert_eq!(extract(d, json.as_bytes()), Some(usage));
            }
        }
        #[test]
        fn merging_is_the_maximum_of_each_field(a in any::<Option<u32>>(), b in any::<Option<u32>>()) {
            let make = |n: Option<u32>| PartialUsage { output: n.map(u64::from), ..PartialUsage::default() };
            let mut left = make(a);
            left.merge(&make(b));
            prop_assert_eq!(left.output, a.max(b).map(u64::from));
        }
    }
}
