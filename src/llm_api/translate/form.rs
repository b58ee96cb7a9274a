//! The small internal form between two dialects: turns, parts, tools, stop reasons.
//!
//! Texts are the insides of JSON strings as they were written, escapes and all: every dialect writes
//! strings alike, so most of a request is copied and never decoded. Used only within `translate`.

use std::borrow::Cow;

use super::super::json::{Cursor, JsonError, unescape};
use super::pen::{Pen, items, text};

/// The inside of a JSON string, escapes as written.
pub(super) type Text<'a> = Cow<'a, [u8]>;

/// Why a request is not translated; the answer is a 400 with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// A part of the request has no equal and the answer would mean something else without it.
    #[error("{0} cannot be carried to a seller of another dialect; leave it out")]
    NotCarried(String),
    /// The JSON does not read as its dialect.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Clear words for a case of its own.
    #[error("{0}")]
    Refused(&'static str),
}

impl TranslateError {
    pub(super) fn not_carried(what: impl Into<String>) -> Self {
        Self::NotCarried(what.into())
    }
}

/// A request between two dialects.
#[derive(Debug, Default)]
pub(super) struct Request<'a> {
    /// System texts before the first turn.
    pub system: Vec<Text<'a>>,
    pub turns: Vec<Turn<'a>>,
    pub tools: Vec<Tool<'a>>,
    pub choice: Option<Choice<'a>>,
    /// Whether several calls at once are allowed, when the client says.
    pub parallel: Option<bool>,
    pub temperature: Option<&'a [u8]>,
    pub top_p: Option<&'a [u8]>,
    pub stop: Vec<Text<'a>>,
    pub schema: Option<Schema<'a>>,
    /// Any JSON object will do.
    pub json_object: bool,
    /// How hard to think, in OpenAI's words.
    pub effort: Option<Text<'a>>,
    /// The client asked to see the model think.
    pub thinking: bool,
    pub dropped: Dropped,
}

impl Request<'_> {
    /// Writes the sampling parameters that are called alike.
    pub fn write_sampling(&self, pen: &mut Pen) {
        for (key, raw) in [("temperature", self.temperature), ("top_p", self.top_p)] {
            if let Some(raw) = raw {
                pen.field(key, raw);
            }
        }
    }

    /// System texts at the start are the system prompt; later ones keep their place.
    pub fn lift_system(&mut self) {
        let lead = self.turns.iter().take_while(|t| t.role == Role::System);
        let lead = lead.count();
        for turn in self.turns.drain(..lead) {
            self.system
                .extend(turn.parts.into_iter().filter_map(|p| match p {
                    Part::Text(text) => Some(text),
                    _ => None,
                }));
        }
    }
}

/// Names of what was left out, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped(pub Vec<String>);

impl Dropped {
    /// Notes a name, as far as it may stand in a header.
    pub fn note(&mut self, what: &str) {
        let plain = |c: &char| (c.is_ascii_graphic() || *c == ' ') && *c != ',';
        let name: String = what.chars().filter(plain).take(NAME_CHARS_MAX).collect();
        if self.0.len() < NAMES_MAX && !self.0.contains(&name) {
            self.0.push(name);
        }
    }
    /// Notes a field that says something: `null`, `false`, `0`, `[]` and `{}` say nothing.
    pub fn note_field(&mut self, key: &[u8], value: &[u8]) {
        let says_nothing = matches!(
            value,
            b"null" | b"false" | b"0" | b"0.0" | b"[]" | b"{}" | b"\"\""
        );
        if !says_nothing {
            self.note(&unescape(key));
        }
    }
}

/// Most names in the header.
const NAMES_MAX: usize = 24;
/// Longest name of a dropped field in the header.
const NAME_CHARS_MAX: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A system text within the conversation.
    System,
    User,
    Assistant,
}

#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub role: Role,
    pub parts: Vec<Part<'a>>,
}

#[derive(Clone, Debug)]
pub(super) enum Part<'a> {
    Text(Text<'a>),
    Image(Image<'a>),
    /// A document as base64.
    File {
        name: Option<Text<'a>>,
        media: Text<'a>,
        data: Text<'a>,
    },
    Call(Call<'a>),
    /// What a tool gave back.
    Result {
        id: Text<'a>,
        parts: Vec<Part<'a>>,
        is_error: bool,
    },
    /// The model's thinking, shown.
    Thinking {
        text: Text<'a>,
        signature: Text<'a>,
    },
}

/// What is said in parts as text.
pub(super) fn texts<'p>(parts: &'p [Part<'_>]) -> Vec<&'p [u8]> {
    let text = |part: &'p Part<'_>| match part {
        Part::Text(text) => Some(text.as_ref()),
        _ => None,
    };
    parts.iter().filter_map(text).collect()
}

/// Reads what stands as `content`: a string, or a list whose items `part` reads.
pub(super) fn content<'a, E: From<JsonError>>(
    c: &mut Cursor<'a>,
    mut part: impl FnMut(&mut Cursor<'a>) -> Result<Option<Part<'a>>, E>,
) -> Result<Vec<Part<'a>>, E> {
    let mut parts = Vec::new();
    if c.peek() == Some(b'[') {
        items(c, |c| {
            parts.extend(part(c)?);
            Ok::<_, E>(())
        })?;
    } else {
        let only = text(c)?.filter(|t| !t.is_empty());
        parts.extend(only.map(|t| Part::Text(Cow::Borrowed(t))));
    }
    Ok(parts)
}

#[derive(Clone, Debug)]
pub(super) enum Image<'a> {
    Url(Text<'a>),
    Base64 { media: Text<'a>, data: Text<'a> },
}

#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub id: Text<'a>,
    pub name: Text<'a>,
    pub arguments: Arguments<'a>,
}

/// A call's arguments: Messages writes an object, the others a string that should hold one.
#[derive(Clone, Debug)]
pub(super) enum Arguments<'a> {
    /// The inside of a JSON string.
    Escaped(Text<'a>),
    /// A JSON value.
    Value(Cow<'a, [u8]>),
}

impl<'a> Arguments<'a> {
    /// As the inside of a string.
    pub fn escaped(&self) -> Text<'a> {
        match self {
            Self::Escaped(text) if text.trim_ascii().is_empty() => Cow::Borrowed(b"{}"),
            Self::Escaped(text) => text.clone(),
            Self::Value(value) => Cow::Owned(escape(value)),
        }
    }
    /// As a JSON object; `None` when the text is none.
    pub fn object(&self) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Value(value) => Some(value.clone()),
            Self::Escaped(text) => {
                let plain = unescape(text);
                if plain.trim().is_empty() {
                    return Some(Cow::Borrowed(b"{}"));
                }
                super::super::is_json_object(plain.as_bytes())
                    .then(|| Cow::Owned(plain.into_owned().into_bytes()))
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Tool<'a> {
    pub name: Text<'a>,
    pub description: Option<Text<'a>>,
    /// The JSON schema of its arguments, as written; none = no arguments.
    pub schema: Option<&'a [u8]>,
    pub strict: bool,
    /// Takes free text and no arguments.
    pub custom: bool,
}

#[derive(Debug)]
pub(super) enum Choice<'a> {
    Auto,
    Any,
    None,
    Named(Text<'a>),
}

/// A JSON schema that the answer must fit.
#[derive(Debug)]
pub(super) struct Schema<'a> {
    pub name: Option<Text<'a>>,
    pub schema: &'a [u8],
    pub strict: bool,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    EndTurn,
    Length,
    ToolUse,
    Filtered,
    Sequence,
    Paused,
    /// Passed as text.
    Other(String),
}

impl Stop {
    pub fn from_chat(reason: &[u8]) -> Self {
        match reason {
            b"stop" => Self::EndTurn,
            b"length" => Self::Length,
            b"tool_calls" | b"function_call" => Self::ToolUse,
            b"content_filter" => Self::Filtered,
            other => Self::Other(unescape(other).into_owned()),
        }
    }
    pub fn from_messages(reason: &[u8]) -> Self {
        match reason {
            b"end_turn" => Self::EndTurn,
            b"max_tokens" | b"model_context_window_exceeded" => Self::Length,
            b"tool_use" => Self::ToolUse,
            b"refusal" => Self::Filtered,
            b"stop_sequence" => Self::Sequence,
            b"pause_turn" => Self::Paused,
            other => Self::Other(unescape(other).into_owned()),
        }
    }
    pub fn chat(&self) -> &str {
        match self {
            Self::EndTurn | Self::Sequence | Self::Paused => "stop",
            Self::Length => "length",
            Self::ToolUse => "tool_calls",
            Self::Filtered => "content_filter",
            Self::Other(text) => text,
        }
    }
    pub fn messages(&self) -> &str {
        match self {
            Self::EndTurn => "end_turn",
            Self::Length => "max_tokens",
            Self::ToolUse => "tool_use",
            Self::Filtered => "refusal",
            Self::Sequence => "stop_sequence",
            Self::Paused => "pause_turn",
            Self::Other(text) => text,
        }
    }
    /// The reason that agrees with what was said: a call makes it a tool turn, but for a cut.
    pub fn with_calls(self, any_call: bool) -> Self {
        match self {
            Self::Length | Self::Filtered => self,
            _ if any_call => Self::ToolUse,
            // A client that waits for calls would hang on this.
            Self::ToolUse => Self::EndTurn,
            other => other,
        }
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub(super) struct Answer<'a> {
    pub id: Text<'a>,
    pub model: Text<'a>,
    pub parts: Vec<Part<'a>>,
    pub stop: Option<Stop>,
    pub sequence: Option<Text<'a>>,
}

/// One step of a streamed answer.
#[derive(Debug)]
pub(super) enum Delta<'a> {
    Start {
        id: Text<'a>,
        model: Text<'a>,
    },
    Text(Text<'a>),
    Thinking(Text<'a>),
    Signature(Text<'a>),
    /// A call begins; `key` names it until the end.
    Call {
        key: u64,
        id: Text<'a>,
        name: Text<'a>,
    },
    /// A piece of its arguments, the inside of a JSON string.
    Arguments {
        key: u64,
        text: Text<'a>,
    },
    Stop(Stop, Option<Text<'a>>),
}

/// JSON text as the inside of a JSON string.
pub(super) fn escape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
    let mut done = 0;
    for (at, &b) in bytes.iter().enumerate() {
        if b >= b' ' && b != b'"' && b != b'\\' {
            continue;
        }
        out.extend_from_slice(bytes.get(done..at).unwrap_or_default());
        done = at + 1;
        match b {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => out.extend_from_slice(format!("\\u{other:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(bytes.get(done..).unwrap_or_default());
    out
}
