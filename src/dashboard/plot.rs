//! Two plots as SVG: money over time as bars, sellers by price and speed as dots.
//!
//! Drawn with classes of the style sheet, so that light and dark need no second drawing. Each mark
//! carries its exact figures in a `<title>`; the same figures are in a table beside every plot.

use super::html::escape;
use super::values::{approx, dollars};

/// Width of the drawing area; the page scales it.
const WIDTH: f64 = 640.0;
/// Its height.
const HEIGHT: f64 = 200.0;
/// Room for the labels of the axes.
const LEFT: f64 = 12.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 24.0;
const RIGHT: f64 = 12.0;
/// Share of its place that a bar fills.
const BAR_SHARE: f64 = 0.8;
/// Labels under the bars, at most.
const LABELS_MAX: usize = 8;
/// Radius of a dot.
const DOT: f64 = 7.0;

/// One bar: its label and micro-USD.
pub(super) struct Bar {
    pub label: String,
    pub micro_usd: u64,
}

/// Money over time.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.micro_usd).max().unwrap_or(0);
    if most == 0 {
        return "<p class=\"empty\">Nothing in this time.</p>".to_owned();
    }
    let total: u64 = bars.iter().map(|bar| bar.micro_usd).sum();
    let room = (WIDTH - LEFT - RIGHT) / approx(u64::try_from(bars.len()).unwrap_or(1));
    let every = bars.len().div_ceil(LABELS_MAX).max(1);
    let mut marks = String::new();
    let mut left = LEFT;
    for (at, bar) in bars.iter().enumerate() {
        let height = (HEIGHT - TOP - BOTTOM) * approx(bar.micro_usd) / approx(most);
        let label = escape(&bar.label);
        if bar.micro_usd > 0 {
            marks.push_str(&format!(
                "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                 <title>{label}: {}</title></rect>",
                left + room * (1.0 - BAR_SHARE) / 2.0,
                HEIGHT - BOTTOM - height,
                room * BAR_SHARE,
                height.max(1.0),
                dollars(bar.micro_usd),
            ));
        }
        if at % every == 0 {
            marks.push_str(&format!(
                "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                left + room / 2.0,
                HEIGHT - 8.0,
            ));
        }
        left += room;
    }
    let says = format!("{title}: {} in all", dollars(total));
    svg(&says, &format!("{}{marks}", scale(&dollars(most))))
}

/// One dot: a seller.
pub(super) struct Dot {
    pub name: String,
    /// Price, any unit.
    pub x: f64,
    /// Speed, any unit.
    pub y: f64,
    /// From 0 to 1; none is unknown.
    pub quality: Option<f64>,
    /// Exact figures, for the title.
    pub says: String,
}

/// Price to the right, speed upwards: the best sellers are at the top left.
pub(super) fn dots(x_name: &str, y_name: &str, dots: &[Dot]) -> String {
    if dots.is_empty() {
        return "<p class=\"empty\">No seller has a price and a speed yet.</p>".to_owned();
    }
    let most = |of: fn(&Dot) -> f64| dots.iter().map(of).fold(0.0, f64::max).max(f64::EPSILON);
    let (x_most, y_most) = (most(|dot| dot.x), most(|dot| dot.y));
    let mut marks = String::new();
    for dot in dots {
        let x = LEFT + (WIDTH - LEFT - RIGHT - 2.0 * DOT) * dot.x / x_most;
        let y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM - DOT) * dot.y / y_most;
        // A name at an edge grows towards the middle.
        let side = match dot.x / x_most {
            share if share < 0.15 => "start",
            share if share > 0.85 => "end",
            _ => "",
        };
        let class = match dot.quality {
            Some(quality) if quality >= 0.95 => "good",
            Some(quality) if quality >= 0.8 => "fair",
            Some(_) => "poor",
            None => "unknown",
        };
        marks.push_str(&format!(
            "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{DOT}\">\
             <title>{}: {}</title></circle>\
             <text class=\"name {side}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            escape(&dot.name),
            escape(&dot.says),
            x,
            y - DOT - 3.0,
            escape(&dot.name),
        ));
    }
    let axis = format!(
        "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}, up to {x_most:.2}</text>",
        LEFT + (WIDTH - LEFT) / 2.0,
        HEIGHT - 8.0,
        escape(x_name),
    );
    let says = format!("Sellers by {x_name} and {y_name}");
    let scale = scale(&format!("{y_most:.0} {y_name}"));
    svg(&says, &format!("{scale}{axis}{marks}"))
}

/// The axes, with the greatest value of the upright one; it begins at 0.
fn scale(most: &str) -> String {
    let (floor, end) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    format!(
        "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{floor}\" x2=\"{end}\" y2=\"{floor}\"/>\
         <line class=\"grid\" x1=\"{LEFT}\" y1=\"{TOP}\" x2=\"{end}\" y2=\"{TOP}\"/>\
         <text class=\"scale\" x=\"{LEFT}\" y=\"{}\">{}</text>",
        TOP - 6.0,
        escape(most),
    )
}

fn svg(says: &str, inside: &str) -> String {
    let says = escape(says);
    format!(
        "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{says}\"><title>{says}</title>{inside}</svg>"
    )
}

/// A part of a whole as a bar in a table's cell; `parts` are a class and micro-USD each.
pub(super) fn stack(parts: &[(&str, u64)]) -> String {
    let whole: u64 = parts.iter().map(|(_, micro)| micro).sum();
    let mut left = 0.0;
    let mut marks = String::new();
    for (class, micro) in parts.iter().filter(|(_, micro)| *micro > 0) {
        let width = 100.0 * approx(*micro) / approx(whole);
        marks.push_str(&format!(
            "<rect class=\"{}\" x=\"{left:.2}\" y=\"0\" width=\"{width:.2}\" height=\"8\">\
             <title>{}: {}</title></rect>",
            escape(class),
            escape(class),
            dollars(*micro),
        ));
        left += width;
    }
    let says: Vec<String> = parts
        .iter()
        .map(|(name, micro)| format!("{name} {}", dollars(*micro)))
        .collect();
    format!(
        "<svg class=\"stack\" viewBox=\"0 0 100 8\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{}\">{marks}</svg>",
        escape(&says.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_stay_inside_their_frame_and_carry_exact_figures() {
        let list: Vec<Bar> = (0..24_u32)
            .map(|n| Bar {
                label: format!("{n:02}:00"),
                micro_usd: u64::from(n) * 1_000_001,
            })
            .collect();
        let drawn = bars("Spent", &list);
        assert_eq!(drawn.matches("<rect").count(), 23);
        assert!(drawn.contains("05:00: $5.00"), "{drawn}");
        assert!(!drawn.contains("NaN") && !drawn.contains("style="));
        let dot = Dot {
            name: "<b>".to_owned(),
            x: 0.0,
            y: 0.0,
            quality: None,
            says: "\"".to_owned(),
        };
        let drawn = dots("$", "tok/s", &[dot]);
        assert!(drawn.contains("dot unknown") && !drawn.contains("<b>"));
        assert!(!drawn.contains("NaN"), "{drawn}");
        assert!(bars("x", &[]).contains("Nothing"));
        let halves = stack(&[("used", 1), ("free", 1)]);
        assert!(halves.contains("width=\"50.00\""), "{halves}");
    }
}
