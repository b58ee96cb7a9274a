//! Chat Completions requests, read.

use std::borrow::Cow;

use crate::llm_api::json::{Cursor, unescape};
use crate::llm_api::translate::form::{
    self, Arguments, Call, Choice, Dropped, Image, Part, Request, Role, Schema, Text, Tool,
    TranslateError, Turn,
};
use crate::llm_api::translate::pen::{items, leave, members, skip, text};

type Res<T> = Result<T, TranslateError>;

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
        b"messages" => items(c, |c| {
            let turn = message(c, &mut request.dropped)?;
            request.turns.extend(turn);
            Ok(())
        }),
        b"tools" => items(c, |c| {
            request.tools.push(tool(c)?);
            Ok(())
        }),
        b"tool_choice" => {
            request.choice = choice(c)?;
            Ok(())
        }
        b"stop" => {
            if c.peek() == Some(b'"') {
                request.stop.extend(text(c)?.map(Cow::Borrowed));
                return Ok(());
            }
            items(c, |c| {
                request.stop.extend(text(c)?.map(Cow::Borrowed));
                Ok(())
            })
        }
        b"response_format" => format(request, c),
        _ => {
            let raw = skip(c)?;
            plain(request, key, raw)
        }
    }
}

/// The fields that are a value of their own.
fn plain<'a>(request: &mut Request<'a>, key: &'a [u8], raw: &'a [u8]) -> Res<()> {
    match key {
        // Taken from the request's view.
        b"model" | b"stream" | b"stream_options" | b"max_tokens" | b"max_completion_tokens" => {}
        b"temperature" => request.temperature = Some(raw).filter(|r| *r != b"null"),
        b"top_p" => request.top_p = Some(raw).filter(|r| *r != b"null"),
        b"parallel_tool_calls" => request.parallel = flag(raw),
        b"n" if !matches!(raw, b"1" | b"null") => {
            return Err(TranslateError::not_carried("`n` above 1"));
        }
        b"modalities" if raw.windows(5).any(|w| w == b"audio") => {
            return Err(TranslateError::not_carried("audio output"));
        }
        b"functions" | b"function_call" => {
            return Err(TranslateError::Refused(
                "`functions` cannot be carried to a seller of another dialect; use `tools`",
            ));
        }
        b"reasoning_effort" => {
            let inside = raw.strip_prefix(b"\"").and_then(|r| r.strip_suffix(b"\""));
            request.effort = inside.map(Cow::Borrowed);
        }
        b"n" | b"modalities" | b"store" => {}
        _ => request.dropped.note_field(key, raw),
    }
    Ok(())
}

pub fn flag(raw: &[u8]) -> Option<bool> {
    match raw {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

fn message<'a>(c: &mut Cursor<'a>, dropped: &mut Dropped) -> Res<Option<Turn<'a>>> {
    let (mut role, mut call_id) = (&b"user"[..], &b""[..]);
    let (mut parts, mut calls, mut refusal) = (Vec::new(), Vec::new(), None);
    members(c, |key, c| {
        match key {
            b"role" => role = text(c)?.unwrap_or(b"user"),
            b"content" => parts = content(c, dropped)?,
            b"tool_calls" => items(c, |c| {
                calls.extend(call(c)?);
                Ok::<_, TranslateError>(())
            })?,
            b"tool_call_id" => call_id = text(c)?.unwrap_or_default(),
            b"refusal" => refusal = text(c)?,
            b"reasoning_content" | b"reasoning" | b"reasoning_details" => {
                dropped.note_field(b"reasoning", skip(c)?);
            }
            _ => dropped.note_field(key, skip(c)?),
        }
        Ok::<_, TranslateError>(())
    })?;
    parts.extend(
        refusal
            .filter(|r| !r.is_empty())
            .map(|r| Part::Text(Cow::Borrowed(r))),
    );
    parts.extend(calls.into_iter().map(Part::Call));
    let role = match role {
        b"system" | b"developer" => Role::System,
        b"assistant" => Role::Assistant,
        b"tool" => {
            let result = Part::Result {
                id: Cow::Borrowed(call_id),
                parts: std::mem::take(&mut parts),
                is_error: false,
            };
            parts.push(result);
            Role::User
        }
        b"user" => Role::User,
        _ => {
            return Err(TranslateError::not_carried(
                "a message role other than system, developer, user, assistant and tool",
            ));
        }
    };
    Ok((!parts.is_empty()).then_some(Turn { role, parts }))
}

fn content<'a>(c: &mut Cursor<'a>, dropped: &mut Dropped) -> Res<Vec<Part<'a>>> {
    form::content(c, |c| part(c, dropped))
}

fn part<'a>(c: &mut Cursor<'a>, dropped: &mut Dropped) -> Res<Option<Part<'a>>> {
    let (mut kind, mut words, mut url, mut file) = (&b"text"[..], None, None, None);
    members(c, |key, c| {
        match key {
            b"type" => kind = text(c)?.unwrap_or_default(),
            b"text" | b"refusal" => words = text(c)?,
            b"image_url" if c.peek() == Some(b'"') => url = text(c)?,
            b"image_url" => members(c, |key, c| {
                match key {
                    b"url" => url = text(c)?,
                    _ => leave(c)?,
                }
                Ok::<_, TranslateError>(())
            })?,
            b"file" => file = file_part(c)?,
            b"cache_control" => dropped.note_field(key, skip(c)?),
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    match kind {
        b"text" | b"refusal" => Ok(words
            .filter(|w| !w.is_empty())
            .map(|w| Part::Text(Cow::Borrowed(w)))),
        b"image_url" => {
            let url = url.ok_or(TranslateError::Refused("an image part has no `url`"))?;
            Ok(Some(Part::Image(image(url))))
        }
        b"file" if file.is_some() => Ok(file),
        other => Err(TranslateError::not_carried(format!(
            "a content part of type `{}`",
            unescape(other).chars().take(40).collect::<String>()
        ))),
    }
}

/// A `file` part that holds its data; an uploaded file's id means nothing elsewhere.
fn file_part<'a>(c: &mut Cursor<'a>) -> Res<Option<Part<'a>>> {
    let (mut name, mut data) = (None, None);
    members(c, |key, c| {
        match key {
            b"filename" => name = text(c)?,
            b"file_data" => data = text(c)?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    Ok(data.and_then(data_uri).map(|(media, data)| Part::File {
        name: name.map(Cow::Borrowed),
        media,
        data,
    }))
}

/// An image from a URL or a data URI.
pub fn image(url: &[u8]) -> Image<'_> {
    match data_uri(url) {
        Some((media, data)) => Image::Base64 { media, data },
        None => Image::Url(Cow::Borrowed(url)),
    }
}

/// The media type and the base64 of a data URI.
pub fn data_uri(url: &[u8]) -> Option<(Text<'_>, Text<'_>)> {
    let rest = url.strip_prefix(b"data:")?;
    let comma = memchr::memchr(b',', rest)?;
    let (head, data) = rest.split_at(comma);
    let media = head.strip_suffix(b";base64")?;
    let media = media.split(|b| *b == b';').next()?;
    // `\/` is how some writers escape a slash.
    let media = unescape(media).into_owned().into_bytes();
    // What is no media type could end the string that it is written into.
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/+.-_".contains(b);
    let media = media.iter().all(plain).then_some(Cow::Owned(media))?;
    Some((media, Cow::Borrowed(data.get(1..)?)))
}

/// One entry of `tool_calls`; `None` for one without a name.
pub fn call<'a>(c: &mut Cursor<'a>) -> Res<Option<Call<'a>>> {
    let (mut id, mut name, mut arguments) = (&b""[..], None, &b""[..]);
    members(c, |key, c| {
        match key {
            b"id" => id = text(c)?.unwrap_or_default(),
            b"function" | b"custom" => members(c, |key, c| {
                match key {
                    b"name" => name = text(c)?,
                    b"arguments" | b"input" => arguments = text(c)?.unwrap_or_default(),
                    _ => leave(c)?,
                }
                Ok::<_, TranslateError>(())
            })?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    Ok(name.map(|name| Call {
        id: Cow::Borrowed(id),
        name: Cow::Borrowed(name),
        arguments: Arguments::Escaped(Cow::Borrowed(arguments)),
    }))
}

fn tool<'a>(c: &mut Cursor<'a>) -> Res<Tool<'a>> {
    let (mut kind, mut found) = (&b"function"[..], None);
    members(c, |key, c| {
        match key {
            b"type" => kind = text(c)?.unwrap_or_default(),
            b"function" => found = Some(function(c)?),
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    match found {
        Some(tool) if kind == b"function" => Ok(tool),
        _ => Err(TranslateError::not_carried("a tool that is no function")),
    }
}

/// The members of a function tool, of chat (nested) and Responses (flat).
pub fn function<'a>(c: &mut Cursor<'a>) -> Res<Tool<'a>> {
    let mut tool = Tool {
        name: Cow::Borrowed(b""),
        description: None,
        schema: None,
        strict: false,
        custom: false,
    };
    members(c, |key, c| {
        match key {
            b"name" => tool.name = Cow::Borrowed(text(c)?.unwrap_or_default()),
            b"description" => tool.description = text(c)?.map(Cow::Borrowed),
            b"parameters" => tool.schema = Some(skip(c)?).filter(|s| s.starts_with(b"{")),
            b"strict" => tool.strict = skip(c)? == b"true",
            b"type" => tool.custom = text(c)? == Some(b"custom"),
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    Ok(tool)
}

/// `tool_choice` of chat and Responses.
pub fn choice<'a>(c: &mut Cursor<'a>) -> Res<Option<Choice<'a>>> {
    if c.peek() == Some(b'"') {
        return match text(c)? {
            Some(b"auto") => Ok(Some(Choice::Auto)),
            Some(b"required") => Ok(Some(Choice::Any)),
            Some(b"none") => Ok(Some(Choice::None)),
            _ => Err(TranslateError::not_carried("this `tool_choice`")),
        };
    }
    if c.peek() != Some(b'{') {
        skip(c)?;
        return Ok(None);
    }
    let (mut name, mut kind) = (None, &b""[..]);
    members(c, |key, c| {
        match key {
            b"type" => kind = text(c)?.unwrap_or_default(),
            b"name" => name = text(c)?,
            b"function" => members(c, |key, c| {
                match key {
                    b"name" => name = text(c)?,
                    _ => leave(c)?,
                }
                Ok::<_, TranslateError>(())
            })?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    match (kind, name) {
        (b"function" | b"custom", Some(name)) => Ok(Some(Choice::Named(Cow::Borrowed(name)))),
        _ => Err(TranslateError::not_carried("this `tool_choice`")),
    }
}

fn format<'a>(request: &mut Request<'a>, c: &mut Cursor<'a>) -> Res<()> {
    let mut kind = &b""[..];
    let mut schema = None;
    members(c, |key, c| {
        match key {
            b"type" => kind = text(c)?.unwrap_or_default(),
            b"json_schema" => schema = json_schema(c)?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    match (kind, schema) {
        (b"json_schema", Some(schema)) => request.schema = Some(schema),
        (b"json_schema", None) => {
            return Err(TranslateError::not_carried("this `response_format`"));
        }
        (b"json_object", _) => request.json_object = true,
        _ => {}
    }
    Ok(())
}

/// The members `name`, `schema`, `strict`, of chat (nested) and Responses (flat).
pub fn json_schema<'a>(c: &mut Cursor<'a>) -> Res<Option<Schema<'a>>> {
    let (mut name, mut schema, mut strict) = (None, None, false);
    members(c, |key, c| {
        match key {
            b"name" => name = text(c)?,
            b"schema" => schema = Some(skip(c)?),
            b"strict" => strict = skip(c)? == b"true",
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    Ok(schema.map(|schema| Schema {
        name: name.map(Cow::Borrowed),
        schema,
        strict,
    }))
}
