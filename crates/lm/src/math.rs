//! Element-wise functions written so that the compiler can vectorise them: no branches, no calls, no table.

use std::sync::LazyLock;

use crate::Activation;

/// Runs a loop compiled for the widest vectors of this processor. The arithmetic is the same on all of them, so the results are too.
///
/// What the loop calls has to be inlined into it: hence `inline(always)` on the functions of this module.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);
    ARCH.dispatch(work)
}

/// `exp(x)` to about 1e-7 of its value, for `x` from -87 to 88; clamped beyond. NaN stays NaN.
///
/// Cephes' `expf`: `x = n ln 2 + r`, a polynomial of degree 6 for `exp(r)`, and `2^n` through the exponent bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, which then sits in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let two_to_n = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    p * two_to_n
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The error function to about 1e-7: a rational approximation on [-4, 4] (Eigen's `generic_fast_erf_float`), 1 beyond.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142e-10;
    let p = p * s + 2.770_681_4e-8;
    let p = p * s - 2.101_024_e-6;
    let p = p * s - 5.692_506_5e-5;
    let p = p * s - 7.349_906_e-4;
    let p = p * s - 2.954_6e-3;
    let p = p * s - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * s - 2.133_740_6e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329e-3;
    let q = q * s - 1.426_473_9e-2;
    x * p / q
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `0.5 x (1 + tanh(u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, written as `x sigmoid(2u)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    x / (1.0 + exp(-TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // NaN has to stay NaN, which `f32::max` does not see to.
    if x < 0.0 { 0.0 } else { x }
}

/// Applies an activation in place.
pub(crate) fn activate(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Gelu => vectorised(|| map_in_place(values, gelu)),
        Activation::GeluTanh => vectorised(|| map_in_place(values, gelu_tanh)),
        Activation::Relu => vectorised(|| map_in_place(values, relu)),
        Activation::Silu => vectorised(|| map_in_place(values, silu)),
    }
}

#[inline(always)]
fn map_in_place(values: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in values {
        *x = f(*x);
    }
}

/// `out = activation(gate) * up`.
pub(crate) fn activate_gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match activation {
        Activation::Gelu => vectorised(|| map_gated(gate, up, out, gelu)),
        Activation::GeluTanh => vectorised(|| map_gated(gate, up, out, gelu_tanh)),
        Activation::Relu => vectorised(|| map_gated(gate, up, out, relu)),
        Activation::Silu => vectorised(|| map_gated(gate, up, out, silu)),
    }
}

#[inline(always)]
fn map_gated(gate: &[f32], up: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for ((g, u), o) in gate.iter().zip(up).zip(out) {
        *o = f(*g) * u;
    }
}

const LANES: usize = 16;

/// The sum of `f(x)` in a fixed order that needs no reassociation to vectorise.
#[inline(always)]
fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&x| f(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    sum_of(values, |x| x)
}

/// The sum of squared distances from `centre`.
#[inline(always)]
pub(crate) fn sum_of_squares(values: &[f32], centre: f32) -> f32 {
    sum_of(values, |x| (x - centre) * (x - centre))
}

/// The largest value; NaN is passed over.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            // Not `f32::max`: this compiles to one instruction.
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> impl Iterator<Item = f32> {
        (-4000..=4000).map(|i| i as f32 * 0.01)
    }

    /// `erf` by its Maclaurin series in f64, which is exact enough below 3; the tail from there is below 3e-5 and checked by symmetry.
    fn erf_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn exp_is_accurate_to_a_few_units() {
        for x in grid() {
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 3e-7, "exp({x}) = {}, not {want}", exp(x));
        }
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 1e-37 && exp(1e9) > 1e38 && exp(1e9).is_finite());
    }

    #[test]
    fn gelu_follows_the_normal_distribution_function() {
        for x in grid().filter(|x| x.abs() < 4.0) {
            let x64 = f64::from(x);
            let want = 0.5 * x64 * (1.0 + erf_series(x64 / 2f64.sqrt()));
            assert!((f64::from(gelu(x)) - want).abs() < 1e-6, "gelu({x}) = {}, not {want}", gelu(x));
        }
        assert!((gelu(9.0) - 9.0).abs() < 1e-5 && gelu(-9.0).abs() < 1e-5);
    }

    #[test]
    fn silu_and_the_tanh_form_of_gelu_follow_their_definitions() {
        for x in grid() {
            let x64 = f64::from(x);
            let silu_want = x64 / (1.0 + (-x64).exp());
            assert!((f64::from(silu(x)) - silu_want).abs() < 1e-6 * (1.0 + x64.abs()), "silu({x})");
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x64 + 0.044_715 * x64.powi(3));
            let gelu_want = 0.5 * x64 * (1.0 + u.tanh());
            assert!((f64::from(gelu_tanh(x)) - gelu_want).abs() < 1e-6 * (1.0 + x64.abs()), "gelu_tanh({x})");
        }
    }

    #[test]
    fn sums_and_maxima_cover_every_length() {
        for n in 1..70usize {
            let values: Vec<f32> = (0..n).map(|i| ((i * 31) % 17) as f32).collect();
            assert_eq!(sum(&values), values.iter().sum::<f32>());
            assert_eq!(max(&values), values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(sum_of_squares(&values, 2.0), values.iter().map(|x| (x - 2.0) * (x - 2.0)).sum::<f32>());
        }
    }
}
