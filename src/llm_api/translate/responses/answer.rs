//! Responses answers, written: the response object and its output items.

use crate::llm_api::json::{find, unescape};
use crate::llm_api::translate::WayBack;
use crate::llm_api::translate::form::{Answer, Arguments, Part, Stop};
use crate::llm_api::translate::pen::Pen;
use crate::llm_api::{Dialect, usage};
use crate::types::Usage;

/// The head of a response object that the client may ask for again in each of its events.
pub struct Head<'h> {
    pub id: &'h [u8],
    pub model: &'h [u8],
    pub created_s: u64,
}

/// Writes a whole `response`.
pub fn write(answer: &Answer<'_>, stop: &Stop, way: &WayBack, used: &Usage, pen: &mut Pen) {
    let mut output = Pen::default();
    output.open(b'[');
    for (index, part) in answer.parts.iter().enumerate() {
        match part {
            Part::Text(text) => message_item(index, text, &mut output),
            Part::Thinking { text, .. } => reasoning_item(index, text, &mut output),
            Part::Call(call) => {
                let name = way.names.original(&call.name);
                let custom = way.names.is_custom(name);
                call_item(index, custom, &call.id, name, &call.arguments, &mut output);
            }
            Part::Image(_) | Part::File { .. } | Part::Result { .. } => {}
        }
    }
    output.close(b']');
    let head = Head {
        id: &answer.id,
        model: &answer.model,
        created_s: way.created_s,
    };
    response(&head, Some((stop, used)), &output.out, pen);
}

/// The response object: in progress without an end.
pub fn response(head: &Head<'_>, end: Option<(&Stop, &Usage)>, output: &[u8], pen: &mut Pen) {
    pen.open(b'{').key("id").texts(&[b"resp_", head.id]);
    pen.pair("object", b"response");
    pen.field("created_at", head.created_s.to_string().as_bytes());
    let reason: Option<&[u8]> = match end {
        Some((Stop::Length, _)) => Some(b"max_output_tokens"),
        Some((Stop::Filtered, _)) => Some(b"content_filter"),
        _ => None,
    };
    let status: &[u8] = match (end, reason) {
        (None, _) => b"in_progress",
        (_, Some(_)) => b"incomplete",
        _ => b"completed",
    };
    pen.pair("status", status).field("error", b"null");
    pen.key("incomplete_details");
    match reason {
        Some(reason) => pen.open(b'{').pair("reason", reason).close(b'}'),
        None => pen.raw(b"null"),
    };
    pen.field("instructions", b"null").pair("model", head.model);
    pen.field("output", output);
    pen.field("parallel_tool_calls", b"true");
    pen.field("previous_response_id", b"null")
        .field("store", b"false");
    pen.field("text", br#"{"format":{"type":"text"}}"#);
    pen.pair("tool_choice", b"auto").field("tools", b"[]");
    pen.pair("truncation", b"disabled").field("metadata", b"{}");
    pen.key("usage");
    match end {
        Some((_, used)) => pen.raw(usage::to_json(Dialect::Responses, used, None).as_bytes()),
        None => pen.raw(b"null"),
    };
    pen.close(b'}');
}

/// An item's id, by its place.
pub fn item_id(kind: &str, index: usize) -> String {
    format!("{kind}_{index}")
}

/// A complete message item.
pub fn message_item(index: usize, text: &[u8], pen: &mut Pen) {
    pen.open(b'{').pair("id", item_id("msg", index).as_bytes());
    pen.pair("type", b"message").pair("status", b"completed");
    pen.pair("role", b"assistant").key("content").open(b'[');
    text_part(text, pen);
    pen.close(b']').close(b'}');
}

/// An `output_text` part.
pub fn text_part(text: &[u8], pen: &mut Pen) {
    pen.open(b'{').pair("type", b"output_text");
    pen.field("annotations", b"[]")
        .pair("text", text)
        .close(b'}');
}

/// A complete reasoning item.
pub fn reasoning_item(index: usize, text: &[u8], pen: &mut Pen) {
    pen.open(b'{').pair("id", item_id("rs", index).as_bytes());
    pen.pair("type", b"reasoning").key("summary").open(b'[');
    summary_part(text, pen);
    pen.close(b']').close(b'}');
}

/// A `summary_text` part.
pub fn summary_part(text: &[u8], pen: &mut Pen) {
    pen.open(b'{')
        .pair("type", b"summary_text")
        .pair("text", text)
        .close(b'}');
}

/// A complete call item, of a function or of a custom tool.
pub fn call_item(
    index: usize,
    custom: bool,
    call_id: &[u8],
    name: &[u8],
    arguments: &Arguments<'_>,
    pen: &mut Pen,
) {
    let kind = if custom { "ctc" } else { "fc" };
    pen.open(b'{').pair("id", item_id(kind, index).as_bytes());
    if custom {
        pen.pair("type", b"custom_tool_call")
            .pair("input", &custom_input(arguments));
    } else {
        pen.pair("type", b"function_call")
            .pair("arguments", &arguments.escaped());
    }
    pen.pair("status", b"completed")
        .pair("call_id", call_id)
        .pair("name", name)
        .close(b'}');
}

/// The free text in a custom tool's arguments; other arguments are the text themselves.
pub fn custom_input(arguments: &Arguments<'_>) -> Vec<u8> {
    let escaped = arguments.escaped();
    let plain = match arguments {
        Arguments::Value(value) => value.to_vec(),
        Arguments::Escaped(text) => unescape(text).into_owned().into_bytes(),
    };
    let found = find(&plain, &["input"]).and_then(|span| plain.get(span));
    let inside = found.and_then(|raw| raw.strip_prefix(b"\"")?.strip_suffix(b"\""));
    inside.map_or_else(|| escaped.to_vec(), <[u8]>::to_vec)
}
