//! Responses requests, read. Nothing is kept between requests, so whatever points to a stored one is
//! refused.

use std::borrow::Cow;

use crate::llm_api::json::{Cursor, find, unescape};
use crate::llm_api::translate::chat::request_in as chat;
use crate::llm_api::translate::form::{
    self, Arguments, Call, Part, Request, Role, Tool, TranslateError, Turn,
};
use crate::llm_api::translate::pen::{items, leave, members, skip, text};

type Res<T> = Result<T, TranslateError>;

/// What a tool that takes free text becomes: a function of one string.
const CUSTOM_ARGUMENTS: &[u8] =
    br#"{"type":"object","properties":{"input":{"type":"string"}},"required":["input"]}"#;

/// Reads a request whose shape was checked before.
pub fn read(body: &[u8]) -> Res<Request<'_>> {
    let mut request = Request::default();
    let mut cursor = Cursor::new(body, 0);
    members(&mut cursor, |key, c| top(&mut request, key, c))?;
    request.lift_system();
    Ok(request)
}

fn top<'a>(request: &mut Request<'a>, key: &'a [u8], c: &mut Cursor<'a>) -> Res<()> {
    match key {
        b"instructions" => {
            let words = text(c)?.filter(|t| !t.is_empty());
            let at_the_front = words.map(Cow::Borrowed);
            request.system.extend(at_the_front);
        }
        b"input" if c.peek() == Some(b'"') => {
            let words = text(c)?.unwrap_or_default();
            push(request, Role::User, vec![Part::Text(Cow::Borrowed(words))]);
        }
        b"input" => items(c, |c| item(request, c))?,
        b"tools" => items(c, |c| tool(request, c))?,
        b"tool_choice" => request.choice = chat::choice(c)?,
        b"text" => members(c, |key, c| match key {
            b"format" => format(request, c),
            _ => {
                request.dropped.note_field(key, skip(c)?);
                Ok(())
            }
        })?,
        b"reasoning" => members(c, |key, c| {
            match key {
                b"effort" => request.effort = text(c)?.map(Cow::Borrowed),
                b"summary" | b"generate_summary" => request.thinking |= skip(c)? != b"null",
                _ => request.dropped.note_field(key, skip(c)?),
            }
            Ok::<_, TranslateError>(())
        })?,
        _ => {
            let raw = skip(c)?;
            plain(request, key, raw)?;
        }
    }
    Ok(())
}

fn plain<'a>(request: &mut Request<'a>, key: &'a [u8], raw: &'a [u8]) -> Res<()> {
    let given = raw != b"null";
    match key {
        b"previous_response_id" if given => {
            return Err(TranslateError::Refused(
                "`previous_response_id` cannot be served: nothing is stored here; send the whole \
                 conversation in `input` (and `store: false`)",
            ));
        }
        b"conversation" | b"prompt" if given => {
            return Err(TranslateError::Refused(
                "`conversation` and `prompt` cannot be served: nothing is stored here; send the \
                 whole conversation in `input`",
            ));
        }
        b"background" if raw == b"true" => {
            return Err(TranslateError::Refused(
                "`background` cannot be served: nothing is stored here; wait for the answer",
            ));
        }
        // Taken from the request's view, or without a meaning where nothing is stored.
        b"model"
        | b"stream"
        | b"stream_options"
        | b"max_output_tokens"
        | b"store"
        | b"include"
        | b"previous_response_id"
        | b"conversation"
        | b"prompt"
        | b"background" => {}
        b"truncation" if raw == b"\"disabled\"" => {}
        b"temperature" => request.temperature = Some(raw).filter(|_| given),
        b"top_p" => request.top_p = Some(raw).filter(|_| given),
        b"parallel_tool_calls" => request.parallel = chat::flag(raw),
        _ => request.dropped.note_field(key, raw),
    }
    Ok(())
}

/// `text.format`: flat, where chat nests it.
fn format<'a>(request: &mut Request<'a>, c: &mut Cursor<'a>) -> Res<()> {
    let raw = skip(c)?;
    let kind = find(raw, &["type"]).and_then(|span| raw.get(span));
    match kind {
        Some(b"\"json_schema\"") => {
            request.schema = chat::json_schema(&mut Cursor::new(raw, 0))?;
        }
        Some(b"\"json_object\"") => request.json_object = true,
        _ => {}
    }
    Ok(())
}

/// Adds a turn; what the assistant says in several items is one turn.
fn push<'a>(request: &mut Request<'a>, role: Role, parts: Vec<Part<'a>>) {
    match request.turns.last_mut() {
        Some(last) if last.role == role && role == Role::Assistant => last.parts.extend(parts),
        _ if parts.is_empty() => {}
        _ => request.turns.push(Turn { role, parts }),
    }
}

/// The members of an input item, whatever its type.
#[derive(Default)]
struct Item<'a> {
    kind: &'a [u8],
    role: &'a [u8],
    call_id: &'a [u8],
    name: &'a [u8],
    arguments: &'a [u8],
    input: &'a [u8],
    content: Vec<Part<'a>>,
}

fn item<'a>(request: &mut Request<'a>, c: &mut Cursor<'a>) -> Res<()> {
    let mut it = Item::default();
    members(c, |key, c| {
        match key {
            b"type" => it.kind = text(c)?.unwrap_or_default(),
            b"role" => it.role = text(c)?.unwrap_or_default(),
            b"call_id" => it.call_id = text(c)?.unwrap_or_default(),
            b"name" => it.name = text(c)?.unwrap_or_default(),
            b"arguments" => it.arguments = text(c)?.unwrap_or_default(),
            b"input" => it.input = text(c)?.unwrap_or_default(),
            b"content" | b"output" => it.content = form::content(c, part)?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    let id = Cow::Borrowed(it.call_id);
    match it.kind {
        b"message" | b"" => {
            let role = match it.role {
                b"assistant" => Role::Assistant,
                b"system" | b"developer" => Role::System,
                _ => Role::User,
            };
            push(request, role, it.content);
        }
        b"function_call" | b"custom_tool_call" => {
            let arguments = if it.kind == b"function_call" {
                Arguments::Escaped(Cow::Borrowed(it.arguments))
            } else {
                Arguments::Value(Cow::Owned([b"{\"input\":\"", it.input, b"\"}"].concat()))
            };
            let name = Cow::Borrowed(it.name);
            let call = Part::Call(Call {
                id,
                name,
                arguments,
            });
            push(request, Role::Assistant, vec![call]);
        }
        b"function_call_output" | b"custom_tool_call_output" => {
            let result = Part::Result {
                id,
                parts: it.content,
                is_error: false,
            };
            push(request, Role::User, vec![result]);
        }
        // Only its own maker can read it.
        b"reasoning" => request.dropped.note("reasoning"),
        other => {
            let kind: String = unescape(other).chars().take(40).collect();
            return Err(TranslateError::not_carried(format!(
                "an input item of type `{kind}`"
            )));
        }
    }
    Ok(())
}

fn part<'a>(c: &mut Cursor<'a>) -> Res<Option<Part<'a>>> {
    let (mut kind, mut words, mut url) = (&b""[..], None, None);
    let (mut name, mut data) = (None, None);
    members(c, |key, c| {
        match key {
            b"type" => kind = text(c)?.unwrap_or_default(),
            b"text" | b"refusal" => words = text(c)?,
            b"image_url" => url = text(c)?,
            b"filename" => name = text(c)?,
            b"file_data" => data = text(c)?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    let file = data.and_then(chat::data_uri);
    match (kind, url, file) {
        (b"input_text" | b"output_text" | b"text" | b"refusal", ..) => Ok(words
            .filter(|w| !w.is_empty())
            .map(|w| Part::Text(Cow::Borrowed(w)))),
        (b"input_image", Some(url), _) => Ok(Some(Part::Image(chat::image(url)))),
        (b"input_file", _, Some((media, data))) => Ok(Some(Part::File {
            name: name.map(Cow::Borrowed),
            media,
            data,
        })),
        _ => {
            let kind: String = unescape(kind).chars().take(40).collect();
            let what = format!("a content part of type `{kind}` without its data");
            Err(TranslateError::not_carried(what))
        }
    }
}

fn tool<'a>(request: &mut Request<'a>, c: &mut Cursor<'a>) -> Res<()> {
    let start = c.pos();
    let raw = skip(c)?;
    let mut kind = &b"function"[..];
    members(&mut Cursor::new(raw, 0), |key, c| {
        match key {
            b"type" => kind = text(c)?.unwrap_or_default(),
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    let tool = chat::function(&mut Cursor::new(raw, 0))?;
    match kind {
        b"function" => request.tools.push(tool),
        b"custom" => request.tools.push(Tool {
            schema: Some(CUSTOM_ARGUMENTS),
            ..tool
        }),
        other => {
            // A tool of the provider's own: nobody else can run it.
            tracing::debug!(at = start, "a tool is left out");
            request.dropped.note(&format!("tools.{}", unescape(other)));
        }
    }
    Ok(())
}
