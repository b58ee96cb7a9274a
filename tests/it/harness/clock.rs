//! Days that do not end in the middle of a test.

use std::time::Duration;

/// A test that counts by the day is over within this, on a slow machine too.
const TEST_MAX_S: i64 = 180;

/// Returns when the day, and so the month, lasts for another test: nodes count by UTC here.
pub async fn day_lasts() {
    let now = jiff::Timestamp::now().as_second();
    let left = 86_400 - now.rem_euclid(86_400);
    if left < TEST_MAX_S {
        let left = u64::try_from(left).unwrap();
        tokio::time::sleep(Duration::from_secs(left + 1)).await;
    }
}
