//! How many audits find a stage that alters rows.
//!
//! An audit draws a position uniformly among all that the session has, decode rows too, and looks at
//! the [`AUDIT_ROWS`] rows around it, or all when there are fewer. It finds the stage when one of
//! these is altered. So with a share *a* of a stage's rows altered, whichever they are, one audit of
//! that stage finds it with probability *a* at least: the drawn row itself is among those looked at.
//! If the altered rows lie scattered, nearly every audit finds one: 1 − (1 − a)^rows.
//!
//! | altered | worst case: audits of the stage for 99 % | scattered, 64 rows looked at |
//! |--------:|----------------------------------------:|-----------------------------:|
//! |   100 % |                                       1 |                            1 |
//! |    10 % |                                      44 |                            1 |
//! |     1 % |                                     459 |                            8 |
//!
//! The stage to audit is drawn too: among *h* stages, *h* times as many audits hold about as many of
//! each ([`per_audit`] is then divided by *h*).

/// Rows that an audit looks at, at most.
pub const AUDIT_ROWS: u32 = 256;

/// Which rows are altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Whatever hides best.
    Worst,
    /// Each row by itself at random.
    Scattered,
}

/// The least probability that one audit of a stage finds that it alters a share of its rows, when the
/// session has `rows`.
#[must_use]
pub fn per_audit(altered: f64, rows: u32, pattern: Pattern) -> f64 {
    let altered = altered.clamp(0.0, 1.0);
    match pattern {
        Pattern::Worst => altered,
        // Half of them lie before the drawn row and half behind it, where there may be fewer.
        Pattern::Scattered => {
            let looked_at = rows.clamp(1, AUDIT_ROWS / 2);
            1.0 - (1.0 - altered).powf(f64::from(looked_at))
        }
    }
}

/// Audits until one of probability `each` was found with probability `wanted`; `u32::MAX` when never.
#[must_use]
pub fn audits_needed(each: f64, wanted: f64) -> u32 {
    let mut missed = 1.0 - each.clamp(0.0, 1.0);
    if missed >= 1.0 {
        return u32::MAX;
    }
    missed = missed.max(f64::MIN_POSITIVE);
    let still = (1.0 - wanted.clamp(0.0, 1.0)).max(f64::MIN_POSITIVE);
    let count = (still.ln() / missed.ln()).ceil().clamp(1.0, 1e9);
    #[allow(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float within 1..=1e9 is a u32, and floats have no checked cast"
    )]
    {
        count as u32
    }
}

/// The rows that an audit looks at when it draws `drawn` of `rows`: from, and the position after.
#[must_use]
pub fn span(drawn: u32, rows: u32) -> (u32, u32) {
    let end = drawn.saturating_add(AUDIT_ROWS / 2).clamp(1, rows.max(1));
    (end.saturating_sub(AUDIT_ROWS), end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(n: u32) -> usize {
        usize::try_from(n).unwrap()
    }

    /// Numbers from a seed.
    fn next(seed: &mut u64) -> u32 {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(*seed >> 33).unwrap()
    }

    #[test]
    fn the_table_is_what_is_computed() {
        let row = |altered, pattern| audits_needed(per_audit(altered, 64, pattern), 0.99);
        let of = |altered| [Pattern::Worst, Pattern::Scattered].map(|p| row(altered, p));
        assert_eq!([of(1.0), of(0.1), of(0.01)], [[1, 1], [44, 1], [459, 8]]);
        assert_eq!(audits_needed(0.0, 0.5), u32::MAX);
    }

    #[test]
    fn the_drawn_row_is_always_looked_at_and_no_more_than_there_are() {
        for rows in [1, 2, 100, 256, 257, 5_000] {
            for drawn in (0..rows).step_by(7).chain([rows - 1]) {
                let (from, end) = span(drawn, rows);
                assert!(from <= drawn && drawn < end && end <= rows);
                assert!(end - from <= AUDIT_ROWS);
            }
        }
    }

    /// Draws audits as a head does against altered rows as a liar would place them, and counts.
    #[test]
    fn audits_find_at_least_as_often_as_is_said() {
        const AUDITS: u32 = 20_000;
        let mut seed = 11;
        for rows in [40u32, 300, 3_000] {
            for per_mille in [20u32, 100, 500] {
                let altered = f64::from(per_mille) / 1_000.0;
                let count = (rows * per_mille / 1_000).max(1);
                let share = f64::from(count) / f64::from(rows);
                // In one piece at the end, where audits look least often.
                let worst: Vec<bool> = (0..rows).map(|row| row >= rows - count).collect();
                let mut scattered = vec![false; worst.len()];
                while scattered.iter().filter(|is| **is).count() < index(count) {
                    scattered[index(next(&mut seed) % rows)] = true;
                }
                for (pattern, marks) in [(Pattern::Worst, worst), (Pattern::Scattered, scattered)] {
                    let found = (0..AUDITS).filter(|_| {
                        let (from, end) = span(next(&mut seed) % rows, rows);
                        (from..end).any(|row| marks[index(row)])
                    });
                    let measured =
                        f64::from(u32::try_from(found.count()).unwrap()) / f64::from(AUDITS);
                    let said = match pattern {
                        Pattern::Worst => per_audit(share, rows, pattern),
                        // One session's marks are a sample, and as few as one.
                        Pattern::Scattered => 0.9 * per_audit(altered, rows.min(40), pattern),
                    };
                    assert!(
                        measured >= said - 0.02,
                        "{rows} rows, {per_mille} ‰, {pattern:?}: {measured} < {said}"
                    );
                }
            }
        }
    }
}
