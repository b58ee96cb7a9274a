//! What `node ledger` and the dashboards show: sums, requests, one request, exports.
//!
//! Sums come from the `rollup` rows plus the few rows after the last checkpoint, so a report over a
//! million rows reads thousands. What was not reported is `None`, never 0. Times given as limits are
//! rounded down to a quarter hour (local midnights are whole ones). Spent and earned are never added
//! to each other.

mod export;
mod requests;
mod show;
mod summary;
mod times;

pub use export::{ExportFormat, csv_summary, export};
pub use requests::{RequestRecord, requests};
pub use show::{ShownAttempt, ShownSignature, ShownVoucher, show};
pub use summary::{GroupBy, Summary, SummaryRow, summary, summary_with};
pub use times::last;

use super::rows::{PROBE_CLIENT, Role};
use crate::types::{ModelId, PeerId, UnixMs};

/// Which rows a report is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Bought or sold; `None` is both.
    pub role: Option<Role>,
    /// From here on.
    pub since_ms: Option<UnixMs>,
    /// Up to here, exclusive.
    pub until_ms: Option<UnixMs>,
    /// One model.
    pub model: Option<ModelId>,
    /// One peer: the seller of what was bought, the buyer of what was sold.
    pub peer: Option<PeerId>,
}

/// The word for money's direction.
pub(super) const fn direction(role: Role) -> &'static str {
    match role {
        Role::Buy => "spent",
        Role::Sell => "earned",
    }
}

/// The same of one request: what this node asks to find out about a seller is a probe.
pub(super) fn direction_of(role: Role, client: Option<&str>) -> &'static str {
    match (role, client) {
        (Role::Buy, Some(PROBE_CLIENT)) => "probe",
        _ => direction(role),
    }
}

/// Text a peer may have chosen, fit for a terminal or a spreadsheet: no control characters, and no
/// leading character that a spreadsheet takes for a formula.
#[must_use]
pub fn safe_text(text: &str) -> String {
    let clean: String = text.chars().filter(|c| !c.is_control()).collect();
    if clean.starts_with(['=', '+', '-', '@']) {
        format!("'{clean}")
    } else {
        clean
    }
}

#[cfg(test)]
mod tests;
