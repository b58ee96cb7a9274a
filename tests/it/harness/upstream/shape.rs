//! What vendors refuse for its shape: the rules that a request has to keep to be taken at all.
//!
//! Written from the vendors' published references; only what a translation can get wrong.

use std::collections::BTreeSet;

use serde_json::Value;

use super::ask::Dialect;

type Checked<T = ()> = Result<T, String>;

const CHAT_FIELDS: [&str; 24] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "stop",
    "n",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "seed",
    "user",
    "store",
    "metadata",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "modalities",
    "prompt_cache_key",
];
const MESSAGES_FIELDS: [&str; 18] = [
    "model",
    "messages",
    "stream",
    "max_tokens",
    "system",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "tools",
    "tool_choice",
    "thinking",
    "metadata",
    "output_config",
    "context_management",
    "service_tier",
    "mcp_servers",
    "betas",
];
const RESPONSES_FIELDS: [&str; 21] = [
    "model",
    "input",
    "instructions",
    "stream",
    "stream_options",
    "store",
    "include",
    "max_output_tokens",
    "temperature",
    "top_p",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "text",
    "truncation",
    "metadata",
    "previous_response_id",
    "prompt_cache_key",
    "user",
    "client_metadata",
];

/// Says what a vendor would object to.
pub fn check(dialect: Dialect, body: &[u8]) -> Checked {
    let request: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let known: &[&str] = match dialect {
        Dialect::Chat => &CHAT_FIELDS,
        Dialect::Messages => &MESSAGES_FIELDS,
        Dialect::Responses => &RESPONSES_FIELDS,
    };
    for field in request.as_object().ok_or("the body is no object")?.keys() {
        ensure(known.contains(&field.as_str()), || {
            format!("unknown field `{field}`")
        })?;
    }
    for tool in list(&request["tools"]) {
        check_tool(dialect, tool)?;
    }
    match dialect {
        Dialect::Chat => chat(&request),
        Dialect::Messages => messages(&request),
        Dialect::Responses => responses(&request),
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> Checked<&str> {
    value
        .as_str()
        .ok_or_else(|| format!("{value} should be a string"))
}

fn check_tool(dialect: Dialect, tool: &Value) -> Checked {
    let (function, schema) = match dialect {
        Dialect::Chat => (&tool["function"], "parameters"),
        Dialect::Messages => (tool, "input_schema"),
        Dialect::Responses => (tool, "parameters"),
    };
    if tool["type"]
        .as_str()
        .is_some_and(|t| t != "function" && t != "custom")
        && dialect != Dialect::Chat
    {
        return Ok(()); // the vendor's own
    }
    name(text(&function["name"])?)?;
    ensure(
        function[schema]["type"] == "object" || tool["type"] == "custom",
        || format!("the schema of a tool must be an object: {tool}"),
    )
}

fn name(name: &str) -> Checked {
    let fits = !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    ensure(fits, || format!("`{name}` is no name for a tool"))
}

fn unanswered(open: &BTreeSet<String>) -> Checked {
    ensure(open.is_empty(), || {
        format!("calls without a result: {open:?}")
    })
}

/// Every call is followed by its result, and no result comes without a call.
fn chat(request: &Value) -> Checked {
    let mut open = BTreeSet::new();
    ensure(request["messages"].is_array(), || "no messages".into())?;
    for message in list(&request["messages"]) {
        let role = text(&message["role"])?;
        if role == "tool" {
            let id = text(&message["tool_call_id"])?;
            ensure(open.remove(id), || format!("no call `{id}` is open"))?;
            text(&message["content"])?;
            continue;
        }
        unanswered(&open)?;
        ensure(
            matches!(role, "system" | "developer" | "user" | "assistant"),
            || format!("role `{role}`"),
        )?;
        for part in list(&message["content"]) {
            let kind = text(&part["type"])?;
            match kind {
                "text" => text(&part["text"]).map(|_| ())?,
                "image_url" => text(&part["image_url"]["url"]).map(|_| ())?,
                "file" => text(&part["file"]["file_data"]).map(|_| ())?,
                _ => return Err(format!("content part `{kind}`")),
            }
            ensure(kind == "text" || role == "user", || {
                format!("{kind} by {role}")
            })?;
        }
        for call in list(&message["tool_calls"]) {
            ensure(role == "assistant", || format!("a call by {role}"))?;
            name(text(&call["function"]["name"])?)?;
            text(&call["function"]["arguments"])?;
            let id = text(&call["id"])?;
            ensure(id.len() <= 40, || format!("the id `{id}` is too long"))?;
            ensure(open.insert(id.to_owned()), || format!("`{id}` twice"))?;
        }
        let says = message["content"].is_string()
            || message["content"].is_array()
            || message["tool_calls"].is_array();
        ensure(says, || format!("{role} says nothing"))?;
    }
    unanswered(&open)
}

fn messages(request: &Value) -> Checked {
    ensure(request["max_tokens"].as_u64() > Some(0), || {
        "max_tokens is required".into()
    })?;
    ensure(
        request["temperature"].as_f64().unwrap_or(0.0) <= 1.0,
        || "temperature is above 1".into(),
    )?;
    let mut open = BTreeSet::new();
    let mut last = "";
    ensure(request["messages"].is_array(), || "no messages".into())?;
    for message in list(&request["messages"]) {
        let role = text(&message["role"])?;
        ensure(matches!(role, "user" | "assistant" | "system"), || {
            format!("role `{role}`")
        })?;
        ensure(!last.is_empty() || role == "user", || {
            "the first message must be the user's".into()
        })?;
        last = role;
        let mut results_are_over = false;
        for block in list(&message["content"]) {
            let kind = text(&block["type"])?;
            match kind {
                "tool_result" => {
                    ensure(!results_are_over, || "a result after other blocks".into())?;
                    let id = text(&block["tool_use_id"])?;
                    ensure(open.remove(id), || format!("no call `{id}` is open"))?;
                    continue;
                }
                "tool_use" => {
                    ensure(role == "assistant", || "a call by the user".into())?;
                    name(text(&block["name"])?)?;
                    ensure(block["input"].is_object(), || "input is no object".into())?;
                    ensure(open.insert(text(&block["id"])?.to_owned()), || {
                        "an id twice".into()
                    })?;
                }
                "text" => ensure(!text(&block["text"])?.is_empty(), || "empty text".into())?,
                "thinking" => text(&block["signature"]).map(|_| ())?,
                "image" | "document" => ensure(role == "user", || format!("{kind} by {role}"))?,
                "redacted_thinking" => {}
                _ => return Err(format!("block `{kind}`")),
            }
            results_are_over = true;
        }
        if role == "user" {
            unanswered(&open)?;
        }
    }
    unanswered(&open)
}

fn responses(request: &Value) -> Checked {
    let mut open = BTreeSet::new();
    for item in list(&request["input"]) {
        match item["type"].as_str().unwrap_or("message") {
            "message" => {
                let role = text(&item["role"])?;
                for part in list(&item["content"]) {
                    let kind = text(&part["type"])?;
                    let fits = match role {
                        "assistant" => matches!(kind, "output_text" | "refusal"),
                        _ => matches!(kind, "input_text" | "input_image" | "input_file"),
                    };
                    ensure(fits, || format!("{kind} by {role}"))?;
                }
            }
            "function_call" | "custom_tool_call" => {
                name(text(&item["name"])?)?;
                open.insert(text(&item["call_id"])?.to_owned());
            }
            "function_call_output" | "custom_tool_call_output" => {
                let id = text(&item["call_id"])?;
                ensure(open.remove(id), || format!("no call `{id}` is open"))?;
            }
            "reasoning" => {}
            kind => return Err(format!("item `{kind}`")),
        }
    }
    unanswered(&open)
}
