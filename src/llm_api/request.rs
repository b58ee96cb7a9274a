//! What routing and metering need of a request, from one shallow pass over its bytes.
//!
//! The view holds values and byte spans, never the body: it stays valid for exactly the bytes it
//! was parsed from and is stale after a splice. Keys given twice at the top (in any case: Go's parser
//! folds it) are refused, because two parsers could read two different models or limits. Callers: buyer (routing, reservation),
//! seller (admission).

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use super::Dialect;
use super::json::{Cursor, JSON_DEPTH_MAX, JsonError, Observe, find_in, len64, unescape};

/// Most members of the top-level object; real requests have about twenty.
const TOP_KEYS_MAX: usize = 128;
/// Longest model id taken from a body.
const MODEL_BYTES_MAX: usize = 256;
/// How far into a `data:` URI its `;base64,` is looked for.
const DATA_URI_HEAD_BYTES: usize = 64;
/// How much of the system prompt is in the conversation key: later parts often hold the date.
const KEY_SYSTEM_BYTES: usize = 2048;
/// How much of the first message is in the conversation key.
const KEY_MESSAGE_BYTES: usize = 4096;

/// Why a request was refused; the answer is a 400.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum RequestError {
    /// Not JSON, cut short, or too deep.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The body is JSON but no object.
    #[error("the body must be one JSON object")]
    NotAnObject,
    /// A key occurs twice.
    #[error("`{0}` is given twice; keep one")]
    DuplicateKey(String),
    /// Too many members.
    #[error("the body has more than {TOP_KEYS_MAX} top-level fields; remove unknown ones")]
    TooManyKeys,
    /// No `model`.
    #[error("`model` is missing; name a model, `GET /v1/models` lists them")]
    NoModel,
    /// A field has the wrong type.
    #[error("`{0}` must be {1}")]
    BadField(&'static str, &'static str),
}

/// A request, seen shallowly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestView {
    /// The dialect it was parsed as.
    pub dialect: Dialect,
    /// The model as the client wrote it (escapes decoded).
    pub model: String,
    /// The bytes of the model value, quotes included.
    pub model_span: Range<usize>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// The output limit, under whichever name the dialect has for it.
    pub max_tokens: Option<u64>,
    /// Chat: `stream_options.include_usage` is true.
    pub include_usage: bool,
    /// The `stream_options` value, when present.
    pub stream_options_span: Option<Range<usize>>,
    /// At least one tool is offered to the model.
    pub has_tools: bool,
    /// Images in the messages.
    pub image_count: u64,
    /// Bytes of base64 images, which are priced per image and not by size.
    pub base64_bytes: u64,
    /// Messages (or input items).
    pub message_count: u64,
    /// JSON output is asked for.
    pub response_format_json: bool,
    /// Chat's `n`: how many answers (1 when absent).
    pub choices: u64,
    /// The `messages` or `input` value.
    pub messages_span: Option<Range<usize>>,
    /// The `prompt` of completions or the `input` of embeddings: text, or token ids.
    pub prompt_span: Option<Range<usize>>,
    /// Names of the members that nothing here looks at: sampling and the like.
    pub parameters: Vec<String>,
    /// The `system` or `instructions` value.
    pub system_span: Option<Range<usize>>,
    /// The `tools` (or `functions`) value.
    pub tools_span: Option<Range<usize>>,
    /// Where a member can be inserted: just after the top-level `{`.
    pub(crate) insert_at: usize,
}

impl RequestView {
    /// Reads a body in one pass: some 60 µs for 100 KiB of escaped code and tool schemas.
    pub fn parse(body: &[u8], dialect: Dialect) -> Result<Self, RequestError> {
        let mut cursor = Cursor::new(body, 0);
        match cursor.peek() {
            Some(b'{') => cursor.expect(b'{')?,
            Some(_) => return Err(RequestError::NotAnObject),
            None => return Err(JsonError::Truncated.into()),
        }
        let mut view = Self::empty(dialect, cursor.pos());
        let mut keys: Vec<Cow<'_, [u8]>> = Vec::with_capacity(24);
        let mut scan = ContentScan::default();
        let mut limit = Limit::default();
        let mut found_model = false;
        let mut first = true;
        while let Some(span) = cursor.next_key(&mut first)? {
            let raw = cursor.slice(&span);
            let key = plain_key(raw);
            if keys.iter().any(|k| k.eq_ignore_ascii_case(&key)) {
                return Err(RequestError::DuplicateKey(short(&key)));
            }
            if keys.len() >= TOP_KEYS_MAX {
                return Err(RequestError::TooManyKeys);
            }
            scan.enter(&key);
            let value = cursor.value(JSON_DEPTH_MAX - 1, &mut scan)?;
            found_model |= key.as_ref() == b"model";
            view.take(body, &key, value, &mut limit, &scan)?;
            keys.push(key);
        }
        if let Some(_extra) = cursor.peek() {
            return Err(JsonError::Malformed(cursor.pos()).into());
        }
        if !found_model {
            return Err(RequestError::NoModel);
        }
        view.max_tokens = limit.best(dialect);
        // What is left out as an image is priced as one, whatever its part calls itself.
        view.image_count = scan.images.max(scan.base64_strings);
        view.base64_bytes = scan.base64_bytes;
        Ok(view)
    }

    const fn empty(dialect: Dialect, insert_at: usize) -> Self {
        Self {
            dialect,
            model: String::new(),
            model_span: 0..0,
            stream: false,
            max_tokens: None,
            include_usage: false,
            stream_options_span: None,
            has_tools: false,
            image_count: 0,
            base64_bytes: 0,
            message_count: 0,
            response_format_json: false,
            choices: 1,
            messages_span: None,
            prompt_span: None,
            parameters: Vec::new(),
            system_span: None,
            tools_span: None,
            insert_at,
        }
    }

    fn take(
        &mut self,
        body: &[u8],
        key: &[u8],
        span: Range<usize>,
        limit: &mut Limit,
        scan: &ContentScan,
    ) -> Result<(), RequestError> {
        let raw = body.get(span.clone()).unwrap_or_default();
        match key {
            b"model" => {
                self.model = model_text(raw)?;
                self.model_span = span;
            }
            b"stream" => self.stream = flag(raw, "stream")?,
            b"max_tokens" => limit.plain = number(raw, "max_tokens")?,
            b"max_completion_tokens" => {
                limit.completion = number(raw, "max_completion_tokens")?;
            }
            b"max_output_tokens" => limit.output = number(raw, "max_output_tokens")?,
            b"n" => self.choices = number(raw, "n")?.unwrap_or(1).max(1),
            b"messages" if self.dialect != Dialect::Responses => {
                if raw.first() != Some(&b'[') {
                    return Err(RequestError::BadField("messages", "a list"));
                }
                self.message_count = scan.elements;
                self.messages_span = Some(span);
            }
            b"input" if self.dialect == Dialect::Responses => {
                self.message_count = scan.elements.max(1);
                self.messages_span = Some(span);
            }
            b"prompt" | b"input" if self.dialect == Dialect::Chat => {
                self.message_count = self.message_count.max(1);
                self.prompt_span = Some(span);
            }
            b"system" | b"instructions" => self.system_span = Some(span),
            b"tools" | b"functions" => {
                self.has_tools |= scan.elements > 0;
                if self.tools_span.is_none() || key == b"tools" {
                    self.tools_span = Some(span);
                }
            }
            b"stream_options" => {
                self.include_usage = include_usage(body, &span)?;
                self.stream_options_span = Some(span);
            }
            b"response_format" | b"output_format" => {
                self.response_format_json |= names_json(body, span.start, &["type"]);
            }
            b"output_config" => {
                self.response_format_json |= names_json(body, span.start, &["format", "type"]);
            }
            b"text" if self.dialect == Dialect::Responses => {
                self.response_format_json |= names_json(body, span.start, &["format", "type"]);
            }
            _ => self.parameters.push(short(key)),
        }
        Ok(())
    }
}

/// The three names of the output limit.
#[derive(Default)]
struct Limit {
    plain: Option<u64>,
    completion: Option<u64>,
    output: Option<u64>,
}

impl Limit {
    fn best(&self, dialect: Dialect) -> Option<u64> {
        match dialect {
            Dialect::Chat => self.completion.or(self.plain),
            Dialect::Messages => self.plain,
            Dialect::Responses => self.output.or(self.plain),
        }
    }
}

/// Counts images, base64 and list elements while a value is walked.
#[derive(Default)]
struct ContentScan {
    content: bool,
    elements: u64,
    images: u64,
    base64_strings: u64,
    base64_bytes: u64,
}

impl ContentScan {
    fn enter(&mut self, key: &[u8]) {
        self.elements = 0;
        self.content = matches!(key, b"messages" | b"input" | b"system" | b"instructions");
    }
}

impl Observe for ContentScan {
    #[inline]
    fn value_start(&mut self, depth: u32, _key: &[u8], _first: u8, _at: usize) {
        self.elements += u64::from(depth == 1);
    }
    #[inline]
    fn string(&mut self, key: &[u8], raw: &[u8]) {
        if !self.content {
            return;
        }
        match key {
            b"type" if matches!(raw, b"image" | b"image_url" | b"input_image") => self.images += 1,
            b"url" | b"image_url" | b"data" | b"file_data" if is_base64_image(raw) => {
                self.base64_strings += 1;
                self.base64_bytes += len64(raw.len());
            }
            _ => {}
        }
    }
}

/// True for a base64 image: a `data:image…;base64,` URI, or bare base64 that begins like a PNG,
/// JPEG, GIF or WebP. Both sides derive prefill from it, so it looks at the value alone.
pub(crate) fn is_base64_image(raw: &[u8]) -> bool {
    if raw.starts_with(b"data:image") {
        let head = raw.get(..DATA_URI_HEAD_BYTES).unwrap_or(raw);
        return memchr::memmem::find(head, b";base64,")
            .and_then(|at| raw.get(at + b";base64,".len()..))
            .is_some_and(is_base64_text);
    }
    const MAGIC: [&[u8]; 5] = [b"iVBORw0", b"/9j/", b"\\/9j\\/", b"R0lGOD", b"UklGR"];
    MAGIC.iter().any(|m| raw.starts_with(m)) && is_base64_text(raw)
}

/// True when nothing but base64 (and JSON's `\\/`) is in it: prose cannot pass as an image.
fn is_base64_text(raw: &[u8]) -> bool {
    raw.iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'\\'))
}

/// The key with escapes decoded, so that `mod\u0065l` cannot hide from one of two parsers.
fn plain_key(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    Cow::Owned(unescape(raw).into_owned().into_bytes())
}

fn short(key: &[u8]) -> String {
    String::from_utf8_lossy(key).chars().take(40).collect()
}

fn inner(raw: &[u8]) -> Option<&[u8]> {
    raw.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

fn model_text(raw: &[u8]) -> Result<String, RequestError> {
    const WANT: RequestError = RequestError::BadField("model", "a string of 1 to 256 bytes");
    let text = unescape(inner(raw).ok_or(WANT)?);
    if text.trim().is_empty() || text.len() > MODEL_BYTES_MAX {
        return Err(WANT);
    }
    Ok(text.into_owned())
}

fn flag(raw: &[u8], name: &'static str) -> Result<bool, RequestError> {
    match raw {
        b"true" => Ok(true),
        b"false" | b"null" => Ok(false),
        _ => Err(RequestError::BadField(name, "true or false")),
    }
}

fn number(raw: &[u8], name: &'static str) -> Result<Option<u64>, RequestError> {
    if raw == b"null" {
        return Ok(None);
    }
    serde_json::from_slice::<serde_json::Value>(raw)
        .ok()
        .as_ref()
        .and_then(super::usage::whole_number)
        .map(Some)
        .ok_or(RequestError::BadField(name, "a whole number, 0 or more"))
}

fn include_usage(body: &[u8], span: &Range<usize>) -> Result<bool, RequestError> {
    let raw = body.get(span.clone()).unwrap_or_default();
    if raw == b"null" {
        return Ok(false);
    }
    if raw.first() != Some(&b'{') {
        return Err(RequestError::BadField("stream_options", "an object"));
    }
    match member_once(body, span.start, b"include_usage")? {
        Some(value) => flag(
            body.get(value).unwrap_or_default(),
            "stream_options.include_usage",
        ),
        None => Ok(false),
    }
}

/// The value of a member of the object at `start`; an error when it is there twice.
pub(crate) fn member_once(
    body: &[u8],
    start: usize,
    name: &[u8],
) -> Result<Option<Range<usize>>, RequestError> {
    let mut cursor = Cursor::new(body, start);
    cursor.expect(b'{')?;
    let (mut first, mut found) = (true, None);
    while let Some(key) = cursor.next_key(&mut first)? {
        let hit = plain_key(cursor.slice(&key)).as_ref() == name;
        let value = cursor.value(JSON_DEPTH_MAX, &mut super::json::Blind)?;
        if hit && found.replace(value).is_some() {
            return Err(RequestError::DuplicateKey(short(name)));
        }
    }
    Ok(found)
}

fn names_json(body: &[u8], start: usize, path: &[&str]) -> bool {
    find_in(body, start, path)
        .and_then(|s| body.get(s))
        .is_some_and(|v| v.starts_with(b"\"json"))
}

/// Input tokens that both sides know before the work:
/// `⌈(body bytes − base64 image bytes) × tokens_per_kib ÷ 1024⌉ + images × image_tokens`.
#[must_use]
pub fn prefill_tokens(
    view: &RequestView,
    body_len: usize,
    tokens_per_kib: u16,
    image_tokens: u32,
) -> u64 {
    let text = len64(body_len).saturating_sub(view.base64_bytes);
    let wide = u128::from(text) * u128::from(tokens_per_kib);
    let tokens = u64::try_from(wide.div_ceil(1024)).unwrap_or(u64::MAX);
    tokens.saturating_add(view.image_count.saturating_mul(u64::from(image_tokens)))
}

/// A hash that stays the same through a conversation: model, beginning of the system prompt, first
/// message that is not a system one. Clients send no session header and rewrite tool-call ids.
#[must_use]
pub fn conversation_key(body: &[u8], view: &RequestView) -> u64 {
    let mut hash = DefaultHasher::new();
    view.model.hash(&mut hash);
    let clip = |span: &Range<usize>, max: usize| {
        let raw = body.get(span.clone()).unwrap_or_default();
        raw.get(..max).unwrap_or(raw).to_owned()
    };
    if let Some(span) = &view.system_span {
        clip(span, KEY_SYSTEM_BYTES).hash(&mut hash);
    }
    let Some(messages) = &view.messages_span else {
        return hash.finish();
    };
    let mut cursor = Cursor::new(body, messages.start);
    if cursor.expect(b'[').is_err() {
        clip(messages, KEY_MESSAGE_BYTES).hash(&mut hash);
        return hash.finish();
    }
    let mut first = true;
    while let Ok(true) = cursor.next_item(&mut first, b']') {
        let Ok(span) = cursor.value(JSON_DEPTH_MAX, &mut super::json::Blind) else {
            break;
        };
        let role = find_in(body, span.start, &["role"]).and_then(|s| body.get(s));
        let system = matches!(role, Some(b"\"system\"" | b"\"developer\""));
        let max = if system {
            KEY_SYSTEM_BYTES
        } else {
            KEY_MESSAGE_BYTES
        };
        clip(&span, max).hash(&mut hash);
        if !system {
            break;
        }
    }
    hash.finish()
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
