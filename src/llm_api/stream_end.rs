//! The closing chunks of a stream, for upstreams that leave them out: stop reason, usage, terminator.
//! A client must always get them (rule 5 of the dialects). Callers: buyer and seller at a stream's
//! end.

use bytes::Bytes;

use super::json::quoted;
use super::usage::to_json;
use super::{Dialect, StreamIdentity, UsageTracker};
use crate::types::{MicroUsd, Usage};

/// Chat's terminator.
pub const CHAT_DONE: &[u8] = b"data: [DONE]\n\n";
/// Messages' terminator.
pub const MESSAGE_STOP: &[u8] = b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

/// The stream heartbeat of a dialect: a comment, for Messages a `ping`.
#[must_use]
pub const fn heartbeat(dialect: Dialect) -> Bytes {
    match dialect {
        Dialect::Messages => Bytes::from_static(b"event: ping\ndata: {\"type\":\"ping\"}\n\n"),
        Dialect::Chat | Dialect::Responses => Bytes::from_static(b": waiting\n\n"),
    }
}

fn chat_chunk(identity: &StreamIdentity, choices: &str, usage: &str) -> Bytes {
    let id = if identity.id.is_empty() {
        "chatcmpl-souk"
    } else {
        &identity.id
    };
    Bytes::from(format!(
        "data: {{\"id\":{},\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":{},\"choices\":{choices}{usage}}}\n\n",
        quoted(id),
        identity.created_s,
        quoted(&identity.model),
    ))
}

/// Chat's usage chunk (`choices: []`), which goes just before `[DONE]`.
#[must_use]
pub fn chat_usage_chunk(identity: &StreamIdentity, usage: &Usage, cost: Option<MicroUsd>) -> Bytes {
    let usage = format!(",\"usage\":{}", to_json(Dialect::Chat, usage, cost));
    chat_chunk(identity, "[]", &usage)
}

/// Chat's chunk with a finish reason and an empty delta.
#[must_use]
pub fn chat_finish_chunk(identity: &StreamIdentity, finish_reason: &str) -> Bytes {
    let reason = quoted(finish_reason);
    let choices = format!("[{{\"index\":0,\"delta\":{{}},\"finish_reason\":{reason}}}]");
    chat_chunk(identity, &choices, "")
}

/// Messages' `message_delta` with stop reason and cumulative usage.
#[must_use]
pub fn message_delta(stop_reason: &str, usage: &Usage, cost: Option<MicroUsd>) -> Bytes {
    Bytes::from(format!(
        "event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":{},\"stop_sequence\":null}},\"usage\":{}}}\n\n",
        quoted(stop_reason),
        to_json(Dialect::Messages, usage, cost),
    ))
}

/// The dialect's terminator; Responses has none without its whole `response.completed` object.
#[must_use]
pub const fn terminator(dialect: Dialect) -> Bytes {
    match dialect {
        Dialect::Chat => Bytes::from_static(CHAT_DONE),
        Dialect::Messages => Bytes::from_static(MESSAGE_STOP),
        Dialect::Responses => Bytes::new(),
    }
}

/// Everything that a stream's upstream left out of its end, in the dialect's order: stop reason
/// (`stop_reason` in the dialect's words, used when none came), usage when none was reported,
/// terminator. Empty when nothing is missing. A Messages stream has exactly one `message_delta`: when
/// that came without usage, give it some with [`insert_usage`](super::insert_usage) as it passes. The caller holds a terminator that it saw too early
/// back, and tells so by `terminator_held`.
#[must_use]
pub fn closing(
    tracker: &UsageTracker,
    stop_reason: &str,
    usage: &Usage,
    cost: Option<MicroUsd>,
    terminator_held: bool,
) -> Bytes {
    let mut out = Vec::new();
    let finish_missing = tracker.finish_reason().is_none();
    let usage_missing = tracker.usage().is_none();
    let nameless = StreamIdentity::default();
    let identity = tracker.identity().unwrap_or(&nameless);
    match tracker.dialect() {
        Dialect::Chat => {
            if finish_missing {
                out.extend_from_slice(&chat_finish_chunk(identity, stop_reason));
            }
            if usage_missing {
                out.extend_from_slice(&chat_usage_chunk(identity, usage, cost));
            }
        }
        Dialect::Messages if finish_missing => {
            out.extend_from_slice(&message_delta(stop_reason, usage, cost));
        }
        Dialect::Messages | Dialect::Responses => {}
    }
    if terminator_held || !tracker.terminator_seen() {
        out.extend_from_slice(&terminator(tracker.dialect()));
    }
    Bytes::from(out)
}

/// The end of a stream that is cut where its client may spend no more: it reads as one that ran into
/// its own length limit. `tracker` has seen what the client has, `open_block` is the content block
/// of a Messages answer that has no end yet, `passed` the number of the next event of a Responses
/// stream. Usage stands in it when it is given and the client has not got any.
#[must_use]
pub fn cut_short(
    tracker: &UsageTracker,
    usage: Option<(&Usage, MicroUsd)>,
    open_block: Option<u64>,
    passed: u64,
) -> Bytes {
    let nothing = Usage::default();
    let (usage, cost) = usage.map_or((None, None), |(usage, cost)| (Some(usage), Some(cost)));
    let nameless = StreamIdentity::default();
    let identity = tracker.identity().unwrap_or(&nameless);
    let mut out = Vec::new();
    match tracker.dialect() {
        Dialect::Chat => {
            if tracker.finish_reason().is_none() {
                out.extend_from_slice(&chat_finish_chunk(identity, "length"));
            }
            if let Some(usage) = usage.filter(|_| tracker.usage().is_none()) {
                out.extend_from_slice(&chat_usage_chunk(identity, usage, cost));
            }
            out.extend_from_slice(CHAT_DONE);
        }
        Dialect::Messages => {
            if let Some(index) = open_block {
                let stop = format!(
                    "event: content_block_stop\ndata: {{\"type\":\"content_block_stop\",\"index\":{index}}}\n\n"
                );
                out.extend_from_slice(stop.as_bytes());
            }
            if tracker.finish_reason().is_none() {
                let usage = usage.unwrap_or(&nothing);
                out.extend_from_slice(&message_delta("max_tokens", usage, cost));
            }
            out.extend_from_slice(MESSAGE_STOP);
        }
        Dialect::Responses => {
            let usage = usage.unwrap_or(&nothing);
            let end = response_incomplete(identity, usage, cost, passed);
            out.extend_from_slice(&end);
        }
    }
    Bytes::from(out)
}

/// Responses' `response.incomplete`; its items were sent one by one before.
fn response_incomplete(
    identity: &StreamIdentity,
    usage: &Usage,
    cost: Option<MicroUsd>,
    number: u64,
) -> Bytes {
    let id = if identity.id.is_empty() {
        "resp_souk"
    } else {
        &identity.id
    };
    Bytes::from(format!(
        "event: response.incomplete\ndata: {{\"type\":\"response.incomplete\",\"sequence_number\":{number},\"response\":{{\"id\":{},\"object\":\"response\",\"created_at\":{},\"status\":\"incomplete\",\"incomplete_details\":{{\"reason\":\"max_output_tokens\"}},\"model\":{},\"output\":[],\"usage\":{}}}}}\n\n",
        quoted(id),
        identity.created_s,
        quoted(&identity.model),
        to_json(Dialect::Responses, usage, cost),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm_api::{AnswerMeter, sse, usage};

    #[test]
    fn a_stream_that_is_cut_short_reads_as_one_that_ran_into_its_limit() {
        for dialect in [Dialect::Chat, Dialect::Messages, Dialect::Responses] {
            let end = cut_short(
                &UsageTracker::new(dialect),
                Some((&counts(), MicroUsd(7))),
                Some(2),
                9,
            );
            let mut after = UsageTracker::new(dialect);
            after.push(&end);
            assert!(after.ended_well() && after.terminator_seen(), "{dialect:?}");
            assert_eq!(after.usage(), Some(counts()));
            let text = String::from_utf8(end.to_vec()).unwrap();
            let reason = match dialect {
                Dialect::Chat => "\"finish_reason\":\"length\"",
                Dialect::Messages => "\"stop_reason\":\"max_tokens\"",
                Dialect::Responses => "\"reason\":\"max_output_tokens\"",
            };
            assert!(text.contains(reason), "{text}");
            let is_messages = dialect == Dialect::Messages;
            assert_eq!(text.contains("\"index\":2"), is_messages, "{text}");
        }
        let quiet = cut_short(&UsageTracker::new(Dialect::Chat), None, None, 0);
        assert!(!String::from_utf8(quiet.to_vec()).unwrap().contains("usage"));
    }

    fn counts() -> Usage {
        Usage {
            input: 10,
            cache_read: 3,
            output: 4,
            ..Usage::default()
        }
    }

    #[test]
    fn an_upstream_without_usage_still_ends_with_usage_and_done() {
        let mut tracker = UsageTracker::new(Dialect::Chat);
        tracker.push(b"data: {\"id\":\"c1\",\"created\":5,\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":null}]}\n\n");
        let end = closing(&tracker, "stop", &counts(), Some(MicroUsd(7)), false);
        tracker.push(&end);
        assert_eq!(tracker.usage(), Some(counts()));
        assert_eq!(tracker.finish_reason(), Some("stop"));
        assert!(tracker.ended_well() && tracker.terminator_seen());
        assert!(end.ends_with(CHAT_DONE));
        let text = String::from_utf8(end.to_vec()).unwrap();
        assert!(text.contains("\"id\":\"c1\"") && text.contains("\"cost\":0.000007"));
        assert!(closing(&tracker, "stop", &counts(), None, false).is_empty());
        assert_eq!(closing(&tracker, "stop", &counts(), None, true), CHAT_DONE);
    }

    #[test]
    fn messages_close_with_one_delta_and_stop() {
        let tracker = UsageTracker::new(Dialect::Messages);
        let end = closing(&tracker, "end_turn", &counts(), None, false);
        let mut after = UsageTracker::new(Dialect::Messages);
        after.push(&end);
        assert_eq!(after.usage(), Some(counts()));
        assert_eq!(after.finish_reason(), Some("end_turn"));
        assert!(after.terminator_seen());
    }

    #[test]
    fn added_chunks_are_json_and_count_no_text() {
        let identity = StreamIdentity {
            id: "a\"b".into(),
            model: "m\\".into(),
            created_s: 1,
        };
        for chunk in [
            chat_usage_chunk(&identity, &counts(), Some(MicroUsd(1))),
            chat_finish_chunk(&identity, "length"),
            message_delta("max_tokens", &counts(), None),
        ] {
            let json: serde_json::Value =
                serde_json::from_slice(sse::data(&chunk).unwrap()).unwrap();
            assert!(json.is_object());
            let mut meter = AnswerMeter::new();
            meter.push(&chunk);
            assert_eq!(meter.text_bytes(), 0);
        }
        let chunk = chat_usage_chunk(&identity, &counts(), None);
        assert!(sse::is_usage_only(&chunk));
        assert_eq!(
            usage::extract(Dialect::Chat, sse::data(&chunk).unwrap()),
            Some(counts())
        );
        assert!(sse::is_heartbeat(&heartbeat(Dialect::Messages)));
        assert!(sse::is_heartbeat(&heartbeat(Dialect::Chat)));
    }
}
