//! Responses requests, written: for upstreams that speak nothing else.

use crate::llm_api::translate::NO_ARGUMENTS;
use crate::llm_api::translate::chat::request_out::write_url;
use crate::llm_api::translate::form::{Call, Choice, Part, Request, Role, Turn};
use crate::llm_api::translate::names::{Names, id};
use crate::llm_api::translate::pen::Pen;

/// Writes everything but `model`, `stream` and the limit.
pub fn write(request: &mut Request<'_>, names: &mut Names, pen: &mut Pen) {
    pen.field("store", b"false").key("input").open(b'[');
    for text in &request.system {
        pen.open(b'{')
            .pair("type", b"message")
            .pair("role", b"system");
        pen.key("content").open(b'[');
        pen.text_part("input_text", text).close(b']').close(b'}');
    }
    for turn in &request.turns {
        write_turn(turn, names, pen);
    }
    pen.close(b']');
    tools(request, names, pen);
    request.write_sampling(pen);
    if !request.stop.is_empty() {
        request.dropped.note("stop");
    }
    if let Some(effort) = &request.effort {
        pen.key("reasoning")
            .open(b'{')
            .pair("effort", effort)
            .close(b'}');
    }
    if let Some(schema) = &request.schema {
        pen.key("text").open(b'{').key("format").open(b'{');
        pen.pair("type", b"json_schema");
        pen.pair("name", schema.name.as_deref().unwrap_or(b"answer"));
        if schema.strict {
            pen.field("strict", b"true");
        }
        pen.field("schema", schema.schema).close(b'}').close(b'}');
    } else if request.json_object {
        pen.field("text", br#"{"format":{"type":"json_object"}}"#);
    }
}

/// A turn's parts are items of their own, but for what one message says.
fn write_turn(turn: &Turn<'_>, names: &mut Names, pen: &mut Pen) {
    let (role, kind): (&[u8], &str) = match turn.role {
        Role::System => (b"system", "input_text"),
        Role::User => (b"user", "input_text"),
        Role::Assistant => (b"assistant", "output_text"),
    };
    let is_said = |p: &&Part<'_>| matches!(p, Part::Text(_) | Part::Image(_) | Part::File { .. });
    for part in &turn.parts {
        if let Part::Result {
            id: call, parts, ..
        } = part
        {
            pen.open(b'{').pair("type", b"function_call_output");
            pen.pair("call_id", &id(call)).key("output");
            match parts.as_slice() {
                [] => {
                    pen.text(b"");
                }
                [Part::Text(only)] => {
                    pen.text(only);
                }
                many => content("input_text", many.iter(), pen),
            }
            pen.close(b'}');
        }
    }
    if turn.parts.iter().any(|p| is_said(&p)) {
        pen.open(b'{')
            .pair("type", b"message")
            .pair("role", role)
            .key("content");
        content(kind, turn.parts.iter().filter(is_said), pen);
        pen.close(b'}');
    }
    for part in &turn.parts {
        if let Part::Call(Call {
            id: call,
            name,
            arguments,
        }) = part
        {
            pen.open(b'{')
                .pair("type", b"function_call")
                .pair("call_id", &id(call));
            pen.pair("name", &names.sent(name))
                .pair("arguments", &arguments.escaped());
            pen.close(b'}');
        }
    }
}

fn content<'p, 'a: 'p>(kind: &str, parts: impl Iterator<Item = &'p Part<'a>>, pen: &mut Pen) {
    pen.open(b'[');
    for part in parts {
        match part {
            Part::Text(text) => {
                pen.text_part(kind, text);
            }
            Part::Image(image) => {
                pen.open(b'{').pair("type", b"input_image").key("image_url");
                write_url(image, pen);
                pen.close(b'}');
            }
            Part::File { name, media, data } => {
                pen.open(b'{').pair("type", b"input_file");
                pen.pair("filename", name.as_deref().unwrap_or(b"document"));
                pen.key("file_data")
                    .texts(&[b"data:", media, b";base64,", data]);
                pen.close(b'}');
            }
            Part::Call(_) | Part::Result { .. } | Part::Thinking { .. } => {}
        }
    }
    pen.close(b']');
}

fn tools(request: &Request<'_>, names: &mut Names, pen: &mut Pen) {
    if request.tools.is_empty() {
        return;
    }
    pen.key("tools").open(b'[');
    for tool in &request.tools {
        pen.open(b'{')
            .pair("type", b"function")
            .pair("name", &names.sent(&tool.name));
        if let Some(text) = &tool.description {
            pen.pair("description", text);
        }
        pen.field("strict", if tool.strict { b"true" } else { b"false" });
        pen.field("parameters", tool.schema.unwrap_or(NO_ARGUMENTS))
            .close(b'}');
    }
    pen.close(b']');
    match &request.choice {
        Some(Choice::Auto) => pen.pair("tool_choice", b"auto"),
        Some(Choice::Any) => pen.pair("tool_choice", b"required"),
        Some(Choice::None) => pen.pair("tool_choice", b"none"),
        Some(Choice::Named(name)) => {
            pen.key("tool_choice").open(b'{').pair("type", b"function");
            pen.pair("name", &names.sent(name)).close(b'}')
        }
        None => pen,
    };
    if request.parallel == Some(false) {
        pen.field("parallel_tool_calls", b"false");
    }
}
