//! What counts as the same rows: machines differ in their last bits, and 16 bits of a number travel.

/// Least cosine of the angle between two honest results for one row.
pub const COSINE_MIN: f64 = 0.999;
/// Most that two honest results differ, as a share of their length.
pub const DISTANCE_MAX: f64 = 0.02;

/// True when every row of `hidden` numbers is the same in both but for rounding.
#[must_use]
pub fn agree(a: &[f32], b: &[f32], hidden: usize) -> bool {
    let rows = a.chunks(hidden.max(1)).zip(b.chunks(hidden.max(1)));
    a.len() == b.len() && !a.is_empty() && rows.into_iter().all(|(a, b)| is_near(a, b))
}

fn is_near(a: &[f32], b: &[f32]) -> bool {
    let (mut dot, mut aa, mut bb, mut apart) = (0.0, 0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        dot += x * y;
        aa += x * x;
        bb += y * y;
        apart += (x - y) * (x - y);
    }
    if aa == 0.0 && bb == 0.0 {
        return true;
    }
    // Infinities and what is no number compare as false.
    dot >= COSINE_MIN * aa.sqrt() * bb.sqrt() && apart.sqrt() <= DISTANCE_MAX * bb.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_forgiven_and_a_change_is_not() {
        let row: Vec<f32> = (0u16..128).map(|i| (f32::from(i) * 0.7).sin()).collect();
        let close: Vec<f32> = row.iter().map(|x| x * 1.001).collect();
        assert!(agree(&row, &close, 64));
        let scaled: Vec<f32> = row.iter().map(|x| x * 1.05).collect();
        assert!(!agree(&row, &scaled, 64));
        let mut one_row = row.clone();
        one_row[64..].iter_mut().for_each(|x| *x = -*x);
        assert!(!agree(&row, &one_row, 64));
        assert!(!agree(&row, &vec![f32::NAN; 128], 64));
        assert!(!agree(&row, &row[..64], 64));
        assert!(agree(&[0.0; 4], &[0.0; 4], 4));
    }
}
