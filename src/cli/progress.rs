//! One line on the terminal for work that takes a while: what is done, how far it is, how long still.
//!
//! It is drawn on stderr over itself, at most ten times a second, from half a second on, and wiped
//! away at the end, so quick work and pipes never see it; nor does anybody with `--json` or
//! `--quiet`. Work that knows its steps calls [`Progress::at`]; work that only takes time is awaited
//! through [`Progress::during`]. What is drawn, and when, is decided in [`Line`], without a clock.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::telemetry::printable;

/// Quick work shows nothing.
const QUIET_FOR: Duration = Duration::from_millis(500);
/// Between two drawings.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// A longer line would wrap, and be drawn below itself.
const WIDTH_MAX: usize = 78;
/// Cells of the bar.
const BAR: usize = 20;
/// To the start of the line, and wipe it.
const WIPE: &str = "\r\u{1b}[K";

/// Long work, told on the terminal. Ends, and wipes its line, when dropped.
pub struct Progress {
    line: Option<Mutex<Line>>,
    began: Instant,
}

impl Progress {
    /// Begins; `is_wanted` is false where a program reads, or the user wants quiet.
    #[must_use]
    pub fn new(is_wanted: bool, what: &str) -> Self {
        let is_shown = is_wanted && std::io::stderr().is_terminal();
        Self {
            line: is_shown.then(|| Mutex::new(Line::new(what))),
            began: Instant::now(),
        }
    }
    /// True when somebody sees it.
    #[must_use]
    pub const fn is_shown(&self) -> bool {
        self.line.is_some()
    }
    /// What is done now; what was counted before is over.
    pub fn name(&self, what: &str) {
        if let Some(line) = &self.line {
            line.lock().name(what);
            self.draw();
        }
    }
    /// So many of `total` (0 = nobody knows) are done. Cheap enough for every row of a ledger.
    pub fn at(&self, done: u64, total: u64) {
        if let Some(line) = &self.line {
            line.lock().at(done, total);
            self.draw();
        }
    }
    /// Awaits work and goes on telling how long it takes.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(DRAW_EVERY), if self.is_shown() => self.draw(),
            }
        }
    }
    /// Writes a message that stays, above the line.
    pub fn message(&self, text: &str) {
        self.wipe();
        super::output::message(text);
    }

    fn draw(&self) {
        let Some(line) = &self.line else { return };
        if let Some(text) = line.lock().drawn(self.began.elapsed()) {
            let mut err = std::io::stderr().lock();
            drop(write!(err, "{WIPE}{text}").and_then(|()| err.flush()));
        }
    }
    fn wipe(&self) {
        if self.line.as_ref().is_some_and(|line| line.lock().wiped()) {
            let mut err = std::io::stderr().lock();
            drop(write!(err, "{WIPE}").and_then(|()| err.flush()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// What the line says.
struct Line {
    what: String,
    done: u64,
    total: u64,
    /// When the counted work began; none before its first step.
    counted_from: Option<(Duration, u64)>,
    drawn_at: Option<Duration>,
}

impl Line {
    fn new(what: &str) -> Self {
        Self {
            what: printable(what),
            done: 0,
            total: 0,
            counted_from: None,
            drawn_at: None,
        }
    }
    fn name(&mut self, what: &str) {
        self.what = printable(what);
        (self.done, self.total, self.counted_from) = (0, 0, None);
    }
    const fn at(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
    }
    /// The text, if it is time to draw one.
    fn drawn(&mut self, elapsed: Duration) -> Option<String> {
        if self.done > 0 && self.counted_from.is_none() {
            self.counted_from = Some((elapsed, self.done));
        }
        let next = self.drawn_at.map_or(QUIET_FOR, |at| at + DRAW_EVERY);
        if elapsed < next {
            return None;
        }
        self.drawn_at = Some(elapsed);
        Some(self.text(elapsed))
    }
    /// True when something is to be wiped.
    const fn wiped(&mut self) -> bool {
        self.drawn_at.take().is_some()
    }
    fn text(&self, elapsed: Duration) -> String {
        let figures = match (self.done, self.total) {
            (0, 0) => format!("{} s", elapsed.as_secs()),
            (done, 0) => format!("{done}, {} s", elapsed.as_secs()),
            (done, total) => {
                let done = done.min(total);
                let left = self.left(elapsed).filter(|seconds| *seconds > 0);
                let left = left.map_or_else(String::new, |s| format!(", about {s} s left"));
                format!("{} {done} of {total}{left}", bar(done, total))
            }
        };
        let room = WIDTH_MAX.saturating_sub(figures.chars().count() + 1);
        let what: String = if self.what.chars().count() > room {
            let begin = self.what.chars().take(room.saturating_sub(1));
            begin.chain(['…']).collect()
        } else {
            self.what.clone()
        };
        format!("{what} {figures}")
    }
    /// Seconds that the rest takes if it goes on like this; none before that can be said.
    fn left(&self, elapsed: Duration) -> Option<u64> {
        let (from, before) = self.counted_from?;
        let took = u64::try_from(elapsed.checked_sub(from)?.as_millis()).ok()?;
        let steps = self.done.checked_sub(before).filter(|steps| *steps > 0)?;
        let rest = self.total.saturating_sub(self.done);
        Some(took.saturating_mul(rest) / steps / 1_000)
    }
}

fn bar(done: u64, total: u64) -> String {
    let cells = u64::try_from(BAR).unwrap_or(0).saturating_mul(done);
    let full = cells.checked_div(total).unwrap_or(0);
    let full = usize::try_from(full).unwrap_or(BAR).min(BAR);
    format!("[{}{}]", "#".repeat(full), "-".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn quick_work_is_never_drawn_and_long_work_at_most_ten_times_a_second() {
        let mut line = Line::new("verifying");
        assert_eq!(line.drawn(ms(499)), None);
        assert!(!line.wiped());
        let drawn = (500..=1_500).filter(|at| line.drawn(ms(*at)).is_some());
        assert_eq!(drawn.count(), 11);
        assert!(line.wiped() && !line.wiped());
    }

    #[test]
    fn the_line_says_how_far_it_is_and_how_long_still() {
        let mut line = Line::new("verifying rows");
        assert_eq!(line.drawn(ms(2_000)).unwrap(), "verifying rows 2 s");
        line.at(1_000, 10_000);
        let text = line.drawn(ms(3_000)).unwrap();
        assert_eq!(text, "verifying rows [##------------------] 1000 of 10000");
        line.at(4_000, 10_000);
        let text = line.drawn(ms(6_000)).unwrap();
        assert_eq!(
            text,
            "verifying rows [########------------] 4000 of 10000, about 6 s left"
        );
        line.name("writing");
        line.at(7, 0);
        assert_eq!(line.drawn(ms(7_000)).unwrap(), "writing 7, 7 s");
        // More than was promised is no more than all.
        line.at(12, 10);
        assert!(line.drawn(ms(8_000)).unwrap().contains("] 10 of 10"));
    }

    #[test]
    fn a_line_never_wraps_and_holds_no_control_character() {
        let mut line = Line::new(&format!("\u{1b}[2J{}", "long ".repeat(100)));
        line.at(u64::MAX - 1, u64::MAX);
        let text = line.drawn(ms(9_000)).unwrap();
        assert!(text.chars().count() <= WIDTH_MAX, "{text}");
        assert!(!text.contains('\u{1b}') && text.contains('…'), "{text}");
    }
}
