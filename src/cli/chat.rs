//! `node chat`: a quick try from the terminal, streamed, with what it cost.
//!
//! Asks the running buyer's own port, as any client would. Without a message the lines of stdin
//! are a conversation: each line a turn, the end of the input the end.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::api::Api;
use super::output::{self, Output};
use super::{CliError, FailureKind, GlobalArgs};
use crate::telemetry::printable;

/// An answer may think this long before a byte comes; the buyer gives up earlier.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Flags of `node chat`.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// Model to ask (see `node models`)
    #[arg(long, short)]
    model: String,
    /// What to say; without it, each line of stdin is a turn
    message: Option<String>,
}

/// One answer.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    usage: Value,
    request_id: Option<String>,
    seller: Option<String>,
    error: Option<String>,
}

/// Asks and prints.
///
/// # Errors
/// When no buyer runs, or the answer is an error.
pub async fn run(global: &GlobalArgs, out: &Output, args: &ChatArgs) -> anyhow::Result<()> {
    let api = Api::find(global)?;
    if api.info().role == "sell" {
        let message = "the node that runs here only sells";
        let hint = "start `node buy` (with its own --data-dir)";
        return Err(CliError::new(FailureKind::NotConfigured, message)
            .hint(hint)
            .into());
    }
    let mut talk = Vec::new();
    if let Some(message) = &args.message {
        return turn(&api, out, &args.model, &mut talk, message).await;
    }
    let is_terminal = std::io::stdin().is_terminal();
    loop {
        if is_terminal {
            prompt();
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.trim().is_empty() {
            turn(&api, out, &args.model, &mut talk, line.trim()).await?;
        }
    }
}

fn prompt() {
    let mut err = std::io::stderr().lock();
    drop(write!(err, "> ").and_then(|()| err.flush()));
}

async fn turn(
    api: &Api,
    out: &Output,
    model: &str,
    talk: &mut Vec<Value>,
    message: &str,
) -> anyhow::Result<()> {
    talk.push(json!({ "role": "user", "content": message }));
    let body = json!({
        "model": model, "messages": talk, "stream": true,
        "stream_options": { "include_usage": true },
    });
    let answer = ask(api, &body, !out.json).await?;
    if let Some(error) = answer.error {
        return Err(CliError::new(FailureKind::Network, printable(&error)).into());
    }
    if out.json {
        output::json(&json!({
            "content": answer.text, "usage": answer.usage,
            "request_id": answer.request_id, "seller": answer.seller,
        }));
    } else {
        output::text("");
        output::message(&bill(&answer));
    }
    talk.push(json!({ "role": "assistant", "content": answer.text }));
    Ok(())
}

async fn ask(api: &Api, body: &Value, show: bool) -> anyhow::Result<Answer> {
    let mut response = api
        .post_streamed("/v1/chat/completions", body, ANSWER_TIMEOUT)
        .await?;
    let header = |name: &str| {
        let value = response.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let mut answer = Answer {
        request_id: header("x-souk-request-id"),
        seller: header("x-souk-seller"),
        ..Answer::default()
    };
    let mut pending = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        pending.extend_from_slice(&chunk);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(text) = take(&mut answer, line.trim())
                && show
            {
                output::piece(&text);
            }
        }
    }
    Ok(answer)
}

/// Takes a line of the stream; returns the text in it.
fn take(answer: &mut Answer, line: &str) -> Option<String> {
    let data = line.strip_prefix("data:")?.trim();
    let event: Value = serde_json::from_str(data).ok()?;
    if let Some(error) = event.pointer("/error/message").and_then(Value::as_str) {
        answer.error = Some(error.to_owned());
    }
    if event.get("usage").is_some_and(Value::is_object) {
        answer.usage = event.get("usage").cloned().unwrap_or_default();
    }
    let text = event.pointer("/choices/0/delta/content")?.as_str()?;
    answer.text.push_str(text);
    // Line ends belong to an answer, escape sequences do not.
    let shown = text
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'));
    Some(shown.collect())
}

/// What it cost, from whom, and how to see more.
fn bill(answer: &Answer) -> String {
    let of = |key: &str| {
        answer
            .usage
            .get(key)
            .map_or_else(|| "-".to_owned(), Value::to_string)
    };
    let seller = answer.seller.as_deref().unwrap_or("-");
    let tail = seller
        .get(seller.len().saturating_sub(8)..)
        .unwrap_or(seller);
    let cost = answer.usage.get("cost").and_then(Value::as_f64);
    // Six decimals are all that money has here.
    let cost = cost.map_or_else(|| "-".to_owned(), |usd| format!("{usd:.6}"));
    format!(
        "[${cost} · {} tokens in, {} out · seller …{tail} · {} {}]",
        of("prompt_tokens"),
        of("completion_tokens"),
        output::own_name("node ledger show"),
        answer.request_id.as_deref().unwrap_or("-"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_becomes_text_usage_and_no_escape_sequence() {
        let mut answer = Answer::default();
        let lines = [
            r#"data: {"choices":[{"delta":{"content":"Hel"}}]}"#,
            ": beat",
            r#"data: {"choices":[{"delta":{"content":"lo\u001b[2J\n"}}]}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"cost":0.000012}}"#,
            "data: [DONE]",
        ];
        let shown: Vec<String> = lines.iter().filter_map(|l| take(&mut answer, l)).collect();
        assert_eq!(shown.concat(), "Hello[2J\n");
        let text = bill(&answer);
        assert!(
            text.starts_with("[$0.000012 · 3 tokens in, 2 out"),
            "{text}"
        );
        take(&mut answer, r#"data: {"error":{"message":"cut"}}"#);
        assert_eq!(answer.error.as_deref(), Some("cut"));
    }
}
