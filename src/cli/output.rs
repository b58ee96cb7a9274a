//! Printing: data to stdout, messages to stderr, never a panic on a closed pipe.

use std::ffi::OsStr;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::CliError;
use crate::telemetry::Color;

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One JSON value instead of text.
    pub json: bool,
    /// Whether stdout is coloured.
    pub color: bool,
    /// Whether stderr is coloured.
    pub color_err: bool,
}

impl Output {
    /// Decides by the flags, the environment and the terminal.
    #[must_use]
    pub fn new(json: bool, color: Color, no_color: bool) -> Self {
        Self {
            json,
            color: color.enabled(std::io::stdout().is_terminal(), no_color),
            color_err: color.enabled(std::io::stderr().is_terminal(), no_color),
        }
    }
    /// Text in a colour (an SGR code), where colour is on.
    #[must_use]
    pub fn paint(&self, text: &str, code: &str) -> String {
        paint(text, code, self.color)
    }
    /// Text in bold, where colour is on.
    #[must_use]
    pub fn bold(&self, text: &str) -> String {
        paint(text, "1", self.color)
    }
}

/// Writes text and a line end to stdout.
pub fn text(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// Writes a piece of a line to stdout, at once.
pub fn piece(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(write!(out, "{text}").and_then(|()| out.flush()));
}

/// Writes one JSON value to stdout.
pub fn json(value: &impl Serialize) {
    text(&serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned()));
}

/// Writes a message to stderr.
pub fn message(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{}", own_name(text)));
}

/// Commands in a text under the name that this program was started by: on most machines `node` is
/// another's.
#[must_use]
pub fn own_name(text: &str) -> String {
    let program = std::env::args_os().next().map(PathBuf::from);
    let name = program.as_deref().and_then(Path::file_name);
    under_name(text, name.and_then(OsStr::to_str).unwrap_or(NAME))
}

/// The name in the sources.
const NAME: &str = "node";

fn under_name(text: &str, name: &str) -> String {
    if name == NAME || text.is_empty() {
        return text.to_owned();
    }
    let text = text.replace(&format!("`{NAME} "), &format!("`{name} "));
    match text
        .strip_prefix(NAME)
        .and_then(|rest| rest.strip_prefix(' '))
    {
        Some(rest) => format!("{name} {rest}"),
        None => text,
    }
}

/// Writes a failure to stderr, for people or as one JSON object.
pub fn error(failure: &CliError, json: bool, color: bool) {
    let named = CliError {
        hint: failure.hint.as_deref().map(own_name),
        ..failure.clone()
    };
    message(&error_text(&named, json, color));
}

fn error_text(failure: &CliError, json: bool, color: bool) -> String {
    if json {
        return serde_json::json!({ "error": failure }).to_string();
    }
    let mut text = format!("{} {}", paint("error:", "1;31", color), failure.message);
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("\n{} {hint}", paint("hint:", "1;36", color)));
    }
    text
}

fn paint(text: &str, code: &str, color: bool) -> String {
    if color {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// A table of plain columns; those named in `right` hold numbers.
#[must_use]
pub fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header)
        .add_rows(rows);
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // Every cell is padded, so every line begins with one space.
    let bare = |line: String| {
        line.strip_prefix(' ')
            .unwrap_or(&line)
            .trim_end()
            .to_owned()
    };
    let lines: Vec<String> = table.lines().map(bare).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;

    #[test]
    fn an_error_is_text_for_people_and_one_object_for_programs() {
        let failure = CliError::new(FailureKind::NotConfigured, "no keys").hint("node keygen");
        assert_eq!(
            error_text(&failure, false, false),
            "error: no keys\nhint: node keygen"
        );
        assert!(error_text(&failure, false, true).contains("\u{1b}[1;31m"));
        assert_eq!(
            error_text(&failure, true, true),
            r#"{"error":{"kind":"not_configured","message":"no keys","hint":"node keygen","retryable":false}}"#
        );
    }

    #[test]
    fn commands_bear_the_name_that_the_program_was_started_by() {
        let hint = "start one with `node buy`, or a node of yours";
        assert_eq!(under_name(hint, "node"), hint);
        let named = under_name(hint, "souk");
        assert_eq!(named, "start one with `souk buy`, or a node of yours");
        assert_eq!(
            under_name("node openclaw setup", "souk"),
            "souk openclaw setup"
        );
        assert_eq!(under_name("nodes", "souk"), "nodes");
    }

    #[test]
    fn tables_are_plain_columns() {
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned()],
            vec!["bb".to_owned(), "22".to_owned()],
        ];
        let text = table(&["name", "n"], &[1], rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], "a      1", "{text}");
    }
}
