//! The market of `node demo`: who sells what at which price and speed, and what to try first.
//!
//! Pure data. Two Chat sellers offer the same models, one cheap and slow, one dear and fast, so
//! that the router has a choice and can fail over; a third speaks Messages. `node demo` starts one
//! [`super::demo_upstream`] and one seller for each.

use std::path::Path;
use std::time::Duration;

use super::demo_upstream::{DemoModel, DemoSettings};
use super::pricing::PriceRules;
use crate::llm_api::Dialect;

/// The whole market.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoPlan {
    /// Who sells.
    pub sellers: Vec<DemoSeller>,
}

/// One seller of the demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoSeller {
    /// Also the name of its data directory.
    pub name: &'static str,
    /// What it speaks.
    pub dialect: Dialect,
    /// Its models at the prices it asks, and its speed.
    pub upstream: DemoSettings,
}

/// A thing to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoCommand {
    /// What it shows.
    pub what: &'static str,
    /// The line for a shell.
    pub line: String,
}

impl Default for DemoPlan {
    fn default() -> Self {
        Self {
            sellers: vec![
                DemoSeller::new("thrifty", Dialect::Chat, 400, 40).selling(vec![
                    DemoModel::new("demo/echo-small", 100_000, 400_000),
                    DemoModel::new("demo/echo-large", 1_000_000, 4_000_000),
                ]),
                DemoSeller::new("express", Dialect::Chat, 80, 160).selling(vec![
                    DemoModel::new("demo/echo-small", 180_000, 720_000),
                    DemoModel::new("demo/echo-large", 1_500_000, 6_000_000),
                ]),
                DemoSeller::new("messenger", Dialect::Messages, 200, 80)
                    .selling(vec![DemoModel::new("demo/claude-echo", 800_000, 4_000_000)]),
            ],
        }
    }
}

impl DemoSeller {
    fn new(name: &'static str, dialect: Dialect, ttft_ms: u64, tokens_per_second: u32) -> Self {
        let upstream = DemoSettings {
            ttft: Duration::from_millis(ttft_ms),
            tokens_per_second,
            models: Vec::new(),
        };
        Self {
            name,
            dialect,
            upstream,
        }
    }

    fn selling(mut self, models: Vec<DemoModel>) -> Self {
        self.upstream.models = models;
        self
    }

    /// All its models at their list prices.
    #[must_use]
    pub fn price_rules(&self) -> PriceRules {
        PriceRules {
            markup_bp: Some(0),
            ..PriceRules::default()
        }
    }
}

impl DemoPlan {
    /// Three commands to try. `program` is the name this binary was started under, `buyer_url` the
    /// local proxy's address without a path, `data_dir` the buyer's.
    #[must_use]
    pub fn commands(&self, program: &str, buyer_url: &str, data_dir: &Path) -> [DemoCommand; 3] {
        let base = buyer_url.trim_end_matches('/');
        let model = self
            .sellers
            .iter()
            .filter(|seller| seller.dialect == Dialect::Chat)
            .find_map(|seller| seller.upstream.models.first())
            .map_or("auto", |model| model.id.as_str());
        let body = serde_json::json!({
            "model": model,
            "stream": true,
            "messages": [{"role": "user", "content": "Hello, market!"}],
        });
        let (program, data_dir) = (quoted(program), quoted(&data_dir.to_string_lossy()));
        [
            DemoCommand {
                what: "What is for sale",
                line: format!("curl {base}/v1/models"),
            },
            DemoCommand {
                what: "An answer, streamed",
                line: format!(
                    "curl -N {base}/v1/chat/completions -H 'content-type: application/json' -d {}",
                    quoted(&body.to_string())
                ),
            },
            DemoCommand {
                what: "What it cost",
                line: format!("{program} ledger --data-dir {data_dir}"),
            },
        ]
    }

    /// The commands as they are shown to people.
    #[must_use]
    pub fn commands_text(&self, program: &str, buyer_url: &str, data_dir: &Path) -> String {
        let mut text = "Try, in another terminal:\n".to_owned();
        for command in self.commands(program, buyer_url, data_dir) {
            text.push_str(&format!("\n  # {}\n  {}\n", command.what, command.line));
        }
        text
    }
}

/// As one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-:+,@%".contains(&b);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm_api::price_list;
    use crate::seller::demo_answer;
    use crate::seller::pricing::models_for_sale;
    use std::collections::HashSet;

    #[test]
    fn every_seller_sells_all_it_has_at_the_prices_of_the_plan() {
        for seller in DemoPlan::default().sellers {
            let list = demo_answer::model_list(&seller.upstream.models);
            let list = price_list::parse(&list).unwrap();
            let sale = models_for_sale(&seller.price_rules(), Some(&list)).unwrap();
            assert_eq!(sale.skipped, []);
            let asked: Vec<_> = sale
                .models
                .iter()
                .map(|m| (m.id.to_string(), m.price))
                .collect();
            let planned = seller
                .upstream
                .models
                .iter()
                .map(|m| (m.id.clone(), m.price));
            assert_eq!(asked, planned.collect::<Vec<_>>());
        }
    }

    #[test]
    fn chat_models_have_two_sellers_of_different_price_and_speed() {
        let plan = DemoPlan::default();
        assert_eq!(plan.sellers.len(), 3);
        let names: HashSet<_> = plan.sellers.iter().map(|seller| seller.name).collect();
        assert_eq!(names.len(), 3);
        let chat: Vec<_> = plan
            .sellers
            .iter()
            .filter(|s| s.dialect == Dialect::Chat)
            .collect();
        assert_eq!(chat.len(), 2);
        for (cheap, dear) in chat[0].upstream.models.iter().zip(&chat[1].upstream.models) {
            assert_eq!(cheap.id, dear.id);
            assert!(cheap.price.output < dear.price.output);
        }
        assert!(chat[0].upstream.tokens_per_second < chat[1].upstream.tokens_per_second);
    }

    #[test]
    fn the_commands_can_be_pasted_into_a_shell() {
        let plan = DemoPlan::default();
        let dir = Path::new("/tmp/it's here");
        let [models, chat, ledger] = plan.commands("souk", "http://127.0.0.1:5005/", dir);
        assert_eq!(models.line, "curl http://127.0.0.1:5005/v1/models");
        assert!(
            chat.line
                .starts_with("curl -N http://127.0.0.1:5005/v1/chat/completions")
        );
        assert!(
            chat.line
                .contains("\"model\":\"demo/echo-small\",\"stream\":true")
        );
        assert_eq!(ledger.line, r"souk ledger --data-dir '/tmp/it'\''s here'");
        let text = plan.commands_text("souk", "http://127.0.0.1:5005", dir);
        assert_eq!(text.matches("\n  # ").count(), 3);
        assert_eq!(text.matches("127.0.0.1:5005/v1/").count(), 2);
    }
}
