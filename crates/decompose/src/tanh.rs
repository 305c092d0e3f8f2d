/// `tanh(x)` within 1e-7 of the true value, written so that a loop over a slice becomes vector code.
///
/// With `m = exp(2|x|) - 1` it is `m / (m + 2)`, which loses no digits anywhere. `m` comes from `2|x| = k ln 2 + r` with
/// `|r| <= ln 2 / 2` and the series of `exp(r) - 1` up to `r^7`. Only additions, products and one division: the same on every machine.
#[inline]
pub(crate) fn tanh(x: f32) -> f32 {
    /// From here on the result rounds to one.
    const LARGEST: f32 = 9.02;
    /// Adding it leaves the nearest integer in the low bits of the sum.
    const TO_INTEGER: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first short enough that its product with a small integer is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

    let y = 2.0 * x.abs();
    let y = if y > 2.0 * LARGEST { 2.0 * LARGEST } else { y };
    let shifted = y * std::f32::consts::LOG2_E + TO_INTEGER;
    let k = shifted - TO_INTEGER;
    let two_to_k = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    let r = (y - k * LN_2[0]) - k * LN_2[1];
    let q = 1.0 / 720.0 + r * (1.0 / 5040.0);
    let q = 1.0 / 120.0 + r * q;
    let q = 1.0 / 24.0 + r * q;
    let q = 1.0 / 6.0 + r * q;
    let q = 0.5 + r * q;
    let m = (two_to_k - 1.0) + two_to_k * (r + (r * r) * q);
    (m / (m + 2.0)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tanh_within_1e_7() {
        let (mut worst, mut at) = (0.0_f64, 0.0);
        for bits in (0..0x7f80_0000_u32).step_by(61) {
            let x = f32::from_bits(bits);
            let error = (f64::from(tanh(x)) - f64::from(x).tanh()).abs();
            if error > worst {
                (worst, at) = (error, x);
            }
        }
        assert!(worst < 1e-7, "{worst} at {at}");
        assert_eq!(tanh(-0.7), -tanh(0.7));
        assert_eq!([tanh(0.0), tanh(f32::INFINITY), tanh(-1e30)], [0.0, 1.0, -1.0]);
        assert!(tanh(f32::NAN).is_nan());
    }
}
