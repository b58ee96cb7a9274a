//! Chat Completions requests, written.

use crate::llm_api::translate::form::{Arguments, Choice, Image, Part, Request, Role, texts};
use crate::llm_api::translate::names::{Names, id};
use crate::llm_api::translate::pen::Pen;
use crate::llm_api::translate::{NO_ARGUMENTS, joined};

/// Writes everything but `model`, `stream` and the limit.
pub fn write(request: &Request<'_>, names: &mut Names, pen: &mut Pen) {
    pen.key("messages").open(b'[');
    if !request.system.is_empty() {
        pen.open(b'{').pair("role", b"system").key("content");
        let texts: Vec<&[u8]> = request.system.iter().map(AsRef::as_ref).collect();
        pen.texts(&joined(&texts)).close(b'}');
    }
    for turn in &request.turns {
        match turn.role {
            Role::System => {
                pen.open(b'{').pair("role", b"system").key("content");
                contents(&turn.parts, pen);
                pen.close(b'}');
            }
            Role::User => user(&turn.parts, pen),
            Role::Assistant => assistant(&turn.parts, names, pen),
        }
    }
    pen.close(b']');
    tools(request, names, pen);
    request.write_sampling(pen);
    if !request.stop.is_empty() {
        pen.key("stop").open(b'[');
        for stop in &request.stop {
            pen.text(stop);
        }
        pen.close(b']');
    }
    if let Some(effort) = &request.effort {
        pen.pair("reasoning_effort", effort);
    }
    if request.json_object {
        pen.field("response_format", br#"{"type":"json_object"}"#);
    }
    if let Some(schema) = &request.schema {
        let name = schema.name.as_deref().unwrap_or(b"answer");
        pen.key("response_format")
            .open(b'{')
            .pair("type", b"json_schema");
        pen.key("json_schema").open(b'{').pair("name", name);
        if schema.strict {
            pen.field("strict", b"true");
        }
        pen.field("schema", schema.schema).close(b'}').close(b'}');
    }
}

fn tools(request: &Request<'_>, names: &mut Names, pen: &mut Pen) {
    if request.tools.is_empty() {
        return;
    }
    pen.key("tools").open(b'[');
    for tool in &request.tools {
        pen.open(b'{')
            .pair("type", b"function")
            .key("function")
            .open(b'{');
        pen.pair("name", &names.sent(&tool.name));
        if let Some(text) = &tool.description {
            pen.pair("description", text);
        }
        pen.field("parameters", tool.schema.unwrap_or(NO_ARGUMENTS));
        if tool.strict {
            pen.field("strict", b"true");
        }
        pen.close(b'}').close(b'}');
    }
    pen.close(b']');
    match &request.choice {
        Some(Choice::Auto) => pen.pair("tool_choice", b"auto"),
        Some(Choice::Any) => pen.pair("tool_choice", b"required"),
        Some(Choice::None) => pen.pair("tool_choice", b"none"),
        Some(Choice::Named(name)) => {
            pen.key("tool_choice").open(b'{').pair("type", b"function");
            pen.key("function")
                .open(b'{')
                .pair("name", &names.sent(name));
            pen.close(b'}').close(b'}')
        }
        None => pen,
    };
    if request.parallel == Some(false) {
        pen.field("parallel_tool_calls", b"false");
    }
}

/// Results first, one message each; then what else the user said, and images of results.
fn user(parts: &[Part<'_>], pen: &mut Pen) {
    let mut rest: Vec<Part<'_>> = Vec::new();
    for part in parts {
        let Part::Result {
            id: call, parts, ..
        } = part
        else {
            rest.push(part.clone());
            continue;
        };
        pen.open(b'{')
            .pair("role", b"tool")
            .pair("tool_call_id", &id(call));
        pen.key("content").texts(&joined(&texts(parts))).close(b'}');
        // A tool message holds text only, so its images follow in the user's name.
        let shown = parts.iter().filter(|p| !matches!(p, Part::Text(_)));
        rest.extend(shown.cloned());
    }
    if !rest.is_empty() {
        pen.open(b'{').pair("role", b"user").key("content");
        contents(&rest, pen);
        pen.close(b'}');
    }
}

fn assistant(parts: &[Part<'_>], names: &mut Names, pen: &mut Pen) {
    let texts = texts(parts);
    let calls = || {
        parts.iter().filter_map(|p| match p {
            Part::Call(call) => Some(call),
            _ => None,
        })
    };
    if texts.is_empty() && calls().next().is_none() {
        return;
    }
    pen.open(b'{').pair("role", b"assistant").key("content");
    if texts.is_empty() {
        pen.raw(b"null");
    } else {
        pen.texts(&texts);
    }
    if calls().next().is_some() {
        pen.key("tool_calls").open(b'[');
        for call in calls() {
            write_call(
                &id(&call.id),
                &names.sent(&call.name),
                &call.arguments,
                None,
                pen,
            );
        }
        pen.close(b']');
    }
    pen.close(b'}');
}

/// One entry of `tool_calls`.
pub fn write_call(
    id: &[u8],
    name: &[u8],
    arguments: &Arguments<'_>,
    index: Option<u64>,
    pen: &mut Pen,
) {
    pen.open(b'{');
    if let Some(index) = index {
        pen.field("index", index.to_string().as_bytes());
    }
    pen.pair("id", id).pair("type", b"function");
    pen.key("function").open(b'{').pair("name", name);
    pen.pair("arguments", &arguments.escaped())
        .close(b'}')
        .close(b'}');
}

/// Text alone as a string, anything more as parts.
fn contents(parts: &[Part<'_>], pen: &mut Pen) {
    if let [Part::Text(only)] = parts {
        pen.text(only);
        return;
    }
    pen.open(b'[');
    for part in parts {
        match part {
            Part::Text(text) => {
                pen.text_part("text", text);
            }
            Part::Image(image) => {
                pen.open(b'{').pair("type", b"image_url");
                pen.key("image_url").open(b'{').key("url");
                write_url(image, pen);
                pen.close(b'}').close(b'}');
            }
            Part::File { name, media, data } => {
                pen.open(b'{').pair("type", b"file").key("file").open(b'{');
                pen.pair("filename", name.as_deref().unwrap_or(b"document"));
                pen.key("file_data")
                    .texts(&[b"data:", media, b";base64,", data]);
                pen.close(b'}').close(b'}');
            }
            Part::Call(_) | Part::Result { .. } | Part::Thinking { .. } => {}
        }
    }
    pen.close(b']');
}

/// An image as a URL string.
pub fn write_url(image: &Image<'_>, pen: &mut Pen) {
    match image {
        Image::Url(url) => pen.text(url),
        Image::Base64 { media, data } => pen.texts(&[b"data:", media, b";base64,", data]),
    };
}

/// The limit, under the name that the model's servers take: OpenAI's reasoning models refuse the old
/// one, and some local servers do not know the new one.
pub fn write_limit(model: &str, max_tokens: Option<u64>, pen: &mut Pen) {
    const NEW_NAME: [&str; 4] = ["o1", "o3", "o4", "gpt-5"];
    let short = model.rsplit('/').next().unwrap_or(model);
    let is_new = NEW_NAME.iter().any(|family| short.starts_with(family));
    let key = if is_new {
        "max_completion_tokens"
    } else {
        "max_tokens"
    };
    if let Some(max) = max_tokens {
        pen.field(key, max.to_string().as_bytes());
    }
}
