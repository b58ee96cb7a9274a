//! Just enough of Rust's grammar to tell code from comments and strings, with line numbers.

use regex::Regex;

/// A file up to its `#[cfg(test)]` module, taken apart.
pub struct Source {
    /// The text with comments and the insides of strings blanked out, newlines kept.
    code: String,
    /// String literals with the byte offset where they begin.
    strings: Vec<(usize, String)>,
    lines: usize,
}

impl Source {
    /// Takes a file apart.
    pub fn read(text: &str) -> Self {
        let end = test_module_start(text).unwrap_or(text.len());
        let text = &text[..end];
        let (code, strings) = split(text);
        Self {
            code,
            strings,
            lines: text.lines().count(),
        }
    }

    /// Returns the number of lines before the tests.
    pub fn line_count(&self) -> usize {
        self.lines
    }

    /// Returns the lines on which a crate is named as a path's root.
    pub fn lines_naming_crate(&self, name: &str) -> Vec<usize> {
        let root = format!(r"(?:^|[^\w:.]|[^\w]::|^::)({name})(?:::|\s*;|\s+as\s|\s*,)");
        let found = Regex::new(&root).unwrap();
        let mut lines: Vec<_> = found
            .captures_iter(&self.code)
            .map(|c| self.line_of(c.get(1).unwrap().start()))
            .collect();
        lines.dedup();
        lines
    }

    /// Returns the lines with one of the names, at most one finding a line.
    pub fn lines_with<'n>(&self, names: &[&'n str]) -> Vec<(usize, &'n str)> {
        let mut found = vec![];
        for (i, line) in self.code.lines().enumerate() {
            if let Some(name) = names.iter().find(|name| line.contains(**name)) {
                found.push((i + 1, *name));
            }
        }
        found
    }

    /// Returns the lines on which a string that is a statement of SQL begins.
    pub fn lines_with_sql(&self) -> Vec<usize> {
        let sql = Regex::new(
            r"(?is)^\s*(select\s+(\*|[\w.,()\s*]+?)\s+from\s+\w+\s*(where|order|limit|group|join|;|$)|insert\s+(or\s+\w+\s+)?into\s+\w+|update\s+\w+\s+set\s|delete\s+from\s+\w+|create\s+(table|index|view|trigger)\s|pragma\s+\w+|(begin|commit|rollback)(\s+(immediate|exclusive|transaction))?;?\s*$)",
        );
        let sql = sql.unwrap();
        self.strings
            .iter()
            .filter(|(_, s)| sql.is_match(s))
            .map(|(at, _)| self.line_of(*at))
            .collect()
    }

    fn line_of(&self, offset: usize) -> usize {
        self.code[..offset].matches('\n').count() + 1
    }
}

/// Returns the modules at the crate's root that a file names by `crate::` or `super::` paths.
pub fn crate_imports(source: &Source, path: &str) -> Vec<(usize, String)> {
    // `super` of a file `a/b.rs` is `a`, of `a/mod.rs` the root.
    let depth = path.split('/').count() - usize::from(path.ends_with("/mod"));
    let root = Regex::new(r"\bcrate\s*::\s*|(?:\bsuper\s*::\s*)+").unwrap();
    let mut found = vec![];
    for m in root.find_iter(&source.code) {
        let supers = m.as_str().matches("super").count();
        if supers > 0 && supers != depth {
            continue;
        }
        let line = source.line_of(m.start());
        found.extend(
            first_segments(&source.code[m.end()..])
                .into_iter()
                .map(|name| (line, name)),
        );
    }
    found
}

/// Returns the first segment of a path, or of each path in a `{…}` group.
fn first_segments(text: &str) -> Vec<String> {
    let ident = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let Some(group) = text.strip_prefix('{') else {
        return vec![ident(text)];
    };
    let (mut names, mut depth, mut start) = (vec![], 1, 0);
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            names.push(ident(&group[start..i]));
            start = i + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Finds where the test module begins, if the file has one.
fn test_module_start(text: &str) -> Option<usize> {
    let module = Regex::new(r"(?m)^#\[cfg\(test\)\]\s*\n\s*(?:#\[[^\n]*\n\s*)*mod\s+\w+").unwrap();
    module.find(text).map(|m| m.start())
}

/// Blanks comments and strings out of the code and collects the strings.
fn split(text: &str) -> (String, Vec<(usize, String)>) {
    let tokens = Regex::new(concat!(
        r#"(?s)(?P<line>//[^\n]*)|(?P<block>/\*.*?\*/)"#,
        r###"|(?P<raw>\bb?r(?:"[^"]*"|#".*?"#|##".*?"##))"###,
        r#"|(?P<string>"(?:\\.|[^"\\])*")|(?P<char>'(?:\\[^']+|[^'\\])')"#,
    ))
    .unwrap();
    let (mut code, mut strings, mut last) = (String::with_capacity(text.len()), vec![], 0);
    for m in tokens.captures_iter(text) {
        let whole = m.get(0).unwrap();
        code.push_str(&text[last..whole.start()]);
        if m.name("raw").is_some() {
            let inside = whole
                .as_str()
                .trim_start_matches(['b', 'r', '#'])
                .trim_end_matches('#');
            strings.push((whole.start(), inside.trim_matches('"').to_owned()));
        } else if m.name("string").is_some() {
            strings.push((whole.start(), unescape(whole.as_str().trim_matches('"'))));
        }
        code.extend(
            whole
                .as_str()
                .bytes()
                .map(|b| if b == b'\n' { '\n' } else { ' ' }),
        );
        last = whole.end();
    }
    code.push_str(&text[last..]);
    (code, strings)
}

/// Undoes the escapes that matter to a search.
fn unescape(text: &str) -> String {
    let joined = Regex::new(r"\\\n\s*")
        .unwrap()
        .replace_all(text, "")
        .into_owned();
    joined
        .replace("\\n", "\n")
        .replace("\\\"", "\"")
        .replace("\\t", "\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        let source =
            Source::read("let a = \"libp2p::x\"; // libp2p::y\n/* libp2p::z */ let c = 'x';");
        assert!(source.lines_naming_crate("libp2p").is_empty());
        assert_eq!(source.code.lines().count(), 2);
    }

    #[test]
    fn lifetimes_are_no_characters() {
        let source = Source::read("fn f<'a>(x: &'a str) -> &'a str { sqlx::q(x) }");
        assert_eq!(source.lines_naming_crate("sqlx"), [1]);
    }

    #[test]
    fn groups_give_each_first_segment() {
        assert_eq!(first_segments("{a::{b, c}, d, e as f};"), ["a", "d", "e"]);
        assert_eq!(first_segments("ledger::Row;"), ["ledger"]);
    }
}
