//! What a request asks of the upstream, in one small form for all dialects.
//!
//! A turn with tools in which the user asks to read a file gets a tool call; the turn after it,
//! which carries the tool's result, gets an answer that quotes the result. So an agent's whole
//! loop runs without a model. An image is answered with its type and size.

use regex::Regex;
use serde_json::{Map, Value, json};

use super::script::{Script, Stop, UsageReport};

/// Tokens that a chat template adds to each message, as OpenAI documents it.
const MESSAGE_OVERHEAD_TOKENS: u64 = 4;

/// The dialect of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI Chat Completions.
    Chat,
    /// Anthropic Messages.
    Messages,
    /// OpenAI Responses.
    Responses,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Text only.
    Text(String),
    /// A call of one tool, with its arguments as JSON text.
    Tool { name: String, arguments: String },
}

/// Token counts as the script reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// All input, cached included.
    pub input: u64,
    /// Input read from a cache.
    pub cached: u64,
    /// Output, reasoning included.
    pub output: u64,
    /// Hidden reasoning.
    pub reasoning: u64,
}

/// One request, read.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The model asked for.
    pub model: String,
    /// Whether it wants a stream.
    pub stream: bool,
    /// Whether a chat stream wants its usage chunk.
    pub include_usage: bool,
    /// What to answer.
    pub reply: Reply,
    /// Thoughts to show first.
    pub thinking: Option<String>,
    /// How many calls to make, when tools are called.
    pub calls: u64,
    /// Why it ends.
    pub stop: Stop,
    /// What to report; none when the script reports nothing.
    pub counts: Option<Counts>,
}

impl Ask {
    /// Reads a request body; none when it is not a JSON object with `model` and `messages`.
    pub fn read(dialect: Dialect, body: &[u8], script: &Script) -> Option<Self> {
        let mut request: Value = serde_json::from_slice(body).ok()?;
        if dialect == Dialect::Responses {
            super::responses::as_chat(&mut request)?;
        }
        let script = &script.for_model(request.get("model")?.as_str()?);
        let messages = request.get("messages")?.as_array()?;
        let reply = choose_reply(dialect, &request, messages, script);
        let counts = count(&request, messages, &reply, script);
        Some(Self {
            model: request.get("model")?.as_str()?.to_owned(),
            stream: request
                .get("stream")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            include_usage: request
                .pointer("/stream_options/include_usage")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            reply,
            thinking: script.thinking.clone(),
            calls: script.calls,
            stop: script.stop,
            counts,
        })
    }
}

/// Splits text into the pieces that are streamed, a word and its space each.
pub fn pieces(text: &str) -> Vec<&str> {
    text.split_inclusive(' ').collect()
}

/// Counts tokens by the o200k vocabulary.
pub fn tokens(text: &str) -> u64 {
    u64::try_from(bpe_openai::o200k_base().count(text)).unwrap()
}

fn choose_reply(dialect: Dialect, request: &Value, messages: &[Value], script: &Script) -> Reply {
    // Agents append notes of their own after the user's words or the tool's result, so all that
    // came after the assistant last spoke counts.
    let is = |m: &Value, role: &str| m.get("role").and_then(Value::as_str) == Some(role);
    let spoke = messages.iter().rposition(|m| is(m, "assistant"));
    let turn = &messages[spoke.map_or(0, |i| i + 1)..];
    if let Some(result) = turn.iter().find_map(|m| tool_result(dialect, m)) {
        return Reply::Text(format!("I read the file. It says: {}", result.trim()));
    }
    if let Some(image) = turn.iter().find_map(image) {
        return Reply::Text(format!("I see an image: {image}"));
    }
    let asked: Vec<_> = turn
        .iter()
        .filter(|m| is(m, "user"))
        .map(|m| text_of(m.get("content")))
        .collect();
    let asked = asked.join("\n");
    let sum = Regex::new(r"What is (\d+) plus (\d+)\?").unwrap();
    if let Some(found) = sum.captures(&asked).filter(|_| script.adds) {
        let number = |at: usize| found[at].parse::<u64>().unwrap();
        return Reply::Text((number(1) + number(2)).to_string());
    }
    let file = Regex::new(r"(?i)\bread\s+(?:the\s+file\s+)?[`']?([\w./-]+\.\w+)").unwrap();
    if let Some(found) = file.captures(&asked)
        && let Some((name, property)) = read_tool(dialect, request)
    {
        let mut arguments = Map::new();
        let value = match property.as_str() {
            "cmd" => format!("cat {}", &found[1]),
            _ => found[1].to_owned(),
        };
        arguments.insert(property, json!(value));
        return Reply::Tool {
            name,
            arguments: Value::Object(arguments).to_string(),
        };
    }
    Reply::Text(script.text.clone())
}

/// Media type and size of the first inlined image of a message, in the shape of any dialect.
fn image(message: &Value) -> Option<String> {
    message.get("content")?.as_array()?.iter().find_map(|part| {
        let (media, data) = match part.get("type")?.as_str()? {
            "image" => (
                part.pointer("/source/media_type")?.as_str()?,
                part.pointer("/source/data")?.as_str()?,
            ),
            "image_url" => data_uri(part.pointer("/image_url/url")?.as_str()?)?,
            "input_image" => data_uri(part.get("image_url")?.as_str()?)?,
            _ => return None,
        };
        Some(format!("{media}, {} characters of base64", data.len()))
    })
}

fn data_uri(url: &str) -> Option<(&str, &str)> {
    url.strip_prefix("data:")?.split_once(";base64,")
}

/// Finds the tool that reads files, or runs commands, and the name of its argument.
fn read_tool(dialect: Dialect, request: &Value) -> Option<(String, String)> {
    let tools = request.get("tools")?.as_array()?;
    tools.iter().find_map(|tool| {
        let (tool, schema) = match dialect {
            Dialect::Chat | Dialect::Responses => (tool.get("function")?, "parameters"),
            Dialect::Messages => (tool, "input_schema"),
        };
        let name = tool.get("name")?.as_str()?;
        if !matches!(
            name.to_ascii_lowercase().as_str(),
            "read" | "read_file" | "readfile" | "exec_command"
        ) {
            return None;
        }
        let properties = tool.get(schema)?.get("properties")?.as_object()?;
        let path = ["path", "file_path", "filePath", "file", "cmd"]
            .into_iter()
            .find(|p| properties.contains_key(*p))?;
        Some((name.to_owned(), path.to_owned()))
    })
}

/// Returns the text of a tool's result when the message carries one.
fn tool_result(dialect: Dialect, message: &Value) -> Option<String> {
    match dialect {
        Dialect::Chat | Dialect::Responses => {
            let is_tool = message.get("role")?.as_str()? == "tool";
            is_tool.then(|| text_of(message.get("content")))
        }
        Dialect::Messages => {
            let blocks = message.get("content")?.as_array()?;
            let result = blocks
                .iter()
                .find(|b| b.get("type") == Some(&json!("tool_result")))?;
            Some(text_of(result.get("content")))
        }
    }
}

/// Returns the text of a string, of text parts, or of nothing.
fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .filter_map(|p| p.get("text").and_then(Value::as_str))
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

fn count(request: &Value, messages: &[Value], reply: &Reply, script: &Script) -> Option<Counts> {
    let times = match script.usage {
        UsageReport::None => return None,
        UsageReport::Honest => 1,
        UsageReport::Times(k) => k,
    };
    let mut input = tokens(&text_of(request.get("system")));
    for message in messages {
        input += MESSAGE_OVERHEAD_TOKENS + tokens(&text_of(message.get("content")));
    }
    if let Some(tools) = request.get("tools") {
        input += tokens(&tools.to_string());
    }
    let visible = match reply {
        Reply::Text(text) => tokens(text),
        Reply::Tool { name, arguments } => (tokens(name) + tokens(arguments)) * script.calls,
    };
    let thought = script.thinking.as_deref().map_or(0, tokens);
    let visible = visible + thought;
    let input = input * times;
    let cached = match &script.memory {
        None => input * script.cached_percent / 100,
        Some(memory) => {
            let mut text = String::new();
            let beginning = |message: &Value| {
                text.push_str(&message.to_string());
                text.clone()
            };
            memory.read(&messages.iter().map(beginning).collect::<Vec<_>>(), input)
        }
    };
    Some(Counts {
        input,
        cached,
        output: (visible + script.reasoning_tokens) * times,
        reasoning: script.reasoning_tokens * times,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(last: Value) -> Value {
        json!({"model": "m", "messages": [{"role": "system", "content": "s"}, last], "tools": [
            {"type": "function", "function": {"name": "read",
             "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}}}]})
    }

    fn read(dialect: Dialect, body: &Value) -> Reply {
        Ask::read(dialect, body.to_string().as_bytes(), &Script::default())
            .unwrap()
            .reply
    }

    #[test]
    fn a_request_to_read_a_file_becomes_a_tool_call() {
        let body = chat(json!({"role": "user", "content": "read hello.txt and tell me"}));
        let call = Reply::Tool {
            name: "read".into(),
            arguments: r#"{"path":"hello.txt"}"#.into(),
        };
        assert_eq!(read(Dialect::Chat, &body), call);
    }

    #[test]
    fn without_tools_it_stays_text() {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "read a.txt"}]});
        assert!(matches!(read(Dialect::Chat, &body), Reply::Text(_)));
    }

    #[test]
    fn a_tool_result_is_quoted() {
        let body = chat(json!({"role": "tool", "tool_call_id": "c", "content": "PLUMBUS"}));
        assert!(matches!(read(Dialect::Chat, &body), Reply::Text(t) if t.contains("PLUMBUS")));
        let body = json!({"model": "m", "messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "PLUMBUS"}]}]}]});
        assert!(matches!(read(Dialect::Messages, &body), Reply::Text(t) if t.contains("PLUMBUS")));
    }

    #[test]
    fn over_reporting_multiplies_every_count() {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let bytes = body.to_string().into_bytes();
        let ask = |usage| {
            let script = Script::default().usage(usage);
            Ask::read(Dialect::Chat, &bytes, &script).unwrap().counts
        };
        let (one, ten) = (
            ask(UsageReport::Honest).unwrap(),
            ask(UsageReport::Times(10)).unwrap(),
        );
        assert_eq!((one.input * 10, one.output * 10), (ten.input, ten.output));
        assert_eq!(ask(UsageReport::None), None);
    }
}
