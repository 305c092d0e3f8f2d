//! What several tests train with.

#![allow(dead_code, reason = "each test file uses a part")]

use monosem_sae::{
    BatchTopK, Family, Gated, JumpRelu, Matryoshka, Planted, PlantedConfig, Relu, Sae, Space, Spaces, StepPath,
    StepStats, Tied, TopK, TrainConfig, TrainStep,
};
use ndarray::{Array2, Axis};

pub(crate) fn config(n_latents: usize, steps: u64) -> TrainConfig {
    TrainConfig { n_latents, alpha: 5e-3, lr: 3e-3, batch: 300, steps, seed: 5, ..TrainConfig::default() }
}

/// Every family, with a sparsity coefficient for it.
pub(crate) fn families(n_latents: usize, k: usize) -> Vec<(Family, f32)> {
    let prefixes = vec![n_latents / 4, n_latents / 2, n_latents];
    vec![
        (Family::Tied(Tied {}), 5e-3),
        (Family::Relu(Relu::default()), 5e-3),
        (Family::Relu(Relu { subtract_decoder_bias: false, decoder_bias: true }), 5e-3),
        (Family::Relu(Relu { subtract_decoder_bias: false, decoder_bias: false }), 5e-3),
        (Family::TopK(TopK { k }), 0.0),
        (Family::BatchTopK(BatchTopK { k }), 0.0),
        (Family::JumpRelu(JumpRelu { bandwidth: 0.3, initial_threshold: 0.2 }), 2e-3),
        (Family::Gated(Gated {}), 5e-3),
        (Family::Matryoshka(Matryoshka { k, prefixes }), 0.0),
    ]
}

/// Those whose codes are chosen by a threshold: they have a dense path.
pub(crate) fn has_dense_path(family: &Family) -> bool {
    matches!(family, Family::Tied(_) | Family::Relu(_) | Family::JumpRelu(_) | Family::Gated(_))
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

/// From `d_in` to fewer dimensions.
pub(crate) fn transcoder(d_in: usize) -> Spaces {
    Spaces::transcoder(Space { d: d_in, scale: 2.0 }, Space { d: d_in / 2, scale: 1.3 })
}

/// Something that a transcoder can learn of `x`: sums and absolute values of neighbours.
pub(crate) fn target_of(x: &Array2<f32>, spaces: Spaces) -> Option<Array2<f32>> {
    let d = spaces.target?.d;
    let mut target = Array2::zeros((x.nrows(), d));
    for (mut out, x) in target.axis_iter_mut(Axis(0)).zip(x.rows()) {
        for k in 0..d {
            out[k] = x[2 * k] + x[2 * k + 1].abs();
        }
    }
    Some(target)
}

pub(crate) fn step_on(sae: &mut Sae, x: &Array2<f32>, step: u64) -> StepStats {
    let (schedule, target) = (sae.config().schedule(step), target_of(x, sae.spaces()));
    sae.step(x.view(), target.as_ref().map(|target| target.view()), schedule).unwrap()
}

pub(crate) fn steps(sae: &mut Sae, data: &Planted, steps: std::ops::Range<u64>, path: StepPath) -> Vec<StepStats> {
    sae.set_path(path);
    let batch = sae.config().batch;
    steps.map(|step| step_on(sae, &data.sample(step, batch), step)).collect()
}

pub(crate) fn tensor(sae: &Sae, name: &str) -> Vec<f32> {
    sae.state().unwrap().tensors[name].iter().copied().collect()
}

/// Of all values and biases together, without the moments.
pub(crate) fn weights(sae: &Sae) -> Vec<f32> {
    let state = sae.state().unwrap();
    let is_weight = |name: &str| !name.ends_with("_m") && !name.ends_with("_v") && name != "silent";
    state.tensors.iter().filter(|(name, _)| is_weight(name)).flat_map(|(_, tensor)| tensor.iter().copied()).collect()
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
