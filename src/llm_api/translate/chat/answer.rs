//! Whole Chat Completions answers: to the internal form and from it.

use std::borrow::Cow;

use crate::llm_api::json::{Cursor, quoted};
use crate::llm_api::translate::WayBack;
use crate::llm_api::translate::form::{Answer, Part, Stop, Text, TranslateError, texts};
use crate::llm_api::translate::pen::{Pen, items, leave, members, skip, text};
use crate::llm_api::{Dialect, usage};
use crate::types::{MicroUsd, Usage};

type Res<T> = Result<T, TranslateError>;

/// Reads an answer; of several choices the first.
pub fn read(body: &[u8]) -> Res<Answer<'_>> {
    let mut answer = Answer::default();
    let (mut seen, mut found) = (0u32, false);
    let mut cursor = Cursor::new(body, 0);
    members(&mut cursor, |key, c| {
        match key {
            b"id" => answer.id = Cow::Borrowed(text(c)?.unwrap_or_default()),
            b"model" => answer.model = Cow::Borrowed(text(c)?.unwrap_or_default()),
            b"choices" => items(c, |c| {
                seen += 1;
                if seen > 1 {
                    skip(c)?;
                    return Ok(());
                }
                found = true;
                choice(&mut answer, c)
            })?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    if !found {
        return Err(TranslateError::Refused(
            "the upstream's answer has no choices",
        ));
    }
    Ok(answer)
}

fn choice<'a>(answer: &mut Answer<'a>, c: &mut Cursor<'a>) -> Res<()> {
    members(c, |key, c| {
        match key {
            b"finish_reason" => answer.stop = text(c)?.map(Stop::from_chat),
            b"message" => message(answer, c)?,
            _ => leave(c)?,
        }
        Ok(())
    })
    .map(|()| {
        let refused = answer.sequence.take().is_some();
        if refused && matches!(answer.stop, Some(Stop::EndTurn) | None) {
            answer.stop = Some(Stop::Filtered);
        }
    })
}

fn message<'a>(answer: &mut Answer<'a>, c: &mut Cursor<'a>) -> Res<()> {
    let (mut thought, mut said, mut refusal) = (None, Vec::new(), None);
    let mut calls: Vec<Part<'a>> = Vec::new();
    members(c, |key, c| {
        match key {
            b"content" if c.peek() == Some(b'[') => items(c, |c| {
                let mut words = None;
                members(c, |key, c| {
                    match key {
                        b"text" => words = text(c)?,
                        _ => leave(c)?,
                    }
                    Ok::<_, TranslateError>(())
                })?;
                said.extend(words);
                Ok::<_, TranslateError>(())
            })?,
            b"content" => said.extend(text(c)?),
            b"refusal" => refusal = text(c)?.filter(|t| !t.is_empty()),
            b"reasoning_content" => thought = text(c)?.or(thought),
            b"reasoning" => thought = thought.or(text(c)?),
            b"tool_calls" => items(c, |c| {
                if let Some(mut call) = super::request_in::call(c)? {
                    call.id = fallback_id(call.id, calls.len());
                    calls.push(Part::Call(call));
                }
                Ok::<_, TranslateError>(())
            })?,
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    if let Some(thought) = thought.filter(|t| !t.is_empty()) {
        answer.parts.push(Part::Thinking {
            text: Cow::Borrowed(thought),
            signature: Cow::Borrowed(b""),
        });
    }
    // The choice above takes the mark of a refusal from here.
    answer.sequence = refusal.map(Cow::Borrowed);
    let texts = said.into_iter().chain(refusal).filter(|t| !t.is_empty());
    answer
        .parts
        .extend(texts.map(|t| Part::Text(Cow::Borrowed(t))));
    answer.parts.append(&mut calls);
    Ok(())
}

/// Some upstreams give calls no id; a client needs one to answer.
pub fn fallback_id(id: Text<'_>, number: usize) -> Text<'_> {
    if id.is_empty() {
        return Cow::Owned(format!("call_{number}").into_bytes());
    }
    id
}

/// Writes a `chat.completion`.
pub fn write(
    answer: &Answer<'_>,
    stop: &Stop,
    way: &WayBack,
    used: &Usage,
    cost: MicroUsd,
    pen: &mut Pen,
) {
    pen.open(b'{')
        .pair("id", &answer.id)
        .pair("object", b"chat.completion");
    pen.field("created", way.created_s.to_string().as_bytes());
    pen.pair("model", &answer.model);
    pen.key("choices")
        .open(b'[')
        .open(b'{')
        .field("index", b"0");
    pen.key("message")
        .open(b'{')
        .pair("role", b"assistant")
        .key("content");
    let texts = texts(&answer.parts);
    if texts.is_empty() {
        pen.raw(b"null");
    } else {
        pen.texts(&texts);
    }
    pen.field("refusal", b"null");
    let mut calls = false;
    for part in &answer.parts {
        match part {
            Part::Thinking { text, .. } if !text.is_empty() => {
                pen.pair("reasoning_content", text);
            }
            Part::Call(_) => calls = true,
            _ => {}
        }
    }
    if calls {
        pen.key("tool_calls").open(b'[');
        for part in &answer.parts {
            if let Part::Call(call) = part {
                let name = way.names.original(&call.name);
                super::request_out::write_call(&call.id, name, &call.arguments, None, pen);
            }
        }
        pen.close(b']');
    }
    pen.close(b'}').field("logprobs", b"null");
    pen.field("finish_reason", quoted(stop.chat()).as_bytes());
    pen.close(b'}').close(b']');
    let used = usage::to_json(Dialect::Chat, used, Some(cost));
    pen.field("usage", used.as_bytes()).close(b'}');
}
