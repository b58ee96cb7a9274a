//! The description of the control API and the API itself say the same.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::harness::http::{self, Request};
use crate::harness::market::{Dialect, Market};
use crate::harness::node::Node;
use crate::harness::upstream::Script;

fn source(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The paths that a source file routes.
fn routes(path: &str) -> BTreeSet<String> {
    let text = source(path);
    // The path may stand on the next line.
    let after = text.split(".route(").skip(1).map(str::trim_start);
    let path = |rest: &str| rest.strip_prefix('"')?.split('"').next().map(str::to_owned);
    after.filter_map(path).collect()
}

fn described(document: &Value) -> BTreeSet<String> {
    document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

async fn document(node: &Node) -> Value {
    http::send(node.http(), &Request::get("/api/openapi.json"))
        .await
        .json()
}

/// Checks a value against the parts of JSON Schema that the description uses.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.trim_start_matches('#')).unwrap();
        return check(document, schema, value, at);
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(
            allowed.contains(value),
            "{at}: {value} is none of {allowed:?}"
        );
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return,
    };
    let is = |kind: &&str| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: unknown type {other}"),
    };
    assert!(kinds.iter().any(is), "{at}: {value} is no {kinds:?}");
    if value.is_null() {
        return;
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap();
        assert!(
            value.get(name).is_some(),
            "{at}: {name} is missing in {value}"
        );
    }
    for (name, part) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(inside) = value.get(name) {
            check(document, part, inside, &format!("{at}/{name}"));
        }
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{at}/{n}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_described_and_every_answer_is_as_described() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    assert_eq!(market.ask("Fill the ledger.", false).await.status, 200);
    let wallet = routes("http/control/wallet.rs");
    let mut buyer = &routes("buyer/control.rs") | &wallet;
    // Answered before the router, because it needs the buyer itself.
    assert!(source("buyer/explain.rs").contains("\"/api/explain\""));
    buyer.insert("/api/explain".to_owned());
    let seller = &routes("seller/control.rs") | &wallet;
    for (node, routes) in [(&market.buyer, buyer), (&market.sellers[0].node, seller)] {
        let document = document(node).await;
        assert_eq!(described(&document), routes);
        for (path, methods) in document["paths"].as_object().unwrap() {
            let Some(get) = methods.get("get") else {
                continue;
            };
            let asked = path.replace("{name}", "style.css");
            let answer = http::send(node.http(), &Request::get(&asked)).await;
            let described = &get["responses"][answer.status.to_string()];
            assert!(
                described.is_object(),
                "{path}: {} is not described",
                answer.status
            );
            let schema = &described["content"]["application/json"]["schema"];
            if schema.is_object() && !schema.as_object().unwrap().is_empty() {
                check(&document, schema, &answer.json(), path);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_something_asks_for_the_control_token() {
    let market = Market::start(Dialect::Chat, vec![Script::default()]).await;
    for node in [&market.buyer, &market.sellers[0].node] {
        let document = document(node).await;
        let mut posts = 0;
        for (path, methods) in document["paths"].as_object().unwrap() {
            let Some(post) = methods.get("post") else {
                continue;
            };
            assert_eq!(
                post["security"][0]["control"],
                serde_json::json!([]),
                "{path}"
            );
            let request = Request::post(path, &serde_json::json!({}));
            let answer = http::send(node.http(), &request).await;
            assert_eq!(answer.status, 401, "{path}: {}", answer.text());
            posts += 1;
        }
        assert!(posts >= 4, "{document}");
    }
}
