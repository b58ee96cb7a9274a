//! Local days and months: when the current one began and ends. Spending limits count by them.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::UnixMs;

/// The beginning of the local day that `now_ms` is in.
#[must_use]
pub fn midnight_before(now_ms: UnixMs) -> UnixMs {
    let day = zoned(now_ms).start_of_day();
    day.ok().and_then(|day| to_ms(&day)).unwrap_or(0)
}

/// The end of the local day that `now_ms` is in.
#[must_use]
pub fn midnight_after(now_ms: UnixMs) -> UnixMs {
    let next = zoned(now_ms).tomorrow().and_then(|day| day.start_of_day());
    next.ok().and_then(|day| to_ms(&day)).unwrap_or(UnixMs::MAX)
}

/// The beginning of the local month that `now_ms` is in.
#[must_use]
pub fn month_before(now_ms: UnixMs) -> UnixMs {
    let first = zoned(now_ms).first_of_month();
    let first = first.and_then(|day| day.start_of_day());
    first.ok().and_then(|day| to_ms(&day)).unwrap_or(0)
}

/// The end of the local month that `now_ms` is in.
#[must_use]
pub fn month_after(now_ms: UnixMs) -> UnixMs {
    let last = zoned(now_ms).last_of_month();
    let next = last.and_then(|day| day.tomorrow());
    let next = next.and_then(|day| day.start_of_day());
    next.ok().and_then(|day| to_ms(&day)).unwrap_or(UnixMs::MAX)
}

/// A time in the local zone, as people write it.
#[must_use]
pub fn local_text(at_ms: UnixMs) -> String {
    zoned(at_ms).strftime("%Y-%m-%d %H:%M %Z").to_string()
}

fn zoned(ms: UnixMs) -> Zoned {
    let stamp = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    stamp.unwrap_or_default().to_zoned(TimeZone::system())
}

fn to_ms(day: &Zoned) -> Option<UnixMs> {
    u64::try_from(day.timestamp().as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_months_hold_the_moment_and_meet() {
        let now = 1_700_000_000_000;
        assert!(midnight_before(now) <= now && now < midnight_after(now));
        assert!(month_before(now) <= midnight_before(now));
        assert!(midnight_after(now) <= month_after(now));
        let end = midnight_after(now);
        assert_eq!(midnight_before(end), end);
        assert_eq!(midnight_after(end - 1), end);
        assert_eq!(month_before(month_after(now)), month_after(now));
    }
}
