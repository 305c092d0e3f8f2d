//! Adam (arXiv 1412.6980), beta 0.9 and 0.999, epsilon 1e-8, applied row by row where the gradient was just made.

use crate::AdamMode;
use crate::kernels::adam_row;

/// Moments below this are 0: their effect on a weight is far below its last bit.
const TINY: f32 = 1e-36;

/// The factors of one step: `w -= size * m / (sqrt(v) * root + 1e-8)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamStep {
    size: f32,
    root: f32,
}

impl AdamMode {
    /// The factors `[size, root]` of the step after `done` others at learning rate `lr`: `w -= size * m / (sqrt(v) * root + 1e-8)`.
    #[must_use]
    pub fn factors(self, lr: f32, done: u64) -> [f32; 2] {
        let t = match self {
            Self::Standard => done as f64 + 1.0,
            Self::Paper => 1.0,
        };
        let (first, second) = (1.0 - 0.9_f64.powf(t), 1.0 - 0.999_f64.powf(t));
        [(f64::from(lr) / first) as f32, (1.0 / second.sqrt()) as f32]
    }
}

impl AdamStep {
    /// The step after `done` others, at learning rate `lr`.
    pub(crate) fn new(mode: AdamMode, lr: f32, done: u64) -> Self {
        let [size, root] = mode.factors(lr, done);
        Self { size, root }
    }

    /// Moves `w` and its moments. Latents without a gradient move too: their moments decay, and momentum carries on.
    pub(crate) fn apply(self, w: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
        adam_row(w, m, v, gradient, self.size, self.root, TINY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_of(mode: AdamMode, steps: u64) -> f32 {
        let (mut w, mut m, mut v) = ([0.0], [0.0], [0.0]);
        let mut last = 0.0;
        for done in 0..steps {
            let before = w[0];
            AdamStep::new(mode, 1e-3, done).apply(&mut w, &mut m, &mut v, &[0.02]);
            last = before - w[0];
        }
        last
    }

    #[test]
    fn a_steady_gradient_moves_by_lr_and_by_a_third_of_it_in_the_papers_mode() {
        assert!((last_of(AdamMode::Standard, 1) / 1e-3 - 1.0).abs() < 1e-4);
        assert!((last_of(AdamMode::Standard, 200) / 1e-3 - 1.0).abs() < 1e-3);
        assert!((last_of(AdamMode::Paper, 1) / 1e-3 - 1.0).abs() < 1e-4);
        // The transient of about twice lr, then sqrt(0.001) / 0.1 = 0.316.
        assert!((1.8..2.2).contains(&(last_of(AdamMode::Paper, 17) / 1e-3)));
        assert!((last_of(AdamMode::Paper, 8000) / 1e-3 - 0.3162).abs() < 1e-3);
    }
}
