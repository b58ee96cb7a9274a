//! From one dialect to another: requests, whole answers, streams.
//!
//! Everything goes through one small form: a reader and a writer for each dialect, one pass each.
//! What the target has no place for is named in [`Translated::dropped`], or refused when the answer
//! would mean something else. The same dialect in and out never comes here. Called by the buyer.
//!
//! What is lossy, and why: thinking in a request's history is left out (only its maker can read
//! it), and so is Messages' wish to think (token budgets and efforts do not convert).
//! `cache_control`, sampling parameters without a namesake, a provider's own tools and marks of
//! failed tool results have no place elsewhere. A system turn within a conversation becomes marked
//! user text in Messages, images in tool results follow their results in chat.

mod chat;
mod form;
mod messages;
mod names;
mod pen;
mod responses;
mod stream;

use std::sync::Arc;

use bytes::Bytes;

pub use form::TranslateError;
pub use names::Names;
pub use stream::StreamTranslator;

use super::{Dialect, RequestView};
use crate::types::{MicroUsd, Usage};
use pen::Pen;

/// The schema of a tool without arguments.
const NO_ARGUMENTS: &[u8] = br#"{"type":"object","properties":{}}"#;
/// Put between texts that become one.
const JOINT: &[u8] = b"\\n";

/// A request in another dialect.
#[derive(Clone, Debug)]
pub struct Translated {
    /// The body.
    pub body: Bytes,
    /// What was left out, for the client's header.
    pub dropped: Vec<String>,
    /// How the answer comes back.
    pub way_back: WayBack,
}

/// What is kept of a translated request to translate its answer.
#[derive(Clone, Debug)]
pub struct WayBack {
    /// The upstream's dialect.
    pub from: Dialect,
    /// The client's dialect.
    pub to: Dialect,
    /// Replaced tool names.
    pub names: Arc<Names>,
    /// The client wants to see thinking.
    pub thinking: bool,
    /// Chat: the client wants the usage chunk.
    pub include_usage: bool,
    /// When the request came, in seconds, for answers that say when they were made.
    pub created_s: u64,
}

/// Translates a request. `max_tokens` is the limit where the target must have one.
///
/// # Errors
/// When something that cannot be carried changes what the answer means.
pub fn request(
    body: &[u8],
    view: &RequestView,
    to: Dialect,
    max_tokens: u64,
    created_s: u64,
) -> Result<Translated, TranslateError> {
    let mut form = match view.dialect {
        Dialect::Chat => chat::request_in::read(body)?,
        Dialect::Messages => messages::request_in::read(body)?,
        Dialect::Responses => responses::request_in::read(body)?,
    };
    let is_thinking = |p: &form::Part<'_>| matches!(p, form::Part::Thinking { .. });
    if form.turns.iter().flat_map(|t| &t.parts).any(is_thinking) {
        // Only its own maker can read it; a turn of nothing else says nothing.
        form.dropped.note("thinking");
        for turn in &mut form.turns {
            turn.parts.retain(|p| !is_thinking(p));
        }
        form.turns.retain(|turn| !turn.parts.is_empty());
    }
    let mut names = Names::default();
    for tool in form.tools.iter().filter(|tool| tool.custom) {
        names.add_custom(&tool.name);
    }
    let mut pen = Pen::with_capacity(body.len() + body.len() / 8 + 256);
    pen.open(b'{')
        .key("model")
        .raw(super::json::quoted(&view.model).as_bytes());
    if view.stream {
        pen.field("stream", b"true");
    }
    match to {
        Dialect::Chat => {
            if view.stream {
                pen.field("stream_options", br#"{"include_usage":true}"#);
            }
            chat::request_out::write_limit(&view.model, view.max_tokens, &mut pen);
            chat::request_out::write(&form, &mut names, &mut pen);
        }
        Dialect::Messages => {
            pen.field("max_tokens", max_tokens.to_string().as_bytes());
            messages::request_out::write(&mut form, &mut names, &mut pen);
        }
        Dialect::Responses => {
            if let Some(max) = view.max_tokens {
                pen.field("max_output_tokens", max.to_string().as_bytes());
            }
            responses::request_out::write(&mut form, &mut names, &mut pen);
        }
    }
    pen.close(b'}');
    let way_back = WayBack {
        from: to,
        to: view.dialect,
        names: Arc::new(names),
        thinking: form.thinking || view.dialect == Dialect::Chat,
        include_usage: view.include_usage,
        created_s,
    };
    Ok(Translated {
        body: Bytes::from(pen.out),
        dropped: form.dropped.0,
        way_back,
    })
}

/// Translates a whole answer, and gives it this usage and cost.
///
/// # Errors
/// When the body does not read as the upstream's dialect.
pub fn answer(
    body: &[u8],
    way: &WayBack,
    usage: &Usage,
    cost: MicroUsd,
) -> Result<Bytes, TranslateError> {
    let mut answer = match way.from {
        Dialect::Chat => chat::answer::read(body)?,
        Dialect::Messages => messages::answer::read(body)?,
        Dialect::Responses => responses::answer_in::read(body)?,
    };
    let any_call = answer
        .parts
        .iter()
        .any(|p| matches!(p, form::Part::Call(_)));
    let stop = answer.stop.take().unwrap_or(form::Stop::EndTurn);
    let stop = stop.with_calls(any_call);
    if !way.thinking {
        answer
            .parts
            .retain(|p| !matches!(p, form::Part::Thinking { .. }));
    }
    let mut pen = Pen::with_capacity(body.len() + 512);
    match way.to {
        Dialect::Chat => chat::answer::write(&answer, &stop, way, usage, cost, &mut pen),
        Dialect::Messages => messages::answer::write(&answer, &stop, way, usage, &mut pen),
        Dialect::Responses => responses::answer::write(&answer, &stop, way, usage, &mut pen),
    }
    Ok(Bytes::from(pen.out))
}

/// The texts with a line break between each two.
fn joined<'t>(texts: &[&'t [u8]]) -> Vec<&'t [u8]> {
    let mut all = Vec::with_capacity(texts.len() * 2);
    for (index, text) in texts.iter().enumerate() {
        if index > 0 {
            all.push(JOINT);
        }
        all.push(text);
    }
    all
}

#[cfg(test)]
mod answer_tests;
#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod responses_tests;
#[cfg(test)]
mod round_trip_tests;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod testing;
