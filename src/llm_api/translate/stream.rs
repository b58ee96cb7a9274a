//! A stream on its way from one dialect to another: a reader and a writer with an end between.
//!
//! Fed with complete events, or with chunks of any size through [`StreamTranslator::push_chunk`]. The end is held
//! back until the caller knows usage and cost: [`StreamTranslator::finish`] writes stop reason, usage and
//! terminator, once, whatever the upstream sent of them and in whatever order.

use bytes::Bytes;

use super::WayBack;
use super::chat::stream::{ChatReader, ChatWriter};
use super::form::{Delta, Stop, Text};
use super::messages::stream::{MessagesReader, MessagesWriter};
use super::responses::answer_in::ResponsesReader;
use super::responses::stream::ResponsesWriter;
use crate::llm_api::Dialect;
use crate::llm_api::json::JsonError;
use crate::llm_api::sse::{self, EventSplitter, SseError};
use crate::types::{MicroUsd, Usage};

/// Translates one streamed answer.
#[derive(Debug)]
pub struct StreamTranslator {
    way: WayBack,
    reader: Reader,
    writer: Writer,
    splitter: EventSplitter,
    stop: Option<Stop>,
    sequence: Option<Vec<u8>>,
    any_call: bool,
    started: bool,
    finished: bool,
}

#[derive(Debug)]
enum Reader {
    Chat(ChatReader),
    Messages(MessagesReader),
    Responses(ResponsesReader),
}

#[derive(Debug)]
enum Writer {
    Chat(ChatWriter),
    Messages(MessagesWriter),
    Responses(ResponsesWriter),
}

/// The beginning of an answer whose upstream gave it no name.
const NAMELESS: Delta<'static> = Delta::Start {
    id: Text::Borrowed(b"souk"),
    model: Text::Borrowed(b""),
};

impl Writer {
    fn delta(&mut self, delta: &Delta<'_>, way: &WayBack, out: &mut Vec<u8>) {
        match self {
            Self::Chat(writer) => writer.delta(delta, way, out),
            Self::Messages(writer) => writer.delta(delta, way, out),
            Self::Responses(writer) => writer.delta(delta, way, out),
        }
    }
}

impl StreamTranslator {
    /// For the answer to one translated request.
    #[must_use]
    pub fn new(way: WayBack) -> Self {
        let reader = match way.from {
            Dialect::Messages => Reader::Messages(MessagesReader::default()),
            Dialect::Chat => Reader::Chat(ChatReader::default()),
            Dialect::Responses => Reader::Responses(ResponsesReader::default()),
        };
        let writer = match way.to {
            Dialect::Messages => Writer::Messages(MessagesWriter::default()),
            Dialect::Chat => Writer::Chat(ChatWriter::default()),
            Dialect::Responses => Writer::Responses(ResponsesWriter::default()),
        };
        Self {
            way,
            reader,
            writer,
            splitter: EventSplitter::new(),
            stop: None,
            sequence: None,
            any_call: false,
            started: false,
            finished: false,
        }
    }

    /// Translates the events that are complete with this chunk.
    ///
    /// # Errors
    /// When an event is too long or no JSON.
    pub fn push_chunk(&mut self, chunk: Bytes, out: &mut Vec<u8>) -> Result<(), SseError> {
        let events: Vec<Bytes> = self.splitter.push(chunk).collect::<Result<_, _>>()?;
        for event in events {
            // A broken event is the caller's to judge; here it adds nothing.
            let _ = self.push(&event, out);
        }
        Ok(())
    }

    /// Translates one event; its end is kept for [`Self::finish`].
    ///
    /// # Errors
    /// When the event's data is no JSON.
    pub fn push(&mut self, event: &[u8], out: &mut Vec<u8>) -> Result<(), JsonError> {
        if self.finished || sse::is_heartbeat(event) {
            return Ok(());
        }
        let data = sse::joined_data(event);
        if data.is_empty() || data.as_ref() == b"[DONE]" {
            return Ok(());
        }
        let Self {
            way,
            reader,
            writer,
            stop,
            sequence,
            any_call,
            started,
            ..
        } = self;
        let mut take = |delta: Delta<'_>| match delta {
            Delta::Stop(reason, text) => {
                *stop = Some(reason);
                *sequence = text.map(Text::into_owned).or(sequence.take());
            }
            Delta::Thinking(_) | Delta::Signature(_) if !way.thinking => {}
            delta => {
                *any_call |= matches!(delta, Delta::Call { .. });
                let begins = matches!(delta, Delta::Start { .. });
                // One beginning, and nothing before it, whatever the upstream does.
                let first = !std::mem::replace(started, true);
                if first && !begins {
                    writer.delta(&NAMELESS, way, out);
                }
                if first || !begins {
                    writer.delta(&delta, way, out);
                }
            }
        };
        match reader {
            Reader::Chat(reader) => reader.read(&data, &mut take),
            Reader::Messages(reader) => reader.read(&data, &mut take),
            Reader::Responses(reader) => reader.read(&data, &mut take),
        }
    }

    /// The answer ends before its upstream ended it, as one that ran into its limit.
    pub fn cut_short(&mut self) {
        self.stop = Some(Stop::Length);
    }

    /// Ends the stream well; a second call adds nothing.
    pub fn finish(&mut self, usage: &Usage, cost: MicroUsd, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        if !std::mem::replace(&mut self.started, true) {
            self.writer.delta(&NAMELESS, &self.way, out);
        }
        let stop = self.stop.take().unwrap_or(Stop::EndTurn);
        let stop = stop.with_calls(self.any_call);
        let sequence = self.sequence.as_deref();
        match &mut self.writer {
            Writer::Chat(writer) => writer.finish(&stop, &self.way, usage, cost, out),
            Writer::Messages(writer) => writer.finish(&stop, sequence, usage, out),
            Writer::Responses(writer) => writer.finish(&stop, usage, out),
        }
    }

    /// The number of the next event, in dialects that number them.
    #[must_use]
    pub const fn next_number(&self) -> u64 {
        match &self.writer {
            Writer::Responses(writer) => writer.next_number(),
            Writer::Chat(_) | Writer::Messages(_) => 0,
        }
    }

    /// True once [`Self::finish`] was called.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished
    }
}
