//! Rotary position embeddings (<https://arxiv.org/abs/2104.09864>), half-split: dimension `j` turns with dimension `j + dims / 2`.

use crate::config::{Rope, RopeScaling};

/// Cosines and sines of every position of a pass.
pub(crate) struct Rotation {
    half: usize,
    /// `[position, half]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    pub(crate) fn new(rope: &Rope, positions: usize) -> Self {
        let frequencies = frequencies(rope);
        // The angle is rounded to f32 before its cosine is taken, as the reference implementations do.
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let (sin, cos) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        Self { half: frequencies.len(), cos, sin }
    }

    /// Turns the first dimensions of a head's vector at a position.
    #[inline]
    pub(crate) fn turn(&self, head: &mut [f32], position: usize) {
        let range = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[range.clone()], &self.sin[range]);
        let (first, second) = head[..2 * self.half].split_at_mut(self.half);
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }

    /// Turns a gradient back: by the negative angle, which is both the inverse and the transpose of [`Self::turn`].
    #[inline]
    pub(crate) fn turn_back(&self, head: &mut [f32], position: usize) {
        let range = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[range.clone()], &self.sin[range]);
        let (first, second) = head[..2 * self.half].split_at_mut(self.half);
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * c + *b * s, *b * c - *a * s);
        }
    }
}

/// Radians per position of each pair of dimensions.
fn frequencies(rope: &Rope) -> Vec<f32> {
    let plain = (0..rope.dims / 2).map(|i| rope.base.powf(-2.0 * i as f64 / rope.dims as f64));
    match &rope.scaling {
        RopeScaling::None => plain.map(|f| f as f32).collect(),
        RopeScaling::Linear { factor } => plain.map(|f| (f / factor) as f32).collect(),
        RopeScaling::Divisors(divisors) => plain.zip(divisors).map(|(f, &d)| f as f32 / d).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let scale = |f: f64| {
                // How many waves fit in the original context decides; between the two bounds the blend is linear in it.
                let waves = *original_context as f64 * f / std::f64::consts::TAU;
                let keep = ((waves - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (keep * f + (1.0 - keep) * f / factor) as f32
            };
            plain.map(scale).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_keeps_lengths_and_depends_on_distance_only() {
        let rope = Rope { base: 100.0, dims: 4, scaling: RopeScaling::None };
        let rotation = Rotation::new(&rope, 20);
        let (q, k) = ([0.3, -1.0, 0.5, 2.0, 7.0], [1.0, 0.2, -0.7, 0.1, 7.0]);
        let score = |i: usize, j: usize| {
            let (mut q, mut k) = (q, k);
            rotation.turn(&mut q, i);
            rotation.turn(&mut k, j);
            assert_eq!((q[4], k[4]), (7.0, 7.0), "dimensions beyond the rotary ones pass through");
            q[..4].iter().zip(&k[..4]).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((score(3, 1) - score(17, 15)).abs() < 1e-5);
        assert!((score(5, 5) - score(0, 0)).abs() < 1e-5);
    }

    #[test]
    fn turning_back_undoes_turning() {
        let rotation = Rotation::new(&Rope { base: 100.0, dims: 4, scaling: RopeScaling::None }, 20);
        let head = [0.3, -1.0, 0.5, 2.0, 7.0];
        let mut turned = head;
        rotation.turn(&mut turned, 13);
        assert!(turned.iter().zip(head).any(|(a, b)| (a - b).abs() > 0.1));
        rotation.turn_back(&mut turned, 13);
        assert!(turned.iter().zip(head).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn llama3_keeps_short_waves_and_divides_long_ones() {
        // The values of Llama 3.1: transformers' `_compute_llama3_parameters` gives these for dims 128, base 500000.
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let plain = frequencies(&Rope { base: 500_000.0, dims: 128, scaling: RopeScaling::None });
        let scaled = frequencies(&Rope { base: 500_000.0, dims: 128, scaling });
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] / plain[63] - 0.125).abs() < 1e-6);
        assert!((scaled[30] / 1.371_893_7e-3 - 1.0).abs() < 1e-5 && (scaled[33] / 3.126_937e-4 - 1.0).abs() < 1e-5);
        let blended: Vec<usize> =
            (0..64).filter(|&i| scaled[i] < plain[i] * 0.999 && scaled[i] > plain[i] * 0.126).collect();
        assert_eq!((blended[0], blended[blended.len() - 1]), (29, 34), "{blended:?}");
    }
}
