//! OpenAI's older two paths as the scripted upstream serves them: completions, which are chat
//! answers in another wrapping, and embeddings.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::tokens;

/// Makes a chat request of a completion's.
pub fn as_chat(body: &[u8]) -> Option<Bytes> {
    let mut request: Value = serde_json::from_slice(body).ok()?;
    let prompt = request.as_object_mut()?.remove("prompt")?;
    request["messages"] = json!([{"role": "user", "content": prompt.as_str()?}]);
    Some(Bytes::from(request.to_string()))
}

/// Makes a completion's answer, or an event of one, of a chat answer's.
pub const REWRITE: fn(Bytes) -> Bytes = rewrite;

fn rewrite(bytes: Bytes) -> Bytes {
    let (lead, json, end) = match bytes.strip_prefix(b"data: ".as_slice()) {
        Some(data) => ("data: ", data, "\n\n"),
        None => ("", bytes.as_ref(), ""),
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(json) else {
        return bytes;
    };
    value["object"] = json!("text_completion");
    for choice in value["choices"].as_array_mut().into_iter().flatten() {
        let said = ["/message/content", "/delta/content"]
            .into_iter()
            .find_map(|path| choice.pointer(path).cloned());
        let finish = choice["finish_reason"].clone();
        *choice = json!({"index": 0, "text": said.unwrap_or_else(|| json!("")),
            "logprobs": null, "finish_reason": finish});
    }
    Bytes::from(format!("{lead}{value}{end}"))
}

/// One short vector a text; none for a body that is no request.
pub fn embeddings(body: &[u8]) -> Option<Bytes> {
    let request: Value = serde_json::from_slice(body).ok()?;
    let inputs = match &request["input"] {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    };
    let used: u64 = inputs.iter().filter_map(Value::as_str).map(tokens).sum();
    let vector =
        |(index, _)| json!({"object": "embedding", "index": index, "embedding": [0.25, -0.5]});
    let data: Vec<Value> = inputs.iter().enumerate().map(vector).collect();
    let answer = json!({"object": "list", "data": data, "model": request["model"],
        "usage": {"prompt_tokens": used, "total_tokens": used}});
    Some(Bytes::from(answer.to_string()))
}
