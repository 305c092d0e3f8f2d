use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::product::rows_times_rows;
use crate::{Codes, Dictionary};

/// Rows encoded at once: the pre-activations of one tile are the only dense `rows x n_latents` array there ever is.
const TILE_ROWS: usize = 256;

/// What turns pre-activations into codes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Activation {
    /// The pre-activations themselves, signed.
    Linear,
    /// `max(0, pre)`.
    Relu,
    /// The k largest pre-activations of the row, then ReLU; among equal ones the lower latent wins.
    TopK {
        /// How many codes at most are nonzero in a row.
        k: usize,
    },
    /// The pre-activation itself where it exceeds both 0 and its latent's [`LinearDictionary::threshold`], else 0 (arXiv 2407.14435). What BatchTopK,
    /// Matryoshka and gated autoencoders become after training.
    JumpRelu,
}

/// A dictionary with an affine encoder and an affine decoder: `c = activation(w_enc x + b_enc)`, `x_hat = w_decᵀ c + b_dec`. A transcoder decodes to
/// activations of another place, perhaps `d_out` wide.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearDictionary {
    /// Encoder directions `[n_latents, d_in]`, a latent a row.
    pub w_enc: Array2<f32>,
    /// Encoder bias `[n_latents]`.
    pub b_enc: Array1<f32>,
    /// Decoder directions `[n_latents, d_out]`, a latent a row.
    pub w_dec: Array2<f32>,
    /// Decoder bias `[d_out]`.
    pub b_dec: Array1<f32>,
    /// From pre-activations to codes.
    pub activation: Activation,
    /// Thresholds `[n_latents]` of [`Activation::JumpRelu`], which has to have them; `None` with any other.
    pub threshold: Option<Array1<f32>>,
}

impl LinearDictionary {
    /// The same directions to encode and to decode, no biases.
    #[must_use]
    pub fn tied(directions: Array2<f32>, activation: Activation) -> Self {
        let (n_latents, d_in) = directions.dim();
        Self {
            w_dec: directions.clone(),
            w_enc: directions,
            b_enc: Array1::zeros(n_latents),
            b_dec: Array1::zeros(d_in),
            activation,
            threshold: None,
        }
    }

    /// The basis the activations come in, signed: reconstructs exactly, and is the neuron (or residual) baseline of causal tests.
    #[must_use]
    pub fn identity(d_in: usize) -> Self {
        Self::tied(Array2::eye(d_in), Activation::Linear)
    }

    /// `ReLU(x)`: the neuron (or residual) basis as a dictionary of non-negative codes.
    #[must_use]
    pub fn identity_relu(d_in: usize) -> Self {
        Self::tied(Array2::eye(d_in), Activation::Relu)
    }

    /// `ReLU([x; -x])`: both directions of every basis vector, `2 d_in` latents; reconstructs exactly.
    #[must_use]
    pub fn identity_positive(d_in: usize) -> Self {
        Self::both_signs(&Array2::eye(d_in), Activation::Relu)
    }

    /// Every direction and its opposite, `[V; -V]`, without biases. With [`Activation::TopK`] this keeps the k scores of largest
    /// magnitude of an orthonormal basis `V`.
    #[must_use]
    pub fn both_signs(directions: &Array2<f32>, activation: Activation) -> Self {
        let opposite = directions.mapv(|v| -v);
        let both = concatenate(Axis(0), &[directions.view(), opposite.view()]).expect("both halves have one width");
        Self::tied(both, activation)
    }

    /// Gaussian directions of unit length drawn from `seed`.
    #[must_use]
    pub fn random(n_latents: usize, d_in: usize, activation: Activation, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut directions = Array2::from_shape_simple_fn((n_latents, d_in), || gaussian(&mut rng));
        for mut row in directions.rows_mut() {
            let norm = row.dot(&row).sqrt().max(f32::MIN_POSITIVE);
            row /= norm;
        }
        Self::tied(directions, activation)
    }

    /// Multiplies the decoder by the one factor that minimises the squared error on the rows of `x`: what a dictionary whose
    /// directions were not fitted to reconstruct (random ones) needs before its FVU says anything. Returns the factor.
    pub fn fit_decoder_gain(&mut self, x: ArrayView2<'_, f32>) -> f32 {
        let (mut with_x, mut with_itself) = (0.0_f64, 0.0_f64);
        for chunk in x.axis_chunks_iter(Axis(0), TILE_ROWS) {
            let decoded = self.decode(&self.encode(chunk)) - &self.b_dec;
            for (x_hat, x) in decoded.rows().into_iter().zip(chunk.rows()) {
                for ((x_hat, x), bias) in x_hat.iter().zip(x).zip(&self.b_dec) {
                    with_x += f64::from(*x_hat) * f64::from(x - bias);
                    with_itself += f64::from(*x_hat).powi(2);
                }
            }
        }
        let gain = if with_itself > 0.0 { (with_x / with_itself) as f32 } else { 1.0 };
        self.w_dec.mapv_inplace(|w| w * gain);
        gain
    }

    /// The codes of the latents named (each once) `[rows, latents]`, as they are beside all others.
    ///
    /// # Panics
    /// If there is no such latent, or `x` is not as wide as the dictionary reads.
    #[must_use]
    pub fn encode_latents(&self, x: ArrayView2<'_, f32>, latents: &[usize]) -> Array2<f32> {
        match self.activation {
            // Each latent by itself.
            Activation::Linear | Activation::Relu | Activation::JumpRelu => self.select(latents).encode(x).to_dense(),
            Activation::TopK { .. } => {
                let mut place = vec![None; self.n_latents()];
                for (at, latent) in latents.iter().enumerate() {
                    place[*latent] = Some(at);
                }
                let codes = self.encode(x);
                let mut chosen = Array2::zeros((x.nrows(), latents.len()));
                for (mut row, (active, values)) in chosen.rows_mut().into_iter().zip(codes.rows()) {
                    for (latent, value) in active.iter().zip(values) {
                        if let Some(at) = place[*latent as usize] {
                            row[at] = *value;
                        }
                    }
                }
                chosen
            }
        }
    }

    /// The latents named, in that order. Where latents compete, as in [`Activation::TopK`], their codes are those without the others: see
    /// [`Self::encode_latents`].
    ///
    /// # Panics
    /// If there is no such latent.
    #[must_use]
    pub fn select(&self, latents: &[usize]) -> Self {
        Self {
            w_enc: self.w_enc.select(Axis(0), latents),
            b_enc: self.b_enc.select(Axis(0), latents),
            w_dec: self.w_dec.select(Axis(0), latents),
            b_dec: self.b_dec.clone(),
            activation: self.activation,
            threshold: self.threshold.as_ref().map(|threshold| threshold.select(Axis(0), latents)),
        }
    }

    fn activate(&self, pre: &[f32], row: &mut Vec<(u32, f32)>) {
        row.clear();
        let biased = (0u32..).zip(pre.iter().zip(&self.b_enc).map(|(pre, bias)| pre + bias));
        match self.activation {
            Activation::Linear => row.extend(biased.filter(|(_, c)| *c != 0.0)),
            Activation::Relu | Activation::TopK { .. } => row.extend(biased.filter(|(_, c)| *c > 0.0)),
            Activation::JumpRelu => {
                let threshold = self.threshold.as_ref().expect("JumpReLU has thresholds");
                row.extend(biased.zip(threshold).filter(|((_, c), t)| *c > t.max(0.0)).map(|(entry, _)| entry));
            }
        }
        if let Activation::TopK { k } = self.activation
            && row.len() > k
        {
            if k > 0 {
                row.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            }
            row.truncate(k);
            row.sort_unstable_by_key(|(latent, _)| *latent);
        }
    }
}

impl Dictionary for LinearDictionary {
    fn d_in(&self) -> usize {
        self.w_enc.ncols()
    }

    fn n_latents(&self) -> usize {
        self.w_enc.nrows()
    }

    fn d_out(&self) -> usize {
        self.w_dec.ncols()
    }

    fn encode(&self, x: ArrayView2<'_, f32>) -> Codes {
        assert_eq!(
            x.ncols(),
            self.d_in(),
            "activations {} wide for a dictionary that reads {}",
            x.ncols(),
            self.d_in()
        );
        let n_latents = self.n_latents();
        let mut codes = Codes::new(n_latents);
        let mut pre = vec![0.0; TILE_ROWS.min(x.nrows()) * n_latents];
        let mut rows: Vec<Vec<(u32, f32)>> = vec![Vec::new(); TILE_ROWS];
        for tile in x.axis_chunks_iter(Axis(0), TILE_ROWS) {
            rows_times_rows(tile, &self.w_enc, &mut pre);
            let rows = &mut rows[..tile.nrows()];
            rows.par_iter_mut().enumerate().for_each(|(i, row)| self.activate(&pre[i * n_latents..][..n_latents], row));
            for row in rows {
                codes.push_row(row.iter().copied());
            }
        }
        codes
    }

    fn decode(&self, codes: &Codes) -> Array2<f32> {
        let n_latents = self.n_latents();
        assert_eq!(
            codes.n_latents(),
            n_latents,
            "codes over {} latents for a dictionary of {n_latents}",
            codes.n_latents()
        );
        let mut x_hat = Array2::zeros((codes.n_rows(), self.d_out()));
        x_hat.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(i, mut x_hat)| {
            x_hat.assign(&self.b_dec);
            let (latents, values) = codes.row(i);
            for (latent, value) in latents.iter().zip(values) {
                x_hat.scaled_add(*value, &self.w_dec.row(*latent as usize));
            }
        });
        x_hat
    }
}

/// One draw from N(0, 1) by Box and Muller's transform.
fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    let radius: f64 = 1.0 - rng.random::<f64>();
    let angle = std::f64::consts::TAU * rng.random::<f64>();
    ((-2.0 * radius.ln()).sqrt() * angle.cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(n: usize, d: usize, seed: u64) -> Array2<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Array2::from_shape_simple_fn((n, d), || gaussian(&mut rng))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn top_k_keeps_the_k_largest(seed in 0u64..1000, k in 0usize..14, n in 1usize..300) {
            let x = sample(n, 6, seed);
            let dictionary = LinearDictionary::random(12, 6, Activation::TopK { k }, seed);
            let pre = x.dot(&dictionary.w_enc.t());
            let codes = dictionary.encode(x.view());
            prop_assert_eq!(codes.n_rows(), n);
            for (i, (latents, values)) in codes.rows().enumerate() {
                prop_assert!(latents.len() <= k);
                let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
                let larger_left_out = (0..12u32).filter(|j| !latents.contains(j) && pre[[i, *j as usize]] > smallest + 1e-5).count();
                prop_assert_eq!(larger_left_out, 0);
                if latents.len() < k {
                    prop_assert_eq!(latents.len(), pre.row(i).iter().filter(|p| **p > 0.0).count());
                }
            }
        }

        #[test]
        fn latents_are_encoded_as_among_all(seed in 0u64..1000, k in 1usize..5) {
            let x = sample(20, 5, seed);
            for activation in [Activation::Linear, Activation::Relu, Activation::TopK { k }, Activation::JumpRelu] {
                let mut dictionary = LinearDictionary::random(9, 5, activation, seed);
                dictionary.threshold = (activation == Activation::JumpRelu).then(|| Array1::linspace(-0.5, 1.0, 9));
                let expected = dictionary.encode(x.view()).to_dense().select(Axis(1), &[7, 0, 3]);
                let got = dictionary.encode_latents(x.view(), &[7, 0, 3]);
                prop_assert!((got - expected).iter().all(|e| e.abs() < 1e-6));
            }
        }

        #[test]
        fn a_jump_is_where_both_zero_and_the_threshold_are_exceeded(seed in 0u64..1000) {
            let x = sample(20, 5, seed);
            let mut dictionary = LinearDictionary::random(9, 5, Activation::JumpRelu, seed);
            let threshold = Array1::linspace(-0.5, 1.0, 9);
            dictionary.threshold = Some(threshold.clone());
            let codes = dictionary.encode(x.view()).to_dense();
            let mut pre = x.dot(&dictionary.w_enc.t());
            for mut row in pre.rows_mut() {
                row.zip_mut_with(&threshold, |pre, t| *pre = if *pre > *t && *pre > 0.0 { *pre } else { 0.0 });
            }
            prop_assert!((codes - pre).iter().all(|e| e.abs() < 1e-5));
        }

        #[test]
        fn decoding_is_the_affine_map(seed in 0u64..1000) {
            let x = sample(20, 5, seed);
            let mut dictionary = LinearDictionary::random(9, 5, Activation::Relu, seed);
            dictionary.b_enc = sample(1, 9, seed + 1).row(0).to_owned();
            dictionary.b_dec = sample(1, 5, seed + 2).row(0).to_owned();
            let dense = (x.dot(&dictionary.w_enc.t()) + &dictionary.b_enc).mapv(|v| v.max(0.0));
            let expected = dense.dot(&dictionary.w_dec) + &dictionary.b_dec;
            let got = dictionary.decode(&dictionary.encode(x.view()));
            prop_assert!((got - expected).iter().all(|e| e.abs() < 1e-4));
        }
    }

    #[test]
    fn the_positive_and_the_signed_identity_reconstruct_exactly() {
        let x = sample(50, 7, 1);
        for dictionary in [LinearDictionary::identity(7), LinearDictionary::identity_positive(7)] {
            assert_eq!(dictionary.decode(&dictionary.encode(x.view())), x);
        }
    }

    #[test]
    fn the_fitted_gain_is_a_minimum() {
        let x = sample(400, 8, 3);
        let mut dictionary = LinearDictionary::random(32, 8, Activation::Relu, 4);
        dictionary.fit_decoder_gain(x.view());
        let error = |d: &LinearDictionary| (d.decode(&d.encode(x.view())) - &x).mapv(|e| e * e).sum();
        let best = error(&dictionary);
        for factor in [0.95, 1.05] {
            let mut other = dictionary.clone();
            other.w_dec *= factor;
            assert!(error(&other) > best);
        }
    }

    #[test]
    fn gaussian_draws_have_mean_zero_and_unit_variance() {
        let draws = sample(1, 100_000, 5);
        let mean = draws.mean().unwrap();
        let variance = draws.mapv(|v| (v - mean).powi(2)).mean().unwrap();
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
