//! What an answer looks like in OpenAI's chat dialect: whole, or as events. Pure.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::pipeline::generate::{Event, Finish, Usage};

/// What all pieces of one answer say.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) id: String,
    pub(super) created_s: u64,
    pub(super) model: String,
}

impl Frame {
    /// The first event, before any text.
    pub(super) fn opening(&self) -> Bytes {
        self.chunk(json!({"role": "assistant", "content": ""}), None)
    }

    /// A piece as an event; the end as two, or three with usage.
    pub(super) fn event(&self, event: &Event, calls_before: usize, has_usage: bool) -> Bytes {
        match event {
            Event::Text(text) => self.chunk(json!({"content": text}), None),
            Event::Call { name, arguments } => {
                let call = self.call(name, arguments, calls_before);
                let call = with(call, "index", calls_before.into());
                self.chunk(json!({"tool_calls": [call]}), None)
            }
            Event::End { finish, usage } => {
                let mut out = self.chunk(json!({}), Some(*finish)).to_vec();
                if has_usage {
                    let last = self.object("chat.completion.chunk", json!([]));
                    let last = with(last, "usage", usage_of(*usage));
                    out.extend(format!("data: {last}\n\n").into_bytes());
                }
                out.extend(b"data: [DONE]\n\n");
                out.into()
            }
        }
    }

    fn chunk(&self, delta: Value, finish: Option<Finish>) -> Bytes {
        let choice = json!([{"index": 0, "delta": delta, "finish_reason": finish.map(reason)}]);
        let chunk = self.object("chat.completion.chunk", choice);
        format!("data: {chunk}\n\n").into()
    }

    fn call(&self, name: &str, arguments: &str, number: usize) -> Value {
        let tail = self.id.strip_prefix("chatcmpl-").unwrap_or(&self.id);
        json!({
            "id": format!("call_{tail}_{number}"), "type": "function",
            "function": {"name": name, "arguments": arguments},
        })
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": kind, "created": self.created_s, "model": self.model,
            "choices": choices,
        })
    }
}

/// A whole answer that is being put together.
#[derive(Default)]
pub(super) struct Whole {
    text: String,
    calls: Vec<Value>,
}

impl Whole {
    /// Takes a piece; the finished body with the last one.
    pub(super) fn push(&mut self, frame: &Frame, event: Event) -> Option<Bytes> {
        match event {
            Event::Text(text) => self.text.push_str(&text),
            Event::Call { name, arguments } => {
                let call = frame.call(&name, &arguments, self.calls.len());
                self.calls.push(call);
            }
            Event::End { finish, usage } => {
                let calls = std::mem::take(&mut self.calls);
                let content = Some(&self.text).filter(|text| calls.is_empty() || !text.is_empty());
                let mut message = json!({"role": "assistant", "content": content});
                if !calls.is_empty() {
                    message = with(message, "tool_calls", calls.into());
                }
                let choice = json!([{
                    "index": 0, "message": message, "finish_reason": reason(finish), "logprobs": null,
                }]);
                let body = frame.object("chat.completion", choice);
                let body = with(body, "usage", usage_of(usage));
                return Some(body.to_string().into());
            }
        }
        None
    }
}

/// An object with one field more.
fn with(mut object: Value, key: &str, value: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
    object
}

const fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Calls => "tool_calls",
    }
}

fn usage_of(usage: Usage) -> Value {
    let Usage { prompt, answer } = usage;
    json!({
        "prompt_tokens": prompt, "completion_tokens": answer,
        "total_tokens": prompt.saturating_add(answer),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame {
            id: "chatcmpl-1".to_owned(),
            created_s: 7,
            model: "m".to_owned(),
        }
    }

    fn end(finish: Finish) -> Event {
        let (prompt, answer) = (3, 2);
        let usage = Usage { prompt, answer };
        Event::End { finish, usage }
    }

    fn call() -> Event {
        let (name, arguments) = ("f".to_owned(), "{}".to_owned());
        Event::Call { name, arguments }
    }

    #[test]
    fn a_stream_ends_with_its_reason_its_usage_and_a_mark() {
        let bytes = frame().event(&end(Finish::Length), 0, true);
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert!(events[0].contains("\"finish_reason\":\"length\""), "{text}");
        assert!(events[1].contains("\"choices\":[]") && events[1].contains("\"total_tokens\":5"));
        assert_eq!(events[2..], ["data: [DONE]"]);
        assert!(
            !frame()
                .event(&end(Finish::Stop), 0, false)
                .windows(5)
                .any(|w| w == b"usage")
        );
    }

    #[test]
    fn calls_are_numbered_in_both_forms() {
        let text = String::from_utf8(frame().event(&call(), 1, false).to_vec()).unwrap();
        assert!(
            text.contains("\"index\":1") && text.contains("call_1_1"),
            "{text}"
        );
        let mut whole = Whole::default();
        assert_eq!(whole.push(&frame(), call()), None);
        let body = whole.push(&frame(), end(Finish::Calls)).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let choice = &body["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls");
        assert_eq!(choice["message"]["content"], Value::Null);
        assert_eq!(choice["message"]["tool_calls"][0]["id"], "call_1_0");
    }
}
