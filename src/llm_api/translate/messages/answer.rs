//! Whole Messages answers: to the internal form and from it.

use std::borrow::Cow;

use crate::llm_api::json::{Cursor, quoted};
use crate::llm_api::translate::WayBack;
use crate::llm_api::translate::form::{Answer, Dropped, Part, Stop, TranslateError};
use crate::llm_api::translate::pen::{Pen, items, leave, members, text};
use crate::llm_api::{Dialect, usage};
use crate::types::Usage;

type Res<T> = Result<T, TranslateError>;

/// Reads an answer.
pub fn read(body: &[u8]) -> Res<Answer<'_>> {
    let mut answer = Answer::default();
    let mut found = false;
    let mut cursor = Cursor::new(body, 0);
    members(&mut cursor, |key, c| {
        match key {
            b"id" => answer.id = Cow::Borrowed(text(c)?.unwrap_or_default()),
            b"model" => answer.model = Cow::Borrowed(text(c)?.unwrap_or_default()),
            b"stop_reason" => answer.stop = text(c)?.map(Stop::from_messages),
            b"stop_sequence" => answer.sequence = text(c)?.map(Cow::Borrowed),
            b"content" => {
                found = true;
                items(c, |c| {
                    let mut unseen = Dropped::default();
                    // A block of a kind that the client's dialect lacks is left out.
                    let start = c.pos();
                    match super::request_in::block(c, &mut unseen) {
                        Ok(part) => answer.parts.extend(part),
                        Err(TranslateError::Json(error)) => return Err(error.into()),
                        Err(_) => tracing::debug!(at = start, "an answer's block is left out"),
                    }
                    Ok::<_, TranslateError>(())
                })?;
            }
            _ => leave(c)?,
        }
        Ok::<_, TranslateError>(())
    })?;
    if !found {
        return Err(TranslateError::Refused(
            "the upstream's answer has no content",
        ));
    }
    Ok(answer)
}

/// Writes a `message`.
pub fn write(answer: &Answer<'_>, stop: &Stop, way: &WayBack, used: &Usage, pen: &mut Pen) {
    pen.open(b'{')
        .pair("id", &answer.id)
        .pair("type", b"message")
        .pair("role", b"assistant");
    pen.pair("model", &answer.model).key("content").open(b'[');
    for part in &answer.parts {
        match part {
            Part::Text(text) => {
                pen.text_part("text", text);
            }
            Part::Thinking { text, signature } => {
                pen.open(b'{')
                    .pair("type", b"thinking")
                    .pair("thinking", text);
                pen.pair("signature", signature).close(b'}');
            }
            Part::Call(call) => {
                let name = way.names.original(&call.name);
                // Arguments that are no object stay the text that they are.
                let input = call.arguments.object().unwrap_or_else(|| {
                    Cow::Owned([b"\"", call.arguments.escaped().as_ref(), b"\""].concat())
                });
                super::request_out::write_call(&call.id, name, &input, pen);
            }
            Part::Image(_) | Part::File { .. } | Part::Result { .. } => {}
        }
    }
    pen.close(b']')
        .field("stop_reason", quoted(stop.messages()).as_bytes());
    pen.key("stop_sequence");
    match &answer.sequence {
        Some(sequence) => pen.text(sequence),
        None => pen.raw(b"null"),
    };
    let used = usage::to_json(Dialect::Messages, used, None);
    pen.field("usage", used.as_bytes()).close(b'}');
}
