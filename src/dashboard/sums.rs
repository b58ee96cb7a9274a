//! What was booked over time, summed by the ledger: both pages draw it.

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::tables;
use crate::ledger::report::{self, Filter, GroupBy};
use crate::ledger::{LedgerError, Reader};
use crate::types::UnixMs;

/// Requests on a page; those that run are among the newest.
pub const REQUESTS_SHOWN: u32 = 60;
/// Hours and days that the plots show.
const HOURS: u32 = 24;
const DAYS: u32 = 30;

/// Asks a ledger for the sums of one direction.
pub struct Sums<'a> {
    reader: &'a Reader,
    filter: Filter,
    zone: TimeZone,
    now_ms: UnixMs,
}

/// Sums by hour and by day.
pub struct OverTime {
    hours: Vec<String>,
    days: Vec<String>,
    by_hour: Value,
    by_day: Value,
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
        let (since_ms, hours) = report::last(GroupBy::Hour, HOURS, self.now_ms, &self.zone);
        let by_hour = self.since(GroupBy::Hour, since_ms).await?;
        let (since_ms, days) = report::last(GroupBy::Day, DAYS, self.now_ms, &self.zone);
        let by_day = self.since(GroupBy::Day, since_ms).await?;
        Ok(OverTime {
            hours,
            days,
            by_hour,
            by_day,
        })
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
    /// Both plots, titled with what happened to the money.
    pub(super) fn plots(&self, verb: &str) -> String {
        let hours = format!("{verb} in the last {HOURS} hours");
        let days = format!("{verb} in the last {DAYS} days");
        let by_hour = tables::over_time(&hours, "Hour", &self.hours, &self.by_hour);
        by_hour + &tables::over_time(&days, "Day", &self.days, &self.by_day)
    }
}
