//! The numbers that the code of arXiv 2309.08600 itself reaches on its planted data. Not run by default: `cargo test --release -p monosem-sae --test anchor
//! -- --ignored --nocapture` takes a minute or two.

use std::convert::Infallible;
use std::ops::ControlFlow;

use monosem_dictionary::{Dictionary, Evaluator, column_mean, mmcs};
use monosem_sae::{AdamMode, Planted, PlantedConfig, RunOptions, Spaces, TrainConfig, TrainOutcome, Trainer, train};
use ndarray::{Array2, ArrayViewMut2};

/// Tied autoencoder, d 128, G 256, R 2, 5 active, decay 0.99, identity covariance, no noise, batch 1024, lr 1e-3, 1421 steps, alpha 1e-3. The
/// authors' code gave FVU 0.148, L0 7.33, MMCS 0.866 with its Adam, and 0.127, 6.46, 0.940 with Adam as published. The same written down again in PyTorch
/// gives 0.162, 7.76, 0.819 with its Adam (one seed).
#[test]
#[ignore = "a minute or two in a release build; the Paper mode misses its MMCS by 0.056, cause not found"]
fn the_authors_code_reaches_the_same_figures() {
    for (adam, want) in [(AdamMode::Paper, [0.148, 7.33, 0.866]), (AdamMode::Standard, [0.127, 6.46, 0.940])] {
        let figures: Vec<[f64; 3]> = (0..3).map(|seed| train_one(adam, seed)).collect();
        let mean: [f64; 3] = std::array::from_fn(|k| figures.iter().map(|f| f[k]).sum::<f64>() / 3.0);
        println!("{adam:?}: FVU, L0, MMCS {mean:.3?} of seeds {figures:.3?}; the authors' code {want:?}");
        let allowed = [0.03, 0.8, 0.05];
        for k in 0..3 {
            assert!((mean[k] - want[k]).abs() < allowed[k], "{adam:?} {mean:?} {want:?}");
        }
    }
}

fn train_one(adam: AdamMode, seed: u64) -> [f64; 3] {
    let (d, n, batch) = (128, 256, 1024);
    let config = PlantedConfig {
        d_in: d,
        n_features: n,
        mean_active: 5.0,
        decay: 0.99,
        correlated: true,
        second_strength: true,
        noise: 0.0,
        seed,
    };
    let data = Planted::with_covariance(config, Array2::eye(n).view());
    let config =
        TrainConfig { n_latents: n, alpha: 1e-3, lr: 1e-3, batch, steps: 1421, adam, seed, ..TrainConfig::default() };
    let mut batches = |step: u64, mut out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        out.assign(&data.sample(step, batch));
        Ok::<(), Infallible>(())
    };
    let mut on_step = |_: u64, _: &_, _: &dyn Trainer| ControlFlow::Continue(());
    let spaces = Spaces::autoencoder(d, 1.0);
    let outcome = train(&config, spaces, &mut batches, RunOptions::default(), &mut on_step).unwrap();
    let TrainOutcome::Finished(sae) = outcome else { panic!("nothing stops it") };
    let dictionary = sae.dictionary();
    // Many batches: each has probabilities of its own.
    let batches: Vec<Array2<f32>> = (0..20).map(|i| data.sample((1 << 40) + i, batch)).collect();
    let views: Vec<_> = batches.iter().map(|batch| batch.view()).collect();
    let x = ndarray::concatenate(ndarray::Axis(0), &views).unwrap();
    let codes = dictionary.encode(x.view());
    let mut evaluator = Evaluator::new(column_mean(x.view()), n);
    let groups: Vec<u32> = (0..x.nrows() as u32).collect();
    evaluator.add(x.view(), &codes, dictionary.decode(&codes).view(), &groups);
    let evaluation = evaluator.finish();
    [evaluation.fvu.value, evaluation.l0.value, mmcs(data.features.view(), dictionary.w_dec.view()).value]
}
