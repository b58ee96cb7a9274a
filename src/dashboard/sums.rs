//! What was booked over time, summed by the ledger: both pages draw it.

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::tables;
use crate::ledger::report::{self, Filter, GroupBy};
use crate::ledger::{LedgerError, Reader};
use crate::types::UnixMs;

/// Requests on a page; those that run are among the newest.
pub const REQUESTS_SHOWN: u32 = 60;
/// Quarters of an hour, hours and days that the plots show.
const QUARTERS: u32 = 24;
const HOURS: u32 = 24;
const DAYS: u32 = 30;

/// Asks a ledger for the sums of one direction.
pub struct Sums<'a> {
    reader: &'a Reader,
    filter: Filter,
    zone: TimeZone,
    now_ms: UnixMs,
}

/// Sums by quarter of an hour, by hour and by day.
pub struct OverTime {
    quarters: Stretch,
    hours: Stretch,
    days: Stretch,
}

/// A stretch of time: its parts and their sums.
struct Stretch {
    parts: Vec<String>,
    sums: Value,
}

impl<'a> Sums<'a> {
    /// Of what `filter` names, up to now, in the machine's own time.
    #[must_use]
    pub fn new(reader: &'a Reader, filter: Filter, now_ms: UnixMs) -> Self {
        Self {
            reader,
            filter,
            zone: TimeZone::system(),
            now_ms,
        }
    }

    /// The plots' sums.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn over_time(&self) -> Result<OverTime, LedgerError> {
        Ok(OverTime {
            quarters: self.stretch(GroupBy::Quarter, QUARTERS).await?,
            hours: self.stretch(GroupBy::Hour, HOURS).await?,
            days: self.stretch(GroupBy::Day, DAYS).await?,
        })
    }

    async fn stretch(&self, by: GroupBy, count: u32) -> Result<Stretch, LedgerError> {
        let (since_ms, parts) = report::last(by, count, self.now_ms, &self.zone);
        let sums = self.since(by, since_ms).await?;
        Ok(Stretch { parts, sums })
    }

    /// Of the days that the plots show.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn by(&self, by: GroupBy) -> Result<Value, LedgerError> {
        let (since_ms, _) = report::last(GroupBy::Day, DAYS, self.now_ms, &self.zone);
        self.since(by, since_ms).await
    }

    async fn since(&self, by: GroupBy, since_ms: UnixMs) -> Result<Value, LedgerError> {
        let filter = Filter {
            since_ms: Some(since_ms),
            ..self.filter.clone()
        };
        let summary = report::summary(self.reader, by, &filter, &self.zone).await?;
        Ok(json!(summary))
    }
}

impl OverTime {
    /// The plots, titled with what happened to the money.
    pub(super) fn plots(&self, verb: &str) -> String {
        let drawn: String = [
            (
                "Quarter",
                format!("last {} hours", QUARTERS / 4),
                &self.quarters,
            ),
            ("Hour", format!("last {HOURS} hours"), &self.hours),
            ("Day", format!("last {DAYS} days"), &self.days),
        ]
        .into_iter()
        .map(|(unit, when, stretch)| {
            let title = format!("{verb} in the {when}");
            tables::over_time(&title, unit, &stretch.parts, &stretch.sums)
        })
        .collect();
        format!("<div class=\"plots\">{drawn}</div>")
    }
}
