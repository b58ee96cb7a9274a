//! Two plots as SVG: money over time as bars, sellers by price and speed as dots; also the bar of a
//! table's cell.
//!
//! Drawn with classes of the style sheet, so that light and dark need no second drawing, and as wide
//! as a phone, so that their text is readable there; a wide screen has them side by side. Each mark
//! carries its exact figures in a `<title>`; the same figures are in a table beside every plot. All
//! figures are whole numbers; floats are only places on the screen.

use super::html::escape;
use super::values::{approx, dollars, grouped};

/// Width of the drawing area; the page scales it.
const WIDTH: f64 = 400.0;
/// Its height.
const HEIGHT: f64 = 200.0;
/// Room for the labels of the axes: the longest sum is `$0.000025`.
const LEFT: f64 = 66.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 26.0;
const RIGHT: f64 = 26.0;
/// Share of its place that a bar fills.
const BAR_SHARE: f64 = 0.8;
/// Labels under the bars, at most.
const LABELS_MAX: usize = 6;
/// Steps of a scale, at most.
const STEPS_MAX: u64 = 4;
/// Radius of a dot.
const DOT: f64 = 6.0;
/// A name beside a dot: its width and height.
const NAME: (f64, f64) = (64.0, 12.0);

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
    let scale = Scale::up_to(most);
    let room = (WIDTH - LEFT - RIGHT) / approx(u64::try_from(bars.len()).unwrap_or(1));
    let every = bars.len().div_ceil(LABELS_MAX).max(1);
    let mut marks = upright(&scale, dollars);
    let mut left = LEFT;
    for (at, bar) in bars.iter().enumerate() {
        let top = y_of(scale.share(bar.micro_usd));
        let label = escape(&bar.label);
        if bar.micro_usd > 0 {
            marks.push_str(&format!(
                "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                 <title>{label}: {}</title></rect>",
                left + room * (1.0 - BAR_SHARE) / 2.0,
                top,
                room * BAR_SHARE,
                (HEIGHT - BOTTOM - top).max(1.0),
                dollars(bar.micro_usd),
            ));
        }
        // Counted from the end: the newest always has its label.
        if (bars.len() - 1 - at).is_multiple_of(every) {
            marks.push_str(&label_under(left + room / 2.0, &bar.label));
        }
        left += room;
    }
    let says = format!("{title}: {} in all", dollars(total));
    svg(&says, &marks)
}

/// One dot: a seller.
#[derive(Clone)]
pub(super) struct Dot {
    pub name: String,
    /// Price, micro-USD.
    pub price: u64,
    /// Tokens per second.
    pub speed: u64,
    /// From 0 to 1; none is unknown.
    pub quality: Option<f64>,
    /// Exact figures, for the title.
    pub says: String,
}

/// Price to the right, speed upwards: the best sellers are at the top left.
pub(super) fn dots(dots: &[Dot]) -> String {
    if dots.is_empty() {
        return "<p class=\"empty\">No seller has a price and a speed yet.</p>".to_owned();
    }
    let most = |of: fn(&Dot) -> u64| Scale::up_to(dots.iter().map(of).max().unwrap_or(0));
    let (prices, speeds) = (most(|dot| dot.price), most(|dot| dot.speed));
    let mut marks = upright(&speeds, grouped);
    for at in prices.marks() {
        marks.push_str(&label_under(x_of(prices.share(at)), &dollars(at)));
    }
    let mut taken = Vec::new();
    for dot in dots {
        let (x, y) = (x_of(prices.share(dot.price)), y_of(speeds.share(dot.speed)));
        let class = match dot.quality {
            Some(quality) if quality >= 0.95 => "good",
            Some(quality) if quality >= 0.8 => "fair",
            Some(_) => "poor",
            None => "unknown",
        };
        let name = escape(&dot.name);
        marks.push_str(&format!(
            "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{DOT}\">\
             <title>{name}: {}</title></circle>",
            escape(&dot.says),
        ));
        // In a crowd a name is left out; the title has it, and the table.
        if let Some((x, y)) = free_place(x, y, &taken) {
            taken.push((x, y));
            marks.push_str(&format!(
                "<text class=\"label\" x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>"
            ));
        }
    }
    let axes = format!(
        "<text class=\"unit\" x=\"4\" y=\"12\">tokens/s</text>\
         <text class=\"unit end\" x=\"{:.1}\" y=\"12\">USD per million tokens, in + out</text>",
        WIDTH - 4.0,
    );
    svg(
        "Sellers by price and tokens per second",
        &format!("{axes}{marks}"),
    )
}

/// Where a dot's name goes: above it, else below; inside the frame and over no other.
fn free_place(x: f64, y: f64, taken: &[(f64, f64)]) -> Option<(f64, f64)> {
    let (width, height) = NAME;
    let x = x.clamp(LEFT + width / 2.0, WIDTH - width / 2.0);
    let is_free = |place: f64| {
        let over =
            |(at_x, at_y): &(f64, f64)| (at_x - x).abs() < width && (at_y - place).abs() < height;
        place > height && place < HEIGHT - BOTTOM && !taken.iter().any(over)
    };
    let places = [y - DOT - 3.0, y + DOT + height];
    let place = places.into_iter().find(|place| is_free(*place))?;
    Some((x, place))
}

/// From 0 up to a round number, in round steps.
struct Scale {
    step: u64,
    steps: u64,
}

impl Scale {
    fn up_to(most: u64) -> Self {
        let least = most.div_ceil(STEPS_MAX).max(1);
        let mut unit = 1_u64;
        let step = loop {
            let round = [1, 2, 5].map(|factor| unit.saturating_mul(factor));
            if let Some(step) = round.into_iter().find(|step| *step >= least) {
                break step;
            }
            unit = unit.saturating_mul(10);
        };
        Self {
            step,
            steps: most.div_ceil(step).max(1),
        }
    }
    /// Where a value lies, from 0 to 1.
    fn share(&self, value: u64) -> f64 {
        approx(value) / (approx(self.step) * approx(self.steps))
    }
    /// The values that are written at the axis.
    fn marks(&self) -> impl Iterator<Item = u64> {
        (0..=self.steps).map(|at| at.saturating_mul(self.step))
    }
}

fn x_of(share: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * share
}

fn y_of(share: f64) -> f64 {
    HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
}

/// The upright axis: a line and a figure for each mark.
fn upright(scale: &Scale, figure: fn(u64) -> String) -> String {
    let one = |value: u64| {
        let y = y_of(scale.share(value));
        let class = if value == 0 { "axis" } else { "grid" };
        format!(
            "<line class=\"{class}\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"scale\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            escape(&figure(value)),
        )
    };
    scale.marks().map(one).collect()
}

fn label_under(x: f64, text: &str) -> String {
    format!(
        "<text class=\"label\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
        HEIGHT - 9.0,
        escape(text),
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
        // 23.000023 in steps of ten, and the newest bar has its label.
        for text in [">$0<", ">$10.00<", ">$30.00<", ">23:00</text>"] {
            assert!(drawn.contains(text), "{text} is missing: {drawn}");
        }
        assert!(!drawn.contains("y=\"-"), "{drawn}");
        assert!(bars("x", &[]).contains("Nothing"));
        let halves = stack(&[("used", 1), ("free", 1)]);
        assert!(halves.contains("width=\"50.00\""), "{halves}");
    }

    #[test]
    fn names_of_sellers_are_text_and_never_lie_over_each_other() {
        let dot = |name: &str, price, speed| Dot {
            name: name.to_owned(),
            price,
            speed,
            quality: None,
            says: "\"".to_owned(),
        };
        let drawn = dots(&[dot("<b>", 0, 0)]);
        assert!(drawn.contains("dot unknown") && !drawn.contains("<b>"));
        assert!(!drawn.contains("NaN"), "{drawn}");
        // Of three at one place the first is named above, the second below, the third not at all.
        let crowd = ["one", "two", "three"].map(|name| dot(name, 500_000, 40));
        let drawn = dots(&[&crowd[..], &[dot("far", 4_800_000, 80)]].concat());
        let named = |name: &str| drawn.matches(&format!(">{name}</text>")).count();
        assert_eq!(["one", "two", "three", "far"].map(named), [1, 1, 0, 1]);
        assert_eq!(drawn.matches("<circle").count(), 4);
    }

    #[test]
    fn scales_are_round_and_hold_everything() {
        for most in [0, 1, 3, 4, 5, 9, 4_800_000, 23_000_023, u64::MAX / 2] {
            let scale = Scale::up_to(most);
            assert!(scale.share(most) <= 1.0, "{most}");
            assert!(scale.steps <= STEPS_MAX, "{most}");
            assert!(most < 4 || scale.share(most) > 0.5, "{most}");
        }
        let marks: Vec<u64> = Scale::up_to(4_800_000).marks().collect();
        assert_eq!(marks, [0, 2_000_000, 4_000_000, 6_000_000]);
    }
}
