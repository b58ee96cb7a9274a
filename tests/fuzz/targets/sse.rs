//! A stream of bytes from an upstream: the same events, counts and usage in any chunks.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use souk_fuzz::llm_api::{self, AnswerMeter, EventSplitter, UsageTracker, error, sse};
use souk_fuzz::types::MicroUsd;
use souk_fuzz::{DIALECTS, choose, pieces};

fn events(chunks: &[Bytes]) -> Result<Vec<Bytes>, sse::SseError> {
    let mut splitter = EventSplitter::new();
    let mut all = Vec::new();
    for chunk in chunks {
        for event in splitter.push(chunk.clone()) {
            all.push(event?);
        }
    }
    Ok(all)
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = choose(data, u8::MAX) else {
        return;
    };
    let dialect = DIALECTS[choice % 3];
    let whole = [Bytes::copy_from_slice(data)];
    let cut = pieces(data, choice as u8);
    let at_once = events(&whole);
    assert_eq!(at_once, events(&cut));
    let mut runs = EventSplitter::new();
    let mut run = Vec::new();
    for chunk in &cut {
        if let Ok(bytes) = runs.push_run(chunk.clone()) {
            run.extend_from_slice(&bytes);
        }
    }
    let Ok(events) = at_once else { return };
    assert_eq!(run, events.concat(), "a run is its events");

    let mut one = AnswerMeter::with_text(dialect);
    one.push(data);
    let mut many = AnswerMeter::with_text(dialect);
    for chunk in &cut {
        many.push(chunk);
    }
    assert_eq!(
        (one.text_bytes(), one.body_bytes()),
        (many.text_bytes(), many.body_bytes())
    );
    assert_eq!(one.text(), many.text());

    let mut tracker = UsageTracker::new(dialect);
    let mut all_at_once = UsageTracker::new(dialect);
    for event in &events {
        tracker.push(event);
        let _ = (sse::is_done(dialect, event), sse::is_error(event));
        let _ = (sse::is_usage_only(event), sse::joined_data(event));
        if sse::has_usage(event) {
            let priced = llm_api::splice_cost(event, MicroUsd(7));
            assert!(sse::has_usage(&priced), "a cost takes no usage away");
        }
        let renamed = llm_api::rewrite_answer_model(event, "market/model");
        assert_eq!(
            llm_api::rewrite_answer_model(&renamed, "market/model"),
            renamed
        );
        let _ = sse::data(event).and_then(error::message_of);
    }
    all_at_once.push(&events.concat());
    // Bytes that begin like JSON are taken for one whole answer, so a run of them reads otherwise.
    if !events
        .iter()
        .any(|e| matches!(e.trim_ascii_start().first(), Some(b'{' | b'[')))
    {
        assert_eq!(tracker.usage(), all_at_once.usage());
    }
    let _ = (tracker.ended_well(), tracker.delivered(&one));
});
