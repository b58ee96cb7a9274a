//! What offers state and the buyer keeps to: paths, images, tools, limits, parameters.

use serde_json::{Value, json};

use crate::harness::http::{Request, Response};
use crate::harness::market::{Dialect, Hold, Market, start_buyer, wait_for_model};
use crate::harness::node::Node;
use crate::harness::upstream::{ListShape, ModelEntry, Script, Upstream};
use crate::money::{assert_agree, booked};

const MODEL: &str = "listed/model";

/// A market whose seller takes everything from its upstream's list.
struct Listed {
    upstream: Upstream,
    buyer: Node,
    _seller: Node,
    _bootstrap: Node,
    _hold: Hold,
}

async fn listed(models: Vec<ModelEntry>, shape: ListShape) -> Listed {
    let hold = Hold::shared().await;
    let upstream = Upstream::start(Script::default().models(shape, models)).await;
    let bootstrap = Node::start(&["bootstrap"]);
    let url = upstream.openai_url();
    let mut args = vec!["sell", "--upstream", &url, "--http-port", "0"];
    args.extend(["--bootstrap", bootstrap.listen()]);
    args.extend(["--price-in", "1", "--price-out", "2"]);
    let seller = Node::start(&args);
    let buyer = start_buyer(bootstrap.listen(), &[]);
    wait_for_model(&buyer, MODEL).await;
    Listed {
        upstream,
        buyer,
        _seller: seller,
        _bootstrap: bootstrap,
        _hold: hold,
    }
}

impl Listed {
    async fn post(&self, path: &str, body: &Value) -> Response {
        crate::harness::http::send(self.buyer.http(), &Request::post(path, body)).await
    }
    async fn entry(&self, id: &str) -> Value {
        let path = format!("/v1/models/{id}");
        let request = Request::get(&path);
        crate::harness::http::send(self.buyer.http(), &request)
            .await
            .json()
    }
}

fn entry(id: &str) -> ModelEntry {
    ModelEntry::new(id, "1", "2")
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_embeddings_pass_and_are_paid() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    let model = crate::harness::market::MODEL;
    for stream in [false, true] {
        let body = json!({"model": model, "prompt": "Say something.", "stream": stream});
        let response = market.send(&Request::post("/v1/completions", &body)).await;
        assert_eq!(response.status, 200, "{}", response.text());
        let said: String = if stream {
            let data = response.data();
            assert_eq!(data.last().unwrap(), "[DONE]");
            let json = |d: &String| serde_json::from_str::<Value>(d).ok();
            let chunks: Vec<Value> = data.iter().filter_map(json).collect();
            assert!(chunks.iter().all(|c| c["object"] == "text_completion"));
            assert!(!response.text().contains("\"usage\":{"), "nobody asked");
            let text = |c: &Value| c["choices"][0]["text"].as_str().map(str::to_owned);
            chunks.iter().filter_map(text).collect()
        } else {
            let answer = response.json();
            assert!(answer["usage"]["cost"].as_f64().unwrap() > 0.0, "{answer}");
            answer["choices"][0]["text"].as_str().unwrap().to_owned()
        };
        assert_eq!(said, Script::default().text);
    }
    let sent = market.sellers[0].upstream.exchanges();
    assert!(sent.iter().all(|e| e.path == "/v1/completions"));
    let (bought, sold) = booked(&market, 2).await;
    assert_agree(&bought, &sold);

    // A model that is sold in chat makes no vectors, and no seller is asked.
    let body = json!({"model": model, "input": "a"});
    let refused = market.send(&Request::post("/v1/embeddings", &body)).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(
        refused.text().contains("not serving this path"),
        "{}",
        refused.text()
    );
    assert_eq!(market.upstream_requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_sold_by_models_made_for_them() {
    let market = listed(
        vec![entry(MODEL), entry("listed/embed-small")],
        ListShape::Plain,
    )
    .await;
    wait_for_model(&market.buyer, "listed/embed-small").await;
    let said = market.entry("listed/embed-small").await;
    assert_eq!(
        (&said["dialects"], &said["other_paths"]),
        (&json!([]), &json!(["embeddings"]))
    );
    let body = json!({"model": "listed/embed-small", "input": ["one two three", "four"]});
    let answer = market.post("/v1/embeddings", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
    assert_eq!(answer["data"][1]["embedding"], json!([0.25, -0.5]));
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
    // Four tokens at a dollar per million, and nothing for output.
    assert_eq!(answer["usage"]["cost"], 0.000_004, "{answer}");
    let chat =
        json!({"model": "listed/embed-small", "messages": [{"role": "user", "content": "a"}]});
    assert_eq!(market.post("/v1/chat/completions", &chat).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_seller_can_do_is_refused_with_its_name() {
    let market = listed(vec![entry(MODEL)], ListShape::OpenRouter).await;
    let said = market.entry(MODEL).await;
    assert_eq!(said["dialects"], json!(["chat"]));
    assert_eq!(
        (&said["context_length"], &said["max_output"]),
        (&json!(128_000), &json!(16_384))
    );
    assert_eq!(
        (&said["tools"], &said["structured_output"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(said["input_modalities"], json!(["text"]));
    assert_eq!(said["supported_parameters"], json!(["temperature"]));

    let chat = |more: Value| {
        let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let image =
        json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]);
    for (more, why) in [
        (
            json!({"messages": [{"role": "user", "content": image}]}),
            "without images",
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            "without structured output",
        ),
        (json!({"max_tokens": 16_385}), "with too short answers"),
        (
            json!({"messages": [{"role": "user", "content": "a ".repeat(2_000_000)}]}),
            "input token count",
        ),
    ] {
        let refused = market.post("/v1/chat/completions", &chat(more)).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert!(refused.text().contains(why), "{}", refused.text());
    }
    assert!(market.upstream.exchanges().is_empty(), "nobody was asked");
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let served = market
        .post("/v1/chat/completions", &chat(json!({"tools": tools})))
        .await;
    assert_eq!(served.status, 200, "{}", served.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_an_upstream_does_not_take_are_left_out_by_name() {
    let market = listed(vec![entry(MODEL)], ListShape::OpenRouter).await;
    let body = json!({"model": MODEL, "seed": 7, "temperature": 0.5, "logit_bias": {"1": 2},
        "unheard_of": true, "messages": [{"role": "user", "content": "hi"}]});
    let response = market.post("/v1/chat/completions", &body).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("x-souk-dropped"), Some("seed, logit_bias"));
    let sent = market.upstream.exchanges()[0].json();
    assert_eq!(sent["temperature"], 0.5);
    assert_eq!(sent["unheard_of"], true, "what is in no list is not judged");
    assert!(
        sent.get("seed").is_none() && sent.get("logit_bias").is_none(),
        "{sent}"
    );

    // A translated limit is cut to what the seller gives, and says so.
    let body = json!({"model": MODEL, "max_tokens": 64_000, "temperature": 0.5,
        "messages": [{"role": "user", "content": "hi"}]});
    let response = market.post("/v1/messages", &body).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("x-souk-dropped"), Some("max_tokens"));
    assert_eq!(market.upstream.exchanges()[1].json()["max_tokens"], 16_384);
}
