//! Small questions with known answers, bought now and then from the sellers of the models in use: who
//! cannot add two numbers does not serve the model it says.
//!
//! Opt-in, and paid like any request: within a daily limit of their own, marked `probe` in the ledger.
//! A verdict is only passed on an answer that is whole; an error or a cut counts as for any request.
//! The sequential test that sets a seller aside is the router's. Run by `node` for as long as the
//! buyer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::asked::Asked;
use super::sink::ClientSink;
use super::{Buyer, Shared, explain};
use crate::llm_api::{Dialect, Endpoint};
use crate::types::{ModelId, PeerId};

/// Output that a question may cost, tokens: a model that thinks first gets to its answer.
const OUTPUT_MAX: u64 = 256;
/// Summands are between these.
const SUMMANDS: std::ops::Range<u32> = 12..98;

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    text: String,
    answer: u32,
}

/// What an answer says about the seller's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    Wrong,
    /// Not whole: it says nothing.
    Nothing,
}

impl Question {
    fn sum(a: u32, b: u32) -> Self {
        Self {
            text: format!("What is {a} plus {b}? Reply with the number only."),
            answer: a + b,
        }
    }
    fn draw() -> Self {
        let mut rng = rand::rng();
        Self::sum(rng.random_range(SUMMANDS), rng.random_range(SUMMANDS))
    }
    fn judge(&self, answer: &Value) -> Verdict {
        let said = |pointer: &str| {
            let text = answer.pointer(pointer).and_then(Value::as_str);
            text.unwrap_or_default()
        };
        let text = said("/choices/0/message/content");
        if said("/choices/0/finish_reason") != "stop" || text.trim().is_empty() {
            return Verdict::Nothing;
        }
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        if numbers.any(|number| number.parse() == Ok(self.answer)) {
            Verdict::Right
        } else {
            Verdict::Wrong
        }
    }
}

impl Buyer {
    /// Asks one seller one question `every` so often, until `stop`.
    pub async fn ask_canaries(self, every: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stop.cancelled() => return,
            }
            let Some((model, seller)) = self.shared.next_to_ask() else {
                continue;
            };
            tokio::select! {
                () = self.ask_one(&model, seller) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn ask_one(&self, model: &ModelId, seller: PeerId) {
        let shared = &self.shared;
        let question = Question::draw();
        let body = json!({
            "model": model.as_str(),
            "messages": [{ "role": "user", "content": question.text }],
            "max_tokens": OUTPUT_MAX,
        });
        let body = Bytes::from(body.to_string());
        let (endpoint, now_ms) = (Endpoint::Dialect(Dialect::Chat), shared.clock.now_ms());
        let Ok(asked) = Asked::parse(endpoint, &HeaderMap::new(), body, now_ms) else {
            return;
        };
        let asked = Arc::new(asked.of_probe());
        let mut route = shared.route(&asked);
        let is_its = |offered: &PeerId| *offered == seller;
        route
            .candidates
            .retain(|candidate| is_its(&candidate.offer.offer.seller));
        let (mut sink, answer) = ClientSink::new(false);
        self.attempt_each(asked, route, &mut sink).await;
        drop(sink);
        let Ok(answer) = answer.await else { return };
        let is_good = answer.status().is_success();
        let Ok(body) = answer.into_body().collect().await else {
            return;
        };
        let said = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
        let verdict = if is_good {
            question.judge(&said)
        } else {
            Verdict::Nothing
        };
        tracing::info!(%seller, %model, ?verdict, "canary");
        let passed = match verdict {
            Verdict::Right => Some(true),
            Verdict::Wrong => Some(false),
            Verdict::Nothing => None,
        };
        shared.router.probed(&seller, model, passed);
    }
}

impl Shared {
    /// The model and seller whose last question is longest ago.
    fn next_to_ask(&self) -> Option<(ModelId, PeerId)> {
        let models = self.used.lately(self.clock.now_ms());
        let sellers = models.into_iter().flat_map(|model| {
            let ordinary = explain::ordinary(self, model.as_str());
            let scored = ordinary.map(|(asked, route)| explain::score(self, &asked, &route));
            let may_be_asked = scored
                .into_iter()
                .flatten()
                .filter(|(_, score)| score.is_ok());
            may_be_asked.map(move |(entry, _)| (model.clone(), entry.seller))
        });
        let asked_ms = |seller: &PeerId| {
            let record = self.router.record(seller);
            record.map_or(0, |record| record.probed_ms)
        };
        sellers.min_by_key(|(_, seller)| asked_ms(seller))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_is_judged() {
        let question = Question::sum(17, 25);
        let said = |text: &str, finish: &str| {
            let choice = json!({"message": {"content": text}, "finish_reason": finish});
            question.judge(&json!({ "choices": [choice] }))
        };
        assert_eq!(said("42", "stop"), Verdict::Right);
        assert_eq!(said("17 + 25 = **42**.", "stop"), Verdict::Right);
        assert_eq!(said("It is 142.", "stop"), Verdict::Wrong);
        assert_eq!(said("I like rivers.", "stop"), Verdict::Wrong);
        assert_eq!(said("", "stop"), Verdict::Nothing);
        assert_eq!(said("First I add", "length"), Verdict::Nothing);
        assert_eq!(question.judge(&Value::Null), Verdict::Nothing);
    }
}
