//! Every gradient of every family against finite differences of its loss, written down in f64 from the papers' formulas.

mod common;

use std::collections::BTreeMap;

use common::{config, data, families, has_dense_path, steps, target_of, transcoder};
use monosem_sae::{AuxK, Family, Sae, Spaces, StepParams, StepPath, TrainConfig, TrainState, TrainStep};
use ndarray::{Array1, Array2, ArrayD, Axis, Ix1, Ix2};

const N: usize = 12;
const D: usize = 8;

type Parameters = BTreeMap<String, ArrayD<f64>>;

struct Problem {
    family: Family,
    alpha: f64,
    spaces: Spaces,
    aux: Option<AuxK>,
    dead: Vec<usize>,
    /// The parameters at which gradients are taken: what the losses hold fixed is computed from them.
    at: Parameters,
    x: Array2<f64>,
    target: Array2<f64>,
}

fn matrix(of: &Parameters, name: &str) -> Array2<f64> {
    of[name].clone().into_dimensionality::<Ix2>().unwrap()
}

fn vector(of: &Parameters, name: &str) -> Array1<f64> {
    of[name].clone().into_dimensionality::<Ix1>().unwrap()
}

fn mean_square(a: &Array2<f64>) -> f64 {
    a.mapv(|v| v * v).mean().unwrap()
}

/// Keeps the `k` largest positive values of all those given.
fn keep_largest<'a>(values: impl Iterator<Item = &'a mut f64>, k: usize) {
    let mut values: Vec<&mut f64> = values.collect();
    values.sort_by(|a, b| b.total_cmp(a));
    for (i, value) in values.into_iter().enumerate() {
        *value = if i < k { value.max(0.0) } else { 0.0 };
    }
}

impl Problem {
    fn subtracts(&self) -> bool {
        let subtracts = match &self.family {
            Family::Relu(relu) => relu.subtract_decoder_bias,
            Family::Tied(_) | Family::JumpRelu(_) => false,
            _ => true,
        };
        subtracts && self.spaces.target.is_none()
    }

    /// Encoder rows, decoder rows and decoder bias.
    fn maps(&self, of: &Parameters) -> (Array2<f64>, Array2<f64>, Array1<f64>) {
        let mut enc = matrix(of, "w_enc");
        if matches!(self.family, Family::Tied(_)) {
            for mut row in enc.rows_mut() {
                let length = row.dot(&row).sqrt().max(1e-8);
                row /= length;
            }
            return (enc.clone(), enc, Array1::zeros(D));
        }
        let dec = matrix(of, "w_dec");
        let b_dec = if of.contains_key("b_dec") { vector(of, "b_dec") } else { Array1::zeros(dec.ncols()) };
        (enc, dec, b_dec)
    }

    fn pre(&self, of: &Parameters) -> Array2<f64> {
        let (enc, _, b_dec) = self.maps(of);
        let x = if self.subtracts() { &self.x - &b_dec } else { self.x.clone() };
        x.dot(&enc.t()) + vector(of, "b_enc")
    }

    /// Codes and the penalty, summed over rows; for a gated family the gates too.
    fn codes(&self, of: &Parameters) -> (Array2<f64>, f64, Option<Array2<f64>>) {
        let mut pre = self.pre(of);
        match &self.family {
            Family::Tied(_) | Family::Relu(_) => {
                pre.mapv_inplace(|v| v.max(0.0));
                let penalty = pre.sum();
                (pre, penalty, None)
            }
            Family::TopK(top) => {
                pre.axis_iter_mut(Axis(0)).for_each(|mut row| keep_largest(row.iter_mut(), top.k));
                (pre, 0.0, None)
            }
            Family::BatchTopK(_) | Family::Matryoshka(_) => {
                let k = match &self.family {
                    Family::BatchTopK(top) => top.k,
                    Family::Matryoshka(top) => top.k,
                    _ => unreachable!("one of the two"),
                };
                let kept = k * pre.nrows();
                keep_largest(pre.iter_mut(), kept);
                (pre, 0.0, None)
            }
            Family::JumpRelu(jump) => {
                // The surrogate: the jump as a ramp as wide as the window, for what moves with theta; pre-activations move through what is above only.
                let e = f64::from(jump.bandwidth);
                let ramp = |u: f64| (u / e + 0.5).clamp(0.0, 1.0);
                let (log, log_at) = (vector(of, "log_threshold"), vector(&self.at, "log_threshold"));
                let pre_at = self.pre(&self.at);
                let mut count = 0.0;
                let codes = Array2::from_shape_fn(pre.dim(), |(i, j)| {
                    let (theta, theta_at) = (log[j].exp(), log_at[j].exp());
                    let above = if pre_at[[i, j]] > theta_at { 1.0 } else { 0.0 };
                    let moved = ramp(pre_at[[i, j]] - theta) - ramp(pre_at[[i, j]] - theta_at);
                    count += above + moved;
                    pre[[i, j]] * above + theta_at * moved
                });
                (codes, count, None)
            }
            Family::Gated(_) => {
                let (r, b_gate, b_mag) = (vector(of, "r_mag"), vector(of, "b_enc"), vector(of, "b_mag"));
                let codes = Array2::from_shape_fn(pre.dim(), |(i, j)| {
                    let pi = pre[[i, j]];
                    if pi > 0.0 { (r[j].exp() * (pi - b_gate[j]) + b_mag[j]).max(0.0) } else { 0.0 }
                });
                pre.mapv_inplace(|v| v.max(0.0));
                let penalty = pre.sum();
                (codes, penalty, Some(pre))
            }
        }
    }

    fn loss(&self, of: &Parameters) -> f64 {
        let (_, dec, b_dec) = self.maps(of);
        let (codes, penalty, gates) = self.codes(of);
        let error = |codes: &Array2<f64>, dec: &Array2<f64>, b_dec: &Array1<f64>| codes.dot(dec) + b_dec - &self.target;
        let mut loss = self.alpha * penalty / self.x.nrows() as f64;
        loss += match &self.family {
            Family::Matryoshka(family) => {
                let errors = family.prefixes.iter().map(|m| {
                    let mut codes = codes.clone();
                    codes.slice_mut(ndarray::s![.., *m..]).fill(0.0);
                    mean_square(&error(&codes, &dec, &b_dec))
                });
                errors.sum::<f64>() / family.prefixes.len() as f64
            }
            _ => mean_square(&error(&codes, &dec, &b_dec)),
        };
        let (_, dec_at, b_dec_at) = self.maps(&self.at);
        if let Some(gates) = gates {
            loss += mean_square(&error(&gates, &dec_at, &b_dec_at));
        }
        if let Some(AuxK { k, coefficient }) = self.aux {
            let left_over = -error(&self.codes(&self.at).0, &dec_at, &b_dec_at);
            let mut of_dead = self.pre(of).select(Axis(1), &self.dead);
            of_dead.axis_iter_mut(Axis(0)).for_each(|mut row| keep_largest(row.iter_mut(), k));
            let reconstruction = of_dead.dot(&dec.select(Axis(0), &self.dead));
            loss += f64::from(coefficient) * mean_square(&(reconstruction - left_over));
        }
        loss
    }

    fn difference(&self, name: &str, at: usize) -> f64 {
        let eps = 1e-6;
        let moved = |by: f64| {
            let mut parameters = self.at.clone();
            parameters.get_mut(name).unwrap().as_slice_mut().unwrap()[at] += by;
            self.loss(&parameters)
        };
        (moved(eps) - moved(-eps)) / (2.0 * eps)
    }
}

/// A state away from the start, so that no bias or length is of a special value, with moments of zero, so that `m` becomes 0.1 g.
fn state_of(config: &TrainConfig, spaces: Spaces) -> TrainState {
    let mut sae = Sae::new(config.clone(), spaces).unwrap();
    steps(&mut sae, &data(D), 0..8, StepPath::Sparse);
    let mut state = sae.state().unwrap();
    for (name, tensor) in &mut state.tensors {
        if name.ends_with("_m") || name.ends_with("_v") {
            tensor.fill(0.0);
        } else if name.starts_with("w_") {
            tensor.iter_mut().enumerate().for_each(|(i, w)| *w *= 1.3 + 0.01 * (i % 7) as f32);
        } else if name != "silent" {
            tensor.iter_mut().enumerate().for_each(|(i, w)| *w += 0.03 * (i % 5) as f32);
        }
    }
    state
}

fn check(config: TrainConfig, spaces: Spaces, path: StepPath, dead: &[usize]) {
    let about = format!("{:?} {path:?} {spaces:?} dead {dead:?}", config.family);
    let mut state = state_of(&config, spaces);
    for j in dead {
        state.tensors.get_mut("silent").unwrap()[*j] = 1e6;
    }
    let raw = data(D).sample(1000, 40);
    let raw_target = target_of(&raw, spaces);
    let at: Parameters = state.tensors.iter().map(|(name, t)| (name.clone(), t.mapv(f64::from))).collect();
    let x = raw.mapv(|v| f64::from(v * spaces.input.scale));
    let target = raw_target.as_ref().map_or_else(|| x.clone(), |t| t.mapv(|v| f64::from(v * spaces.output().scale)));
    let problem = Problem {
        family: config.family.clone(),
        alpha: f64::from(config.alpha),
        spaces,
        aux: config.aux_k,
        dead: dead.to_vec(),
        at,
        x,
        target,
    };
    let mut sae = Sae::from_state(state.clone()).unwrap();
    sae.set_path(path);
    let schedule = StepParams { lr: 1e-3, alpha: config.alpha };
    let stats = sae.step(raw.view(), raw_target.as_ref().map(|t| t.view()), schedule).unwrap();
    assert!((f64::from(stats.loss) - problem.loss(&problem.at)).abs() < 1e-5, "{about}: {stats:?}");
    assert!(stats.l0 > 1.0, "{about}: {stats:?}");

    let gradients = sae.state().unwrap().tensors;
    let names = state.tensors.keys().filter_map(|name| name.strip_suffix("_m"));
    for name in names {
        let got: Vec<f32> = gradients[&format!("{name}_m")].iter().map(|m| m * 10.0).collect();
        let expected: Vec<f32> = (0..got.len()).map(|i| problem.difference(name, i) as f32).collect();
        let (size, apart) = (norm(&expected), common::distance(&got, &expected));
        assert!(size > 1e-5, "{about}: the gradient of {name} is {size:e}, which tests nothing");
        assert!(apart < 3e-5, "{about}: {name} is off by {apart:e}\n{got:?}\n{expected:?}");
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

fn raw_gradients(family: Family, alpha: f32) -> TrainConfig {
    // What is projected out is not in the finite difference.
    TrainConfig { family, alpha, project_decoder_gradient: false, ..config(N, 8) }
}

#[test]
fn gradients_of_autoencoders_agree_with_finite_differences() {
    for (family, alpha) in families(N, 3) {
        let paths =
            if has_dense_path(&family) { vec![StepPath::Sparse, StepPath::Dense] } else { vec![StepPath::Sparse] };
        for path in paths {
            check(raw_gradients(family.clone(), 6.0 * alpha), Spaces::autoencoder(D, 0.7), path, &[]);
        }
    }
}

#[test]
fn gradients_of_transcoders_agree_with_finite_differences() {
    for (family, alpha) in families(N, 3).into_iter().skip(1) {
        let paths =
            if has_dense_path(&family) { vec![StepPath::Sparse, StepPath::Dense] } else { vec![StepPath::Sparse] };
        for path in paths {
            check(raw_gradients(family.clone(), 6.0 * alpha), transcoder(D), path, &[]);
        }
    }
}

#[test]
fn gradients_of_the_auxiliary_loss_reach_encoder_decoder_and_biases() {
    let choosing = families(N, 3).into_iter().filter(|(family, _)| !has_dense_path(family));
    for (family, alpha) in choosing {
        let config = TrainConfig { aux_k: Some(AuxK { k: 2, coefficient: 0.5 }), ..raw_gradients(family, alpha) };
        for spaces in [Spaces::autoencoder(D, 0.7), transcoder(D)] {
            check(config.clone(), spaces, StepPath::Sparse, &[1, 4, 5, 10]);
        }
    }
}

#[test]
fn clipping_scales_all_gradients_by_one_factor() {
    for (family, alpha) in families(N, 3) {
        for path in [StepPath::Sparse, StepPath::Dense] {
            let free = TrainConfig { family: family.clone(), alpha, ..config(N, 8) };
            let state = state_of(&free, Spaces::autoencoder(D, 0.7));
            let gradients = |clip_norm: Option<f32>| {
                let config = TrainConfig { clip_norm, ..free.clone() };
                let mut sae = Sae::from_state(TrainState { config, ..state.clone() }).unwrap();
                sae.set_path(path);
                sae.step(data(D).sample(50, 40).view(), None, StepParams { lr: 1e-3, alpha }).unwrap();
                let moments = sae.state().unwrap().tensors.into_iter().filter(|(name, _)| name.ends_with("_m"));
                moments.flat_map(|(_, m)| m.iter().map(|m| m * 10.0).collect::<Vec<_>>()).collect::<Vec<f32>>()
            };
            let whole = gradients(None);
            let half = gradients(Some(norm(&whole) as f32 / 2.0));
            assert!((norm(&half) / norm(&whole) - 0.5).abs() < 1e-5, "{family:?} {path:?}");
            let doubled: Vec<f32> = half.iter().map(|g| 2.0 * g).collect();
            assert!(common::distance(&doubled, &whole) < 1e-5, "{family:?} {path:?}");
            assert_eq!(gradients(Some(norm(&whole) as f32 * 2.0)), whole, "{family:?} {path:?}");
        }
    }
}

#[test]
fn projected_gradients_are_orthogonal_to_the_decoder_s_unit_rows() {
    let relu = families(N, 3).remove(1);
    let config = TrainConfig { family: relu.0, alpha: relu.1, ..config(N, 8) };
    let mut state = Sae::new(config, Spaces::autoencoder(D, 0.7)).unwrap().state().unwrap();
    state.step = 1;
    let before = state.tensors["w_dec"].clone().into_dimensionality::<Ix2>().unwrap();
    let mut sae = Sae::from_state(state).unwrap();
    sae.step(data(D).sample(50, 40).view(), None, StepParams { lr: 1e-3, alpha: 0.0 }).unwrap();
    let tensors = sae.state().unwrap().tensors;
    let gradient = tensors["w_dec_m"].clone().into_dimensionality::<Ix2>().unwrap();
    let after = tensors["w_dec"].clone().into_dimensionality::<Ix2>().unwrap();
    for ((w, g), after) in before.rows().into_iter().zip(gradient.rows()).zip(after.rows()) {
        assert!(w.dot(&g).abs() < 1e-6 && g.dot(&g) > 0.0);
        assert!((after.dot(&after) - 1.0).abs() < 1e-5);
    }
}
