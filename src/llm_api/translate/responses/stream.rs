//! Responses streams, written: every event numbered, every item opened, filled and closed.

use super::answer::{self, Head, item_id};
use crate::llm_api::translate::WayBack;
use crate::llm_api::translate::form::{Arguments, Delta, Stop};
use crate::llm_api::translate::messages::stream::event_out;
use crate::llm_api::translate::pen::Pen;
use crate::types::Usage;

/// Writes events. Items may be open side by side; each event names its item.
#[derive(Debug, Default)]
pub struct ResponsesWriter {
    id: Vec<u8>,
    model: Vec<u8>,
    created_s: u64,
    sequence: u64,
    items: Vec<Item>,
}

#[derive(Debug)]
struct Item {
    kind: Kind,
    /// What has come: text, or arguments.
    said: Vec<u8>,
    closed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call {
        key: u64,
        id: Vec<u8>,
        name: Vec<u8>,
        custom: bool,
    },
}

impl Kind {
    fn item_id(&self, index: usize) -> String {
        match self {
            Self::Text => item_id("msg", index),
            Self::Thinking => item_id("rs", index),
            Self::Call { custom: true, .. } => item_id("ctc", index),
            Self::Call { .. } => item_id("fc", index),
        }
    }
}

impl ResponsesWriter {
    /// Writes what one step adds.
    pub fn delta(&mut self, delta: &Delta<'_>, way: &WayBack, out: &mut Vec<u8>) {
        match delta {
            Delta::Start { id, model } => self.start(id, model, way, out),
            Delta::Text(text) => {
                let index = self.open(Kind::Text, out);
                self.grow(index, text, "response.output_text.delta", out);
            }
            Delta::Thinking(text) => {
                let index = self.open(Kind::Thinking, out);
                self.grow(index, text, "response.reasoning_summary_text.delta", out);
            }
            Delta::Call { key, id, name } => {
                let name = way.names.original(name).to_vec();
                self.close_texts(out);
                let custom = way.names.is_custom(&name);
                let (key, id) = (*key, id.to_vec());
                self.begin(
                    Kind::Call {
                        key,
                        id,
                        name,
                        custom,
                    },
                    out,
                );
            }
            Delta::Arguments { key: of, text } => {
                let found =
                    self.items
                        .iter()
                        .enumerate()
                        .find_map(|(index, item)| match &item.kind {
                            Kind::Call { key, custom, .. } if key == of => Some((index, *custom)),
                            _ => None,
                        });
                match found {
                    // Free text stands inside of arguments and is cut out when they are whole.
                    Some((index, true)) => {
                        if let Some(item) = self.items.get_mut(index) {
                            item.said.extend_from_slice(text);
                        }
                    }
                    Some((index, false)) => {
                        self.grow(index, text, "response.function_call_arguments.delta", out);
                    }
                    None => {}
                }
            }
            Delta::Signature(_) | Delta::Stop(..) => {}
        }
    }

    /// The number of the next event.
    pub const fn next_number(&self) -> u64 {
        self.sequence
    }

    fn event(&mut self, name: &str, out: &mut Vec<u8>, fill: impl FnOnce(&mut Pen)) {
        let number = self.sequence;
        self.sequence += 1;
        event_out(name, out, |pen| {
            pen.field("sequence_number", number.to_string().as_bytes());
            fill(pen);
        });
    }

    fn start(&mut self, id: &[u8], model: &[u8], way: &WayBack, out: &mut Vec<u8>) {
        self.id = id.to_vec();
        self.model = model.to_vec();
        self.created_s = way.created_s;
        for name in ["response.created", "response.in_progress"] {
            let mut object = Pen::default();
            answer::response(&self.head(), None, b"[]", &mut object);
            self.event(name, out, |pen| {
                pen.field("response", &object.out);
            });
        }
    }

    fn head(&self) -> Head<'_> {
        Head {
            id: &self.id,
            model: &self.model,
            created_s: self.created_s,
        }
    }

    /// The open item of this kind, or a new one.
    fn open(&mut self, kind: Kind, out: &mut Vec<u8>) -> usize {
        let last = self.items.len().saturating_sub(1);
        if self
            .items
            .last()
            .is_some_and(|item| item.kind == kind && !item.closed)
        {
            return last;
        }
        self.close_texts(out);
        self.begin(kind, out)
    }

    fn begin(&mut self, kind: Kind, out: &mut Vec<u8>) -> usize {
        let index = self.items.len();
        let id = kind.item_id(index);
        self.event("response.output_item.added", out, |pen| {
            place(index, pen);
            pen.key("item").open(b'{').pair("id", id.as_bytes());
            match &kind {
                Kind::Text => {
                    pen.pair("type", b"message").pair("status", b"in_progress");
                    pen.pair("role", b"assistant").field("content", b"[]");
                }
                Kind::Thinking => {
                    pen.pair("type", b"reasoning").field("summary", b"[]");
                }
                Kind::Call {
                    id, name, custom, ..
                } => {
                    if *custom {
                        pen.pair("type", b"custom_tool_call").pair("input", b"");
                    } else {
                        pen.pair("type", b"function_call").pair("arguments", b"");
                    }
                    pen.pair("status", b"in_progress")
                        .pair("call_id", id)
                        .pair("name", name);
                }
            }
            pen.close(b'}');
        });
        self.part(&kind, index, b"", false, out);
        self.items.push(Item {
            kind,
            said: Vec::new(),
            closed: false,
        });
        index
    }

    /// A message's or a reasoning item's only part begins, or is done.
    fn part(&mut self, kind: &Kind, index: usize, text: &[u8], done: bool, out: &mut Vec<u8>) {
        let name = match (kind, done) {
            (Kind::Text, false) => "response.content_part.added",
            (Kind::Text, true) => "response.content_part.done",
            (Kind::Thinking, false) => "response.reasoning_summary_part.added",
            (Kind::Thinking, true) => "response.reasoning_summary_part.done",
            (Kind::Call { .. }, _) => return,
        };
        let id = kind.item_id(index);
        self.event(name, out, |pen| {
            pen.pair("item_id", id.as_bytes());
            place(index, pen);
            if *kind == Kind::Text {
                pen.field("content_index", b"0").key("part");
                answer::text_part(text, pen);
            } else {
                pen.field("summary_index", b"0").key("part");
                answer::summary_part(text, pen);
            }
        });
    }

    fn grow(&mut self, index: usize, text: &[u8], name: &str, out: &mut Vec<u8>) {
        let Some(item) = self.items.get_mut(index) else {
            return;
        };
        item.said.extend_from_slice(text);
        let id = item.kind.item_id(index);
        self.said(name, index, &id, "delta", text, out);
    }

    /// A delta or the whole of an item's text.
    fn said(
        &mut self,
        name: &str,
        index: usize,
        id: &str,
        key: &str,
        text: &[u8],
        out: &mut Vec<u8>,
    ) {
        self.event(name, out, |pen| {
            pen.pair("item_id", id.as_bytes());
            place(index, pen);
            if name.starts_with("response.output_text") {
                pen.field("content_index", b"0").field("logprobs", b"[]");
            } else if name.starts_with("response.reasoning") {
                pen.field("summary_index", b"0");
            }
            pen.pair(key, text);
        });
    }

    /// Closes texts and thoughts; calls stay open until the end.
    fn close_texts(&mut self, out: &mut Vec<u8>) {
        for index in 0..self.items.len() {
            let is_call = |item: &Item| matches!(item.kind, Kind::Call { .. });
            if self.items.get(index).is_some_and(|item| !is_call(item)) {
                self.close(index, out);
            }
        }
    }

    fn close(&mut self, index: usize, out: &mut Vec<u8>) {
        let Some(item) = self.items.get_mut(index).filter(|item| !item.closed) else {
            return;
        };
        item.closed = true;
        let said = item.said.clone();
        let kind = std::mem::replace(&mut item.kind, Kind::Text);
        let id = kind.item_id(index);
        match &kind {
            Kind::Text => self.said("response.output_text.done", index, &id, "text", &said, out),
            Kind::Thinking => {
                self.said(
                    "response.reasoning_summary_text.done",
                    index,
                    &id,
                    "text",
                    &said,
                    out,
                );
            }
            Kind::Call { custom: true, .. } => {
                let text = answer::custom_input(&Arguments::Escaped(said.as_slice().into()));
                let (delta, done) = (
                    "response.custom_tool_call_input.delta",
                    "response.custom_tool_call_input.done",
                );
                self.said(delta, index, &id, "delta", &text, out);
                self.said(done, index, &id, "input", &text, out);
            }
            Kind::Call { .. } => {
                let whole = Arguments::Escaped(said.as_slice().into())
                    .escaped()
                    .into_owned();
                let done = "response.function_call_arguments.done";
                self.said(done, index, &id, "arguments", &whole, out);
            }
        }
        self.part(&kind, index, &said, true, out);
        if let Some(item) = self.items.get_mut(index) {
            item.kind = kind;
        }
        let mut object = Pen::default();
        self.item(index, &mut object);
        self.event("response.output_item.done", out, |pen| {
            place(index, pen);
            pen.field("item", &object.out);
        });
    }

    /// The complete item.
    fn item(&self, index: usize, pen: &mut Pen) {
        let Some(item) = self.items.get(index) else {
            return;
        };
        match &item.kind {
            Kind::Text => answer::message_item(index, &item.said, pen),
            Kind::Thinking => answer::reasoning_item(index, &item.said, pen),
            Kind::Call {
                id, name, custom, ..
            } => {
                let arguments = Arguments::Escaped(item.said.as_slice().into());
                answer::call_item(index, *custom, id, name, &arguments, pen);
            }
        }
    }

    /// Closes what is open; `response.completed` or `response.incomplete` with everything in it.
    pub fn finish(&mut self, stop: &Stop, used: &Usage, out: &mut Vec<u8>) {
        let mut output = Pen::default();
        output.open(b'[');
        for index in 0..self.items.len() {
            self.close(index, out);
            self.item(index, &mut output);
        }
        output.close(b']');
        let mut object = Pen::default();
        answer::response(&self.head(), Some((stop, used)), &output.out, &mut object);
        let name = if matches!(stop, Stop::Length | Stop::Filtered) {
            "response.incomplete"
        } else {
            "response.completed"
        };
        self.event(name, out, |pen| {
            pen.field("response", &object.out);
        });
    }
}

fn place(index: usize, pen: &mut Pen) {
    pen.field("output_index", index.to_string().as_bytes());
}
