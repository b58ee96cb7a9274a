//! Tests of the stream tracker.

use super::*;
use crate::llm_api::growth::{LINEAR_MAX, growth};
use proptest::prelude::*;

fn track(dialect: Dialect, stream: &str) -> UsageTracker {
    let mut t = UsageTracker::new(dialect);
    t.push(stream.as_bytes());
    t
}

const CHAT: &str = "data: {\"id\":\"c\",\"created\":7,\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"error [DONE]\"},\"finish_reason\":null}],\"usage\":null}\n\ndata: {\"id\":\"c\",\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]},\"finish_reason\":null}]}\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":6}}}\n\ndata: [DONE]\n\n";
const MESSAGES: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg\",\"model\":\"m\",\"stop_reason\":null,\"usage\":{\"input_tokens\":4,\"cache_read_input_tokens\":6,\"output_tokens\":1}}}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"tool_use\",\"input\":{}}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":4}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

#[test]
fn both_dialects_report_the_same_conversation_alike() {
    let (chat, messages) = (
        track(Dialect::Chat, CHAT),
        track(Dialect::Messages, MESSAGES),
    );
    assert_eq!(chat.usage(), messages.usage());
    assert_eq!(
        chat.usage(),
        Some(Usage {
            input: 4,
            cache_read: 6,
            output: 4,
            ..Usage::default()
        })
    );
    for t in [&chat, &messages] {
        assert!(t.ended_well() && t.terminator_seen() && t.tool_call_seen() && !t.error_seen());
        assert!(t.delivered(&AnswerMeter::new()));
        assert_eq!(t.identity().unwrap().model, "m");
    }
    assert_eq!(chat.finish_reason(), Some("tool_calls"));
    assert_eq!(messages.finish_reason(), Some("tool_use"));
    assert_eq!(chat.identity().unwrap().created_s, 7);
}

#[test]
fn a_cut_stream_has_not_ended_well() {
    let cut = track(Dialect::Chat, &CHAT[..CHAT.find("\n\n").unwrap() + 2]);
    assert!(!cut.ended_well() && !cut.terminator_seen() && !cut.error_seen());
    assert!(!cut.delivered(&AnswerMeter::new()));
    assert_eq!(cut.usage(), None);
    let failed = track(
        Dialect::Chat,
        "data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n",
    );
    assert!(failed.error_seen() && !failed.ended_well());
    let failed = track(
        Dialect::Messages,
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
    );
    assert!(failed.error_seen());
}

#[test]
fn edge_18_usage_is_the_maximum_of_each_field_and_absent_is_not_zero() {
    let start = r#"{"type":"message_start","message":{"usage":{"input_tokens":40,"cache_creation_input_tokens":10,"cache_read_input_tokens":60,"output_tokens":1}}}"#;
    // Later reports leave fields out, repeat them, or say 0 for what was said before.
    let delta = r#"{"type":"message_delta","delta":{},"usage":{"output_tokens":5}}"#;
    let again = r#"{"type":"message_delta","delta":{},"usage":{"input_tokens":0,"cache_read_input_tokens":0,"output_tokens":7}}"#;
    let mut t = UsageTracker::new(Dialect::Messages);
    for data in [start, delta, again] {
        t.push(format!("data: {data}\n\n").as_bytes());
    }
    let want = Usage {
        input: 40,
        cache_write: 10,
        cache_read: 60,
        output: 7,
        ..Usage::default()
    };
    assert_eq!(t.usage(), Some(want));

    // Chat: 60 of 110 cached are said once; the last report without the field takes nothing away.
    let mut t = UsageTracker::new(Dialect::Chat);
    for usage in [
        r#"{"prompt_tokens":110,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":60,"cache_write_tokens":10}}"#,
        r#"{"prompt_tokens":110,"completion_tokens":7}"#,
    ] {
        t.push(format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\n").as_bytes());
    }
    assert_eq!(t.usage(), Some(want));
}

#[test]
fn snapshots_on_every_chunk_are_no_end_and_the_largest_counts() {
    let mut t = UsageTracker::new(Dialect::Chat);
    for n in [1, 5, 3] {
        t.push(format!("data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":2,\"completion_tokens\":{n}}}}}\n\n").as_bytes());
        assert!(!t.ended_well());
    }
    assert_eq!(t.usage().unwrap().output, 5);
}

#[test]
fn responses_end_with_their_event() {
    let t = track(
        Dialect::Responses,
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"usage\":{\"input_tokens\":3,\"output_tokens\":2}}}\n\n",
    );
    assert!(t.ended_well());
    assert_eq!(t.usage().unwrap().output, 2);
}

#[test]
fn whole_answers_are_read_too() {
    let t = track(
        Dialect::Messages,
        "{\n\"id\":\"m\",\"content\":[{\"type\":\"tool_use\"}],\n\"stop_reason\":\"end_turn\",\"usage\":{\"input_tokens\":3,\"output_tokens\":2}}",
    );
    assert_eq!(t.finish_reason(), Some("end_turn"));
    assert!(t.usage().is_some() && t.tool_call_seen() && t.ended_well());
}

#[test]
fn a_line_full_of_key_words_costs_no_more_than_its_length() {
    let cost = |dialect| {
        growth(|size| {
            let fields = "\"usage\":{},\"error\":1,".repeat(5_000 * size);
            track(dialect, &format!("data: {{{fields}\"z\":0}}\n\n"));
        })
    };
    for dialect in [Dialect::Chat, Dialect::Messages] {
        assert!(cost(dialect) < LINEAR_MAX, "{dialect:?}");
    }
}

proptest! {
    #[test]
    fn any_cut_between_events_reports_alike(at in 0usize..6, messages in any::<bool>()) {
        let (dialect, stream) = if messages { (Dialect::Messages, MESSAGES) } else { (Dialect::Chat, CHAT) };
        let cut = stream.match_indices("\n\n").nth(at).map_or(stream.len(), |(i, _)| i + 2);
        let mut t = UsageTracker::new(dialect);
        t.push(&stream.as_bytes()[..cut]);
        t.push(&stream.as_bytes()[cut..]);
        let whole = track(dialect, stream);
        prop_assert_eq!(t.usage(), whole.usage());
        prop_assert_eq!(t.finish_reason(), whole.finish_reason());
        prop_assert_eq!(t.terminator_seen(), whole.terminator_seen());
    }
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200), s in "(data: |\\{|\\}|\"usage\":|\"finish_reason\":|\"error\"|\"a\"|\"type\":|\\[DONE\\]|,|\n){0,30}") {
        for d in [Dialect::Chat, Dialect::Messages, Dialect::Responses] {
            let mut t = UsageTracker::new(d);
            t.push(&noise);
            t.push(s.as_bytes());
        }
    }
}
