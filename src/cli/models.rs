//! `node models`: what the network sells now, as the running node sees it.

use rust_decimal::Decimal;
use serde_json::Value;

use super::api::Api;
use super::args::ModelsArgs;
use super::output::{self, Output};
use super::{CliError, FailureKind, GlobalArgs};
use crate::telemetry::printable;
use crate::types::MicroUsd;

/// Prints the models on offer.
pub async fn run(args: &ModelsArgs, global: &GlobalArgs, out: &Output) -> anyhow::Result<()> {
    let api = Api::find(global)?;
    if matches!(api.info().role.as_str(), "sell" | "contribute") {
        let message = "the node that runs here only sells";
        return Err(CliError::new(FailureKind::NotConfigured, message)
            .hint("`node buy` (with its own --data-dir) sees the network's models")
            .into());
    }
    if let Some(model) = &args.explain {
        return explain(&api, model, out).await;
    }
    if args.pipelines {
        return pipelines(&api, out).await;
    }
    let list = api.get("/v1/models").await?;
    if out.json {
        output::json(&list);
        return Ok(());
    }
    let models = list.get("data").and_then(Value::as_array);
    let rows: Vec<Vec<String>> = models.into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        output::message("no seller is known yet; `node status` shows the peers");
        return Ok(());
    }
    let header = [
        "MODEL",
        "SELLERS",
        "IN $/M",
        "OUT $/M",
        "MEDIAN IN",
        "MEDIAN OUT",
        "TOK/S",
        "CONTEXT",
    ];
    output::text(&output::table(&header, &[1, 2, 3, 4, 5, 6, 7], rows));
    let split = models
        .into_iter()
        .flatten()
        .filter(|m| m.get("split") == Some(&Value::Bool(true)));
    let split: Vec<&str> = split.filter_map(|m| m.get("id")?.as_str()).collect();
    if !split.is_empty() {
        let report = api.get("/api/pipelines").await?;
        let names = printable(&split.join(", "));
        output::message(&format!(
            "computed by several peers: {names}. {}",
            privacy(&report)
        ));
    }
    Ok(())
}

/// Prints how far the layers of each model are covered, and the best way through them.
async fn pipelines(api: &Api, out: &Output) -> anyhow::Result<()> {
    let report = api.get("/api/pipelines").await?;
    if out.json {
        output::json(&report);
        return Ok(());
    }
    let list = report.get("pipelines").and_then(Value::as_array);
    let rows: Vec<Vec<String>> = list.into_iter().flatten().map(pipeline_row).collect();
    if rows.is_empty() {
        output::message("no peer offers layers; `node contribute --model PATH` is a beginning");
        return Ok(());
    }
    let header = [
        "STAGES OF",
        "LAYERS",
        "PEERS",
        "HOPS",
        "TOK/S",
        "IN $/M",
        "OUT $/M",
    ];
    output::text(&output::table(&header, &[1, 2, 3, 4, 5, 6], rows));
    output::message(&privacy(&report));
    Ok(())
}

fn privacy(report: &Value) -> String {
    printable(
        report
            .get("privacy")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    )
}

fn pipeline_row(one: &Value) -> Vec<String> {
    let figure = |key: &str| number(one.get(key));
    let thousandths = one.get("milli_tokens_per_second").and_then(Value::as_u64);
    let usd = |key: &str| {
        let micro = one.get(key).and_then(Value::as_u64);
        micro.map_or_else(|| "-".to_owned(), |micro| MicroUsd(micro).to_string())
    };
    vec![
        figure("stage_model"),
        format!("{}/{}", figure("covered"), figure("layers")),
        figure("stages"),
        figure("hops"),
        thousandths.map_or_else(
            || "-".to_owned(),
            |rate| {
                Decimal::new(i64::try_from(rate).unwrap_or(i64::MAX), 3)
                    .round_dp(1)
                    .to_string()
            },
        ),
        usd("price_in_micro_usd"),
        usd("price_out_micro_usd"),
    ]
}

/// Prints each seller's score for an ordinary request, or why it is not asked.
async fn explain(api: &Api, model: &str, out: &Output) -> anyhow::Result<()> {
    let said = api.get(&format!("/api/explain?model={model}")).await?;
    if out.json {
        output::json(&said);
        return Ok(());
    }
    let sellers = said.get("sellers").and_then(Value::as_array);
    let rows: Vec<Vec<String>> = sellers.into_iter().flatten().map(seller_row).collect();
    if rows.is_empty() {
        output::message(&format!("no seller of `{}` is known", printable(model)));
        return Ok(());
    }
    let text = |key: &str| number(said.get(key));
    output::message(&format!(
        "{} tokens of {} with prefer = {}; the least score is asked",
        text("input_tokens"),
        text("model"),
        text("prefer"),
    ));
    let header = [
        "SELLER",
        "SCORE µ$",
        "LIST µ$",
        "COUNTS µ$",
        "WAIT s",
        "SUCCESS",
        "TRIES",
        "RECORD",
    ];
    output::text(&output::table(&header, &[1, 2, 3, 4, 5, 6], rows));
    Ok(())
}

fn seller_row(seller: &Value) -> Vec<String> {
    let figure = |key: &str| number(seller.get(key));
    let record = match seller.get("why_not").and_then(Value::as_str) {
        Some(why) => format!("not asked: {}", printable(why)),
        None if seller.get("proven") == Some(&Value::Bool(true)) => "proven".to_owned(),
        None => "new".to_owned(),
    };
    let found = seller.pointer("/evidence/0/what").and_then(Value::as_str);
    let record = found.map_or(record.clone(), |found| {
        format!("{record}; last found: {}", printable(found))
    });
    vec![
        figure("peer"),
        figure("score_micro_usd"),
        figure("list_cost_micro_usd"),
        figure("cost_micro_usd"),
        figure("seconds"),
        figure("success"),
        figure("attempts"),
        record,
    ]
}

fn row(model: &Value) -> Vec<String> {
    let price = |pointer: &str| per_million(model.pointer(pointer));
    vec![
        printable(model.get("id").and_then(Value::as_str).unwrap_or("?")),
        number(model.get("sellers")),
        price("/pricing/prompt"),
        price("/pricing/completion"),
        price("/pricing_median/prompt"),
        price("/pricing_median/completion"),
        number(model.get("tokens_per_second")),
        number(
            model
                .get("context_length")
                .filter(|n| n.as_u64() != Some(0)),
        ),
    ]
}

/// A number as it is, `-` where nothing was reported.
pub fn number(value: Option<&Value>) -> String {
    match value {
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => printable(text),
        _ => "-".to_owned(),
    }
}

/// USD per token (a decimal string) as USD per million tokens.
fn per_million(value: Option<&Value>) -> String {
    let text = value.and_then(Value::as_str).unwrap_or_default();
    text.parse::<Decimal>()
        .ok()
        .and_then(|price| price.checked_mul(Decimal::from(1_000_000)))
        .map_or_else(|| "-".to_owned(), |price| price.normalize().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_shows_what_is_missing_as_such() {
        let whole = serde_json::json!({
            "stage_model": "stage/00", "layers": 80, "covered": 80, "stages": 5, "hops": 3,
            "milli_tokens_per_second": 4_960, "price_in_micro_usd": 140_000,
            "price_out_micro_usd": 420_000,
        });
        let expected = ["stage/00", "80/80", "5", "3", "5.0", "0.140000", "0.420000"];
        assert_eq!(pipeline_row(&whole), expected);
        let part = serde_json::json!({
            "stage_model": "stage/00", "layers": 80, "covered": 31, "stages": 2, "hops": null,
        });
        assert_eq!(pipeline_row(&part)[1..], ["31/80", "2", "-", "-", "-", "-"]);
    }

    #[test]
    fn prices_are_shown_per_million_tokens() {
        let model = serde_json::json!({
            "id": "llama3:8b", "sellers": 3, "context_length": 8192,
            "pricing": {"prompt": "0.0000025", "completion": "0.00001"},
        });
        let expected = ["llama3:8b", "3", "2.5", "10", "-", "-", "-", "8192"];
        assert_eq!(row(&model), expected);
        assert_eq!(row(&serde_json::json!({"pricing": 1}))[2], "-");
    }
}
