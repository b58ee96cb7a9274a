//! The last quarters, hours or days as a plot shows them: every one, also those in which nothing happened.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Unit, Zoned, ZonedRound};

use super::GroupBy;
use super::summary::date_label;
use crate::types::UnixMs;

/// A quarter of an hour, minutes: the ledger keeps no finer sums.
const QUARTER_MIN: i64 = 15;

/// Keys of the last `count` quarters of an hour, hours or days up to now, oldest first, as [`super::summary`] names its
/// rows, and where the oldest begins.
#[must_use]
pub fn last(by: GroupBy, count: u32, now_ms: UnixMs, zone: &TimeZone) -> (UnixMs, Vec<String>) {
    let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
    let now = Timestamp::from_millisecond(now_ms).unwrap_or_default();
    let mut start = begin(by, &now.to_zoned(zone.clone()));
    let mut since = start.timestamp();
    let mut keys = Vec::new();
    for _ in 0..count {
        since = start.timestamp();
        let key = date_label(by, since.as_millisecond(), zone);
        // The hour that a clock shows twice in autumn is one row of the summary.
        if keys.last() != Some(&key) {
            keys.push(key);
        }
        let step = match by {
            GroupBy::Quarter => QUARTER_MIN.minutes(),
            GroupBy::Hour => 1.hour(),
            _ => 1.day(),
        };
        start = match start.checked_sub(step) {
            Ok(before) => begin(by, &before),
            Err(_) => break,
        };
    }
    keys.reverse();
    (u64::try_from(since.as_millisecond()).unwrap_or(0), keys)
}

/// The start of the quarter, hour or day that a time lies in.
fn begin(by: GroupBy, at: &Zoned) -> Zoned {
    let down = ZonedRound::new().mode(jiff::RoundMode::Trunc);
    let begun = match by {
        GroupBy::Quarter => at.round(down.smallest(Unit::Minute).increment(QUARTER_MIN)),
        GroupBy::Hour => at.round(down.smallest(Unit::Hour)),
        _ => at.start_of_day(),
    };
    begun.unwrap_or_else(|_| at.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_and_days_are_whole_local_ones_and_none_is_left_out() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let now: Timestamp = "2026-10-25T03:30:00Z".parse().unwrap();
        let now_ms = u64::try_from(now.as_millisecond()).unwrap();
        let (since, hours) = last(GroupBy::Hour, 5, now_ms, &berlin);
        // The clock went back at 01:00 UTC: 02:00 came twice.
        let expected = [
            "2026-10-25T01:00",
            "2026-10-25T02:00",
            "2026-10-25T03:00",
            "2026-10-25T04:00",
        ];
        assert_eq!(hours, expected);
        let begun: Timestamp = "2026-10-24T23:00:00Z".parse().unwrap();
        assert_eq!(since, u64::try_from(begun.as_millisecond()).unwrap());
        let (since, quarters) = last(GroupBy::Quarter, 3, now_ms + 60_000, &TimeZone::UTC);
        let expected = ["2026-10-25T03:00", "2026-10-25T03:15", "2026-10-25T03:30"];
        assert_eq!(quarters, expected);
        assert_eq!(since, now_ms - 30 * 60_000);
        let (_, days) = last(GroupBy::Day, 30, now_ms, &berlin);
        assert_eq!(days.len(), 30);
        assert_eq!(days.last().map(String::as_str), Some("2026-10-25"));
    }
}
