//! Streams of Chat Completions: reading their chunks and writing them.

use std::borrow::Cow;

use super::answer::fallback_id;
use crate::llm_api::json::{Cursor, JsonError};
use crate::llm_api::translate::WayBack;
use crate::llm_api::translate::form::{Arguments, Delta, Stop};
use crate::llm_api::translate::pen::{Pen, items, leave, members, number, skip, text};
use crate::llm_api::{StreamIdentity, stream_end};
use crate::types::{MicroUsd, Usage};

/// Most calls of one answer; an upstream with more is broken.
const CALLS_MAX: usize = 256;

/// Reads chunks; knows which calls have begun.
#[derive(Debug, Default)]
pub struct ChatReader {
    started: bool,
    calls: Vec<KnownCall>,
    refused: bool,
}

#[derive(Debug)]
struct KnownCall {
    index: u64,
    id: Vec<u8>,
    /// Its name has come, so it was announced.
    begun: bool,
    /// Arguments that came before the name.
    early: Vec<u8>,
}

/// What one entry of `delta.tool_calls` says.
#[derive(Default)]
struct Piece<'a> {
    index: Option<u64>,
    id: &'a [u8],
    name: &'a [u8],
    arguments: &'a [u8],
}

impl ChatReader {
    /// Reads one chunk's JSON.
    pub fn read<'a>(
        &mut self,
        json: &'a [u8],
        take: &mut impl FnMut(Delta<'a>),
    ) -> Result<(), JsonError> {
        let (mut id, mut model, mut choices) = (&b""[..], &b""[..], None);
        let mut cursor = Cursor::new(json, 0);
        members(&mut cursor, |key, c| {
            match key {
                b"id" => id = text(c)?.unwrap_or_default(),
                b"model" => model = text(c)?.unwrap_or_default(),
                b"choices" => {
                    let at = c.pos();
                    skip(c)?;
                    choices = Some(at);
                }
                _ => leave(c)?,
            }
            Ok::<_, JsonError>(())
        })?;
        let Some(at) = choices else { return Ok(()) };
        if !self.started {
            self.started = true;
            take(Delta::Start {
                id: Cow::Borrowed(id),
                model: Cow::Borrowed(model),
            });
        }
        let mut first = true;
        items(&mut Cursor::new(json, at), |c| {
            if std::mem::take(&mut first) {
                return self.choice(c, take);
            }
            skip(c).map(|_| ())
        })
    }

    fn choice<'a>(
        &mut self,
        c: &mut Cursor<'a>,
        take: &mut impl FnMut(Delta<'a>),
    ) -> Result<(), JsonError> {
        let mut stop = None;
        members(c, |key, c| match key {
            b"delta" => self.delta(c, take),
            b"finish_reason" => {
                stop = text(c)?;
                Ok(())
            }
            _ => leave(c),
        })?;
        if let Some(reason) = stop.filter(|r| !r.is_empty()) {
            let stop = match Stop::from_chat(reason) {
                Stop::EndTurn if self.refused => Stop::Filtered,
                other => other,
            };
            take(Delta::Stop(stop, None));
        }
        Ok(())
    }

    fn delta<'a>(
        &mut self,
        c: &mut Cursor<'a>,
        take: &mut impl FnMut(Delta<'a>),
    ) -> Result<(), JsonError> {
        let (mut thought, mut said, mut refusal) = (None, None, None);
        let mut pieces = Vec::new();
        members(c, |key, c| {
            match key {
                b"content" => said = text(c)?,
                b"refusal" => refusal = text(c)?,
                b"reasoning_content" => thought = text(c)?.or(thought),
                b"reasoning" => thought = thought.or(text(c)?),
                b"tool_calls" => items(c, |c| {
                    pieces.push(piece(c)?);
                    Ok::<_, JsonError>(())
                })?,
                _ => leave(c)?,
            }
            Ok::<_, JsonError>(())
        })?;
        let full = |t: Option<&'a [u8]>| t.filter(|t| !t.is_empty()).map(Cow::Borrowed);
        if let Some(text) = full(thought) {
            take(Delta::Thinking(text));
        }
        if let Some(text) = full(said) {
            take(Delta::Text(text));
        }
        if let Some(text) = full(refusal) {
            self.refused = true;
            take(Delta::Text(text));
        }
        for piece in pieces {
            self.call(&piece, take);
        }
        Ok(())
    }

    fn call<'a>(&mut self, piece: &Piece<'a>, take: &mut impl FnMut(Delta<'a>)) {
        // Without an index a new id means a new call.
        let found = match piece.index {
            Some(index) => self.calls.iter().position(|k| k.index == index),
            None if piece.id.is_empty() => self.calls.len().checked_sub(1),
            None => self.calls.iter().position(|k| k.id == piece.id),
        };
        let at = found.unwrap_or(self.calls.len());
        if found.is_none() {
            if at >= CALLS_MAX {
                return;
            }
            let next = self.calls.iter().map(|k| k.index + 1).max().unwrap_or(0);
            self.calls.push(KnownCall {
                index: piece.index.unwrap_or(next).min(u64::MAX - 1),
                id: Vec::new(),
                begun: false,
                early: Vec::new(),
            });
        }
        let Some(known) = self.calls.get_mut(at) else {
            return;
        };
        let key = known.index;
        if known.id.is_empty() {
            known.id = piece.id.to_vec();
        }
        if !known.begun && !piece.name.is_empty() {
            known.begun = true;
            take(Delta::Call {
                key,
                id: fallback_id(Cow::Owned(known.id.clone()), at),
                name: Cow::Borrowed(piece.name),
            });
            if !known.early.is_empty() {
                let text = Cow::Owned(std::mem::take(&mut known.early));
                take(Delta::Arguments { key, text });
            }
        }
        if piece.arguments.is_empty() {
            return;
        }
        if known.begun {
            let text = Cow::Borrowed(piece.arguments);
            take(Delta::Arguments { key, text });
        } else {
            known.early.extend_from_slice(piece.arguments);
        }
    }
}

fn piece<'a>(c: &mut Cursor<'a>) -> Result<Piece<'a>, JsonError> {
    let mut piece = Piece::default();
    members(c, |key, c| {
        match key {
            b"index" => piece.index = number(c)?,
            b"id" => piece.id = text(c)?.unwrap_or_default(),
            b"function" => members(c, |key, c| {
                match key {
                    b"name" => piece.name = text(c)?.unwrap_or_default(),
                    b"arguments" => piece.arguments = text(c)?.unwrap_or_default(),
                    _ => leave(c)?,
                }
                Ok::<_, JsonError>(())
            })?,
            _ => leave(c)?,
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(piece)
}

/// Writes chunks.
#[derive(Debug, Default)]
pub struct ChatWriter {
    /// `{"id":…,"object":…,"created":…,"model":…`, the same in every chunk.
    head: Vec<u8>,
    identity: StreamIdentity,
    /// Keys of the calls, in the order in which they began.
    calls: Vec<CallSaid>,
}

#[derive(Debug)]
struct CallSaid {
    key: u64,
    any_arguments: bool,
}

impl ChatWriter {
    /// Writes what one step adds.
    pub fn delta(&mut self, delta: &Delta<'_>, way: &WayBack, out: &mut Vec<u8>) {
        match delta {
            Delta::Start { id, model } => {
                self.start(id, model, way);
                self.chunk(out, |pen| {
                    pen.pair("role", b"assistant").pair("content", b"");
                });
            }
            Delta::Text(text) => self.chunk(out, |pen| {
                pen.pair("content", text);
            }),
            Delta::Thinking(text) => self.chunk(out, |pen| {
                pen.pair("reasoning_content", text);
            }),
            Delta::Call { key, id, name } => {
                let index = u64::try_from(self.calls.len()).unwrap_or(u64::MAX);
                self.calls.push(CallSaid {
                    key: *key,
                    any_arguments: false,
                });
                let name = way.names.original(name);
                let none = Arguments::Value(Cow::Borrowed(b""));
                self.chunk(out, |pen| {
                    pen.key("tool_calls").open(b'[');
                    super::request_out::write_call(id, name, &none, Some(index), pen);
                    pen.close(b']');
                });
            }
            Delta::Arguments { key, text } => {
                let found = self
                    .calls
                    .iter_mut()
                    .enumerate()
                    .find(|(_, c)| c.key == *key);
                if let Some((index, call)) = found {
                    call.any_arguments = true;
                    self.arguments(index, text, out);
                }
            }
            Delta::Signature(_) | Delta::Stop(..) => {}
        }
    }

    fn start(&mut self, id: &[u8], model: &[u8], way: &WayBack) {
        let mut pen = Pen::default();
        pen.open(b'{')
            .pair("id", id)
            .pair("object", b"chat.completion.chunk");
        pen.field("created", way.created_s.to_string().as_bytes());
        pen.pair("model", model);
        self.head = pen.out;
        let plain = |raw: &[u8]| crate::llm_api::json::unescape(raw).into_owned();
        self.identity = StreamIdentity {
            id: plain(id),
            model: plain(model),
            created_s: way.created_s,
        };
    }

    fn arguments(&self, index: usize, text: &[u8], out: &mut Vec<u8>) {
        self.chunk(out, |pen| {
            pen.key("tool_calls").open(b'[').open(b'{');
            pen.field("index", index.to_string().as_bytes());
            pen.key("function").open(b'{').pair("arguments", text);
            pen.close(b'}').close(b'}').close(b']');
        });
    }

    fn chunk(&self, out: &mut Vec<u8>, fill: impl FnOnce(&mut Pen)) {
        out.extend_from_slice(b"data: ");
        let mut pen = Pen {
            out: std::mem::take(out),
        };
        pen.out.extend_from_slice(&self.head);
        pen.key("choices")
            .open(b'[')
            .open(b'{')
            .field("index", b"0");
        pen.key("delta").open(b'{');
        fill(&mut pen);
        pen.close(b'}').field("finish_reason", b"null");
        pen.close(b'}').close(b']').close(b'}');
        *out = pen.out;
        out.extend_from_slice(b"\n\n");
    }

    /// Stop reason, usage when asked for, `[DONE]`.
    pub fn finish(
        &mut self,
        stop: &Stop,
        way: &WayBack,
        usage: &Usage,
        cost: MicroUsd,
        out: &mut Vec<u8>,
    ) {
        for (index, call) in self.calls.iter().enumerate() {
            if !call.any_arguments {
                self.arguments(index, b"{}", out);
            }
        }
        out.extend_from_slice(&stream_end::chat_finish_chunk(&self.identity, stop.chat()));
        if way.include_usage {
            let chunk = stream_end::chat_usage_chunk(&self.identity, usage, Some(cost));
            out.extend_from_slice(&chunk);
        }
        out.extend_from_slice(stream_end::CHAT_DONE);
    }
}
