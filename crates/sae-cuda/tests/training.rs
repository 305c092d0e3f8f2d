//! The trainer on the device against the one on this processor: every family, in batches of uneven shape.

mod common;

use common::gpu;
use monosem_sae::{
    AuxK, BatchTopK, Family, Gated, JumpRelu, Matryoshka, Planted, PlantedConfig, Precision, Relu, Sae, Space, Spaces,
    Tied, TopK, TrainConfig, TrainState, TrainStep, Trainer,
};
use ndarray::{Array2, s};

const STEPS: u64 = 100;

fn planted(d_in: usize) -> Planted {
    Planted::new(PlantedConfig {
        d_in,
        n_features: 2 * d_in,
        mean_active: 3.0,
        decay: 0.99,
        correlated: false,
        second_strength: false,
        noise: 0.0,
        seed: 5,
    })
}

fn config(family: Family, n_latents: usize, alpha: f32) -> TrainConfig {
    TrainConfig {
        family,
        n_latents,
        alpha,
        lr: 3e-3,
        batch: 70,
        steps: STEPS,
        seed: 3,
        dead_after_steps: 20,
        ..TrainConfig::default()
    }
}

/// The largest difference of a tensor's values over the root mean square of its own.
fn apart(a: &TrainState, b: &TrainState) -> (f64, String) {
    assert!(a.tensors.keys().eq(b.tensors.keys()));
    let of = |(name, a): (&String, &ndarray::ArrayD<f32>)| {
        let b = &b.tensors[name];
        assert_eq!(a.shape(), b.shape());
        let size = (b.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / b.len() as f64).sqrt();
        let far = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>() / b.len() as f64;
        (far.sqrt() / size.max(1e-30), name.clone())
    };
    a.tensors
        .iter()
        .filter(|(name, _)| !name.ends_with("_m") && !name.ends_with("_v"))
        .map(of)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap()
}

struct Case {
    name: &'static str,
    config: TrainConfig,
    spaces: Spaces,
    rows: usize,
}

fn cases() -> Vec<Case> {
    let spaces = Spaces::autoencoder(20, 1.3);
    let case = |name, config, rows| Case { name, config, spaces, rows };
    let top_k = || config(Family::TopK(TopK { k: 5 }), 150, 0.0);
    vec![
        case("tied", config(Family::Tied(Tied {}), 37, 1e-2), 70),
        case("relu", config(Family::Relu(Relu { subtract_decoder_bias: true }), 150, 1e-2), 70),
        case("top-k", top_k(), 131),
        case("top-k, k of all", config(Family::TopK(TopK { k: 30 }), 30, 0.0), 33),
        case("batch-top-k", config(Family::BatchTopK(BatchTopK { k: 4 }), 130, 0.0), 70),
        case(
            "jump-relu",
            config(Family::JumpRelu(JumpRelu { bandwidth: 0.1, initial_threshold: 0.05 }), 140, 1e-2),
            65,
        ),
        case("gated", config(Family::Gated(Gated {}), 129, 1e-2), 64),
        case("matryoshka", config(Family::Matryoshka(Matryoshka { k: 4, prefixes: vec![10, 40, 128] }), 128, 0.0), 70),
    ]
}

#[test]
fn families_train_as_on_the_cpu() {
    for Case { name, config, spaces, rows } in cases() {
        let lent = gpu(&[]);
        let data = planted(spaces.input.d);
        let mut here = Sae::new(config.clone(), spaces).unwrap();
        let mut there = lent.gpu.train(Sae::new(config.clone(), spaces).unwrap()).unwrap();
        for step in 0..STEPS {
            let batch = data.sample(step, rows);
            let schedule = config.schedule(step);
            let a = here.step(batch.view(), None, schedule).unwrap();
            let b = there.step(batch.view(), None, schedule).unwrap();
            let close = |a: f32, b: f32, by: f32| (a - b).abs() <= by * a.abs().max(1e-3);
            assert!(close(a.loss, b.loss, 1e-3) && close(a.l0, b.l0, 5e-3), "{name}, step {step}: {a:?} {b:?}");
        }
        let (far, tensor) = apart(&there.state().unwrap(), &here.state().unwrap());
        println!("{name}: {tensor} is off by {far:.1e}");
        assert!(far < 1e-4, "{name}: {tensor} is off by {far}");
    }
}
