//! Streams of Messages: reading their events and writing them.

use std::borrow::Cow;

use crate::llm_api::json::{Cursor, JsonError, quoted};
use crate::llm_api::translate::WayBack;
use crate::llm_api::translate::form::{Delta, Stop, escape};
use crate::llm_api::translate::pen::{Pen, leave, members, number, skip, text};
use crate::llm_api::{Dialect, stream_end, usage};
use crate::types::Usage;

/// Reads events; knows which blocks are calls.
#[derive(Debug, Default)]
pub struct MessagesReader {
    calls: Vec<u64>,
}

/// The members of an event that matter, whatever its type.
#[derive(Default)]
struct Event<'a> {
    kind: &'a [u8],
    index: u64,
    id: &'a [u8],
    model: &'a [u8],
    /// Of `content_block` or `delta`.
    inner: &'a [u8],
    name: &'a [u8],
    text: Option<&'a [u8]>,
    input: Option<&'a [u8]>,
    stop: Option<&'a [u8]>,
    sequence: Option<&'a [u8]>,
}

impl MessagesReader {
    /// Reads one event's JSON.
    pub fn read<'a>(
        &mut self,
        json: &'a [u8],
        take: &mut impl FnMut(Delta<'a>),
    ) -> Result<(), JsonError> {
        let e = event(json)?;
        let words = e.text.filter(|t| !t.is_empty()).map(Cow::Borrowed);
        match e.kind {
            b"message_start" => take(Delta::Start {
                id: Cow::Borrowed(e.id),
                model: Cow::Borrowed(e.model),
            }),
            b"content_block_start" if e.inner == b"tool_use" => {
                let key = e.index;
                self.calls.push(key);
                take(Delta::Call {
                    key,
                    id: Cow::Borrowed(e.id),
                    name: Cow::Borrowed(e.name),
                });
                // Some upstreams send all arguments at once.
                if let Some(input) = e.input.filter(|i| i.len() > 2) {
                    let text = Cow::Owned(escape(input));
                    take(Delta::Arguments { key, text });
                }
            }
            b"content_block_start" | b"content_block_delta" => match (e.inner, words) {
                (b"text" | b"text_delta", Some(text)) => take(Delta::Text(text)),
                (b"thinking" | b"thinking_delta", Some(text)) => take(Delta::Thinking(text)),
                (b"signature_delta", Some(text)) => take(Delta::Signature(text)),
                (b"input_json_delta", Some(text)) if self.calls.contains(&e.index) => {
                    take(Delta::Arguments { key: e.index, text });
                }
                _ => {}
            },
            b"message_delta" => {
                if let Some(stop) = e.stop {
                    let sequence = e.sequence.map(Cow::Borrowed);
                    take(Delta::Stop(Stop::from_messages(stop), sequence));
                }
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
            b"index" => e.index = number(c)?.unwrap_or(0),
            b"message" | b"content_block" | b"delta" => members(c, |key, c| {
                match key {
                    b"type" => e.inner = text(c)?.unwrap_or_default(),
                    b"id" => e.id = text(c)?.unwrap_or_default(),
                    b"model" => e.model = text(c)?.unwrap_or_default(),
                    b"name" => e.name = text(c)?.unwrap_or_default(),
                    b"text" | b"thinking" | b"partial_json" | b"signature" => {
                        e.text = text(c)?.filter(|t| !t.is_empty()).or(e.text);
                    }
                    b"input" => e.input = Some(skip(c)?),
                    b"stop_reason" => e.stop = text(c)?,
                    b"stop_sequence" => e.sequence = text(c)?,
                    _ => leave(c)?,
                }
                Ok::<_, JsonError>(())
            })?,
            _ => leave(c)?,
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(e)
}

/// The block that is open at the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Open {
    #[default]
    Nothing,
    Text,
    Thinking,
    Call(u64),
}

/// Writes events. Blocks never interleave: while one call is open the others wait, because chat
/// says of no call that it is over before the whole answer is.
#[derive(Debug, Default)]
pub struct MessagesWriter {
    open: Open,
    blocks: u64,
    waiting: Vec<Waiting>,
    /// Text that came after a call began.
    late: Vec<u8>,
}

#[derive(Debug)]
struct Waiting {
    key: u64,
    id: Vec<u8>,
    name: Vec<u8>,
    arguments: Vec<u8>,
}

impl MessagesWriter {
    /// Writes what one step adds.
    pub fn delta(&mut self, delta: &Delta<'_>, way: &WayBack, out: &mut Vec<u8>) {
        match delta {
            Delta::Start { id, model } => Self::start(id, model, out),
            Delta::Text(text) if matches!(self.open, Open::Call(_)) => {
                self.late.extend_from_slice(text);
            }
            Delta::Text(text) => {
                self.switch(Open::Text, out);
                self.block_delta("text_delta", "text", text, out);
            }
            // Thoughts after a call began would interleave; they are nobody's answer.
            Delta::Thinking(_) | Delta::Signature(_) if matches!(self.open, Open::Call(_)) => {}
            Delta::Thinking(text) => {
                self.switch(Open::Thinking, out);
                self.block_delta("thinking_delta", "thinking", text, out);
            }
            Delta::Signature(text) => {
                self.switch(Open::Thinking, out);
                self.block_delta("signature_delta", "signature", text, out);
            }
            Delta::Call { key, id, name } => {
                let name = way.names.original(name);
                if matches!(self.open, Open::Call(_)) {
                    self.waiting.push(Waiting {
                        key: *key,
                        id: id.to_vec(),
                        name: name.to_vec(),
                        arguments: Vec::new(),
                    });
                } else {
                    self.begin_call(*key, id, name, out);
                }
            }
            Delta::Arguments { key, text } if self.open == Open::Call(*key) => {
                self.block_delta("input_json_delta", "partial_json", text, out);
            }
            Delta::Arguments { key, text } => {
                if let Some(call) = self.waiting.iter_mut().find(|w| w.key == *key) {
                    call.arguments.extend_from_slice(text);
                }
            }
            Delta::Stop(..) => {}
        }
    }

    fn start(id: &[u8], model: &[u8], out: &mut Vec<u8>) {
        // Clients take the maximum of each count, so a start without counts says 0.
        let nothing = usage::to_json(Dialect::Messages, &Usage::default(), None);
        event_out("message_start", out, |pen| {
            pen.key("message")
                .open(b'{')
                .pair("id", id)
                .pair("type", b"message");
            pen.pair("role", b"assistant").pair("model", model);
            pen.field("content", b"[]").field("stop_reason", b"null");
            pen.field("stop_sequence", b"null")
                .field("usage", nothing.as_bytes());
            pen.close(b'}');
        });
    }

    fn begin_call(&mut self, key: u64, id: &[u8], name: &[u8], out: &mut Vec<u8>) {
        self.close(out);
        self.open = Open::Call(key);
        self.block_start(out, |pen| {
            pen.pair("type", b"tool_use")
                .pair("id", id)
                .pair("name", name);
            pen.field("input", b"{}");
        });
    }

    fn switch(&mut self, to: Open, out: &mut Vec<u8>) {
        if self.open == to {
            return;
        }
        self.close(out);
        self.open = to;
        self.block_start(out, |pen| {
            if to == Open::Thinking {
                pen.pair("type", b"thinking")
                    .pair("thinking", b"")
                    .pair("signature", b"");
            } else {
                pen.pair("type", b"text").pair("text", b"");
            }
        });
    }

    fn block_start(&self, out: &mut Vec<u8>, fill: impl FnOnce(&mut Pen)) {
        event_out("content_block_start", out, |pen| {
            pen.field("index", self.blocks.to_string().as_bytes());
            pen.key("content_block").open(b'{');
            fill(pen);
            pen.close(b'}');
        });
    }

    fn block_delta(&self, kind: &str, key: &str, text: &[u8], out: &mut Vec<u8>) {
        event_out("content_block_delta", out, |pen| {
            pen.field("index", self.blocks.to_string().as_bytes());
            pen.key("delta").open(b'{').pair("type", kind.as_bytes());
            pen.pair(key, text).close(b'}');
        });
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open == Open::Nothing {
            return;
        }
        self.open = Open::Nothing;
        event_out("content_block_stop", out, |pen| {
            pen.field("index", self.blocks.to_string().as_bytes());
        });
        self.blocks += 1;
    }

    /// The calls that waited, `message_delta` with usage, `message_stop`.
    pub fn finish(
        &mut self,
        stop: &Stop,
        sequence: Option<&[u8]>,
        used: &Usage,
        out: &mut Vec<u8>,
    ) {
        for call in std::mem::take(&mut self.waiting) {
            self.begin_call(call.key, &call.id, &call.name, out);
            if !call.arguments.is_empty() {
                self.block_delta("input_json_delta", "partial_json", &call.arguments, out);
            }
        }
        if !self.late.is_empty() {
            let late = std::mem::take(&mut self.late);
            self.switch(Open::Text, out);
            self.block_delta("text_delta", "text", &late, out);
        }
        self.close(out);
        event_out("message_delta", out, |pen| {
            pen.key("delta").open(b'{');
            pen.field("stop_reason", quoted(stop.messages()).as_bytes());
            pen.key("stop_sequence");
            match sequence {
                Some(text) => pen.text(text),
                None => pen.raw(b"null"),
            };
            pen.close(b'}');
            let used = usage::to_json(Dialect::Messages, used, None);
            pen.field("usage", used.as_bytes());
        });
        out.extend_from_slice(stream_end::MESSAGE_STOP);
    }
}

/// One event with its name, in `data` again as `type`.
pub fn event_out(name: &str, out: &mut Vec<u8>, fill: impl FnOnce(&mut Pen)) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    let mut pen = Pen {
        out: std::mem::take(out),
    };
    pen.open(b'{').pair("type", name.as_bytes());
    fill(&mut pen);
    pen.close(b'}');
    *out = pen.out;
    out.extend_from_slice(b"\n\n");
}
