//! Messages requests, read.

use std::borrow::Cow;

use crate::llm_api::json::{Cursor, unescape};
use crate::llm_api::translate::chat::{self, request_in::flag};
use crate::llm_api::translate::form::{
    self, Arguments, Call, Choice, Dropped, Image, Part, Request, Role, Schema, Tool,
    TranslateError, Turn,
};
use crate::llm_api::translate::pen::{items, leave, members, skip, text};

type Res<T> = Result<T, TranslateError>;

/// Claude Code's first system line differs in every request; it defeats caches and says nothing.
const BILLING_LINE: &[u8] = b"x-anthropic-billing-header:";

/// Reads a request whose shape was checked before.
pub fn read(body: &[u8]) -> Res<Request<'_>> {
    let mut request = Request::default();
    let mut cursor = Cursor::new(body, 0);
    members(&mut cursor, |key, c| top(&mut request, key, c))?;
    Ok(request)
}

fn top<'a>(request: &mut Request<'a>, key: &'a [u8], c: &mut Cursor<'a>) -> Res<()> {
    match key {
        b"system" => {
            for part in content(c, &mut request.dropped)? {
                if let Part::Text(text) = part
                    && !text.starts_with(BILLING_LINE)
                {
                    request.system.push(text);
                }
            }
        }
        b"messages" => items(c, |c| {
            let turn = message(c, &mut request.dropped)?;
            request.turns.extend(turn);
            Ok::<_, TranslateError>(())
        })?,
        b"tools" => items(c, |c| {
            let tool = tool(c, &mut request.dropped)?;
            request.tools.extend(tool);
            Ok::<_, TranslateError>(())
        })?,
        b"tool_choice" => choice(request, c)?,
        b"stop_sequences" => items(c, |c| {
            request.stop.extend(text(c)?.map(Cow::Borrowed));
            Ok::<_, TranslateError>(())
        })?,
        b"thinking" => {
            let mut kind = None;
            members(c, |key, c| {
                match key {
                    b"type" => kind = text(c)?,
                    _ => leave(c)?,
                }
                Ok::<_, TranslateError>(())
            })?;
            request.thinking = matches!(kind, Some(b"enabled" | b"adaptive"));
            if request.thinking {
                request.dropped.note("thinking");
            }
        }
        b"output_config" => output_config(request, c)?,
        b"output_format" => request.schema = schema(c)?,
        _ => {
            let raw = skip(c)?;
            match key {
                b"model" | b"stream" | b"max_tokens" => {}
                b"temperature" => request.temperature = Some(raw).filter(|r| *r != b"null"),
                b"top_p" => request.top_p = Some(raw).filter(|r| *r != b"null"),
                b"mcp_servers" | b"container" if !matches!(raw, b"[]" | b"null") => {
                    return Err(TranslateError::not_carried(format!(
                        "`{}`",
                        String::from_utf8_lossy(key)
                    )));
                }
                _ => request.dropped.note_field(key, raw),
            }
        }
    }
    Ok(())
}

fn output_config<'a>(request: &mut Request<'a>, c: &mut Cursor<'a>) -> Res<()> {
    members(c, |key, c| {
        match key {
            b"format" => request.schema = schema(c)?,
            _ => request.dropped.note_field(key, skip(c)?),
        }
        Ok(())
    })
}

fn schema<'a>(c: &mut Cursor<'a>) -> Res<Option<Schema<'a>>> {
    Ok(chat::request_in::json_schema(c)?.map(|schema| Schema {
        strict: true,
        ..schema
    }))
}

fn message<'a>(c: &mut Cursor<'a>, dropped: &mut Dropped) -> Res<Option<Turn<'a>>> {
    let (mut role, mut parts) = (&b"user"[..], Vec::new());
    members(c, |key, c| {
        match key {
            b"role" => role = text(c)?.unwrap_or_default(),
            b"content" => parts = content(c, dropped)?,
            _ => dropped.note_field(key, skip(c)?),
        }
        Ok::<_, TranslateError>(())
    })?;
    let role = match role {
        b"assistant" => Role::Assistant,
        b"system" => Role::System,
        _ => Role::User,
    };
    Ok((!parts.is_empty()).then_some(Turn { role, parts }))
}

fn content<'a>(c: &mut Cursor<'a>, dropped: &mut Dropped) -> Res<Vec<Part<'a>>> {
    form::content(c, |c| block(c, dropped))
}

/// The members of a content block, of a request or an answer.
#[derive(Default)]
struct Block<'a> {
    kind: &'a [u8],
    text: Option<&'a [u8]>,
    thinking: Option<&'a [u8]>,
    signature: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    name: Option<&'a [u8]>,
    title: Option<&'a [u8]>,
    input: Option<&'a [u8]>,
    is_error: bool,
    source: Option<Source<'a>>,
    content: Vec<Part<'a>>,
}

#[derive(Default)]
struct Source<'a> {
    kind: &'a [u8],
    media: Option<&'a [u8]>,
    data: Option<&'a [u8]>,
    url: Option<&'a [u8]>,
}

/// One content block, of a request or an answer; `None` for what is noted as dropped.
pub fn block<'a>(c: &mut Cursor<'a>, dropped: &mut Dropped) -> Res<Option<Part<'a>>> {
    let mut b = Block::default();
    members(c, |key, c| {
        match key {
            b"type" => b.kind = text(c)?.unwrap_or_default(),
            b"text" => b.text = text(c)?,
            b"thinking" => b.thinking = text(c)?,
            b"signature" => b.signature = text(c)?,
            b"id" | b"tool_use_id" => b.id = text(c)?,
            b"name" => b.name = text(c)?,
            b"title" => b.title = text(c)?,
            b"input" => b.input = Some(skip(c)?),
            b"is_error" => b.is_error = skip(c)? == b"true",
            b"source" => b.source = Some(source(c)?),
            b"content" => b.content = content(c, dropped)?,
            b"cache_control" => dropped.note_field(key, skip(c)?),
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    if b.is_error {
        // A failed call's text has to say so itself.
        dropped.note("is_error");
    }
    let own = |raw: Option<&'a [u8]>| Cow::Borrowed(raw.unwrap_or_default());
    Ok(match b.kind {
        b"text" => b
            .text
            .filter(|t| !t.is_empty())
            .map(|t| Part::Text(Cow::Borrowed(t))),
        b"image" | b"document" => Some(media(b)?),
        b"tool_use" => Some(Part::Call(Call {
            id: own(b.id),
            name: own(b.name),
            arguments: Arguments::Value(Cow::Borrowed(b.input.unwrap_or(b"{}"))),
        })),
        b"tool_result" => Some(Part::Result {
            id: own(b.id),
            parts: b.content,
            is_error: b.is_error,
        }),
        b"thinking" => Some(Part::Thinking {
            text: own(b.thinking),
            signature: own(b.signature),
        }),
        // Only its own maker can read it.
        b"redacted_thinking" => {
            dropped.note("thinking");
            None
        }
        other => {
            let kind: String = unescape(other).chars().take(40).collect();
            return Err(TranslateError::not_carried(format!(
                "a content block of type `{kind}`"
            )));
        }
    })
}

fn media(b: Block<'_>) -> Res<Part<'_>> {
    let missing = TranslateError::not_carried("an image or document without its data");
    let source = b.source.ok_or_else(|| missing.clone())?;
    let data = Cow::Borrowed(source.data.unwrap_or_default());
    let media = Cow::Borrowed(source.media.unwrap_or_default());
    match (b.kind, source.kind, source.url) {
        (b"image", b"base64", _) => Ok(Part::Image(Image::Base64 { media, data })),
        (b"image", b"url", Some(url)) => Ok(Part::Image(Image::Url(Cow::Borrowed(url)))),
        (b"document", b"base64", _) => Ok(Part::File {
            name: b.title.map(Cow::Borrowed),
            media,
            data,
        }),
        (b"document", b"text", _) => Ok(Part::Text(data)),
        _ => Err(missing),
    }
}

fn source<'a>(c: &mut Cursor<'a>) -> Res<Source<'a>> {
    let mut source = Source::default();
    members(c, |key, c| {
        match key {
            b"type" => source.kind = text(c)?.unwrap_or_default(),
            b"media_type" => source.media = text(c)?,
            b"data" => source.data = text(c)?,
            b"url" => source.url = text(c)?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    Ok(source)
}

fn tool<'a>(c: &mut Cursor<'a>, dropped: &mut Dropped) -> Res<Option<Tool<'a>>> {
    let (mut name, mut description, mut schema, mut strict) = (None, None, None, false);
    members(c, |key, c| {
        match key {
            b"name" => name = text(c)?,
            b"description" => description = text(c)?.map(Cow::Borrowed),
            b"input_schema" => schema = Some(skip(c)?),
            b"strict" => strict = skip(c)? == b"true",
            b"type" => {
                skip(c)?;
            }
            _ => dropped.note_field(key, skip(c)?),
        }
        Ok::<_, TranslateError>(())
    })?;
    let name = name.unwrap_or_default();
    if schema.is_none() {
        // A tool of the provider's own, such as its web search: nobody else can run it.
        dropped.note(&format!(
            "tools.{}",
            unescape(name).chars().take(40).collect::<String>()
        ));
        return Ok(None);
    }
    Ok(Some(Tool {
        name: Cow::Borrowed(name),
        description,
        schema,
        strict,
        custom: false,
    }))
}

fn choice<'a>(request: &mut Request<'a>, c: &mut Cursor<'a>) -> Res<()> {
    let (mut kind, mut name) = (None, None);
    members(c, |key, c| {
        match key {
            b"type" => kind = text(c)?,
            b"name" => name = text(c)?,
            b"disable_parallel_tool_use" => request.parallel = flag(skip(c)?).map(|off| !off),
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    request.choice = match (kind, name) {
        (Some(b"auto"), _) => Some(Choice::Auto),
        (Some(b"any"), _) => Some(Choice::Any),
        (Some(b"none"), _) => Some(Choice::None),
        (Some(b"tool"), Some(name)) => Some(Choice::Named(Cow::Borrowed(name))),
        (None, _) => None,
        _ => return Err(TranslateError::not_carried("this `tool_choice`")),
    };
    Ok(())
}
