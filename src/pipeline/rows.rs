//! Rows as they travel: numbers to bytes and back, in the session's [`WireFormat`].

use bytes::{BufMut, Bytes, BytesMut};
use half::f16;

use crate::protocol::stage::WireFormat;

/// The largest number that 16 bits hold; beyond it lies infinity, which no layer survives.
const F16_MAX: f32 = 65_504.0;
/// Steps of an 8-bit integer on each side of 0.
const INT8_STEPS: f32 = 127.0;

/// Rows of `hidden` numbers as bytes; what is left over of `numbers` is not sent.
#[must_use]
pub fn to_bytes(numbers: &[f32], hidden: usize, wire: WireFormat) -> Bytes {
    let rows = numbers.chunks_exact(hidden.max(1));
    let mut out = BytesMut::with_capacity(rows.len() * wire.row_bytes(hidden));
    for row in rows {
        match wire {
            WireFormat::F16 => row.iter().for_each(|x| {
                out.put_u16_le(f16::from_f32(x.clamp(-F16_MAX, F16_MAX)).to_bits());
            }),
            WireFormat::F32 => row.iter().for_each(|x| out.put_f32_le(*x)),
            WireFormat::Int8 => put_int8(row, &mut out),
        }
    }
    out.freeze()
}

/// Rows as numbers; none when the bytes are no whole rows of `hidden`.
#[must_use]
pub fn from_bytes(bytes: &Bytes, hidden: usize, wire: WireFormat) -> Option<Vec<f32>> {
    let row_bytes = wire.row_bytes(hidden);
    if bytes.is_empty() || bytes.len().checked_rem(row_bytes) != Some(0) {
        return None;
    }
    Some(match wire {
        WireFormat::F16 => {
            let (pairs, _) = bytes.as_chunks::<2>();
            pairs
                .iter()
                .map(|b| f16::from_bits(u16::from_le_bytes(*b)).to_f32())
                .collect()
        }
        WireFormat::F32 => {
            let (fours, _) = bytes.as_chunks::<4>();
            fours.iter().map(|b| f32::from_le_bytes(*b)).collect()
        }
        WireFormat::Int8 => bytes.chunks_exact(row_bytes).flat_map(int8_row).collect(),
    })
}

/// A scale, then steps of it.
fn put_int8(row: &[f32], out: &mut BytesMut) {
    let largest = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let scale = largest / INT8_STEPS;
    out.put_f32_le(scale);
    for x in row {
        let steps = if scale > 0.0 { x / scale } else { 0.0 };
        let steps = steps.round().clamp(-INT8_STEPS, INT8_STEPS);
        #[allow(
            clippy::as_conversions,
            clippy::cast_possible_truncation,
            reason = "a float within ±127 is an i8, and floats have no checked cast"
        )]
        out.put_i8(steps as i8);
    }
}

fn int8_row(row: &[u8]) -> impl Iterator<Item = f32> {
    let (scale, steps) = row.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
    let scale = f32::from_le_bytes(*scale);
    steps
        .iter()
        .map(move |step| f32::from(i8::from_le_bytes([*step])) * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_as_well_as_their_format_can() {
        let numbers: Vec<f32> = (0u16..64).map(|i| (f32::from(i) - 31.0) * 0.37).collect();
        for (wire, off) in [
            (WireFormat::F32, 0.0),
            (WireFormat::F16, 0.01),
            (WireFormat::Int8, 0.06),
        ] {
            let bytes = to_bytes(&numbers, 16, wire);
            assert_eq!(bytes.len(), 4 * wire.row_bytes(16));
            let back = from_bytes(&bytes, 16, wire).unwrap();
            assert_eq!(back.len(), 64);
            let worst = numbers.iter().zip(&back).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst <= off, "{wire:?}: {worst}");
            // What was rounded once is not rounded again.
            assert_eq!(
                from_bytes(&to_bytes(&back, 16, wire), 16, wire).unwrap(),
                back
            );
        }
    }

    #[test]
    fn eight_bits_are_half_of_sixteen_and_a_scale_for_each_row() {
        let (rows, hidden) = (3, 4_096);
        let numbers = vec![0.5; rows * hidden];
        let bytes = |wire| to_bytes(&numbers, hidden, wire).len();
        assert_eq!(bytes(WireFormat::F16), 2 * rows * hidden);
        assert_eq!(bytes(WireFormat::Int8), rows * hidden + 4 * rows);
    }

    #[test]
    fn no_number_becomes_infinite_and_torn_rows_are_refused() {
        let back = from_bytes(
            &to_bytes(&[1e9, -1e9], 2, WireFormat::F16),
            2,
            WireFormat::F16,
        );
        assert_eq!(back, Some(vec![F16_MAX, -F16_MAX]));
        let torn = Bytes::from_static(&[0; 7]);
        assert_eq!(from_bytes(&torn, 2, WireFormat::F16), None);
        assert_eq!(from_bytes(&Bytes::new(), 2, WireFormat::F16), None);
        let zeros = to_bytes(&[0.0; 4], 4, WireFormat::Int8);
        assert_eq!(from_bytes(&zeros, 4, WireFormat::Int8), Some(vec![0.0; 4]));
    }
}
