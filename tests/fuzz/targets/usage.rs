//! Reports of usage, whole answers, error bodies and model lists of an upstream.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use souk_fuzz::llm_api::translate::{self, WayBack};
use souk_fuzz::llm_api::{self, UsageTracker, error, price_list, usage};
use souk_fuzz::types::MicroUsd;
use souk_fuzz::{DIALECTS, USAGE, choose, is_json};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = choose(data, 9) else {
        return;
    };
    let (from, to) = (DIALECTS[choice / 3], DIALECTS[choice % 3]);
    let body = Bytes::copy_from_slice(data);
    let strict = is_json(&body);
    let _ = (error::message_of(&body), price_list::parse(&body));
    let found = usage::extract(from, &body);
    if let Some(found) = found {
        assert!(found.reasoning <= found.output);
        assert_eq!(found, found.clamped());
        for dialect in DIALECTS {
            let json = format!("{{\"usage\":{}}}", usage::to_json(dialect, &found, None));
            assert_eq!(usage::extract(dialect, json.as_bytes()), Some(found));
        }
    }
    let mut tracker = UsageTracker::new(from);
    tracker.push(&body);
    let shown = llm_api::insert_usage(&body, from, &USAGE, Some(MicroUsd(7)));
    if strict && llm_api::is_json_object(&body) {
        assert!(is_json(&shown), "{}", String::from_utf8_lossy(&shown));
    }
    if from == to {
        return;
    }
    let way = WayBack {
        from,
        to,
        names: std::sync::Arc::default(),
        thinking: true,
        include_usage: true,
        created_s: 1,
    };
    if let Ok(answer) = translate::answer(&body, &way, &USAGE, MicroUsd(7))
        && strict
    {
        assert!(is_json(&answer), "{}", String::from_utf8_lossy(&answer));
        assert_eq!(usage::extract(to, &answer), Some(USAGE));
    }
});
