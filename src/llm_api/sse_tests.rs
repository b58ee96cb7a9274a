//! Tests of the event splitter and helpers.

use super::*;
use proptest::prelude::*;

fn split(chunks: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut s = EventSplitter::new();
    let mut out = Vec::new();
    for c in chunks {
        out.extend(
            s.push(Bytes::copy_from_slice(c))
                .map(|e| e.unwrap().to_vec()),
        );
    }
    (out, s.rest().into_owned())
}

#[test]
fn events_end_at_blank_lines_of_both_kinds() {
    let (events, rest) =
        split(&[b"data: a\n\ndata: b\r\n\r\n: c\n\n\n\nevent: x\ndata: d\n\ndata: e\n"]);
    assert_eq!(
        events,
        [
            b"data: a\n\n".to_vec(),
            b"data: b\r\n\r\n".to_vec(),
            b": c\n\n".to_vec(),
            b"\n\nevent: x\ndata: d\n\n".to_vec()
        ]
    );
    assert_eq!(rest, b"data: e\n");
}

#[test]
fn whole_events_are_slices_of_the_chunk() {
    let chunk = Bytes::from_static(b"data: a\n\ndata: b\n\n");
    let mut s = EventSplitter::new();
    let events: Vec<_> = s.push(chunk.clone()).map(Result::unwrap).collect();
    assert_eq!(events[1].as_ptr(), chunk[9..].as_ptr());
    assert!(!s.has_partial());
    assert_eq!(s.push_run(chunk.clone()).unwrap().as_ptr(), chunk.as_ptr());
}

#[test]
fn an_event_above_the_limit_is_an_error_and_memory_stays_bounded() {
    let mut s = EventSplitter::new();
    let chunk = Bytes::from(vec![b'a'; 300_000]);
    let mut failed = false;
    for _ in 0..10 {
        failed |= s
            .push(chunk.clone())
            .any(|e| e == Err(SseError::EventTooLong))
            .then_some(())
            .is_some();
        assert!(s.rest().len() <= EVENT_BYTES_MAX);
        if failed {
            break;
        }
    }
    assert!(failed);
}

#[test]
fn an_unfinished_iterator_loses_nothing() {
    let mut s = EventSplitter::new();
    assert!(
        s.push(Bytes::from_static(b"data: a\n\ndata: b\n\nda"))
            .next()
            .is_some()
    );
    let rest: Vec<_> = s
        .push(Bytes::from_static(b"ta: c\n\n"))
        .map(Result::unwrap)
        .collect();
    assert_eq!(rest, ["data: b\n\n", "data: c\n\n"]);
}

#[test]
fn helpers_read_events_as_the_standard_says() {
    assert_eq!(
        data(b"event: x\r\ndata:{\"a\":1}\r\n\r\n"),
        Some(&b"{\"a\":1}"[..])
    );
    assert_eq!(joined_data(b"data: {\ndata: }\n\n").as_ref(), b"{\n}");
    assert_eq!(
        event_name(b"event: ping\r\ndata: {}\r\n\r\n"),
        Some(&b"ping"[..])
    );
    assert!(is_comment(b"\n: OPENROUTER PROCESSING\n\n"));
    assert!(!is_comment(b"data: x\n\n"));
    assert!(is_done(Dialect::Chat, b"data: [DONE]\n\n"));
    assert!(!is_done(
        Dialect::Chat,
        b"data: {\"content\":\"[DONE]\"}\n\n"
    ));
    assert!(is_done(
        Dialect::Messages,
        b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
    ));
    assert!(is_done(
        Dialect::Messages,
        b"data: {\"type\":\"message_stop\"}\n\n"
    ));
    assert!(is_done(
        Dialect::Responses,
        b"event: response.completed\ndata: {}\n\n"
    ));
    assert!(is_error(b"data: {\"error\":{\"message\":\"x\"}}\n\n"));
    assert!(!is_error(b"data: {\"error\":null,\"choices\":[]}\n\n"));
    assert!(!is_error(
        b"data: {\"choices\":[{\"delta\":{\"content\":\"\\\"error\\\"\"}}]}\n\n"
    ));
    assert!(is_usage_only(
        b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n"
    ));
    assert!(is_usage_only(
        b"data: {\"usage\":{\"prompt_tokens\":1}}\n\n"
    ));
    assert!(!is_usage_only(
        b"data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":1}}\n\n"
    ));
    assert!(!has_usage(b"data: {\"usage\":null}\n\n"));
}

fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        prop_oneof![
            Just("data: {\"x\":\"é\"}".to_owned()),
            Just("\n".to_owned()),
            Just("\r\n".to_owned()),
            Just("\r".to_owned()),
            Just(": c".to_owned()),
            "[a-z ]{0,5}",
        ],
        0..40,
    )
    .prop_map(|v| v.concat().into_bytes())
}

proptest! {
    #[test]
    fn any_split_gives_the_same_events(stream in any_stream(), cuts in prop::collection::vec(1usize..9, 1..8)) {
        let whole = split(&[&stream]);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(&split(&bytes), &whole);
        let mut pieces = Vec::new();
        let (mut rest, mut i) = (stream.as_slice(), 0);
        while !rest.is_empty() {
            let (a, b) = rest.split_at(cuts[i % cuts.len()].min(rest.len()));
            pieces.push(a);
            rest = b;
            i += 1;
        }
        prop_assert_eq!(&split(&pieces), &whole);
        let mut s = EventSplitter::new();
        let mut runs = Vec::new();
        for p in &pieces {
            runs.extend_from_slice(&s.push_run(Bytes::copy_from_slice(p)).unwrap());
        }
        prop_assert_eq!(&runs, &whole.0.concat());
        prop_assert!(s.rest().as_ref() == whole.1.as_slice());
        prop_assert_eq!([whole.0.concat(), whole.1].concat(), stream);
    }
    #[test]
    fn helpers_never_panic(noise in prop::collection::vec(any::<u8>(), 0..120), s in any_stream()) {
        for e in [&noise, &s] {
            let _ = (data(e), joined_data(e), event_name(e), is_comment(e), is_heartbeat(e), is_error(e), has_usage(e), is_usage_only(e));
            for d in [Dialect::Chat, Dialect::Messages, Dialect::Responses] {
                let _ = is_done(d, e);
            }
        }
    }
}
