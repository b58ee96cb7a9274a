//! Text into HTML: escaping, and the frame that every page has.

use crate::telemetry::printable;

/// Text as it may stand in an element or a quoted attribute; peers' control characters and marks
/// that turn the reading direction go too.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// A part of the page, with a heading that the navigation leads to.
pub(super) struct Section {
    pub id: &'static str,
    pub title: &'static str,
    pub body: String,
}

/// A figure at the top of the page: what it is, how much, and a remark (all plain text).
pub(super) struct Tile {
    pub label: &'static str,
    pub figure: String,
    pub remark: String,
}

/// Who the page is about.
pub(super) struct Head<'a> {
    pub role: &'a str,
    pub peer: &'a str,
    /// One word or a sentence, like `ready`.
    pub state: &'a str,
    pub is_well: bool,
    /// The rest of the line.
    pub facts: Vec<String>,
}

/// The whole page.
pub(super) fn frame(head: &Head<'_>, tiles: &[Tile], sections: &[Section]) -> String {
    let role = escape(head.role);
    let well = if head.is_well { "well" } else { "unwell" };
    let facts: String = head
        .facts
        .iter()
        .map(|fact| format!("<li>{}</li>", escape(fact)))
        .collect();
    let links: String = sections
        .iter()
        .map(|s| format!("<li><a href=\"#{}\">{}</a></li>", s.id, escape(s.title)))
        .collect();
    let tiles: String = tiles.iter().map(tile).collect();
    let parts: String = sections
        .iter()
        .map(|s| {
            format!(
                "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\
                 <h2 id=\"{id}-title\">{}</h2>{}</section>",
                escape(s.title),
                s.body,
                id = s.id,
            )
        })
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>Souk {role}</title>\
         <link rel=\"icon\" href=\"/assets/icon.svg\">\
         <link rel=\"stylesheet\" href=\"/assets/style.css\">\
         <script src=\"/assets/refresh.js\" defer></script></head><body>\
         <a class=\"skip\" href=\"#page\">Skip to the figures</a>\
         <header><h1>Souk <span>{role}</span></h1>\
         <button id=\"pause\" type=\"button\" aria-pressed=\"false\" hidden>Pause</button>\
         <nav aria-label=\"Sections\"><ul>{links}</ul></nav></header>\
         <main id=\"page\" tabindex=\"-1\">\
         <p class=\"state {well}\"><b>{}</b> <code>{}</code></p><ul class=\"facts\">{facts}</ul>\
         <dl class=\"tiles\">{tiles}</dl>{parts}</main></body></html>\n",
        escape(head.state),
        escape(head.peer),
    )
}

fn tile(tile: &Tile) -> String {
    format!(
        "<div><dt>{}</dt><dd>{}</dd><dd class=\"remark\">{}</dd></div>",
        escape(tile.label),
        escape(&tile.figure),
        escape(&tile.remark),
    )
}

/// A cell of a table.
pub(super) enum Cell {
    /// Plain text.
    Text(String),
    /// A figure, set to the right.
    Figure(String),
    /// Markup made here.
    Drawn(String),
}

/// A table that scrolls sideways by itself where the screen is narrow; a line instead when empty.
pub(super) fn table(
    caption: &str,
    header: &[&str],
    rows: Vec<Vec<Cell>>,
    when_empty: &str,
) -> String {
    if rows.is_empty() {
        return format!("<p class=\"empty\">{}</p>", escape(when_empty));
    }
    let first = rows.first().map_or(&[][..], Vec::as_slice);
    let is_figure = |at: usize| matches!(first.get(at), Some(Cell::Figure(_)));
    let heads: String = header
        .iter()
        .enumerate()
        .map(|(at, text)| {
            let class = if is_figure(at) {
                " class=\"figure\""
            } else {
                ""
            };
            format!("<th scope=\"col\"{class}>{}</th>", escape(text))
        })
        .collect();
    let cell = |cell: &Cell| match cell {
        Cell::Text(text) => format!("<td>{}</td>", escape(text)),
        Cell::Figure(text) => format!("<td class=\"figure\">{}</td>", escape(text)),
        Cell::Drawn(markup) => format!("<td>{markup}</td>"),
    };
    let lines: String = rows
        .iter()
        .map(|row| format!("<tr>{}</tr>", row.iter().map(cell).collect::<String>()))
        .collect();
    let caption = escape(caption);
    format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\"><table>\
         <caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody>\
         </table></div>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_markup() {
        let nasty = "<script>alert(1)</script>\" onload='x' & \u{202e}\u{1b}[31m";
        let text = escape(nasty);
        assert!(!text.contains(['<', '>', '"', '\'', '\u{1b}', '\u{202e}']));
        assert!(text.starts_with("&lt;script&gt;alert(1)"));
        let rows = vec![vec![
            Cell::Text(nasty.to_owned()),
            Cell::Figure(nasty.to_owned()),
        ]];
        let drawn = table(nasty, &[nasty], rows, "");
        assert!(!drawn.contains("<script"), "{drawn}");
    }
}
