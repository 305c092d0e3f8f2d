//! The step against the formulas, against PyTorch, and against itself on another path or with other threads.

mod common;

use common::{config, data, distance, in_pool, steps, tensor};
use monosem_dictionary::Dictionary;
use monosem_sae::{AdamMode, Precision, StepParams, StepPath, TiedSae, TrainConfig, TrainStep};
use ndarray::{Array1, Array2, ArrayD, s};
use safetensors::SafeTensors;

const PATHS: [StepPath; 2] = [StepPath::Sparse, StepPath::Dense];

/// The loss in f64, straight from the paper: normalise, encode, decode, mean over rows and dimensions, and the L1 term.
fn loss(e: &Array2<f64>, b: &Array1<f64>, x: &Array2<f64>, alpha: f64) -> f64 {
    let mut directions = e.clone();
    for mut row in directions.rows_mut() {
        let length = row.dot(&row).sqrt().max(1e-8);
        row /= length;
    }
    let codes = (x.dot(&directions.t()) + b).mapv(|v| v.max(0.0));
    let error = codes.dot(&directions) - x;
    error.mapv(|v| v * v).mean().unwrap() + alpha * codes.sum() / x.nrows() as f64
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (d, n, alpha, scale) = (7, 11, 0.03_f32, 0.7_f32);
    let x = data(d).sample(0, 40);
    for path in PATHS {
        let mut sae = TiedSae::new(TrainConfig { alpha, ..config(n, 5) }, d, scale).unwrap();
        // Away from the start, so that biases and lengths are of no special value; then moments of zero, so that m becomes 0.1 g.
        steps(&mut sae, &data(d), 0..5, path);
        let mut state = sae.state().unwrap();
        state.tensors.get_mut("w").unwrap().mapv_inplace(|w| w * 1.7);
        for name in ["w_m", "w_v", "b_m", "b_v"] {
            state.tensors.get_mut(name).unwrap().fill(0.0);
        }
        let e = state.tensors["w"].mapv(f64::from).into_dimensionality().unwrap();
        let b = state.tensors["b"].mapv(f64::from).into_dimensionality().unwrap();
        let mut sae = TiedSae::from_state(state).unwrap();
        sae.set_path(path);
        let stats = sae.step(x.view(), StepParams { lr: 1e-3, alpha }).unwrap();

        let (x, alpha, eps) = (x.mapv(|v| f64::from(v * scale)), f64::from(alpha), 1e-6);
        assert!((f64::from(stats.loss) - loss(&e, &b, &x, alpha)).abs() < 1e-6);
        let mut expected_w = Vec::new();
        for at in 0..n * d {
            let moved = |by: f64| {
                let mut e = e.clone();
                e[[at / d, at % d]] += by;
                loss(&e, &b, &x, alpha)
            };
            expected_w.push(((moved(eps) - moved(-eps)) / (2.0 * eps)) as f32);
        }
        let mut expected_b = Vec::new();
        for at in 0..n {
            let moved = |by: f64| {
                let mut b = b.clone();
                b[at] += by;
                loss(&e, &b, &x, alpha)
            };
            expected_b.push(((moved(eps) - moved(-eps)) / (2.0 * eps)) as f32);
        }
        let gradient = |name| tensor(&sae, name).iter().map(|m| m * 10.0).collect::<Vec<_>>();
        let (w, b) = (distance(&gradient("w_m"), &expected_w), distance(&gradient("b_m"), &expected_b));
        assert!(w < 1e-5 && b < 1e-5, "{path:?}: {w:e} {b:e}");
    }
}

#[test]
fn figures_are_those_of_the_dictionary_on_raw_activations() {
    let (d, scale) = (20, 3.0_f32);
    let data = data(d);
    let mut sae = TiedSae::new(config(33, 30), d, scale).unwrap();
    steps(&mut sae, &data, 0..30, StepPath::Adaptive);
    let x = data.sample(99, 300);
    let dictionary = sae.dictionary();
    let stats = sae.step(x.view(), StepParams { lr: 1e-3, alpha: 0.0 }).unwrap();
    let codes = dictionary.encode(x.view());
    let error = (dictionary.decode(&codes) - &x).mapv(|v| f64::from(v).powi(2));
    let mean = x.mean_axis(ndarray::Axis(0)).unwrap();
    let variance = (&x - &mean).mapv(|v| f64::from(v).powi(2)).sum();
    let close = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 1e-4 * want, "{got} {want}");
    close(stats.mse, error.mean().unwrap() * f64::from(scale).powi(2));
    close(stats.fvu_batch, error.sum() / variance);
    close(stats.l0, codes.nnz() as f64 / 300.0);
    close(
        stats.l1,
        codes.rows().flat_map(|(_, values)| values.iter().map(|c| f64::from(*c))).sum::<f64>() / 300.0
            * f64::from(scale),
    );
    assert!(dictionary.w_enc.rows().into_iter().all(|row| (row.dot(&row) - 1.0).abs() < 1e-5));
}

#[test]
fn pytorch_trains_to_the_same_weights() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden/sae-tied/golden.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let view = golden.tensor(name).unwrap();
        let values = view.data().as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
        ArrayD::from_shape_vec(view.shape(), values).unwrap()
    };
    let x = read("x").into_dimensionality::<ndarray::Ix3>().unwrap();
    let (steps, batch, d) = x.dim();
    let schedule = StepParams { lr: read("lr")[0], alpha: read("alpha")[0] };
    for (name, adam) in [("standard", AdamMode::Standard), ("paper", AdamMode::Paper)] {
        for path in PATHS {
            let config = TrainConfig { adam, batch, ..config(read("w0").shape()[0], steps as u64) };
            let mut state = TiedSae::new(config, d, 1.0).unwrap().state().unwrap();
            state.tensors.insert("w".into(), read("w0"));
            let mut sae = TiedSae::from_state(state).unwrap();
            sae.set_path(path);
            let (losses, l0) = (read(&format!("{name}_loss")), read(&format!("{name}_l0")));
            for step in 0..steps {
                let stats = sae.step(x.slice(s![step, .., ..]), schedule).unwrap();
                assert!((stats.loss - losses[step]).abs() < 1e-4 * losses[step], "{name} {step} {stats:?}");
                assert!((stats.l0 - l0[step]).abs() < 0.051, "{name} {step} {stats:?} {}", l0[step]);
            }
            for key in ["w", "b"] {
                let apart = distance(&tensor(&sae, key), read(&format!("{name}_{key}")).as_slice().unwrap());
                println!("{name} {path:?} {key}: {apart:e}");
                assert!(apart < 1e-4, "{name} {path:?} {key}: {apart:e}");
            }
        }
    }
}

#[test]
fn the_two_paths_end_in_the_same_weights() {
    let (d, data) = (20, data(20));
    let trained = PATHS.map(|path| {
        let mut sae = TiedSae::new(config(300, 100), d, 2.0).unwrap();
        steps(&mut sae, &data, 0..100, path);
        sae
    });
    for name in ["w", "b"] {
        let apart = distance(&tensor(&trained[0], name), &tensor(&trained[1], name));
        println!("{name}: {apart:e}");
        assert!(apart < 1e-5, "{name}: {apart:e}");
    }
}

#[test]
fn one_and_two_threads_give_the_same_bytes() {
    let (d, data) = (20, data(20));
    let f32 = [StepPath::Adaptive, StepPath::Sparse, StepPath::Dense].map(|path| (path, Precision::F32));
    for (path, precision) in f32.into_iter().chain([(StepPath::Adaptive, Precision::Bf16)]) {
        let [one, two, three] = [1, 2, 3].map(|threads| {
            let mut sae = TiedSae::new(TrainConfig { precision, ..config(300, 40) }, d, 2.0).unwrap();
            let stats = in_pool(threads, || steps(&mut sae, &data, 0..40, path));
            (sae.state().unwrap(), stats)
        });
        assert!(one == two && one == three, "{path:?}");
    }
}

#[test]
fn a_row_of_zeros_and_a_dead_latent_stay_finite() {
    let d = 9;
    let mut state = TiedSae::new(config(12, 3), d, 1.0).unwrap().state().unwrap();
    state.tensors.get_mut("w").unwrap().slice_mut(s![3, ..]).fill(0.0);
    state.tensors.get_mut("b").unwrap()[5] = -1e3;
    for path in PATHS {
        let mut sae = TiedSae::from_state(state.clone()).unwrap();
        let stats = steps(&mut sae, &data(d), 0..3, path);
        assert!(stats.iter().all(|s| s.loss.is_finite()));
        assert!(tensor(&sae, "w").iter().chain(&tensor(&sae, "b")).all(|v| v.is_finite()));
        // Latent 5 was never active: nothing moved it.
        assert_eq!(tensor(&sae, "b")[5], -1e3);
    }
}

#[test]
fn a_batch_that_is_not_contiguous_is_read_as_it_is() {
    let x = data(10).sample(0, 50);
    let wide = Array2::from_shape_fn((50, 20), |(i, k)| if k % 2 == 0 { x[[i, k / 2]] } else { f32::NAN });
    let [plain, strided] = [x.view(), wide.slice(s![.., ..;2])].map(|batch| {
        let mut sae = TiedSae::new(config(16, 1), 10, 1.0).unwrap();
        sae.step(batch, StepParams { lr: 1e-2, alpha: 1e-3 }).unwrap();
        sae.state().unwrap()
    });
    assert_eq!(plain, strided);
}

#[test]
fn an_encoder_in_bf16_finds_the_codes_of_f32() {
    let (d, data) = (20, data(20));
    let trained = [Precision::F32, Precision::Bf16].map(|precision| {
        let mut sae = TiedSae::new(TrainConfig { precision, ..config(300, 100) }, d, 2.0).unwrap();
        let stats = steps(&mut sae, &data, 0..100, StepPath::Sparse);
        (sae, stats)
    });
    let [(f32, f32_stats), (bf16, bf16_stats)] = &trained;
    for (a, b) in f32_stats.iter().zip(bf16_stats) {
        assert!((a.loss - b.loss).abs() < 1e-4 * a.loss && (a.l0 - b.l0).abs() < 0.05, "{a:?} {b:?}");
    }
    for name in ["w", "b"] {
        let apart = distance(&tensor(f32, name), &tensor(bf16, name));
        println!("{name}: {apart:e}");
        assert!(apart < 1e-4, "{name}: {apart:e}");
    }
}
