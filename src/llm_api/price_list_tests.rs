//! Tests of the price lists.

use super::*;
use proptest::prelude::*;

fn one(body: &str) -> UpstreamModel {
    parse(body.as_bytes()).unwrap().remove(0)
}

#[test]
fn openrouters_prices_become_integers() {
    let m = one(
        r#"{"data":[{"id":"openai/gpt-4o","context_length":128000,"architecture":{"input_modalities":["text","image"]},
        "pricing":{"prompt":"0.0000025","completion":"0.00001","input_cache_read":"0.00000125","request":"0","image":"0.003"},
        "top_provider":{"context_length":128000,"max_completion_tokens":16384},"supported_parameters":["tools","max_tokens"]}]}"#,
    );
    assert_eq!(
        m.price,
        Some(PriceTable {
            input: 2_500_000,
            cache_read: 1_250_000,
            cache_write: 3_125_000,
            output: 10_000_000
        })
    );
    assert_eq!((m.context, m.max_output), (Some(128_000), Some(16_384)));
    assert!(m.vision == Some(true) && !m.has_request_fee && !m.embeddings);
    assert_eq!((m.tools, m.json), (Some(true), Some(false)));
}

#[test]
fn prices_that_cannot_be_sold_are_none() {
    for pricing in [
        r#"{"prompt":"-1","completion":"-1"}"#,
        r#"{"prompt":"0.1"}"#,
        r#"{"prompt":"x","completion":"1"}"#,
        r#"{"prompt":"99999999999999999","completion":"1"}"#,
        "null",
    ] {
        let m = one(&format!(r#"{{"data":[{{"id":"a","pricing":{pricing}}}]}}"#));
        assert_eq!(m.price, None, "{pricing}");
    }
    let tiny =
        one(r#"{"data":[{"id":"a","pricing":{"prompt":3e-7,"completion":"0.0000000000001"}}]}"#);
    assert_eq!(tiny.price.map(|p| (p.input, p.output)), Some((300_000, 1)));
    let free =
        one(r#"{"data":[{"id":"a","pricing":{"prompt":"0","completion":"0","request":"0.01"}}]}"#);
    assert!(free.price.unwrap().is_free() && free.has_request_fee);
}

#[test]
fn every_upstreams_shape_is_read() {
    let openai =
        one(r#"{"object":"list","data":[{"id":"gpt-4o","object":"model","owned_by":"x"}]}"#);
    assert_eq!((openai.id.as_str(), openai.price), ("gpt-4o", None));
    let anthropic = one(
        r#"{"data":[{"type":"model","id":"claude-x","display_name":"X","max_input_tokens":200000,"max_tokens":64000}],"has_more":false}"#,
    );
    assert_eq!(
        (anthropic.context, anthropic.max_output),
        (Some(200_000), Some(64_000))
    );
    let ollama = one(
        r#"{"models":[{"name":"llama3:8b","model":"llama3:8b","details":{"quantization_level":"Q4_K_M"}}]}"#,
    );
    assert_eq!(ollama.id, "llama3:8b");
    assert_eq!(ollama.quantisation.as_deref(), Some("Q4_K_M"));
    let llamacpp = one(
        r#"{"models":[{"name":"wrong"}],"data":[{"id":"q.gguf","meta":{"n_ctx_train":32768}}]}"#,
    );
    assert_eq!(
        (llamacpp.id.as_str(), llamacpp.context),
        ("q.gguf", Some(32_768))
    );
    let vllm = one(r#"{"data":[{"id":"Qwen/Qwen3","max_model_len":40960}]}"#);
    assert_eq!(vllm.context, Some(40_960));
    assert_eq!(one(r#"[{"id":"bare"}]"#).id, "bare");
}

#[test]
fn what_is_no_list_is_refused_with_words() {
    assert_eq!(parse(b"<html>"), Err(PriceListError::NotJson));
    assert_eq!(parse(b"{\"error\":{}}"), Err(PriceListError::NoList));
    assert_eq!(parse(b"{\"data\":[]}"), Ok(vec![]));
    assert_eq!(parse(b"{\"data\":[{\"id\":5},{},1,null]}"), Ok(vec![]));
}

proptest! {
    #[test]
    fn our_own_price_strings_come_back_exactly(input in 0u64..1_000_000_000, output in 0u64..1_000_000_000) {
        let text = |p: u64| (Decimal::from(p) / Decimal::from(USD_PER_TOKEN)).to_string();
        let m = one(&format!(r#"{{"data":[{{"id":"a","pricing":{{"prompt":"{}","completion":"{}"}}}}]}}"#, text(input), text(output)));
        prop_assert_eq!(m.price.map(|p| (p.input, p.output)), Some((input, output)));
    }
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200), number in "-?[0-9]{1,40}(\\.[0-9]{1,40})?(e-?[0-9]{1,3})?") {
        let _ = parse(&noise);
        let _ = parse(format!(r#"[{{"id":"a","pricing":{{"prompt":"{number}","completion":{number}}},"context_length":{number}}}]"#).as_bytes());
    }
}

#[test]
fn the_paths_of_a_model_are_said_or_not() {
    let of = |entry: &str| parse(format!("[{entry}]").as_bytes()).unwrap()[0].clone();
    assert_eq!(of(r#"{"id":"m"}"#).completions, None);
    let chat = of(r#"{"id":"m","supported_endpoints":["/v1/chat/completions","/v1/messages"]}"#);
    assert_eq!(chat.completions, Some(false));
    let both = of(r#"{"id":"m","supported_endpoints":["/v1/completions"]}"#);
    assert_eq!(both.completions, Some(true));
    assert!(of(r#"{"id":"text-embedding-3-small"}"#).embeddings);
    assert!(!of(r#"{"id":"embed-chat","architecture":{"output_modalities":["text"]}}"#).embeddings);
}
