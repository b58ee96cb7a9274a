//! One look at one thing, and how it is told.

use serde::Serialize;

use crate::cli::output::{Output, own_name};

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// It works, and may not much longer, or not as expected.
    Warn,
    /// It does not work.
    Fail,
    /// There is nothing to look at.
    Skip,
}

/// One look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub message: String,
    /// What to do; null when there is nothing to do.
    pub fix: Option<String>,
}

impl Check {
    /// All is well.
    pub fn pass(check: &'static str, message: impl Into<String>) -> Self {
        Self::of(check, Verdict::Pass, message.into(), None)
    }
    /// It works, but.
    pub fn warn(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::of(check, Verdict::Warn, message.into(), Some(fix.into()))
    }
    /// It does not work.
    pub fn fail(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::of(check, Verdict::Fail, message.into(), Some(fix.into()))
    }
    /// There is nothing to look at.
    pub fn skip(check: &'static str, message: impl Into<String>) -> Self {
        Self::of(check, Verdict::Skip, message.into(), None)
    }

    const fn of(
        check: &'static str,
        verdict: Verdict,
        message: String,
        fix: Option<String>,
    ) -> Self {
        Self {
            check,
            verdict,
            message,
            fix,
        }
    }

    /// As text: a line, and a second one with the fix.
    pub fn line(&self, out: &Output) -> String {
        let (word, color) = match self.verdict {
            Verdict::Pass => ("PASS", "32"),
            Verdict::Warn => ("WARN", "33"),
            Verdict::Fail => ("FAIL", "1;31"),
            Verdict::Skip => ("SKIP", "2"),
        };
        let mut text = format!(
            "{}  {:<15} {}",
            out.paint(word, color),
            self.check,
            own_name(&self.message)
        );
        if let Some(fix) = self.fix.as_deref().map(own_name) {
            text.push_str(&format!("\n      fix: {fix}"));
        }
        text
    }
}
