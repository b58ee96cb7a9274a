use proptest::prelude::*;

use super::super::Precision;
use super::super::kv::Kv;
use super::super::vectors::single;
use super::*;

/// Numbers between -1 and 1.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    let number = |at: usize| single((at + seed) * 7_919 % 1_013) / 506.5 - 1.0;
    (0..count).map(number).collect()
}

/// By the formula, in double precision.
fn plain(shape: Shape, queries: &[f32], keys: &[f32], values: &[f32], pos: usize) -> Vec<f64> {
    let (dim, wide) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut heard = vec![];
    for (at, row) in queries.chunks_exact(shape.heads * dim).enumerate() {
        for (head, query) in row.chunks_exact(dim).enumerate() {
            let first = head / (shape.heads / shape.kv_heads) * dim;
            let score = |position: usize| -> f64 {
                let key = &keys[position * wide + first..][..dim];
                let products = query.iter().zip(key);
                let sum: f64 = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                (sum * f64::from(shape.scale)).exp()
            };
            let scores: Vec<f64> = (0..=pos + at).map(score).collect();
            let total: f64 = scores.iter().sum();
            for number in 0..dim {
                let value = |position: usize| f64::from(values[position * wide + first + number]);
                let all = scores.iter().enumerate();
                heard.push(all.map(|(at, s)| s * value(at)).sum::<f64>() / total);
            }
        }
    }
    heard
}

fn written(
    precision: Precision,
    shape: Shape,
    positions: usize,
    keys: &[f32],
    values: &[f32],
) -> Kv {
    let heads = (shape.kv_heads, shape.head_dim);
    let mut kv = Kv::new(positions, 2, heads, precision);
    kv.reach(positions);
    kv.write(1, 0, keys, values);
    kv
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_row_hears_what_the_formula_says_and_the_same_in_any_company(
        (kv_heads, shared) in (1..4_usize, 1..4_usize),
        dim in prop::sample::select(vec![4_usize, 16, 24, 64, 80]),
        before in 0..40_usize, rows in 1..20_usize, seed in 0..999_usize,
        (precision, most) in prop::sample::select(vec![(Precision::Q8, 1e-4), (Precision::F32, 1e-5)]),
    ) {
        let heads = kv_heads * shared;
        let shape = Shape { heads, kv_heads, head_dim: dim, scale: 0.3 };
        let positions = before + rows;
        let (keys, values) = (
            numbers(positions * kv_heads * dim, seed),
            numbers(positions * kv_heads * dim, seed + 1),
        );
        let queries = numbers(rows * heads * dim, seed + 2);
        let mut kv = written(precision, shape, positions, &keys, &values);
        let mut other = written(precision, shape, positions, &values, &keys);
        let slot = |pos, queries, kv| Rows { pos, queries, memories: Kv::write(kv, 1, 0, &[], &[]) };
        let both = attend(shape, &[slot(before, &queries, &mut kv), slot(before, &queries, &mut other)]);
        let (own, others) = both.split_at(queries.len());
        prop_assert_ne!(own, others);
        let exact = plain(shape, &queries, &keys, &values, before);
        prop_assert_eq!(own.len(), exact.len());
        for (number, exact) in own.iter().zip(exact) {
            prop_assert!((f64::from(*number) - exact).abs() < most, "{number} {exact}");
        }
        // Row by row, and before those after it were written.
        let mut alone = Kv::new(positions, 2, (kv_heads, dim), precision);
        alone.reach(1);
        let wide = kv_heads * dim;
        for at in 0..positions {
            alone.reach(at + 1);
            let own = at * wide..(at + 1) * wide;
            let memories = alone.write(1, at, &keys[own.clone()], &values[own]);
            if let Some(row) = at.checked_sub(before) {
                let own_row = row * heads * dim..(row + 1) * heads * dim;
                let rows = Rows { pos: at, queries: &queries[own_row.clone()], memories };
                prop_assert_eq!(&attend(shape, &[rows]), &own_of(&both, own_row));
            }
        }
    }
}

fn own_of(all: &[f32], range: std::ops::Range<usize>) -> Vec<f32> {
    all[range].to_vec()
}

#[test]
fn what_is_no_number_is_heard_as_none() {
    let shape = Shape {
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
        scale: 1.0,
    };
    let mut keys = numbers(48, 1);
    keys[20] = f32::NAN;
    let mut kv = written(Precision::Q8, shape, 3, &keys, &numbers(48, 2));
    let queries = numbers(48, 3);
    let rows = Rows {
        pos: 0,
        queries: &queries,
        memories: kv.write(1, 0, &[], &[]),
    };
    let heard = attend(shape, &[rows]);
    assert!(heard[..16].iter().all(|number| number.is_finite()));
    assert!(heard[16..].iter().all(|number| number.is_nan()));
}
