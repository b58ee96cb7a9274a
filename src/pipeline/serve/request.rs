//! An OpenAI chat request to what the model is asked. Pure.
//!
//! What cannot be done is refused, never left out in silence: a caller that asks for JSON and gets
//! prose has been lied to.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Refusal;
use crate::pipeline::engine::sampling;

/// Stop sequences of a request, as OpenAI has it times four.
const STOPS_MAX: usize = 16;
/// Bytes of a stop sequence.
const STOP_BYTES_MAX: usize = 1_024;

/// A request that can be served.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) messages: Vec<Value>,
    pub(super) tools: Option<Vec<Value>>,
    pub(super) answer_max: Option<usize>,
    pub(super) sampling: sampling::Settings,
    pub(super) stop: Vec<String>,
    pub(super) is_stream: bool,
    pub(super) has_usage: bool,
}

#[derive(Deserialize)]
struct Body {
    model: String,
    messages: Vec<Map<String, Value>>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    max_tokens: Option<usize>,
    #[serde(default)]
    max_completion_tokens: Option<usize>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    top_k: Option<i64>,
    #[serde(default)]
    seed: Option<i64>,
    #[serde(default)]
    stop: Option<Stops>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    presence_penalty: Option<f32>,
    #[serde(default)]
    frequency_penalty: Option<f32>,
    #[serde(default)]
    response_format: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stops {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Reads a body; `chance` is the seed of a request that names none.
pub(super) fn read(body: &[u8], name: &str, chance: u64) -> Result<Asked, Refusal> {
    let body: Body =
        serde_json::from_slice(body).map_err(|error| Refusal::bad(format!("the body: {error}")))?;
    if body.model != name {
        let (code, message) = ("model_not_found", format!("only `{name}` is served here"));
        return Err(Refusal::new(404, code, message));
    }
    refuse_what_cannot_be_done(&body)?;
    let stop = match body.stop {
        None => vec![],
        Some(Stops::One(one)) => vec![one],
        Some(Stops::Many(all)) => all,
    };
    if stop.len() > STOPS_MAX || stop.iter().any(|one| one.len() > STOP_BYTES_MAX) {
        let message = format!("stop: at most {STOPS_MAX} sequences of {STOP_BYTES_MAX} bytes");
        return Err(Refusal::bad(message));
    }
    let calls_none = body
        .tool_choice
        .as_ref()
        .is_some_and(|choice| choice == "none");
    let tools = body.tools.filter(|tools| !tools.is_empty() && !calls_none);
    let messages = body.messages.into_iter().map(message);
    Ok(Asked {
        messages: messages.collect::<Result<_, _>>()?,
        tools,
        answer_max: body.max_completion_tokens.or(body.max_tokens),
        sampling: sampling::Settings {
            temperature: within("temperature", body.temperature.unwrap_or(1.0), 0.0..=2.0)?,
            top_k: body
                .top_k
                .and_then(|k| usize::try_from(k).ok())
                .filter(|k| *k > 0),
            top_p: within("top_p", body.top_p.unwrap_or(1.0), 0.0..=1.0)?,
            seed: body.seed.map_or(chance, i64::cast_unsigned),
        },
        stop,
        is_stream: body.stream == Some(true),
        has_usage: body
            .stream_options
            .is_some_and(|options| options.include_usage),
    })
}

fn refuse_what_cannot_be_done(body: &Body) -> Result<(), Refusal> {
    let is_auto = |choice: &Value| choice == "auto" || choice == "none" || choice.is_null();
    let is_text = |format: &Value| format.is_null() || format["type"] == "text";
    let is_set = |penalty: Option<f32>| penalty.is_some_and(|penalty| penalty != 0.0);
    let cannot = [
        ("n", body.n.is_some_and(|n| n != 1)),
        ("logprobs", body.logprobs == Some(true)),
        ("presence_penalty", is_set(body.presence_penalty)),
        ("frequency_penalty", is_set(body.frequency_penalty)),
        (
            "response_format",
            !body.response_format.as_ref().is_none_or(is_text),
        ),
        (
            "tool_choice",
            !body.tool_choice.as_ref().is_none_or(is_auto),
        ),
    ];
    match cannot.iter().find(|(_, is_asked)| *is_asked) {
        Some((name, _)) => Err(Refusal::bad(format!(
            "this model cannot do this `{name}`; leave it out"
        ))),
        None if body.max_tokens == Some(0) || body.max_completion_tokens == Some(0) => {
            Err(Refusal::bad("max_tokens must be at least 1".to_owned()))
        }
        None => Ok(()),
    }
}

fn within(name: &str, value: f32, range: std::ops::RangeInclusive<f32>) -> Result<f32, Refusal> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = (range.start(), range.end());
    Err(Refusal::bad(format!(
        "{name} is {value}; it must be between {low} and {high}"
    )))
}

/// A message as templates know it: content is text, arguments of calls are values.
fn message(mut message: Map<String, Value>) -> Result<Value, Refusal> {
    let content = match message.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| part["text"].as_str());
            let texts: Option<Vec<&str>> = texts.collect();
            let only_text = || Refusal::bad("this model reads text only".to_owned());
            texts.ok_or_else(only_text)?.concat()
        }
        Some(_) => return Err(Refusal::bad("content must be text".to_owned())),
    };
    message.insert("content".to_owned(), Value::String(content));
    if message.get("role").is_some_and(|role| role == "developer") {
        message.insert("role".to_owned(), "system".into());
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        let parsed = arguments
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok());
        if let Some(parsed) = parsed {
            *arguments = parsed;
        }
    }
    if message.get("tool_calls").is_some_and(Value::is_null) {
        message.remove("tool_calls");
    }
    Ok(Value::Object(message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(more: Value) -> Result<Asked, Refusal> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        read(body.to_string().as_bytes(), "m", 9)
    }

    #[test]
    fn what_is_asked_is_read_and_the_rest_has_the_usual_values() {
        let plain = asked(json!({})).unwrap();
        assert_eq!(plain.messages, [json!({"role": "user", "content": "Hi"})]);
        let (temperature, top_p, seed) = (1.0, 1.0, 9);
        let expected = sampling::Settings {
            temperature,
            top_k: None,
            top_p,
            seed,
        };
        assert_eq!(
            (plain.sampling, plain.answer_max, plain.is_stream),
            (expected, None, false)
        );
        let full = asked(json!({
            "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_k": 40, "seed": 3,
            "stop": "x", "stream": true, "stream_options": {"include_usage": true}, "n": 1,
        }))
        .unwrap();
        assert_eq!(
            (full.answer_max, full.sampling.top_k, full.sampling.seed),
            (Some(7), Some(40), 3)
        );
        assert_eq!(full.stop, ["x"]);
        assert!(full.is_stream && full.has_usage);
    }

    #[test]
    fn messages_become_what_templates_know() {
        let messages = json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            ]},
        ]);
        let read = asked(json!({"messages": messages})).unwrap().messages;
        assert_eq!(read[0], json!({"role": "system", "content": "ab"}));
        assert_eq!(read[1]["content"], "");
        assert_eq!(
            read[1]["tool_calls"][0]["function"]["arguments"],
            json!({"x": 1})
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (more, word) in [
            (json!({"n": 2}), "`n`"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"presence_penalty": 0.5}), "presence_penalty"),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
            ),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"temperature": 3}), "between 0 and 2"),
            (json!({"max_tokens": 0}), "at least 1"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "text only",
            ),
            (json!({"messages": 1}), "the body"),
        ] {
            let refusal = asked(more).unwrap_err();
            assert_eq!(refusal.status, 400);
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
        assert_eq!(asked(json!({"model": "other"})).unwrap_err().status, 404);
        assert!(asked(json!({"response_format": {"type": "text"}, "presence_penalty": 0})).is_ok());
    }
}
