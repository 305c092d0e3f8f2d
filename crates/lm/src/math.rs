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

/// The derivative of [`gelu`]: `Phi(x) + x phi(x)`, with distribution function and density of the normal distribution.
#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    const DENSITY_AT_0: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY_AT_0 * exp(-0.5 * x * x)
}

/// The derivative of [`gelu_tanh`].
#[inline(always)]
fn gelu_tanh_slope(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let share = 1.0 / (1.0 + exp(-TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)));
    share + x * share * (1.0 - share) * TWICE_SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x)
}

/// The derivative of [`relu`]; 0 at 0, as PyTorch has it.
#[inline(always)]
fn relu_slope(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { 1.0 }
}

/// The derivative of [`silu`].
#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let share = 1.0 / (1.0 + exp(-x));
    share * (1.0 + x * (1.0 - share))
}

/// Replaces pre-activations by the gradient with respect to them, where `post` is the one with respect to the activations.
pub(crate) fn activate_backward(activation: Activation, pre: &mut [f32], post: &[f32]) {
    match activation {
        Activation::Gelu => vectorised(|| map_backward(pre, post, gelu_slope)),
        Activation::GeluTanh => vectorised(|| map_backward(pre, post, gelu_tanh_slope)),
        Activation::Relu => vectorised(|| map_backward(pre, post, relu_slope)),
        Activation::Silu => vectorised(|| map_backward(pre, post, silu_slope)),
    }
}

#[inline(always)]
fn map_backward(pre: &mut [f32], post: &[f32], slope: impl Fn(f32) -> f32) {
    for (x, d) in pre.iter_mut().zip(post) {
        *x = slope(*x) * d;
    }
}

/// Replaces `gate` and `up` by the gradients with respect to them, where `post` is the one with respect to `activation(gate) * up`.
pub(crate) fn activate_gated_backward(activation: Activation, gate: &mut [f32], up: &mut [f32], post: &[f32]) {
    match activation {
        Activation::Gelu => vectorised(|| map_gated_backward(gate, up, post, gelu, gelu_slope)),
        Activation::GeluTanh => vectorised(|| map_gated_backward(gate, up, post, gelu_tanh, gelu_tanh_slope)),
        Activation::Relu => vectorised(|| map_gated_backward(gate, up, post, relu, relu_slope)),
        Activation::Silu => vectorised(|| map_gated_backward(gate, up, post, silu, silu_slope)),
    }
}

#[inline(always)]
fn map_gated_backward(
    gate: &mut [f32],
    up: &mut [f32],
    post: &[f32],
    f: impl Fn(f32) -> f32,
    slope: impl Fn(f32) -> f32,
) {
    for ((g, u), d) in gate.iter_mut().zip(up).zip(post) {
        (*g, *u) = (slope(*g) * *u * d, f(*g) * d);
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

/// The sum of `(x - centre) y`.
#[inline(always)]
pub(crate) fn sum_of_products(x: &[f32], y: &[f32], centre: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| (x - centre) * y).sum();
    for (x, y) in xs.zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += (x - centre) * y;
        }
    }
    lanes.iter().sum::<f32>() + rest
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
    fn slopes_are_those_of_the_functions() {
        let gelu64 = |x: f64| 0.5 * x * (1.0 + erf_series(x / 2f64.sqrt()));
        let gelu_tanh64 =
            |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
        let silu64 = |x: f64| x / (1.0 + (-x).exp());
        let check = |name: &str, x: f32, slope: f32, f: &dyn Fn(f64) -> f64| {
            let (x64, h) = (f64::from(x), 1e-5);
            let want = (f(x64 + h) - f(x64 - h)) / (2.0 * h);
            assert!((f64::from(slope) - want).abs() < 2e-6, "{name}'({x}) = {slope}, not {want}");
        };
        for x in grid() {
            if x.abs() < 4.0 {
                check("gelu", x, gelu_slope(x), &gelu64);
            }
            check("gelu_tanh", x, gelu_tanh_slope(x), &gelu_tanh64);
            check("silu", x, silu_slope(x), &silu64);
            if x.abs() > 1e-3 {
                check("relu", x, relu_slope(x), &|x| x.max(0.0));
            }
        }
        assert_eq!(relu_slope(0.0), 0.0);
        assert!((gelu_slope(9.0) - 1.0).abs() < 1e-5 && gelu_slope(-9.0).abs() < 1e-5);
    }

    #[test]
    fn gradients_of_activations_follow_the_product_rule() {
        for (f, value, slope) in [
            (Activation::Gelu, gelu as fn(f32) -> f32, gelu_slope as fn(f32) -> f32),
            (Activation::GeluTanh, gelu_tanh, gelu_tanh_slope),
            (Activation::Relu, relu, relu_slope),
            (Activation::Silu, silu, silu_slope),
        ] {
            let (mut pre, mut gate, mut up) = ([-1.5, 0.7], [-1.5, 0.7], [2.0, -3.0]);
            let post = [0.5, 4.0];
            activate_backward(f, &mut pre, &post);
            activate_gated_backward(f, &mut gate, &mut up, &post);
            for (i, x) in [-1.5, 0.7].into_iter().enumerate() {
                let (was_up, d) = ([2.0, -3.0][i], post[i]);
                let want = [slope(x) * d, slope(x) * was_up * d, value(x) * d];
                assert_eq!([pre[i], gate[i], up[i]], want, "{f:?}({x})");
            }
        }
    }

    #[test]
    fn sums_and_maxima_cover_every_length() {
        for n in 1..70usize {
            let values: Vec<f32> = (0..n).map(|i| ((i * 31) % 17) as f32).collect();
            assert_eq!(sum(&values), values.iter().sum::<f32>());
            let product = values.iter().zip(values.iter().rev()).map(|(x, y)| (x - 3.0) * y).sum::<f32>();
            assert_eq!(sum_of_products(&values, &values.iter().rev().copied().collect::<Vec<_>>(), 3.0), product);
            assert_eq!(max(&values), values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(sum_of_squares(&values, 2.0), values.iter().map(|x| (x - 2.0) * (x - 2.0)).sum::<f32>());
        }
    }
}
