//! Responses answers and streams, read.

use std::borrow::Cow;

use crate::llm_api::json::{Cursor, JsonError};
use crate::llm_api::translate::form::{Answer, Arguments, Call, Delta, Part, Stop, TranslateError};
use crate::llm_api::translate::pen::{items, leave, members, number, text};

/// What matters of a response object.
#[derive(Debug, Default)]
struct Object<'a> {
    id: &'a [u8],
    model: &'a [u8],
    status: &'a [u8],
    why: &'a [u8],
    parts: Vec<Part<'a>>,
    refused: bool,
    found: bool,
}

/// Reads a whole answer.
pub fn read(body: &[u8]) -> Result<Answer<'_>, TranslateError> {
    let object = object(&mut Cursor::new(body, 0))?;
    if !object.found || object.status == b"failed" {
        let text = "the upstream's answer has no output";
        return Err(TranslateError::Refused(text));
    }
    let stop = object.stop();
    Ok(Answer {
        id: Cow::Borrowed(object.id),
        model: Cow::Borrowed(object.model),
        parts: object.parts,
        stop: Some(stop),
        sequence: None,
    })
}

impl Object<'_> {
    fn stop(&self) -> Stop {
        match (self.status, self.why) {
            (b"incomplete", b"content_filter") => Stop::Filtered,
            (b"incomplete", _) => Stop::Length,
            _ if self.refused => Stop::Filtered,
            _ => Stop::EndTurn,
        }
    }
}

fn object<'a>(c: &mut Cursor<'a>) -> Result<Object<'a>, JsonError> {
    let mut o = Object::default();
    members(c, |key, c| {
        match key {
            b"id" => o.id = text(c)?.unwrap_or_default(),
            b"model" => o.model = text(c)?.unwrap_or_default(),
            b"status" => o.status = text(c)?.unwrap_or_default(),
            b"incomplete_details" => members(c, |key, c| {
                match key {
                    b"reason" => o.why = text(c)?.unwrap_or_default(),
                    _ => leave(c)?,
                }
                Ok::<_, JsonError>(())
            })?,
            b"output" => {
                o.found = true;
                items(c, |c| {
                    let item = item(c)?;
                    o.refused |= item.refused;
                    o.parts.extend(item.parts());
                    Ok::<_, JsonError>(())
                })?;
            }
            _ => leave(c)?,
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(o)
}

/// The members of an output item, whatever its type.
#[derive(Debug, Default)]
struct Item<'a> {
    kind: &'a [u8],
    call_id: &'a [u8],
    name: &'a [u8],
    arguments: &'a [u8],
    texts: Vec<&'a [u8]>,
    refused: bool,
}

impl<'a> Item<'a> {
    fn parts(self) -> Vec<Part<'a>> {
        let texts = self
            .texts
            .into_iter()
            .filter(|t| !t.is_empty())
            .map(Cow::Borrowed);
        match self.kind {
            b"message" => texts.map(Part::Text).collect(),
            b"reasoning" => texts
                .map(|text| Part::Thinking {
                    text,
                    signature: Cow::Borrowed(b""),
                })
                .collect(),
            b"function_call" => vec![Part::Call(Call {
                id: Cow::Borrowed(self.call_id),
                name: Cow::Borrowed(self.name),
                arguments: Arguments::Escaped(Cow::Borrowed(self.arguments)),
            })],
            _ => Vec::new(),
        }
    }
}

fn item<'a>(c: &mut Cursor<'a>) -> Result<Item<'a>, JsonError> {
    let mut it = Item::default();
    members(c, |key, c| {
        match key {
            b"type" => it.kind = text(c)?.unwrap_or_default(),
            b"call_id" => it.call_id = text(c)?.unwrap_or_default(),
            b"name" => it.name = text(c)?.unwrap_or_default(),
            b"arguments" => it.arguments = text(c)?.unwrap_or_default(),
            b"content" | b"summary" => items(c, |c| {
                members(c, |key, c| {
                    match key {
                        b"text" => it.texts.extend(text(c)?),
                        b"refusal" => {
                            it.refused = true;
                            it.texts.extend(text(c)?);
                        }
                        _ => leave(c)?,
                    }
                    Ok::<_, JsonError>(())
                })
            })?,
            _ => leave(c)?,
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(it)
}

/// Reads events; knows which calls have said their arguments.
#[derive(Debug, Default)]
pub struct ResponsesReader {
    /// Keys of calls, and whether any arguments came.
    calls: Vec<(u64, bool)>,
    refused: bool,
}

/// The members of an event that matter, whatever its type.
#[derive(Default)]
struct Event<'a> {
    kind: &'a [u8],
    index: u64,
    delta: Option<&'a [u8]>,
    arguments: Option<&'a [u8]>,
    item: Item<'a>,
    response: Object<'a>,
}

impl ResponsesReader {
    /// Reads one event's JSON.
    pub fn read<'a>(
        &mut self,
        json: &'a [u8],
        take: &mut impl FnMut(Delta<'a>),
    ) -> Result<(), JsonError> {
        let e = event(json)?;
        let (key, words) = (
            e.index,
            e.delta.filter(|t| !t.is_empty()).map(Cow::Borrowed),
        );
        match (e.kind, words) {
            (b"response.created", _) => take(Delta::Start {
                id: Cow::Borrowed(e.response.id),
                model: Cow::Borrowed(e.response.model),
            }),
            (b"response.output_item.added", _) if e.item.kind == b"function_call" => {
                self.calls.push((key, false));
                take(Delta::Call {
                    key,
                    id: Cow::Borrowed(e.item.call_id),
                    name: Cow::Borrowed(e.item.name),
                });
            }
            (b"response.output_text.delta", Some(text)) => take(Delta::Text(text)),
            (b"response.refusal.delta", Some(text)) => {
                self.refused = true;
                take(Delta::Text(text));
            }
            (
                b"response.reasoning_summary_text.delta" | b"response.reasoning_text.delta",
                Some(text),
            ) => {
                take(Delta::Thinking(text));
            }
            (b"response.function_call_arguments.delta", Some(text)) => {
                if let Some(call) = self.calls.iter_mut().find(|c| c.0 == key) {
                    call.1 = true;
                    take(Delta::Arguments { key, text });
                }
            }
            // Some upstreams say all arguments only here.
            (b"response.function_call_arguments.done", _) => {
                if let (Some(call), Some(all)) =
                    (self.calls.iter_mut().find(|c| c.0 == key), e.arguments)
                    && !std::mem::replace(&mut call.1, true)
                {
                    let text = Cow::Borrowed(all);
                    take(Delta::Arguments { key, text });
                }
            }
            (b"response.completed" | b"response.incomplete", _) => {
                let stop = match e.response.stop() {
                    Stop::EndTurn if self.refused => Stop::Filtered,
                    other => other,
                };
                take(Delta::Stop(stop, None));
            }
            _ => {}
        }
        Ok(())
    }
}

fn event(json: &[u8]) -> Result<Event<'_>, JsonError> {
    let mut e = Event::default();
    members(&mut Cursor::new(json, 0), |key, c| {
        match key {
            b"type" => e.kind = text(c)?.unwrap_or_default(),
            b"output_index" => e.index = number(c)?.unwrap_or(0),
            b"delta" => e.delta = text(c)?,
            b"arguments" => e.arguments = text(c)?,
            b"item" => e.item = item(c)?,
            b"response" => e.response = object(c)?,
            _ => leave(c)?,
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(e)
}
