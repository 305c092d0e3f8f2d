use half::bf16;
use proptest::prelude::*;

use super::*;

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::detect(), Kernel::Portable];
    kernels.dedup();
    kernels
}

fn operands(a: &[f32], b: &[f32], depth: usize) -> (Rows, Columns) {
    let (mut rows, mut columns) = (Rows::default(), Columns::default());
    rows.set(a, depth);
    columns.set(b, depth);
    (rows, columns)
}

/// Row i times column j of the rounded operands, in f64, and the sum of absolute products that bounds its error.
fn exact(a: &[f32], b: &[f32], depth: usize, i: usize, j: usize) -> (f64, f64) {
    let round = |v: f32| bf16::from_f32(v).to_f64();
    let products = (0..depth).map(|k| round(a[i * depth + k]) * round(b[j * depth + k]));
    products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_are_those_of_the_rounded_operands(m in 1usize..20, n in 1usize..150, depth in 1usize..90, seed in 0u64..1000) {
        let (a, b) = (values(m * depth, seed), values(n * depth, seed + 1));
        let (rows, columns) = operands(&a, &b, depth);
        let stride = n + 3;
        for kernel in kernels() {
            let mut out = vec![7.0; m * stride];
            product(kernel, &rows, &columns, &mut out, stride, Store::Replace);
            product(kernel, &rows, &columns, &mut out, stride, Store::Add);
            for (i, row) in out.chunks(stride).enumerate() {
                prop_assert!(row[n..].iter().all(|v| *v == 7.0), "what lies between the rows stays as it is");
                for (j, value) in row[..n].iter().enumerate() {
                    let (sum, size) = exact(&a, &b, depth, i, j);
                    // A rounding for every addition.
                    let bound = 2.0 * size * f64::from(f32::EPSILON) * (depth + 1) as f64;
                    prop_assert!((f64::from(*value) - 2.0 * sum).abs() <= bound, "{value} for {}", 2.0 * sum);
                }
            }
        }
    }

    #[test]
    fn active_lists_what_the_product_has_above_threshold_and_floor(m in 1usize..20, n in 1usize..150, depth in 1usize..40, seed in 0u64..1000) {
        let (a, b) = (values(m * depth, seed), values(n * depth, seed + 1));
        let (scale, bias, threshold) = (values(m, seed + 2), values(m, seed + 3), values(m, seed + 4));
        let floor = values(n, seed + 5);
        let (rows, columns) = operands(&a, &b, depth);
        for kernel in kernels() {
            let mut dense = vec![0.0; m * n];
            product(kernel, &rows, &columns, &mut dense, n, Store::Replace);
            let mut found = Active::default();
            let affine = Affine { scale: &scale, bias: &bias, threshold: &threshold, floor: &floor };
            // Twice: buffers are reused.
            active(kernel, &rows, &columns, affine, &mut found);
            active(kernel, &rows, &columns, affine, &mut found);
            prop_assert_eq!(found.starts().len(), m + 1);
            for (i, (bounds, dots)) in found.starts().windows(2).zip(dense.chunks(n)).enumerate() {
                let above = |(j, value): &(u32, f32)| *value - threshold[i] > floor[*j as usize];
                let want: Vec<(u32, f32)> = (0..).zip(dots.iter().map(|dot| dot * scale[i] + bias[i])).filter(above).collect();
                let of = bounds[0]..bounds[1];
                let got: Vec<(u32, f32)> = found.columns()[of.clone()].iter().copied().zip(found.values()[of].iter().copied()).collect();
                prop_assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn rounding_is_to_nearest_even(depth in 1usize..100, seed in 0u64..1000) {
        let row = values(depth, seed);
        let mut pairs = vec![0; depth.div_ceil(2)];
        kernel::round(&row, &mut pairs);
        for (k, value) in row.iter().enumerate() {
            prop_assert_eq!((pairs[k / 2] >> (16 * (k % 2))) as u16, bf16::from_f32(*value).to_bits());
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let (rows, columns) = operands(&[f32::NAN, 1.0, f32::INFINITY, 0.0], &[1.0, 1.0], 2);
    for kernel in kernels() {
        let mut out = vec![0.0; 2];
        product(kernel, &rows, &columns, &mut out, 1, Store::Replace);
        assert!(out[0].is_nan() && out[1] == f32::INFINITY, "{out:?}");
    }
}

#[test]
fn no_rows_and_no_columns() {
    let (rows, columns) = operands(&[], &[], 3);
    let mut found = Active::default();
    for kernel in kernels() {
        product(kernel, &rows, &columns, &mut [], 0, Store::Replace);
        active(kernel, &rows, &columns, Affine { scale: &[], bias: &[], threshold: &[], floor: &[] }, &mut found);
        assert!(found.is_empty());
    }
}

#[test]
#[should_panic(expected = "depth 2 and columns of depth 3")]
fn depths_differ() {
    let (rows, _) = operands(&[1.0, 2.0], &[], 2);
    let (_, columns) = operands(&[], &[1.0, 2.0, 3.0], 3);
    product(Kernel::Portable, &rows, &columns, &mut [0.0], 1, Store::Replace);
}
