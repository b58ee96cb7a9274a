//! Messages requests, written.

use std::borrow::Cow;

use crate::llm_api::translate::NO_ARGUMENTS;
use crate::llm_api::translate::form::{Choice, Image, Part, Request, Role, Text, Turn};
use crate::llm_api::translate::names::{Names, id};
use crate::llm_api::translate::pen::Pen;

/// Writes everything but `model`, `stream` and the limit.
pub fn write(request: &mut Request<'_>, names: &mut Names, pen: &mut Pen) {
    let mut system = std::mem::take(&mut request.system);
    if request.turns.is_empty()
        && let Some(last) = system.pop()
    {
        // Messages needs at least one turn.
        let (role, parts) = (Role::User, vec![Part::Text(last)]);
        request.turns.push(Turn { role, parts });
    }
    if !system.is_empty() {
        pen.key("system").open(b'[');
        for text in &system {
            pen.text_part("text", text);
        }
        pen.close(b']');
    }
    pen.key("messages").open(b'[');
    for (role, parts) in merged(&request.turns) {
        pen.open(b'{').pair("role", role).key("content").open(b'[');
        let results = |p: &&(Role, &Part<'_>)| matches!(p.1, Part::Result { .. });
        for (role, part) in parts.iter().filter(results) {
            write_part(*role, part, names, pen);
        }
        for (role, part) in parts.iter().filter(|p| !results(p)) {
            write_part(*role, part, names, pen);
        }
        pen.close(b']').close(b'}');
    }
    pen.close(b']');
    tools(request, names, pen);
    if let Some(raw) = request.temperature {
        let number = std::str::from_utf8(raw)
            .ok()
            .and_then(|t| t.parse::<f64>().ok());
        if number.is_some_and(|t| t > 1.0) {
            // Its scale ends at 1.
            request.dropped.note("temperature above 1");
            pen.field("temperature", b"1");
        } else {
            pen.field("temperature", raw);
        }
    }
    match request.top_p {
        // Its newer models refuse the two together.
        Some(_) if request.temperature.is_some() => request.dropped.note("top_p"),
        Some(raw) => {
            pen.field("top_p", raw);
        }
        None => {}
    }
    if request.tools.iter().any(|tool| tool.strict) {
        request.dropped.note("tools.strict");
    }
    if !request.stop.is_empty() {
        pen.key("stop_sequences").open(b'[');
        for stop in &request.stop {
            pen.text(stop);
        }
        pen.close(b']');
    }
    if request.json_object {
        // The client's prompt has to ask for JSON anyway.
        request.dropped.note("response_format");
    }
    if request.effort.is_some() {
        // With thinking on, a history of calls without their thoughts is refused.
        request.dropped.note("reasoning_effort");
    }
    if let Some(schema) = &request.schema {
        pen.key("output_config").open(b'{').key("format").open(b'{');
        pen.pair("type", b"json_schema")
            .field("schema", schema.schema);
        pen.close(b'}').close(b'}');
    }
}

/// A role, and the parts with the role that each had.
type Message<'r, 'a> = (&'static [u8], Vec<(Role, &'r Part<'a>)>);

/// Turns of one voice in a row become one message: results must stand together, after their calls.
fn merged<'r, 'a>(turns: &'r [Turn<'a>]) -> Vec<Message<'r, 'a>> {
    let mut all: Vec<Message<'r, 'a>> = Vec::new();
    for turn in turns {
        let voice: &'static [u8] = match turn.role {
            Role::Assistant => b"assistant",
            Role::User | Role::System => b"user",
        };
        let parts = turn.parts.iter().map(|part| (turn.role, part));
        match all.last_mut() {
            Some((last, held)) if *last == voice => held.extend(parts),
            _ => all.push((voice, parts.collect())),
        }
    }
    all
}

fn write_part(role: Role, part: &Part<'_>, names: &mut Names, pen: &mut Pen) {
    match part {
        Part::Text(text) if role == Role::System => {
            // Messages has no system turn; the place matters more than the name.
            pen.open(b'{').pair("type", b"text").key("text");
            pen.texts(&[b"<system>", text, b"</system>"]).close(b'}');
        }
        Part::Text(text) => {
            pen.text_part("text", text);
        }
        Part::Image(image) => {
            pen.open(b'{')
                .pair("type", b"image")
                .key("source")
                .open(b'{');
            match image {
                Image::Url(url) => pen.pair("type", b"url").pair("url", url),
                Image::Base64 { media, data } => base64(media, data, pen),
            };
            pen.close(b'}').close(b'}');
        }
        Part::File { name, media, data } => {
            pen.open(b'{')
                .pair("type", b"document")
                .key("source")
                .open(b'{');
            base64(media, data, pen).close(b'}');
            if let Some(name) = name {
                pen.pair("title", name);
            }
            pen.close(b'}');
        }
        Part::Call(call) => {
            let input = call.arguments.object().unwrap_or_else(|| {
                // The upstream takes an object only; the text survives within one.
                Cow::Owned([b"{\"text\":\"", call.arguments.escaped().as_ref(), b"\"}"].concat())
            });
            write_call(&id(&call.id), &names.sent(&call.name), &input, pen);
        }
        Part::Result {
            id: call,
            parts,
            is_error,
        } => {
            pen.open(b'{')
                .pair("type", b"tool_result")
                .pair("tool_use_id", &id(call));
            if *is_error {
                pen.field("is_error", b"true");
            }
            pen.key("content").open(b'[');
            for part in parts {
                write_part(Role::User, part, names, pen);
            }
            pen.close(b']').close(b'}');
        }
        Part::Thinking { .. } => {}
    }
}

fn base64<'p>(media: &Text<'_>, data: &Text<'_>, pen: &'p mut Pen) -> &'p mut Pen {
    pen.pair("type", b"base64")
        .pair("media_type", media)
        .pair("data", data)
}

/// One `tool_use` block.
pub fn write_call(id: &[u8], name: &[u8], input: &[u8], pen: &mut Pen) {
    pen.open(b'{').pair("type", b"tool_use").pair("id", id);
    pen.pair("name", name).field("input", input).close(b'}');
}

fn tools(request: &Request<'_>, names: &mut Names, pen: &mut Pen) {
    if request.tools.is_empty() {
        return;
    }
    pen.key("tools").open(b'[');
    for tool in &request.tools {
        pen.open(b'{').pair("name", &names.sent(&tool.name));
        if let Some(text) = &tool.description {
            pen.pair("description", text);
        }
        pen.field("input_schema", tool.schema.unwrap_or(NO_ARGUMENTS));
        pen.close(b'}');
    }
    pen.close(b']');
    if request.choice.is_none() && request.parallel != Some(false) {
        return;
    }
    pen.key("tool_choice").open(b'{');
    match &request.choice {
        None | Some(Choice::Auto) => pen.pair("type", b"auto"),
        Some(Choice::Any) => pen.pair("type", b"any"),
        Some(Choice::None) => pen.pair("type", b"none"),
        Some(Choice::Named(name)) => pen.pair("type", b"tool").pair("name", &names.sent(name)),
    };
    if request.parallel == Some(false) && !matches!(request.choice, Some(Choice::None)) {
        pen.field("disable_parallel_tool_use", b"true");
    }
    pen.close(b'}');
}
