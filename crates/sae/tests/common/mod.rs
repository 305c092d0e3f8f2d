//! What several tests train with.

#![allow(dead_code, reason = "each test file uses a part")]

use monosem_sae::{AdamMode, Planted, PlantedConfig, Precision, StepPath, StepStats, TiedSae, TrainConfig, TrainStep};
use ndarray::Array2;

pub(crate) fn config(n_latents: usize, steps: u64) -> TrainConfig {
    TrainConfig {
        n_latents,
        alpha: 5e-3,
        lr: 3e-3,
        batch: 300,
        steps,
        adam: AdamMode::Standard,
        precision: Precision::F32,
        lr_warmup_steps: 0,
        lr_decay_steps: 0,
        seed: 5,
    }
}

/// Two tiles of rows, the second not full; 20 wide: no multiple of a vector.
pub(crate) fn data(d_in: usize) -> Planted {
    Planted::new(PlantedConfig {
        d_in,
        n_features: 2 * d_in,
        mean_active: 3.0,
        decay: 0.99,
        correlated: false,
        second_strength: false,
        noise: 0.05,
        seed: 11,
    })
}

pub(crate) fn steps(sae: &mut TiedSae, data: &Planted, steps: std::ops::Range<u64>, path: StepPath) -> Vec<StepStats> {
    sae.set_path(path);
    let config = sae.config().clone();
    steps.map(|step| sae.step(data.sample(step, config.batch).view(), config.schedule(step)).unwrap()).collect()
}

pub(crate) fn tensor(sae: &TiedSae, name: &str) -> Vec<f32> {
    sae.state().unwrap().tensors[name].iter().copied().collect()
}

/// `|a - b| / |b|`.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    square(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
        / square(&mut b.iter().map(|b| f64::from(*b)))
}

pub(crate) fn in_pool<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

pub(crate) fn mean_square(x: &Array2<f32>) -> f32 {
    x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32
}
