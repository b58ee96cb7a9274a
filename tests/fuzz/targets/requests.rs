//! A request from a client: read, spliced, counted, and translated to both other dialects.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use souk_fuzz::llm_api::{self, Dialect, RequestView, conversation_key, prefill_tokens, translate};
use souk_fuzz::{DIALECTS, choose, is_json};

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = choose(data, 3) else {
        return;
    };
    let dialect = DIALECTS[choice];
    let body = Bytes::copy_from_slice(data);
    let Ok(view) = RequestView::parse(&body, dialect) else {
        return;
    };
    let strict = is_json(&body);
    let _ = (
        prefill_tokens(&view, body.len(), 256, 1_600),
        conversation_key(&body, &view),
    );
    let renamed = llm_api::rewrite_model(&body, &view, "other/model");
    let again = RequestView::parse(&renamed, dialect).expect("a renamed request reads");
    assert_eq!(again.model, "other/model");
    assert_eq!(again.max_tokens, view.max_tokens);
    if dialect == Dialect::Chat && view.stream {
        let asked = llm_api::inject_include_usage(&body, &view);
        // A `Stream_Options` of the client's is then the same key twice, and refused.
        if let Ok(asked) = RequestView::parse(&asked, dialect) {
            assert!(asked.include_usage);
            assert_eq!(asked.model, view.model);
        }
    }
    for to in DIALECTS {
        if to == dialect {
            continue;
        }
        let Ok(made) = translate::request(&body, &view, to, 777, 1) else {
            continue;
        };
        if !strict {
            continue; // what a strict parser refuses is refused by the upstream
        }
        assert!(
            is_json(&made.body),
            "{}",
            String::from_utf8_lossy(&made.body)
        );
        let there = RequestView::parse(&made.body, to).expect("a translated request reads");
        assert_eq!((&there.model, there.stream), (&view.model, view.stream));
        // And back: what one writer writes, the reader of the same dialect takes. (A media type that
        // is none is carried one way and refused the other.)
        if let Ok(back) = translate::request(&made.body, &there, dialect, 777, 1) {
            assert!(is_json(&back.body));
        }
    }
});
