//! The inner loops: one dense product, and row operations that the compiler turns into vector instructions.
//!
//! All `unsafe` of this crate is here: the call of `gemm`, and the call of a loop compiled for AVX2 where the processor has it. Neither
//! changes a result: the loops multiply and add in one fixed order, without fused operations, whatever the width of a vector.

#![allow(unsafe_code)]

/// Lanes of a reduction; a fixed number, so that sums come out the same on every processor.
const LANES: usize = 16;

/// A matrix inside a slice, by strides.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` values, one after the other.
    pub(crate) fn new(data: &'a [f32], columns: usize) -> Self {
        assert_eq!(data.len() % columns, 0, "{} values in rows of {columns}", data.len());
        Self { data, rows: data.len() / columns, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `out = a b`, or `out += a b`; `out` in rows of `b.columns`. On the calling thread only: the callers own the parallelism, by tiles of fixed
/// size, so that results do not depend on the number of threads.
pub(crate) fn product(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    assert_eq!(a.columns, b.rows, "a product of {} columns with {} rows", a.columns, b.rows);
    assert_eq!(out.len(), a.rows * b.columns, "room for {} values of {} x {}", out.len(), a.rows, b.columns);
    // SAFETY: `Matrix::new` made both operands as whole slices of rows x columns values, and `t` only swaps their strides, so every
    // element that gemm reads lies inside a live slice. `out` holds rows x columns values in rows, is borrowed uniquely and so aliases
    // neither operand, and is initialised, so that it may be read where `add` is true.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns.cast_signed(),
            add,
            a.data.as_ptr(),
            a.column_stride.cast_signed(),
            a.row_stride.cast_signed(),
            b.data.as_ptr(),
            b.column_stride.cast_signed(),
            b.row_stride.cast_signed(),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Compiles a function twice, plainly and for AVX2, and calls the second where the processor has it.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::inline_always, clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn wide($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: `wide` is safe but for needing AVX2, which was just found.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

/// The sum of all lanes, by halves: always in the same order, and a few vector instructions.
#[inline(always)]
#[allow(clippy::inline_always)]
fn sum_lanes(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn dot_lanes(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sum_lanes(sums) + rest
}

/// `a . row` of four rows: together they keep the adders busy, and share the values of `a`. Four sums by name, because of an array of them the compiler does not make
/// vectors.
#[inline(always)]
#[allow(clippy::inline_always)]
fn dots_of_four(a: &[f32], rows: [&[f32]; 4]) -> [f32; 4] {
    let [r0, r1, r2, r3] = rows.map(|row| &row[..a.len()]);
    let (mut s0, mut s1, mut s2, mut s3) = ([0.0_f32; LANES], [0.0_f32; LANES], [0.0_f32; LANES], [0.0_f32; LANES]);
    let (by_two, by_two_more) =
        (r0.chunks_exact(LANES).zip(r1.chunks_exact(LANES)), r2.chunks_exact(LANES).zip(r3.chunks_exact(LANES)));
    for (a, ((r0, r1), (r2, r3))) in a.chunks_exact(LANES).zip(by_two.zip(by_two_more)) {
        for lane in 0..LANES {
            s0[lane] += a[lane] * r0[lane];
            s1[lane] += a[lane] * r1[lane];
            s2[lane] += a[lane] * r2[lane];
            s3[lane] += a[lane] * r3[lane];
        }
    }
    let tail = a.len() / LANES * LANES;
    let rest = |row: &[f32]| a[tail..].iter().zip(&row[tail..]).map(|(a, b)| a * b).sum::<f32>();
    [sum_lanes(s0) + rest(r0), sum_lanes(s1) + rest(r1), sum_lanes(s2) + rest(r2), sum_lanes(s3) + rest(r3)]
}

/// Row `j` of a matrix with rows of `d`.
#[inline(always)]
#[allow(clippy::inline_always)]
fn row(data: &[f32], j: u32, d: usize) -> &[f32] {
    &data[j as usize * d..][..d]
}

vectorised! {
    /// Euclidean length of a row.
    fn norm(values: &[f32]) -> f32 {
        dot_lanes(values, values).sqrt()
    }
}

vectorised! {
    /// Multiplies a row by `scale`, adds it to the sums per column, and returns its sum of squares.
    fn load_row(values: &mut [f32], scale: f32, columns: &mut [f32]) -> f32 {
        for (value, column) in values.iter_mut().zip(columns.iter_mut()) {
            *value *= scale;
            *column += *value;
        }
        dot_lanes(values, values)
    }
}

/// One row's share of the arrays over latents.
#[derive(Clone, Copy)]
pub(crate) struct AffineRow<'a> {
    pub(crate) scale: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) threshold: &'a [f32],
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn compact_group(
    pre: &[f32],
    (scale, bias, threshold): (&[f32], &[f32], &[f32]),
    floor: f32,
    first: u32,
    (latents, values): (&mut [u32], &mut [f32]),
    mut found: usize,
) -> usize {
    let mut lanes = [0.0_f32; LANES];
    let mut any = 0;
    for ((lane, pre), ((scale, bias), threshold)) in
        lanes.iter_mut().zip(pre).zip(scale.iter().zip(bias).zip(threshold))
    {
        *lane = pre * scale + bias;
        any |= u32::from(*lane - threshold > floor);
    }
    if any != 0 {
        for ((latent, lane), threshold) in (first..).zip(&lanes[..pre.len()]).zip(threshold) {
            // Written without a branch: what is not above is overwritten by the next entry, or lies behind the last one.
            latents[found] = latent;
            values[found] = *lane;
            found += usize::from(*lane - threshold > floor);
        }
    }
    found
}

vectorised! {
    /// The values of `pre * scale + bias` that exceed their threshold by more than `floor`, with their latents (counted from `first`); returns how
    /// many there are. The two outputs have room for as many entries as `pre` has.
    fn compact_row(pre: &[f32], of: AffineRow<'_>, floor: f32, first: u32, latents: &mut [u32], values: &mut [f32]) -> usize {
        let mut found = 0;
        let whole = pre.len() / LANES * LANES;
        let scales = of.scale.chunks_exact(LANES).zip(of.bias.chunks_exact(LANES)).zip(of.threshold.chunks_exact(LANES));
        for (group, (pre, ((scale, bias), threshold))) in (0_u32..).zip(pre.chunks_exact(LANES).zip(scales)) {
            let first = first + group * LANES as u32;
            found = compact_group(pre, (scale, bias, threshold), floor, first, (latents, values), found);
        }
        let rest = (&of.scale[whole..], &of.bias[whole..], &of.threshold[whole..]);
        compact_group(&pre[whole..], rest, floor, first + whole as u32, (latents, values), found)
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn add_listed(latents: &[u32], coefficients: &[f32], w: &[f32], out: &mut [f32]) {
    let d = out.len();
    let (by_four, one_by_one) = (latents.chunks_exact(4), latents.chunks_exact(4).remainder());
    let c_by_four = coefficients.chunks_exact(4);
    for (latent, c) in one_by_one.iter().zip(c_by_four.remainder()) {
        for (out, w) in out.iter_mut().zip(row(w, *latent, d)) {
            *out += c * w;
        }
    }
    for (l, c) in by_four.zip(c_by_four) {
        let (a, b) = (row(w, l[0], d).iter().zip(row(w, l[1], d)), row(w, l[2], d).iter().zip(row(w, l[3], d)));
        for ((out, (w0, w1)), (w2, w3)) in out.iter_mut().zip(a).zip(b) {
            *out += (c[0] * w0 + c[1] * w1) + (c[2] * w2 + c[3] * w3);
        }
    }
}

vectorised! {
    /// `out += sum_j coefficient_j w_j` over the listed rows of `w`.
    fn add_rows(latents: &[u32], coefficients: &[f32], w: &[f32], out: &mut [f32]) {
        add_listed(latents, coefficients, w, out);
    }
}

vectorised! {
    /// `out = scale * (offset + sum_j coefficient_j w_j - x)` over the listed rows of `w`; returns the sum of squares before scaling.
    fn decode_row(
        x: &[f32],
        offset: &[f32],
        latents: &[u32],
        coefficients: &[f32],
        w: &[f32],
        scale: f32,
        out: &mut [f32],
    ) -> f32 {
        for (out, (x, offset)) in out.iter_mut().zip(x.iter().zip(offset)) {
            *out = offset - x;
        }
        add_listed(latents, coefficients, w, out);
        let squares = dot_lanes(out, out);
        for out in out.iter_mut() {
            *out *= scale;
        }
        squares
    }
}

vectorised! {
    /// `dots_i = a . b_i` over the listed rows of `b`. No dot depends on what else is listed.
    fn dot_rows(a: &[f32], listed: &[u32], b: &[f32], dots: &mut [f32]) {
        for (listed, dots) in listed.chunks(4).zip(dots.chunks_mut(4)) {
            // Fewer than four are filled up with the last one, which is near by then.
            let of = |i: usize| row(b, listed[i.min(listed.len() - 1)], a.len());
            dots.copy_from_slice(&dots_of_four(a, [of(0), of(1), of(2), of(3)])[..dots.len()]);
        }
    }
}

vectorised! {
    /// `gradient += sum_i code_i r_i + delta_i x_i` over the listed rows of `x` and `r`.
    fn gather_gradient(gradient: &mut [f32], rows: &[u32], codes: &[f32], deltas: &[f32], x: &[f32], r: &[f32]) {
        let d = gradient.len();
        let whole = rows.len() / 2 * 2;
        let entries = rows.chunks_exact(2).zip(codes.chunks_exact(2)).zip(deltas.chunks_exact(2));
        for ((i, c), delta) in entries {
            let a = row(r, i[0], d).iter().zip(row(x, i[0], d));
            let b = row(r, i[1], d).iter().zip(row(x, i[1], d));
            for ((gradient, (r0, x0)), (r1, x1)) in gradient.iter_mut().zip(a).zip(b) {
                *gradient += (c[0] * r0 + delta[0] * x0) + (c[1] * r1 + delta[1] * x1);
            }
        }
        for ((i, c), delta) in rows[whole..].iter().zip(&codes[whole..]).zip(&deltas[whole..]) {
            for (gradient, (r, x)) in gradient.iter_mut().zip(row(r, *i, d).iter().zip(row(x, *i, d))) {
                *gradient += c * r + delta * x;
            }
        }
    }
}

vectorised! {
    /// `gradient += sum_i coefficient_i x_i` over the listed rows of `x`, each the first values of `stride`.
    fn gather_rows(gradient: &mut [f32], rows: &[u32], coefficients: &[f32], x: &[f32], stride: usize) {
        let d = gradient.len();
        let of = |i: u32| &x[i as usize * stride..][..d];
        let (by_four, one_by_one) = (rows.chunks_exact(4), rows.chunks_exact(4).remainder());
        let c_by_four = coefficients.chunks_exact(4);
        for (i, c) in one_by_one.iter().zip(c_by_four.remainder()) {
            for (gradient, x) in gradient.iter_mut().zip(of(*i)) {
                *gradient += c * x;
            }
        }
        for (i, c) in by_four.zip(c_by_four) {
            let (a, b) = (of(i[0]).iter().zip(of(i[1])), of(i[2]).iter().zip(of(i[3])));
            for ((gradient, (x0, x1)), (x2, x3)) in gradient.iter_mut().zip(a).zip(b) {
                *gradient += (c[0] * x0 + c[1] * x1) + (c[2] * x2 + c[3] * x3);
            }
        }
    }
}

vectorised! {
    /// In place, `pre * scale + bias`.
    fn affine_row(pre: &mut [f32], scale: &[f32], bias: &[f32]) {
        for ((pre, scale), bias) in pre.iter_mut().zip(scale).zip(bias) {
            *pre = *pre * scale + bias;
        }
    }
}

vectorised! {
    /// `row *= scale`, value by value.
    fn scale_row(values: &mut [f32], scale: &[f32]) {
        for (value, scale) in values.iter_mut().zip(scale) {
            *value *= scale;
        }
    }
}

vectorised! {
    /// `sums += row`, value by value.
    fn add_row(sums: &mut [f32], values: &[f32]) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
}

vectorised! {
    /// `row -= other`, value by value.
    fn subtract_row(values: &mut [f32], other: &[f32]) {
        for (value, other) in values.iter_mut().zip(other) {
            *value -= other;
        }
    }
}

vectorised! {
    /// The sum of a row and how many of its values are positive.
    fn sum_row(values: &[f32]) -> (f32, u32) {
        let (mut sums, mut active) = ([0.0_f32; LANES], [0_u32; LANES]);
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for lane in 0..LANES {
                sums[lane] += chunk[lane];
                active[lane] += u32::from(chunk[lane] > 0.0);
            }
        }
        let positive = rest.iter().filter(|v| **v > 0.0).count() as u32;
        (sum_lanes(sums) + rest.iter().sum::<f32>(), active.iter().sum::<u32>() + positive)
    }
}

vectorised! {
    /// `scale * (x_hat + offset - x)` in place of `x_hat`; returns the sum of squares before scaling.
    fn residual_row(x_hat: &mut [f32], offset: &[f32], x: &[f32], scale: f32) -> f32 {
        for (x_hat, (offset, x)) in x_hat.iter_mut().zip(offset.iter().zip(x)) {
            *x_hat += offset - x;
        }
        let squares = dot_lanes(x_hat, x_hat);
        for x_hat in x_hat.iter_mut() {
            *x_hat *= scale;
        }
        squares
    }
}

vectorised! {
    /// Takes from `gradient` its part along the unit row `w`.
    fn remove_along(gradient: &mut [f32], w: &[f32]) {
        let along = dot_lanes(gradient, w);
        for (gradient, w) in gradient.iter_mut().zip(w) {
            *gradient -= along * w;
        }
    }
}

vectorised! {
    /// The sum of squares of a row.
    fn squares(values: &[f32]) -> f32 {
        dot_lanes(values, values)
    }
}

vectorised! {
    /// The gradient of the direction `w * inverse` becomes the gradient of `w`: what lies along the direction falls away, the rest is divided by
    /// the length.
    fn project(gradient: &mut [f32], w: &[f32], inverse: f32) {
        let along = dot_lanes(gradient, w) * inverse * inverse;
        for (gradient, w) in gradient.iter_mut().zip(w) {
            *gradient = (*gradient - along * w) * inverse;
        }
    }
}

vectorised! {
    /// One step of Adam on a row; see [`crate::adam::AdamStep`] for the three factors.
    fn adam_row(w: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], size: f32, root: f32, tiny: f32) {
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(gradient) {
            let first = 0.9 * *m + 0.1 * g;
            let second = 0.999 * *v + 0.001 * (g * g);
            // A moment that decays forever would end in subnormal numbers, on which processors are slow.
            *m = if first.abs() < tiny { 0.0 } else { first };
            *v = if second < tiny { 0.0 } else { second };
            *w -= size * *m / (v.sqrt() * root + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 7919) >> 8) % 2001) as f32 / 1000.0 - 1.0)
            .collect()
    }

    fn close(a: &[f32], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4 * b.abs().max(1.0))
    }

    proptest! {
        #[test]
        fn compaction_keeps_what_is_above_in_order(n in 1usize..90, seed in 0u32..500) {
            let (pre, scale, bias) = (values(n, seed), values(n, seed + 1), values(n, seed + 2));
            let threshold = values(n, seed + 3);
            let (mut latents, mut codes) = (vec![0; n], vec![0.0; n]);
            let of = AffineRow { scale: &scale, bias: &bias, threshold: &threshold };
            let found = compact_row(&pre, of, 0.1, 100, &mut latents, &mut codes);
            let mut dense = pre.clone();
            affine_row(&mut dense, &scale, &bias);
            let above = |(j, value): &(u32, f32)| value - threshold[*j as usize - 100] > 0.1;
            let want: Vec<(u32, f32)> = (100..).zip(dense.iter().copied()).filter(above).collect();
            let got: Vec<(u32, f32)> = latents[..found].iter().copied().zip(codes[..found].iter().copied()).collect();
            prop_assert_eq!(got, want);
            let (sum, active) = sum_row(&dense);
            prop_assert_eq!(active as usize, dense.iter().filter(|v| **v > 0.0).count());
            prop_assert!((sum - dense.iter().sum::<f32>()).abs() < 1e-4);
        }

        #[test]
        fn rows_are_combined_as_the_formulas_say(d in 1usize..70, n in 0usize..11, seed in 0u32..500) {
            let rows = 13;
            let (w, x, r) = (values(rows * d, seed), values(rows * d, seed + 1), values(rows * d, seed + 2));
            let latents: Vec<u32> = (0..n as u32).map(|j| (j * 5 + seed) % 13).collect();
            let (c, delta) = (values(n, seed + 3), values(n, seed + 4));
            let at = |m: &[f32], i: u32, k: usize| f64::from(m[i as usize * d + k]);

            let mut out = vec![9.0; d];
            let squares = decode_row(&x[..d], &r[..d], &latents, &c, &w, 0.5, &mut out);
            let sum = |k: usize| latents.iter().zip(&c).map(|(j, c)| f64::from(*c) * at(&w, *j, k)).sum::<f64>();
            let want: Vec<f64> = (0..d).map(|k| sum(k) + at(&r, 0, k) - at(&x, 0, k)).collect();
            prop_assert!(close(&out, &want.iter().map(|v| v * 0.5).collect::<Vec<_>>()));
            prop_assert!(close(&[squares], &[want.iter().map(|v| v * v).sum()]));

            let mut dots = vec![9.0; n];
            dot_rows(&r[..d], &latents, &w, &mut dots);
            let want: Vec<f64> = latents.iter().map(|j| (0..d).map(|k| at(&r, 0, k) * at(&w, *j, k)).sum::<f64>()).collect();
            prop_assert!(close(&dots, &want));

            let mut gradient = vec![1.0; d];
            gather_gradient(&mut gradient, &latents, &c, &delta, &x, &r);
            let mut apart = vec![1.0; d];
            gather_rows(&mut apart, &latents, &c, &r, d);
            gather_rows(&mut apart, &latents, &delta, &x, d);
            let want: Vec<f64> = (0..d).map(|k| 1.0 + latents.iter().zip(c.iter().zip(&delta)).map(|(i, (c, delta))| f64::from(*c) * at(&r, *i, k) + f64::from(*delta) * at(&x, *i, k)).sum::<f64>()).collect();
            prop_assert!(close(&gradient, &want) && close(&apart, &want));
        }

        #[test]
        fn products_of_any_orientation(n in 1usize..20, m in 1usize..20, k in 1usize..20, seed in 0u32..100) {
            let (a, b) = (values(n * k, seed), values(m * k, seed + 1));
            let mut out = vec![f32::NAN; n * m];
            product(&mut out, Matrix::new(&a, k), Matrix::new(&b, k).t(), false);
            let once = |i: usize, j: usize| (0..k).map(|q| f64::from(a[i * k + q]) * f64::from(b[j * k + q])).sum::<f64>();
            let want: Vec<f64> = (0..n * m).map(|e| once(e / m, e % m)).collect();
            prop_assert!(close(&out, &want));
            let a_t: Vec<f32> = (0..n * k).map(|e| a[e % n * k + e / n]).collect();
            product(&mut out, Matrix::new(&a_t, n).t(), Matrix::new(&b, k).t(), true);
            prop_assert!(close(&out, &want.iter().map(|v| 2.0 * v).collect::<Vec<_>>()));
        }
    }
}
