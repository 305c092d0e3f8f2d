//! Dead latents begin anew (Bricken et al. 2023, "Neuron resampling"): in the direction of rows of the batch drawn with a probability in proportion to the
//! square of their squared error, with encoder rows shorter than those of the others, no bias and no memory of Adam's.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::family::Formula;
use crate::kernels::{norm, squares};
use crate::parameters::{Parameters, SHORTEST, Trained, scale_and_length};

/// The batch of the last step, row by row.
#[derive(Debug, Clone, Copy)]
pub struct LastBatch<'a> {
    /// What the encoder read `[rows, d_in]`.
    pub x: &'a [f32],
    /// What had to be reconstructed `[rows, d_out]`.
    pub target: &'a [f32],
    /// `x_hat - x` of the weights before the step, times any factor `[rows, d_out]`.
    pub residuals: &'a [f32],
}

/// Starts the latents anew that were silent for `dead_after` steps.
pub(crate) fn resample(of: &mut Parameters, formula: &dyn Formula, batch: LastBatch<'_>, dead_after: u64, seed: u64) {
    let (d_in, d_out) = (of.d_in, of.d_out);
    let dead: Vec<usize> = (0..of.n_latents()).filter(|j| u64::from(of.silent[*j]) >= dead_after).collect();
    let mut total = 0.0;
    let cumulative: Vec<f64> = batch
        .residuals
        .chunks_exact(d_out)
        .map(|r| {
            total += f64::from(squares(r)).powi(2);
            total
        })
        .collect();
    if dead.is_empty() || !(total.is_finite() && total > 0.0) {
        return;
    }
    let alive =
        of.w_enc.value.chunks_exact(d_in).zip(&of.silent).filter(|(_, silent)| u64::from(**silent) < dead_after);
    let (sum, n) = alive.fold((0.0, 0), |(sum, n), (row, _)| (sum + norm(row), n + 1));
    let mean_length = if n > 0 { sum / n as f32 } else { 1.0 };
    // In a tied layout a row's length only says how fast it turns.
    let length = mean_length * if of.layout.tied { 1.0 } else { formula.resampled_length() };
    let initial = formula.initial_extras();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for &j in &dead {
        let drawn = rng.random::<f64>() * total;
        let row = cumulative.partition_point(|c| *c <= drawn).min(cumulative.len() - 1);
        set_direction(&mut of.w_enc, j, &batch.x[row * d_in..][..d_in], length);
        if !of.layout.tied {
            set_direction(&mut of.w_dec, j, &batch.target[row * d_out..][..d_out], 1.0);
        }
        let extras = of.extras.iter_mut().zip(initial).filter(|(extra, _)| !extra.value.is_empty());
        for (trained, value) in extras.chain([(&mut of.b_enc, 0.0)]) {
            (trained.value[j], trained.m[j], trained.v[j]) = (value, 0.0, 0.0);
        }
        let row = &of.w_enc.value[j * d_in..][..d_in];
        (of.scale[j], of.length[j]) = scale_and_length(row, of.layout.tied);
        of.silent[j] = 0;
    }
}

fn set_direction(trained: &mut Trained, j: usize, direction: &[f32], length: f32) {
    let row = j * direction.len()..(j + 1) * direction.len();
    let factor = length / norm(direction).max(SHORTEST);
    trained.value[row.clone()].iter_mut().zip(direction).for_each(|(w, x)| *w = x * factor);
    trained.m[row.clone()].fill(0.0);
    trained.v[row].fill(0.0);
}
