//! Finds calls of tools in the text of an answer, in the manner of the model. Pure.
//!
//! What looks like a call and cannot be read as one is given as text: nothing is lost.

use serde_json::Value;

use super::stop::partial;
use crate::pipeline::tokens::ToolStyle;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
const PYTHON: &str = "<|python_tag|>";

/// What a piece of an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    /// A tool's name and its arguments, as JSON.
    Call {
        name: String,
        arguments: String,
    },
}

/// Looks for calls in a growing text.
pub(super) struct Calls {
    style: Option<ToolStyle>,
    held: String,
    /// Inside what may be a call.
    is_inside: bool,
    /// Only whitespace came so far, or since the last call.
    is_blank: bool,
    found: usize,
}

impl Calls {
    /// None: nothing is a call.
    pub(super) const fn new(style: Option<ToolStyle>) -> Self {
        Self {
            style,
            held: String::new(),
            is_inside: false,
            is_blank: true,
            found: 0,
        }
    }

    pub(super) const fn found(&self) -> usize {
        self.found
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = vec![];
        self.held.push_str(text);
        match self.style {
            None => self.give(self.held.len(), &mut parts),
            Some(ToolStyle::Tagged) => self.tagged(&mut parts),
            Some(ToolStyle::Listed) if !self.is_inside => self.until(LIST, &mut parts),
            Some(ToolStyle::Bare) if !self.is_inside => self.bare(&mut parts),
            Some(_) => {}
        }
        parts
    }

    /// The rest, when nothing more comes.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        let mut parts = vec![];
        if self.is_inside {
            let text = self.held.as_str();
            let body = text.trim_start();
            let body = [OPEN, LIST, PYTHON]
                .into_iter()
                .find_map(|marker| body.strip_prefix(marker))
                .unwrap_or(body);
            if let Some(calls) = read(body) {
                self.held.clear();
                self.found += calls.len();
                return calls;
            }
        }
        self.give(self.held.len(), &mut parts);
        parts
    }

    fn tagged(&mut self, parts: &mut Vec<Part>) {
        loop {
            if !self.is_inside {
                self.until(OPEN, parts);
            }
            let Some(end) = self.held.find(CLOSE).filter(|_| self.is_inside) else {
                return;
            };
            self.is_inside = false;
            let body = self.held.get(OPEN.len()..end).and_then(read);
            let end = end + CLOSE.len();
            if let Some(calls) = body {
                self.held.drain(..end);
                self.found += calls.len();
                self.is_blank = true;
                parts.extend(calls);
            } else {
                self.give(end, parts);
            }
        }
    }

    /// Gives text up to a marker, and is inside from there.
    fn until(&mut self, marker: &str, parts: &mut Vec<Part>) {
        let found = self.held.find(marker);
        self.is_inside = found.is_some();
        let held = partial(&self.held, marker);
        self.give(found.unwrap_or(self.held.len() - held), parts);
    }

    fn bare(&mut self, parts: &mut Vec<Part>) {
        let begin = self.held.trim_start();
        if self.is_blank && (begin.starts_with('{') || begin.starts_with(PYTHON)) {
            self.is_inside = true;
        } else if !(self.is_blank && PYTHON.starts_with(begin)) {
            self.give(self.held.len(), parts);
        }
    }

    fn give(&mut self, bytes: usize, parts: &mut Vec<Part>) {
        let text: String = self.held.drain(..bytes).collect();
        // Line ends between calls are no text.
        let is_blank = text.trim().is_empty();
        if text.is_empty() || (is_blank && self.is_blank && self.found > 0) {
            return;
        }
        self.is_blank &= is_blank;
        parts.push(Part::Text(text));
    }
}

/// One call, or a list of them.
fn read(body: &str) -> Option<Vec<Part>> {
    let value: Value = serde_json::from_str(body.trim()).ok()?;
    let one = |value: &Value| {
        let name = value.get("name")?.as_str()?.to_owned();
        let given = value.get("arguments").or_else(|| value.get("parameters"));
        let arguments = match given {
            None => "{}".to_owned(),
            // Some models write JSON within JSON.
            Some(Value::String(text)) => text.clone(),
            Some(given) => given.to_string(),
        };
        Some(Part::Call { name, arguments })
    };
    match &value {
        Value::Array(all) if !all.is_empty() => all.iter().map(one).collect(),
        value => one(value).map(|call| vec![call]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a text that comes a character at a time; neighbouring texts as one.
    fn parts(style: ToolStyle, text: &str) -> Vec<Part> {
        let mut calls = Calls::new(Some(style));
        let mut all: Vec<Part> = vec![];
        let pieces = text
            .chars()
            .flat_map(|one| calls.push(&one.to_string()))
            .collect::<Vec<_>>();
        for part in pieces.into_iter().chain(calls.finish()) {
            match (all.last_mut(), part) {
                (Some(Part::Text(before)), Part::Text(more)) => before.push_str(&more),
                (_, part) => all.push(part),
            }
        }
        all
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn call(name: &str, arguments: &str) -> Part {
        let (name, arguments) = (name.to_owned(), arguments.to_owned());
        Part::Call { name, arguments }
    }

    #[test]
    fn tagged_calls_come_out_of_the_text_around_them() {
        let answer = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"ö\"}}\n</tool_call>\n<tool_call>{\"name\":\"b\"}</tool_call>\n";
        let expected = [
            text("Let me see.\n"),
            call("a", "{\"x\":\"ö\"}"),
            call("b", "{}"),
        ];
        assert_eq!(parts(ToolStyle::Tagged, answer), expected);
        // The model's own end may stand in for the closing tag.
        let cut = "<tool_call>{\"name\":\"b\", \"arguments\": \"{}\"}";
        assert_eq!(parts(ToolStyle::Tagged, cut), [call("b", "{}")]);
    }

    #[test]
    fn what_cannot_be_read_stays_text() {
        for odd in [
            "<tool_call>{oops}</tool_call> x",
            "a < b <tool",
            "<tool_call>{\"name\":",
            "{}",
        ] {
            assert_eq!(parts(ToolStyle::Tagged, odd), [text(odd)]);
        }
        for odd in ["[TOOL_CALLS] nothing", "[TOOL", "[1, 2]"] {
            assert_eq!(parts(ToolStyle::Listed, odd), [text(odd)]);
        }
        for odd in [
            "{\"a\": 1}",
            "{ not",
            "<|pyth",
            " \n",
            "say {\"name\": \"a\"}",
        ] {
            assert_eq!(parts(ToolStyle::Bare, odd), [text(odd)]);
        }
    }

    #[test]
    fn listed_and_bare_calls_are_read() {
        let answer = "[TOOL_CALLS] [{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": {\"n\": 1}}]";
        let expected = [call("a", "{}"), call("b", "{\"n\":1}")];
        assert_eq!(parts(ToolStyle::Listed, answer), expected);
        let answer = "{\"name\": \"a\", \"parameters\": {\"n\": 1}}";
        assert_eq!(parts(ToolStyle::Bare, answer), [call("a", "{\"n\":1}")]);
        let answer = format!("<|python_tag|>{answer}");
        assert_eq!(parts(ToolStyle::Bare, &answer), [call("a", "{\"n\":1}")]);
    }
}
