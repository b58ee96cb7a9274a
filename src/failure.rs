//! What a command says when it fails: a kind (the exit code), a message, a hint and whether trying
//! again can help. `node` and the commands return it inside `anyhow::Error`; `cli` prints it.

use serde::Serialize;

/// The class of a failure; each has its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Anything else (1).
    Failure,
    /// The command line is wrong (2).
    Usage,
    /// Keys or a running node are missing (3).
    NotConfigured,
    /// Peers or the local node cannot be reached (4).
    Network,
    /// No money, or a limit was reached (5).
    Payment,
    /// The upstream failed (6).
    Upstream,
    /// The configuration is wrong (64).
    BadConfig,
    /// Stopped by the user (130).
    Interrupted,
}

impl FailureKind {
    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotConfigured => 3,
            Self::Network => 4,
            Self::Payment => 5,
            Self::Upstream => 6,
            Self::BadConfig => 64,
            Self::Interrupted => 130,
        }
    }
}

/// A failure as the user sees it. Holds no prompt, completion or key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its class.
    pub kind: FailureKind,
    /// What happened.
    pub message: String,
    /// What to do about it, if anything is known.
    pub hint: Option<String>,
    /// Whether the same command may succeed later.
    pub retryable: bool,
}

impl Failure {
    /// Makes a failure without a hint that is not worth retrying.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            retryable: false,
        }
    }
    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Marks it as worth trying again.
    #[must_use]
    pub const fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }
    /// Finds the failure inside any error; what is none becomes an ordinary failure (1).
    #[must_use]
    pub fn from_error(error: &anyhow::Error) -> Self {
        match error.chain().find_map(|cause| cause.downcast_ref::<Self>()) {
            Some(failure) => failure.clone(),
            None => Self::new(FailureKind::Failure, format!("{error:#}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_found_inside_other_errors() {
        let failure = Failure::new(FailureKind::Payment, "no money").hint("node wallet deposit");
        let error = anyhow::Error::new(failure.clone()).context("while buying");
        assert_eq!(Failure::from_error(&error), failure);
        let other = anyhow::anyhow!("disk full").context("ledger");
        let seen = Failure::from_error(&other);
        assert_eq!(seen.message, "ledger: disk full");
        assert_eq!(seen.kind.exit_code(), 1);
    }
}
