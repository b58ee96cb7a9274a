//! What the demo upstream says, and how each dialect writes it. Pure.
//!
//! The same request always gets the same text: it says that this is a demo and repeats the start
//! of the last user message. Usage is counted over exactly what is sent, so a buyer's own count
//! agrees. No tool is ever called. Called by [`super::demo_upstream`].

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::demo_upstream::DemoModel;
use crate::llm_api::{Dialect, RequestView, TokenCounter, error};

/// Most of the last user message that is repeated, characters.
const ECHO_CHARS_MAX: usize = 200;
/// `created` of everything (2026-01-01T00:00:00Z): the answers do not depend on the clock.
const CREATED_S: u64 = 1_767_225_600;
/// Decimal places of USD per token where prices are micro-USD per million tokens.
const USD_PER_TOKEN_SCALE: u32 = 12;

/// A request that gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            code,
            message,
        }
    }
    pub(super) fn body(&self, dialect: Dialect) -> Bytes {
        error::envelope(dialect, self.status, self.code, &self.message)
    }
}

/// A word with the space after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) tokens: u64,
}

/// One answer, ready to be sent whole or word by word.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) is_stream: bool,
    /// Never empty.
    pub(super) words: Vec<Word>,
    dialect: Dialect,
    /// Distinguishes answers of one upstream.
    number: u64,
    model: String,
    include_usage: bool,
    /// The client's limit ended it.
    is_cut: bool,
    input_tokens: u64,
    output_tokens: u64,
}

/// Reads a request and makes its answer.
pub(super) fn answer(
    body: &[u8],
    dialect: Dialect,
    models: &[DemoModel],
    counter: &TokenCounter,
    number: u64,
) -> Result<Answer, Refusal> {
    let invalid = |message: String| Refusal::new(400, "invalid_request", message);
    let view = RequestView::parse(body, dialect).map_err(|error| invalid(error.to_string()))?;
    let Some(model) = models.iter().find(|model| model.id == view.model) else {
        let ids: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
        let message = format!("no such model; this demo has {}", ids.join(", "));
        return Err(Refusal::new(404, "model_not_found", message));
    };
    let Some(messages) = view.messages_span.clone() else {
        return Err(invalid("messages: field required".to_owned()));
    };
    if view.choices > 1 {
        return Err(invalid("the demo gives one choice; n must be 1".to_owned()));
    }
    if view.max_tokens == Some(0) {
        return Err(invalid("the output limit must be at least 1".to_owned()));
    }
    let input_tokens = counter.count_request(&model.id, body, &view).tokens.max(1);
    if model.context > 0 && input_tokens > u64::from(model.context) {
        let message = format!(
            "input token count exceeds the maximum of {}: {input_tokens}",
            model.context
        );
        return Err(invalid(message));
    }
    let said = last_said(body.get(messages).unwrap_or_default());
    let text = text(&model.id, said.as_deref());
    let limit = view.max_tokens.unwrap_or(u64::MAX);
    let (words, is_cut) = words(&model.id, &text, limit, counter);
    let sent: String = words.iter().map(|word| word.text.as_str()).collect();
    let output_tokens = counter.count_text(&model.id, &sent).tokens.min(limit);
    Ok(Answer {
        is_stream: view.stream,
        words,
        dialect,
        number,
        model: view.model,
        include_usage: view.include_usage,
        is_cut,
        input_tokens,
        output_tokens,
    })
}

fn text(model: &str, said: Option<&str>) -> String {
    let echo = match said {
        None => "You did not say anything yet.".to_owned(),
        Some(said) => {
            let mut echo: String = said
                .chars()
                .take(ECHO_CHARS_MAX)
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            if said.chars().nth(ECHO_CHARS_MAX).is_some() {
                echo.push_str("...");
            }
            format!("You said: \"{echo}\"")
        }
    };
    format!(
        "Hello from {model}! This is a demo: no language model is behind it, but everything around \
         it is real. One node sold this answer, another one bought it, and both metered every word \
         while it streamed. {echo}"
    )
}

/// The text in words, up to `limit` tokens but at least one word; true when it was cut.
fn words(model: &str, text: &str, limit: u64, counter: &TokenCounter) -> (Vec<Word>, bool) {
    let (mut words, mut total) = (Vec::new(), 0u64);
    for word in text.split_inclusive(' ') {
        let tokens = counter.count_text(model, word).tokens;
        total = total.saturating_add(tokens);
        if total > limit && !words.is_empty() {
            return (words, true);
        }
        words.push(Word {
            text: word.to_owned(),
            tokens,
        });
    }
    (words, false)
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

/// The last text that the user wrote: of several parts the last, the others tend to be frames of
/// the client's own.
fn last_said(messages: &[u8]) -> Option<String> {
    let messages: Vec<Message<'_>> = serde_json::from_slice(messages).ok()?;
    let is_text = |text: &String| !text.trim().is_empty();
    messages
        .iter()
        .rev()
        .filter(|message| message.role == "user")
        .filter_map(|message| serde_json::from_str::<Content>(message.content?.get()).ok())
        .find_map(|content| match content {
            Content::Text(text) => Some(text).filter(is_text),
            Content::Parts(parts) => parts.into_iter().rev().filter_map(|p| p.text).find(is_text),
        })
        .map(|text| text.trim().to_owned())
}

impl Answer {
    /// All tokens of its words.
    pub(super) fn paced_tokens(&self) -> u64 {
        self.words
            .iter()
            .fold(0, |sum, word| sum.saturating_add(word.tokens))
    }

    /// The whole answer as JSON.
    pub(super) fn whole(&self) -> Bytes {
        let text: String = self.words.iter().map(|word| word.text.as_str()).collect();
        let value = match self.dialect {
            Dialect::Messages => json!({
                "id": self.id(), "type": "message", "role": "assistant", "model": self.model,
                "content": [{"type": "text", "text": text}],
                "stop_reason": self.stop_reason(), "stop_sequence": null, "usage": self.usage(),
            }),
            Dialect::Chat | Dialect::Responses => json!({
                "id": self.id(), "object": "chat.completion", "created": CREATED_S,
                "model": self.model,
                "choices": [{
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": null},
                    "logprobs": null,
                    "finish_reason": self.stop_reason(),
                }],
                "usage": self.usage(),
            }),
        };
        Bytes::from(value.to_string())
    }

    /// What comes before the first word of a stream.
    pub(super) fn opening(&self, out: &mut String) {
        match self.dialect {
            Dialect::Messages => {
                let message = json!({
                    "id": self.id(), "type": "message", "role": "assistant", "model": self.model,
                    "content": [], "stop_reason": null, "stop_sequence": null,
                    "usage": {"input_tokens": self.input_tokens, "output_tokens": 0},
                });
                named_event(out, &json!({"type": "message_start", "message": message}));
                let block = json!({"type": "text", "text": ""});
                named_event(
                    out,
                    &json!({"type": "content_block_start", "index": 0, "content_block": block}),
                );
            }
            Dialect::Chat | Dialect::Responses => {
                let delta = json!({"role": "assistant", "content": ""});
                self.chunk(out, &delta, &Value::Null);
            }
        }
    }

    /// One word of a stream.
    pub(super) fn word(&self, out: &mut String, word: &Word) {
        match self.dialect {
            Dialect::Messages => {
                let delta = json!({"type": "text_delta", "text": word.text});
                named_event(
                    out,
                    &json!({"type": "content_block_delta", "index": 0, "delta": delta}),
                );
            }
            Dialect::Chat | Dialect::Responses => {
                self.chunk(out, &json!({"content": word.text}), &Value::Null);
            }
        }
    }

    /// What comes after the last word of a stream.
    pub(super) fn closing(&self, out: &mut String) {
        match self.dialect {
            Dialect::Messages => {
                named_event(out, &json!({"type": "content_block_stop", "index": 0}));
                let delta = json!({"stop_reason": self.stop_reason(), "stop_sequence": null});
                let usage = json!({"output_tokens": self.output_tokens});
                named_event(
                    out,
                    &json!({"type": "message_delta", "delta": delta, "usage": usage}),
                );
                named_event(out, &json!({"type": "message_stop"}));
            }
            Dialect::Chat | Dialect::Responses => {
                self.chunk(out, &json!({}), &json!(self.stop_reason()));
                if self.include_usage {
                    let chunk = json!({
                        "id": self.id(), "object": "chat.completion.chunk", "created": CREATED_S,
                        "model": self.model, "choices": [], "usage": self.usage(),
                    });
                    event(out, &chunk);
                }
                out.push_str("data: [DONE]\n\n");
            }
        }
    }

    fn chunk(&self, out: &mut String, delta: &Value, finish_reason: &Value) {
        let chunk = json!({
            "id": self.id(), "object": "chat.completion.chunk", "created": CREATED_S,
            "model": self.model,
            "choices": [{
                "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason,
            }],
        });
        event(out, &chunk);
    }

    fn id(&self) -> String {
        let prefix = match self.dialect {
            Dialect::Messages => "msg",
            Dialect::Chat | Dialect::Responses => "chatcmpl",
        };
        format!("{prefix}_demo{:08}", self.number)
    }

    const fn stop_reason(&self) -> &'static str {
        match (self.dialect, self.is_cut) {
            (Dialect::Messages, false) => "end_turn",
            (Dialect::Messages, true) => "max_tokens",
            (Dialect::Chat | Dialect::Responses, false) => "stop",
            (Dialect::Chat | Dialect::Responses, true) => "length",
        }
    }

    fn usage(&self) -> Value {
        let (input, output) = (self.input_tokens, self.output_tokens);
        match self.dialect {
            Dialect::Messages => json!({"input_tokens": input, "output_tokens": output}),
            Dialect::Chat | Dialect::Responses => json!({
                "prompt_tokens": input, "completion_tokens": output,
                "total_tokens": input.saturating_add(output),
            }),
        }
    }
}

fn event(out: &mut String, value: &Value) {
    // Writing to a String cannot fail.
    let _ = write!(out, "data: {value}\n\n");
}

fn named_event(out: &mut String, value: &Value) {
    let name = value
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let _ = writeln!(out, "event: {name}");
    event(out, value);
}

/// The model list, in OpenAI's and Anthropic's shape at once, with OpenRouter's prices.
pub(super) fn model_list(models: &[DemoModel]) -> Bytes {
    let usd = |price: u64| {
        let exact = Decimal::from_i128_with_scale(i128::from(price), USD_PER_TOKEN_SCALE);
        exact.normalize().to_string()
    };
    let data: Vec<Value> = models
        .iter()
        .map(|model| {
            let price = &model.price;
            json!({
                "id": model.id, "object": "model", "type": "model", "created": CREATED_S,
                "owned_by": "demo", "display_name": model.id,
                "supported_endpoints": ["/v1/chat/completions", "/v1/messages"],
                "context_length": model.context, "max_completion_tokens": model.max_output,
                "pricing": {
                    "prompt": usd(price.input), "completion": usd(price.output),
                    "input_cache_read": usd(price.cache_read),
                    "input_cache_write": usd(price.cache_write),
                },
            })
        })
        .collect();
    Bytes::from(json!({"object": "list", "data": data, "has_more": false}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm_api::price_list;
    use proptest::prelude::*;

    fn ask(dialect: Dialect, body: &Value) -> Result<Answer, Refusal> {
        let models = super::super::demo_upstream::DemoSettings::default().models;
        let body = body.to_string();
        answer(body.as_bytes(), dialect, &models, &TokenCounter::new(), 1)
    }

    fn chat(content: &Value) -> Value {
        json!({"model": "demo/echo-small", "messages": [{"role": "user", "content": content}]})
    }

    fn text_of(answer: &Answer) -> String {
        answer.words.iter().map(|w| w.text.as_str()).collect()
    }

    #[test]
    fn it_says_that_it_is_a_demo_and_repeats_the_last_user_message() {
        let body = json!({"model": "demo/echo-small", "messages": [
            {"role": "user", "content": "first"},
            {"role": "user", "content": [{"type": "text", "text": "frame"}, {"type": "text", "text": "What\nnow?"}]},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]},
        ]});
        let text = text_of(&ask(Dialect::Messages, &body).unwrap());
        assert!(text.contains("This is a demo"));
        assert!(text.ends_with("You said: \"What now?\""), "{text}");
        let silent = text_of(&ask(Dialect::Chat, &chat(&Value::Null)).unwrap());
        assert!(silent.ends_with("anything yet."), "{silent}");
    }

    #[test]
    fn the_output_limit_cuts_it_and_says_so() {
        let mut body = chat(&json!("hi"));
        body["max_tokens"] = json!(5);
        let answer = ask(Dialect::Chat, &body).unwrap();
        assert!(answer.is_cut && answer.output_tokens <= 5);
        let whole: Value = serde_json::from_slice(&answer.whole()).unwrap();
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
        let answer = ask(Dialect::Messages, &body).unwrap();
        let whole: Value = serde_json::from_slice(&answer.whole()).unwrap();
        assert_eq!(whole["stop_reason"], "max_tokens");
    }

    #[test]
    fn what_it_cannot_do_is_refused_in_the_callers_dialect() {
        let mut unknown = chat(&json!("hi"));
        unknown["model"] = json!("gpt");
        let refusal = ask(Dialect::Messages, &unknown).unwrap_err();
        assert_eq!(refusal.status, 404);
        let body: Value = serde_json::from_slice(&refusal.body(Dialect::Messages)).unwrap();
        assert_eq!(body["error"]["type"], "not_found_error");
        let mut many = chat(&json!("hi"));
        many["n"] = json!(2);
        assert_eq!(ask(Dialect::Chat, &many).unwrap_err().status, 400);
        let none = json!({"model": "demo/echo-small"});
        assert_eq!(ask(Dialect::Chat, &none).unwrap_err().status, 400);
        let mut zero = chat(&json!("hi"));
        zero["max_tokens"] = json!(0);
        assert!(ask(Dialect::Chat, &zero).is_err());
    }

    #[test]
    fn a_context_that_is_too_long_is_refused_in_the_words_clients_know() {
        let models = [DemoModel {
            context: 3,
            ..super::super::demo_upstream::DemoSettings::default().models[0].clone()
        }];
        let mut body = chat(&json!("one two three four five six seven"));
        body["model"] = json!(models[0].id);
        let body = body.to_string();
        let refused = answer(
            body.as_bytes(),
            Dialect::Chat,
            &models,
            &TokenCounter::new(),
            1,
        );
        let refusal = refused.unwrap_err();
        assert_eq!(refusal.status, 400);
        assert!(
            refusal
                .message
                .starts_with("input token count exceeds the maximum")
        );
    }

    #[test]
    fn the_model_list_reads_back_as_a_price_list() {
        let models = super::super::demo_upstream::DemoSettings::default().models;
        let read = price_list::parse(&model_list(&models)).unwrap();
        assert_eq!(read.len(), models.len());
        for (read, model) in read.iter().zip(&models) {
            assert_eq!(read.id, model.id);
            assert_eq!(read.price, Some(model.price));
            assert_eq!(read.context, Some(model.context));
            assert_eq!(read.max_output, Some(model.max_output));
        }
    }

    proptest! {
        #[test]
        fn any_message_is_answered_alike_and_short(said in "\\PC{0,400}", limit in 1u64..200) {
            let mut body = chat(&json!(said));
            body["max_tokens"] = json!(limit);
            let first = ask(Dialect::Chat, &body).unwrap();
            let again = ask(Dialect::Chat, &body).unwrap();
            prop_assert_eq!(text_of(&first), text_of(&again));
            prop_assert!(!first.words.is_empty());
            prop_assert!(first.output_tokens <= limit && first.output_tokens > 0);
            prop_assert!(text_of(&first).chars().count() < 300 + ECHO_CHARS_MAX);
        }
    }
}
