//! The tied ReLU-L1 autoencoder of "Sparse Autoencoders Find Highly Interpretable Features in Language Models"
//! (arXiv 2309.08600, section 2): unit directions `D = E / max(|E_row|, 1e-8)`, differentiated through; codes `c = ReLU(D x + b)`;
//! reconstruction `x_hat = Dᵀ c`, without a decoder bias.

use std::collections::BTreeMap;

use monosem_bf16::{Precision, Rows};
use monosem_dictionary::{Activation, LinearDictionary};
use ndarray::{Array1, Array2, ArrayD, ArrayView2, Axis};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::adam::AdamStep;
use crate::latents::Latents;
use crate::tile::{Factors, TILE_ROWS, Tile, TileSums};
use crate::{ConfigError, StepError, StepParams, StepStats, TrainConfig, TrainState, TrainStep, dense};

const FAMILY: &str = "tied";

/// The names of the tensors in a [`TrainState`]: weights, first and second moments; then the same of the biases.
const MATRICES: [&str; 3] = ["w", "w_m", "w_v"];
const BIASES: [&str; 3] = ["b", "b_m", "b_v"];

/// Counters in a [`TrainState`]: rows of the last batch and its active codes, which choose the path of the next step.
const COUNTERS: [&str; 2] = ["last_rows", "last_active"];

/// The dense path takes over where more than this share of the codes (in percent) was active in the step before: about where the two
/// take the same time.
const DENSE_FROM_PERCENT: u64 = 15;

/// Which of the two ways a step goes; the weights they lead to differ by rounding only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StepPath {
    /// The faster one, by the density of the codes in the step before.
    #[default]
    Adaptive,
    /// Lists of active codes.
    Sparse,
    /// Products of blocks.
    Dense,
}

/// A tied sparse autoencoder in training, on the CPU.
pub struct TiedSae {
    config: TrainConfig,
    input_scale: f32,
    steps_done: u64,
    last_rows: u64,
    last_active: u64,
    latents: Latents,
    path: StepPath,
    buffers: Buffers,
}

/// Reused from step to step.
#[derive(Default)]
struct Buffers {
    /// The scaled batch `[rows, d]`.
    x: Vec<f32>,
    /// Its residuals times `2 / (rows d)`.
    r: Vec<f32>,
    tiles: Vec<Tile>,
    /// The rows of the encoder in bf16, where it is computed in that.
    rounded: Rows,
}

impl TiedSae {
    /// Untrained: Xavier-uniform rows drawn from the seed, biases 0. Activations are multiplied by `input_scale` before anything else (choose it
    /// so that their mean square over dimensions is 1; then one `alpha` means the same everywhere).
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn new(config: TrainConfig, d_in: usize, input_scale: f32) -> Result<Self, ConfigError> {
        config.validate(d_in)?;
        let (n, d) = (config.n_latents, d_in);
        let bound = (6.0 / (n + d) as f64).sqrt() as f32;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let w = (0..n * d).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect();
        let latents = Latents::new(d, [w, vec![0.0; n * d], vec![0.0; n * d]], std::array::from_fn(|_| vec![0.0; n]));
        Self::assemble(config, input_scale, latents)
    }

    /// Goes on from a state that [`TrainStep::state`] gave, perhaps in another process.
    ///
    /// # Errors
    /// If the state is of another family, or a tensor or counter is missing or of another shape than the settings say.
    pub fn from_state(state: TrainState) -> Result<Self, ConfigError> {
        let TrainState { family, config, d_in, input_scale, step, counters, mut tensors } = state;
        config.validate(d_in)?;
        let error = |key, problem| ConfigError { key, problem };
        if family != FAMILY {
            return Err(error("family", format!("is {family:?}, expected {FAMILY:?}")));
        }
        let mut take = |name: &'static str, shape: &[usize]| {
            let tensor = tensors.remove(name).ok_or_else(|| error(name, "is not in the state".into()))?;
            if tensor.shape() != shape {
                return Err(error(name, format!("is {:?}, expected {shape:?}", tensor.shape())));
            }
            if !tensor.iter().all(|v| v.is_finite()) {
                return Err(error(name, "holds a value that is not finite".into()));
            }
            Ok(tensor.iter().copied().collect::<Vec<f32>>())
        };
        let (n, d) = (config.n_latents, d_in);
        let [w, w_m, w_v] = MATRICES.map(|name| take(name, &[n, d]));
        let [b, b_m, b_v] = BIASES.map(|name| take(name, &[n]));
        let latents = Latents::new(d, [w?, w_m?, w_v?], [b?, b_m?, b_v?]);
        let count =
            |key: &'static str| counters.get(key).copied().ok_or_else(|| error(key, "is not in the state".into()));
        let [last_rows, last_active] = [count(COUNTERS[0])?, count(COUNTERS[1])?];
        Ok(Self { steps_done: step, last_rows, last_active, ..Self::assemble(config, input_scale, latents)? })
    }

    fn assemble(config: TrainConfig, input_scale: f32, latents: Latents) -> Result<Self, ConfigError> {
        if !(input_scale.is_finite() && input_scale > 0.0) {
            let problem = format!("is {input_scale}, expected a number above 0");
            return Err(ConfigError { key: "input_scale", problem });
        }
        Ok(Self {
            config,
            input_scale,
            steps_done: 0,
            last_rows: 0,
            last_active: 0,
            latents,
            path: StepPath::Adaptive,
            buffers: Buffers::default(),
        })
    }

    /// The settings it was made with.
    #[must_use]
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Width of the activations.
    #[must_use]
    pub fn d_in(&self) -> usize {
        self.latents.d
    }

    /// The factor on activations.
    #[must_use]
    pub fn input_scale(&self) -> f32 {
        self.input_scale
    }

    /// Steps taken since the weights were drawn.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// Forces one of the two paths; for tests and measurements.
    pub fn set_path(&mut self, path: StepPath) {
        self.path = path;
    }

    /// Bytes of weights, moments and the buffers of the last step (not counting the small ones that each thread keeps).
    #[must_use]
    pub fn bytes(&self) -> usize {
        let latents = 4 * (3 * self.latents.w.len() + 4 * self.latents.b.len());
        let Buffers { x, r, tiles, rounded } = &self.buffers;
        latents + rounded.bytes() + 4 * (x.capacity() + r.capacity()) + tiles.iter().map(Tile::bytes).sum::<usize>()
    }

    /// The dictionary learned so far: unit rows `D` on both sides, codes `ReLU(D x + b)` in the units of the raw activations. The input scale s
    /// is folded into the bias, `b / s`, since `ReLU(s z) = s ReLU(z)`.
    #[must_use]
    pub fn dictionary(&self) -> LinearDictionary {
        let Latents { d, w, b, scale, .. } = &self.latents;
        let directions = Array2::from_shape_fn((b.len(), *d), |(j, k)| w[j * d + k] * scale[j]);
        let mut dictionary = LinearDictionary::tied(directions, Activation::Relu);
        dictionary.b_enc = b.iter().map(|b| b / self.input_scale).collect::<Array1<f32>>();
        dictionary
    }

    fn is_dense(&self) -> bool {
        match self.path {
            StepPath::Sparse => false,
            StepPath::Dense => true,
            // Before the first step nothing is known; about half the latents are active then.
            StepPath::Adaptive => {
                let all = self.last_rows * self.latents.b.len() as u64;
                self.last_active * 100 >= all * DENSE_FROM_PERCENT
            }
        }
    }

    /// Loads the batch and computes residuals, and for the sparse path the entries of each latent.
    fn forward(&mut self, batch: ArrayView2<'_, f32>, factors: Factors, dense: bool) {
        let (rows, d) = batch.dim();
        let Buffers { x, r, tiles, rounded } = &mut self.buffers;
        let in_bf16 = self.config.precision == Precision::Bf16 && !dense;
        if in_bf16 {
            rounded.par_set(&self.latents.w, d);
        }
        let rounded = in_bf16.then_some(&*rounded);
        x.resize(rows * d, 0.0);
        r.resize(rows * d, 0.0);
        tiles.resize_with(rows.div_ceil(TILE_ROWS), Tile::default);
        let (directions, scale) = (self.latents.directions(), self.input_scale);
        tiles
            .par_iter_mut()
            .zip(batch.axis_chunks_iter(Axis(0), TILE_ROWS).into_par_iter())
            .zip(x.par_chunks_mut(TILE_ROWS * d).zip(r.par_chunks_mut(TILE_ROWS * d)))
            .for_each(|((tile, batch), (x, r))| {
                tile.load(batch, scale, x);
                if tile.sums.bad_row.is_none() {
                    if dense {
                        dense::forward(x, r, directions, factors, &mut tile.sums);
                    } else {
                        tile.run(x, r, directions, rounded, factors);
                    }
                }
            });
    }
}

impl TrainStep for TiedSae {
    fn step(&mut self, batch: ArrayView2<'_, f32>, schedule: StepParams) -> Result<StepStats, StepError> {
        let (rows, d) = batch.dim();
        assert_eq!(d, self.latents.d, "a batch {d} wide for an autoencoder that reads {}", self.latents.d);
        assert!(rows > 0, "a batch without rows");
        let (step, lr) = (self.steps_done, schedule.lr);
        let factors = Factors {
            residual: (2.0 / (rows * d) as f64) as f32,
            code: (f64::from(schedule.alpha) / rows as f64) as f32,
        };
        let dense = self.is_dense();
        self.forward(batch, factors, dense);

        let tiles = &self.buffers.tiles;
        let bad = tiles.iter().enumerate().find_map(|(t, tile)| Some(t * TILE_ROWS + tile.sums.bad_row?));
        if let Some(row) = bad {
            return Err(StepError::NotFinite { step, row });
        }
        let (stats, active) = summarise(tiles.iter().map(|tile| &tile.sums), rows, d, schedule.alpha);
        if !(stats.loss.is_finite()) {
            return Err(StepError::Diverged { step, what: "the loss", lr });
        }

        let adam = AdamStep::new(self.config.adam, lr, step);
        let Buffers { x, r, tiles, .. } = &self.buffers;
        let finite = if dense {
            self.latents.update_dense(x, r, factors, adam)
        } else {
            self.latents.update_sparse(tiles, x, r, adam)
        };
        if !finite {
            return Err(StepError::Diverged { step, what: "a weight", lr });
        }
        self.steps_done += 1;
        (self.last_rows, self.last_active) = (rows as u64, active);
        Ok(stats)
    }

    fn state(&self) -> Result<TrainState, StepError> {
        let Latents { d, w, w_m, w_v, b, b_m, b_v, .. } = &self.latents;
        let n = b.len();
        let tensor = |shape: &[usize], values: &Vec<f32>| {
            ArrayD::from_shape_vec(shape, values.clone()).expect("the length is that of the shape")
        };
        let mut tensors = BTreeMap::new();
        for (name, values) in MATRICES.iter().zip([w, w_m, w_v]) {
            tensors.insert((*name).to_owned(), tensor(&[n, *d], values));
        }
        for (name, values) in BIASES.iter().zip([b, b_m, b_v]) {
            tensors.insert((*name).to_owned(), tensor(&[n], values));
        }
        let counters = COUNTERS.iter().map(|name| (*name).to_owned()).zip([self.last_rows, self.last_active]).collect();
        Ok(TrainState {
            family: FAMILY.into(),
            config: self.config.clone(),
            d_in: *d,
            input_scale: self.input_scale,
            step: self.steps_done,
            counters,
            tensors,
        })
    }
}

/// Sums over tiles, in their order, to the figures of the step and the number of active codes.
fn summarise<'a>(sums: impl Iterator<Item = &'a TileSums>, rows: usize, d: usize, alpha: f32) -> (StepStats, u64) {
    let (mut error, mut codes, mut active, mut squares) = (0.0, 0.0, 0, 0.0);
    let mut columns = vec![0.0_f64; d];
    for sums in sums {
        error += sums.squared_error;
        codes += sums.codes;
        active += sums.active;
        squares += sums.squares;
        columns.iter_mut().zip(&sums.columns).for_each(|(total, column)| *total += f64::from(*column));
    }
    let n = rows as f64;
    let mse = error / (n * d as f64);
    let deviation = squares - columns.iter().map(|c| c * c).sum::<f64>() / n;
    let fvu = if deviation > 0.0 { error / deviation } else { 0.0 };
    let l1 = codes / n;
    let stats = StepStats {
        loss: (mse + f64::from(alpha) * l1) as f32,
        mse: mse as f32,
        l1: l1 as f32,
        l0: (active as f64 / n) as f32,
        fvu_batch: fvu as f32,
    };
    (stats, active)
}
