use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;
use proptest::prelude::*;

use super::*;

/// Numbers between -1 and 1.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A matrix as `Q8_0` blocks.
fn blocks(outputs: usize, inputs: usize, seed: u32) -> Vec<u8> {
    let shape = (outputs, inputs);
    let weights = Tensor::from_vec(numbers(outputs * inputs, seed), shape, &Device::Cpu).unwrap();
    let quantised = QTensor::quantize(&weights, GgmlDType::Q8_0).unwrap();
    quantised.data().unwrap().into_owned()
}

/// Where this processor has no instructions for them there is nothing to test, and that is the claim.
fn tiles(outputs: usize, inputs: usize, seed: u32) -> Option<Tiles> {
    let tiles = Tiles::new(&blocks(outputs, inputs, seed), outputs, inputs);
    assert_eq!(tiles.is_some(), Instructions::find().is_some());
    tiles
}

fn times(tiles: &Tiles, rows: &[f32]) -> Vec<f32> {
    product(&[tiles], rows, tiles.inputs).unwrap().remove(0)
}

/// A row times a matrix as the definition of `Q8_0` has it, both quantised.
fn by_definition(blocks: &[u8], row: &[f32]) -> Vec<f64> {
    let of_outputs = blocks.chunks_exact(row.len() / GROUP * GROUP_BYTES);
    let output = |blocks: &[u8]| -> f64 {
        let groups = blocks
            .chunks_exact(GROUP_BYTES)
            .zip(row.chunks_exact(GROUP));
        let group = |(block, numbers): (&[u8], &[f32])| {
            let scale = f16::from_le_bytes([block[0], block[1]]);
            let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
            let factor = if most == 0.0 { 0.0 } else { 127.0 / most };
            let products = block[2..].iter().zip(numbers).map(|(weight, number)| {
                f64::from(weight.cast_signed()) * f64::from((number * factor).round_ties_even())
            });
            products.sum::<f64>() * f64::from(scale.to_f32()) * f64::from(most / 127.0)
        };
        groups.map(group).sum()
    };
    of_outputs.map(output).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_product_is_what_the_definition_says(
        outputs in 1..6_usize, groups in 1..9_usize, count in 1..20_usize, seed: u32,
    ) {
        let (outputs, inputs) = (outputs * TILE, groups * GROUP);
        let Some(tiles) = tiles(outputs, inputs, seed) else { return Ok(()) };
        let rows = numbers(count * inputs, !seed);
        let product = times(&tiles, &rows);
        let blocks = blocks(outputs, inputs, seed);
        for (row, product) in rows.chunks_exact(inputs).zip(product.chunks_exact(outputs)) {
            for (exact, number) in by_definition(&blocks, row).iter().zip(product) {
                let differ = (exact - f64::from(*number)).abs();
                prop_assert!(differ < 1e-4 * exact.abs().max(1.0), "{exact} {number}");
            }
        }
    }

    /// Bit by bit, or a model cut in ranges would not say what the whole says.
    #[test]
    fn a_row_is_the_same_alone_and_in_any_company(count in 1..40_usize, seed: u32) {
        let (outputs, inputs) = (3 * TILE, 4 * GROUP);
        let Some(tiles) = tiles(outputs, inputs, seed) else { return Ok(()) };
        let rows = numbers(count * inputs, !seed);
        let together = times(&tiles, &rows);
        for (row, product) in rows.chunks_exact(inputs).zip(together.chunks_exact(outputs)) {
            prop_assert_eq!(times(&tiles, row), product);
        }
    }

    #[test]
    fn several_matrices_give_what_each_gives(count in 1..12_usize, seed: u32) {
        let inputs = 2 * GROUP;
        let all: Option<Vec<Tiles>> = [2, 1, 5].map(|own| tiles(own * TILE, inputs, seed)).into_iter().collect();
        let Some(all) = all else { return Ok(()) };
        let rows = numbers(count * inputs, !seed);
        let together = product(&all.iter().collect::<Vec<_>>(), &rows, inputs).unwrap();
        let alone: Vec<Vec<f32>> = all.iter().map(|tiles| times(tiles, &rows)).collect();
        prop_assert_eq!(together, alone);
    }
}

#[test]
fn what_is_no_number_stays_so_and_in_its_row() {
    let (outputs, inputs) = (TILE, 2 * GROUP);
    let Some(tiles) = tiles(outputs, inputs, 1) else {
        return;
    };
    let sound = numbers(inputs, 2);
    for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = sound.clone();
        row[GROUP + 5] = odd;
        let rows = [sound.clone(), row, vec![0.0; inputs]].concat();
        let product = times(&tiles, &rows);
        assert_eq!(product[..outputs], times(&tiles, &sound));
        let is_none = product[outputs..2 * outputs].iter().all(|x| !x.is_finite());
        assert!(is_none, "{odd}: {product:?}");
        assert_eq!(product[2 * outputs..], [0.0; TILE]);
    }
}

#[test]
fn what_does_not_fit_is_left_to_others() {
    assert!(Tiles::new(&blocks(24, 64, 1), 24, 64).is_none());
    assert!(Tiles::new(&blocks(16, 64, 1)[1..], 16, 64).is_none());
    assert!(Tiles::new(&[], 16, 0).is_none());
    let Some(tiles) = tiles(16, 64, 1) else {
        return;
    };
    assert!(product(&[&tiles], &[], 64).is_err());
    assert!(product(&[&tiles], &numbers(65, 1), 64).is_err());
    assert!(product(&[&tiles], &numbers(128, 1), 32).is_err());
}
