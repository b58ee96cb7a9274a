//! Logs to stderr and metrics for `/metrics`; started once by `main`.
//!
//! Invariants: no prompt, completion or key is logged. Crates that print headers and bodies at
//! DEBUG or TRACE stay at INFO, whatever the filter says; a peer's text goes through [`printable`].

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Longest text of a peer that is shown (NETWORK's limits table).
pub const PEER_TEXT_CHARS_MAX: usize = 200;

/// Crates that print request headers or bodies below INFO.
const PAYLOAD_TARGETS: [&str; 8] = [
    "hyper",
    "hyper_util",
    "h2",
    "reqwest",
    "rustls",
    "sqlx",
    "tower",
    "axum",
];

/// Bucket borders of all times, in seconds: from one local hop to a very long answer.
const SECONDS_BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// When text is coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether a stream is coloured, given that it is a terminal and that `NO_COLOR` is set.
    #[must_use]
    pub const fn enabled(self, is_terminal: bool, no_color: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => is_terminal && !no_color,
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `SOUK_LOG`: a tracing filter that replaces the verbosity.
    pub filter: Option<String>,
    /// Only errors.
    pub quiet: bool,
    /// Number of `-v`.
    pub verbose: u8,
    /// One JSON object per line instead of text.
    pub json: bool,
    /// When lines are coloured.
    pub color: Color,
    /// Whether `NO_COLOR` is set.
    pub no_color: bool,
}

impl Settings {
    /// The tracing filter that these settings mean.
    #[must_use]
    pub fn directives(&self) -> &str {
        match (&self.filter, self.quiet, self.verbose) {
            (Some(filter), _, _) => filter,
            (None, true, _) => "error",
            (None, false, 0) => "warn,souk=info",
            (None, false, 1) => "warn,souk=debug",
            (None, false, 2) => "info,souk=trace",
            (None, false, _) => "trace",
        }
    }
}

/// Starts logging. Returns a message when the filter was no filter (the default is then used).
#[must_use]
pub fn start(settings: &Settings) -> Option<String> {
    let (filter, complaint) = match EnvFilter::try_new(settings.directives()) {
        Ok(filter) => (filter, None),
        Err(error) => {
            let text =
                format!("SOUK_LOG is ignored: {error}; write it like souk=debug,libp2p=info");
            (EnvFilter::new("warn,souk=info"), Some(text))
        }
    };
    let color = settings
        .color
        .enabled(std::io::stderr().is_terminal(), settings.no_color);
    let registry = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(is_harmless));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // A second start (tests, embedding) keeps the first subscriber.
    let started = if settings.json {
        registry.with(lines.json()).try_init()
    } else {
        registry.with(lines.with_ansi(color)).try_init()
    };
    drop(started);
    complaint
}

/// False for events that may hold headers or bodies.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !PAYLOAD_TARGETS.contains(&root)
}

/// Makes text from a peer fit for a terminal or a log: no control characters, no marks that change
/// the reading direction, at most [`PEER_TEXT_CHARS_MAX`] characters.
#[must_use]
pub fn printable(text: &str) -> String {
    let harmless = |c: char| {
        let is_direction_mark = matches!(
            c,
            '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        );
        if c.is_control() || is_direction_mark {
            '\u{fffd}'
        } else {
            c
        }
    };
    let mut shown: String = text
        .chars()
        .take(PEER_TEXT_CHARS_MAX)
        .map(harmless)
        .collect();
    if text.chars().nth(PEER_TEXT_CHARS_MAX).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    kind: Kind,
    /// Its name in `/metrics`; units are suffixes.
    pub name: &'static str,
    /// What it means.
    pub text: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Measure {
    /// What only grows.
    #[must_use]
    pub const fn counter(name: &'static str, text: &'static str) -> Self {
        let kind = Kind::Counter;
        Self { kind, name, text }
    }
    /// What goes up and down.
    #[must_use]
    pub const fn gauge(name: &'static str, text: &'static str) -> Self {
        let kind = Kind::Gauge;
        Self { kind, name, text }
    }
    /// What is spread over buckets.
    #[must_use]
    pub const fn histogram(name: &'static str, text: &'static str) -> Self {
        let kind = Kind::Histogram;
        Self { kind, name, text }
    }
}

/// The metrics of this process, in Prometheus' text form.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder behind the `metrics` macros; `None` when one is installed already.
    #[must_use]
    pub fn install() -> Option<Self> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
            .ok()?;
        builder.install_recorder().ok().map(Self)
    }
    /// Says what each of `measures` means, for the `HELP` lines.
    pub fn describe(measures: &[Measure]) {
        for measure in measures {
            let Measure { kind, name, text } = *measure;
            match kind {
                Kind::Counter => metrics::describe_counter!(name, text),
                Kind::Gauge => metrics::describe_gauge!(name, text),
                Kind::Histogram => metrics::describe_histogram!(name, text),
            }
        }
    }
    /// The text that `/metrics` answers.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn crates_that_print_payloads_stay_silent_at_trace() {
        let sink = Sink::default();
        let subscriber = tracing_subscriber::registry()
            .with(EnvFilter::new("trace,hyper::proto=trace"))
            .with(filter_fn(is_harmless))
            .with(tracing_subscriber::fmt::layer().with_writer(sink.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "hyper::proto::h1", "CANARY");
            tracing::debug!(target: "reqwest::connect", "CANARY");
            tracing::info!(target: "hyper", "kept");
            tracing::trace!(target: "souk::buyer", "kept too");
        });
        let text = String::from_utf8(sink.0.lock().clone()).unwrap();
        assert!(!text.contains("CANARY"), "{text}");
        assert!(text.contains("kept") && text.contains("kept too"), "{text}");
    }

    #[test]
    fn verbosity_becomes_a_filter_and_souk_log_replaces_it() {
        let mut settings = Settings::default();
        assert_eq!(settings.directives(), "warn,souk=info");
        settings.verbose = 1;
        assert_eq!(settings.directives(), "warn,souk=debug");
        settings.quiet = true;
        assert_eq!(settings.directives(), "error");
        settings.filter = Some("libp2p=trace".to_owned());
        assert_eq!(settings.directives(), "libp2p=trace");
    }

    #[test]
    fn colour_follows_the_terminal_the_flag_and_no_color() {
        assert!(Color::Auto.enabled(true, false));
        assert!(!Color::Auto.enabled(true, true));
        assert!(!Color::Auto.enabled(false, false));
        assert!(Color::Always.enabled(false, true));
        assert!(!Color::Never.enabled(true, false));
    }

    #[test]
    fn a_peers_text_cannot_drive_the_terminal_or_fill_the_log() {
        assert_eq!(
            printable("a\u{1b}[31m\nb\u{202e}c"),
            "a\u{fffd}[31m\u{fffd}b\u{fffd}c"
        );
        assert_eq!(
            printable(&"x".repeat(500)).chars().count(),
            PEER_TEXT_CHARS_MAX
        );
        assert_eq!(printable("naïve"), "naïve");
    }

    #[test]
    fn metrics_render_as_text() {
        let Some(metrics) = Metrics::install() else {
            return;
        };
        metrics::counter!("souk_test_total").increment(1);
        metrics::histogram!("souk_test_seconds").record(0.2);
        let text = metrics.render();
        assert!(text.contains("souk_test_total 1"), "{text}");
        assert!(text.contains("souk_test_seconds_bucket"), "{text}");
    }
}
