//! Weights drawn anew.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Draws tensors one after the other, each from its own stream, so that a tensor's values depend on the seed and its place only.
pub(crate) struct Redraw {
    seed: u64,
    drawn: u64,
}

impl Redraw {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// Replaces the values by normal ones of the same mean and standard deviation.
    pub(crate) fn tensor(&mut self, values: &mut [f32]) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.drawn);
        self.drawn += 1;
        let n = values.len().max(1) as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let deviation = variance.sqrt();
        for pair in values.chunks_mut(2) {
            // Box and Muller: two uniform numbers, two normal ones. 1 - u lies in (0, 1], so its logarithm is finite.
            let (u, v): (f64, f64) = (rng.random(), rng.random());
            let radius = (-2.0 * (1.0 - u).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
            pair.iter_mut().zip([cos, sin]).for_each(|(x, turn)| *x = (mean + deviation * radius * turn) as f32);
        }
    }
}
