//! A streamed answer on its way to another dialect: the same in any chunks, always well formed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_fuzz::llm_api::translate::{StreamTranslator, WayBack};
use souk_fuzz::llm_api::{Dialect, EventSplitter, UsageTracker, sse};
use souk_fuzz::types::MicroUsd;
use souk_fuzz::{DIALECTS, USAGE, choose, pieces};

fn translated(way: &WayBack, chunks: &[bytes::Bytes]) -> Option<Vec<u8>> {
    let mut translator = StreamTranslator::new(way.clone());
    let mut out = Vec::new();
    for chunk in chunks {
        translator.push_chunk(chunk.clone(), &mut out).ok()?;
    }
    translator.finish(&USAGE, MicroUsd(7), &mut out);
    Some(out)
}

/// Every payload of the stream is JSON, so whatever is copied from it is.
fn is_strict(data: &[u8]) -> bool {
    let mut splitter = EventSplitter::new();
    splitter
        .push(bytes::Bytes::copy_from_slice(data))
        .flatten()
        .all(|event| {
            let data = sse::joined_data(&event);
            data.is_empty()
                || data.as_ref() == b"[DONE]"
                || serde_json::from_slice::<serde_json::Value>(&data).is_ok()
        })
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = choose(data, 6 * 42) else {
        return;
    };
    let (from, to) = (
        DIALECTS[choice % 3],
        DIALECTS[(choice % 3 + 1 + choice / 3 % 2) % 3],
    );
    let way = WayBack {
        from,
        to,
        names: std::sync::Arc::default(),
        thinking: choice / 6 % 2 == 0,
        include_usage: true,
        created_s: 1,
    };
    let whole = translated(&way, &[bytes::Bytes::copy_from_slice(data)]);
    assert_eq!(whole, translated(&way, &pieces(data, choice as u8)));
    let Some(out) = whole else { return };
    let mut tracker = UsageTracker::new(to);
    tracker.push(&out);
    if !is_strict(data) {
        return;
    }
    assert!(
        tracker.terminator_seen(),
        "{}",
        String::from_utf8_lossy(&out)
    );
    assert_eq!(tracker.usage(), Some(USAGE));
    let (mut open, mut number) = (None, 0);
    for payload in sse::payloads(&out) {
        let payload = &out[payload];
        if payload == b"[DONE]" {
            continue;
        }
        let event: serde_json::Value = serde_json::from_slice(payload)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(payload)));
        if to == Dialect::Responses {
            assert_eq!(event["sequence_number"], number);
            number += 1;
        }
        // Blocks of Messages never interleave.
        match event["type"].as_str() {
            Some("content_block_start") => assert_eq!(open.replace(event["index"].clone()), None),
            Some("content_block_delta") => assert_eq!(open.as_ref(), Some(&event["index"])),
            Some("content_block_stop") => assert_eq!(open.take(), Some(event["index"].clone())),
            _ => {}
        }
    }
});
