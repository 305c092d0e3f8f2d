//! One autoencoder in training, of whatever family: the step.

use std::sync::{Arc, Mutex, PoisonError};

use monosem_bf16::Precision;
use monosem_dictionary::LinearDictionary;
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::adam::AdamStep;
use crate::dense::Passed;
use crate::encode::{Encoder, Rounded, Search, TILE_ROWS};
use crate::family::Selection;
use crate::forward::{self, Batch, Work};
use crate::parameters::Parameters;
use crate::progress::first_decoder_bias;
use crate::resample::{LastBatch, resample};
use crate::tile::{Auxiliary, Factors, Gathered, Reconstruction, Tile, TileSums};
use crate::update::{Move, Source, Sparse, bias_gradient};
use crate::{
    AuxK, BatchSums, ConfigError, Device, Progress, Spaces, StepError, StepParams, StepStats, TrainConfig, TrainState,
    TrainStep, Trainer,
};

/// The dense path takes over where more than this share of the codes (in percent) was active in the step before: about where the two
/// take the same time.
const DENSE_FROM_PERCENT: u64 = 15;

/// It also takes over from this many entries in a batch, which bounds the memory that their lists take.
const MOST_ENTRIES: f64 = 1_048_576.0;

/// The search for the largest codes of a row begins with this share of the smallest limit of a row in the step before, relative to its size.
const ROW_HINT: f32 = 0.8;

/// Which of the two ways a step goes; the weights they lead to differ by rounding only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StepPath {
    /// The faster one, by the density of the codes in the step before.
    #[default]
    Adaptive,
    /// Lists of active codes.
    Sparse,
    /// Products of blocks; for families that choose the largest codes the same as [`Self::Sparse`].
    Dense,
}

/// A sparse autoencoder in training, on the CPU.
pub struct Sae {
    pub(crate) config: TrainConfig,
    pub(crate) spaces: Spaces,
    pub(crate) progress: Progress,
    pub(crate) parameters: Parameters,
    path: StepPath,
    buffers: Buffers,
    /// Where the buffers are between steps, when members of an ensemble use the same.
    shared: Option<Arc<Mutex<Buffers>>>,
    /// The figures of a step that was launched.
    launched: Option<StepStats>,
}

/// Reused from step to step, and by all members of an ensemble.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// What the encoder reads `[rows, d_in]`.
    x: Vec<f32>,
    /// What is reconstructed `[rows, d_out]`, where it is not `x`.
    target: Vec<f32>,
    /// Its residuals times `2 / (rows d)` `[rows, prefixes, d_out]`.
    r: Vec<f32>,
    /// Those of a second reconstruction, in the dense path, and of dead latents.
    other_r: Vec<f32>,
    tiles: Vec<Tile>,
    /// The rows of the encoder in bf16, where it is computed in that.
    rounded: Rounded,
    /// What each latent's pre-activations have to exceed.
    floor: Vec<f32>,
    /// Values among which the largest of a batch are chosen.
    values: Vec<f32>,
    dead: Gathered,
}

impl Buffers {
    fn bytes(&self) -> usize {
        let floats = [&self.x, &self.target, &self.r, &self.other_r, &self.floor, &self.values];
        let floats: usize = floats.into_iter().map(Vec::capacity).sum();
        4 * floats + self.rounded.bytes() + self.dead.bytes() + self.tiles.iter().map(Tile::bytes).sum::<usize>()
    }
}

impl Sae {
    /// Untrained, drawn from the seed.
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn new(config: TrainConfig, spaces: Spaces) -> Result<Self, ConfigError> {
        spaces.validate(&config.family)?;
        config.validate(spaces.input.d.max(spaces.output().d))?;
        let parameters = Parameters::new(&config, spaces);
        Ok(Self::assemble(config, spaces, parameters, Progress::default()))
    }

    pub(crate) fn assemble(config: TrainConfig, spaces: Spaces, parameters: Parameters, progress: Progress) -> Self {
        Self {
            config,
            spaces,
            progress,
            parameters,
            path: StepPath::Adaptive,
            buffers: Buffers::default(),
            shared: None,
            launched: None,
        }
    }

    /// The settings it was made with.
    #[must_use]
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// What it reads and reconstructs.
    #[must_use]
    pub fn spaces(&self) -> Spaces {
        self.spaces
    }

    /// Steps taken since the weights were drawn.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        self.progress.steps_done
    }

    /// Forces one of the two paths; for tests and measurements.
    pub fn set_path(&mut self, path: StepPath) {
        self.path = path;
    }

    /// Bytes of weights and moments.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        self.parameters.bytes()
    }

    /// Bytes of weights, moments and the buffers of the last step (not counting the small ones that each thread keeps).
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parameters.bytes() + self.buffers.bytes()
    }

    /// The dictionary learned so far, in the units of the raw activations.
    #[must_use]
    pub fn dictionary(&self) -> LinearDictionary {
        let mut parameters = self.parameters.clone();
        let formula = self.config.family.formula();
        parameters.derive(formula);
        parameters.dictionary(formula, self.spaces, self.progress.threshold)
    }

    fn is_dense(&self, selection: Selection, rows: usize) -> bool {
        let thresholds = selection == Selection::Threshold;
        let Progress { last_rows, last_entries, .. } = self.progress;
        thresholds
            && match self.path {
                StepPath::Sparse => false,
                StepPath::Dense => true,
                // Before the first step nothing is known; about half the latents are active then.
                StepPath::Adaptive => {
                    let all = last_rows * self.parameters.n_latents() as u64;
                    let expected = last_entries as f64 * rows as f64 / (last_rows as f64).max(1.0);
                    last_entries * 100 >= all * DENSE_FROM_PERCENT || expected > MOST_ENTRIES
                }
            }
    }

    /// Loads the batch and, in the dense path, reconstructs it; in the sparse one the tiles have their entries after it. Returns the smallest code chosen from
    /// the whole batch, or the smallest limit of a row.
    fn forward(
        &mut self,
        input: ArrayView2<'_, f32>,
        targets: Option<ArrayView2<'_, f32>>,
        factors: Factors,
        dense: bool,
    ) -> f32 {
        let Self { parameters, buffers, spaces, config, progress, .. } = self;
        let formula = config.family.formula();
        let (layout, weights, prefixes) = (parameters.layout, parameters.weights(), formula.prefixes());
        let (rows, d_in, d_out) = (input.nrows(), parameters.d_in, parameters.d_out);
        let stride = d_out * prefixes.len().max(1);
        let in_bf16 = config.precision == Precision::Bf16 && !dense;
        if in_bf16 {
            buffers.rounded.set(weights.enc, d_in);
        }
        let Buffers { x, target, r, other_r, tiles, rounded, floor, values, .. } = buffers;
        floor.clear();
        floor.extend((0..parameters.n_latents()).map(|j| formula.floor(weights.of, j)));
        x.resize(rows * d_in, 0.0);
        target.resize(if targets.is_some() { rows * d_out } else { 0 }, 0.0);
        r.resize(rows * stride, 0.0);
        other_r.resize(if dense && layout.second_reconstruction { rows * d_out } else { 0 }, 0.0);
        tiles.resize_with(rows.div_ceil(TILE_ROWS), Tile::default);

        let selection = formula.selection();
        let encoder = Encoder {
            weights,
            threshold: floor,
            length: &parameters.length,
            rounded: in_bf16.then_some(&*rounded),
            search: forward::search(selection),
            hint: progress.last_choice * ROW_HINT,
        };
        let by = Reconstruction { weights, formula, factors, prefixes };
        let center = layout.subtract_decoder_bias.then_some(parameters.b_dec.value.as_slice());
        let batch = Batch { input, target: targets, spaces: *spaces, center };
        let mut works = Work::cut(tiles, [x, target, r, other_r], [d_in, d_out, stride]);
        match selection {
            _ if dense => {
                forward::dense(&mut works, batch, by, floor);
                0.0
            }
            Selection::BatchTopK(k) => {
                forward::together(&mut works, batch, encoder, by, (k, progress.last_choice, values))
            }
            Selection::Threshold | Selection::TopK(_) => forward::one_by_one(&mut works, batch, &encoder, by),
        }
    }

    /// Lets dead latents reconstruct what is left over; `residual` is what residuals are multiplied by, `whole` what they would be with one prefix.
    fn auxiliary(&mut self, AuxK { k, coefficient }: AuxK, residual: f32, whole: f32) {
        let Self { parameters, buffers, config, progress, .. } = self;
        let some = progress.dead_of_step(config, parameters.silent.iter().copied());
        let (d_in, d_out) = (parameters.d_in, parameters.d_out);
        let Buffers { x, r, other_r, tiles, dead, .. } = buffers;
        dead.set(some.into_iter().map(|j| j as usize), parameters.weights(), &parameters.length);
        if dead.latents.is_empty() {
            return;
        }
        let stride = d_out * config.family.formula().prefixes().len().max(1);
        other_r.resize(x.len() / d_in * d_out, 0.0);
        let weights = dead.weights(d_in, d_out);
        let (threshold, length) = (&dead.threshold, &dead.length);
        let encoder = Encoder { weights, threshold, length, rounded: None, search: Search::Largest(k), hint: 0.0 };
        let by = Auxiliary { stride, residual, factor: whole * coefficient };
        tiles
            .par_iter_mut()
            .zip(x.par_chunks(TILE_ROWS * d_in))
            .zip(r.par_chunks(TILE_ROWS * stride).zip(other_r.par_chunks_mut(TILE_ROWS * d_out)))
            .for_each(|((tile, x), (r, aux_r))| {
                forward::choose_dead(tile, x, &encoder, k);
                tile.run_aux(r, aux_r, weights, by);
            });
    }

    /// Starts the latents anew that were silent for [`TrainConfig::dead_after_steps`], from rows of the batch of the last step; see
    /// [`TrainConfig::resample_every`].
    ///
    /// # Panics
    /// If the rows are not as wide as what is read and reconstructed.
    pub fn resample(&mut self, batch: LastBatch<'_>) {
        let (d_in, d_out) = (self.parameters.d_in, self.parameters.d_out);
        let rows = batch.x.len() / d_in;
        let lengths = [batch.x.len(), batch.target.len(), batch.residuals.len()];
        assert_eq!(lengths, [rows * d_in, rows * d_out, rows * d_out], "[x, target, residuals] of {rows} rows");
        let seed = self.config.seed ^ self.progress.steps_done.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        resample(&mut self.parameters, self.config.family.formula(), batch, self.config.dead_after_steps, seed);
    }
}

impl Sae {
    /// Takes a step in its own buffers.
    fn take_step(
        &mut self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
        schedule: StepParams,
    ) -> Result<StepStats, StepError> {
        let (rows, d) = (input.nrows(), self.parameters.d_out);
        assert_eq!(input.ncols(), self.parameters.d_in, "a batch {} wide for {:?}", input.ncols(), self.spaces.input);
        assert!(rows > 0, "a batch without rows");
        assert_eq!(target.map(|t| t.dim()), self.spaces.target.map(|t| (rows, t.d)), "what has to be reconstructed");
        let (step, lr, formula) = (self.progress.steps_done, schedule.lr, self.config.family.clone());
        let formula = formula.formula();
        let has_bias = self.parameters.layout.decoder_bias;
        if step == 0
            && has_bias
            && let Some(bias) = first_decoder_bias(self.spaces, target.unwrap_or(input))
        {
            self.parameters.b_dec.value = bias;
        }
        self.parameters.derive(formula);
        let n_prefixes = formula.prefixes().len().max(1);
        let whole = (2.0 / (rows * d) as f64) as f32;
        let factors =
            Factors { residual: whole / n_prefixes as f32, penalty: (f64::from(schedule.alpha) / rows as f64) as f32 };
        let dense = self.is_dense(formula.selection(), rows);
        let chosen = self.forward(input, target, factors, dense);
        let tiles = &self.buffers.tiles;
        let bad = tiles.iter().enumerate().find_map(|(t, tile)| Some(t * TILE_ROWS + tile.sums.bad_row?));
        if let Some(row) = bad {
            if step == 0 {
                self.parameters.b_dec.value.fill(0.0);
            }
            return Err(StepError::NotFinite { step, row });
        }
        self.buffers.dead.latents.clear();
        if let Some(aux) = self.config.aux_k {
            self.auxiliary(aux, factors.residual, whole);
        }
        let sums = self.buffers.tiles.iter().map(|tile| &tile.sums);
        let coefficient = self.config.aux_k.map_or(0.0, |aux| aux.coefficient);
        let (mut stats, entries) = summarise(sums, rows, d, schedule.alpha, coefficient);
        self.progress.check(&stats, lr)?;

        let Buffers { x, r, other_r, tiles, dead, .. } = &self.buffers;
        let prefixes = formula.prefixes();
        let source = if dense {
            Source::Dense(Passed { x, r, second_r: other_r, factors })
        } else {
            Source::Sparse(Sparse { tiles, x, r, prefixes, dead: &dead.latents, aux_r: other_r })
        };
        let moves = Move {
            formula,
            adam: AdamStep::new(self.config.adam, lr, step),
            clip_norm: self.config.clip_norm,
            project_decoder: self.config.project_decoder_gradient,
        };
        let of_bias =
            if self.parameters.layout.decoder_bias { bias_gradient(r, n_prefixes * d, d) } else { Vec::new() };
        if !self.parameters.update(source, moves, of_bias) {
            return Err(StepError::Diverged { step, what: "a weight is not finite", lr });
        }

        self.progress.advance(&stats, rows, entries, chosen, formula.selection());
        let after = self.config.dead_after_steps;
        stats.dead = self.parameters.silent.iter().filter(|silent| u64::from(**silent) >= after).count();
        if self.progress.resamples(&self.config, &stats)? {
            let buffers = std::mem::take(&mut self.buffers);
            let target = if buffers.target.is_empty() { &buffers.x } else { &buffers.target };
            self.resample(LastBatch { x: &buffers.x, target, residuals: &buffers.r });
            self.buffers = buffers;
        }
        Ok(stats)
    }

    /// Exchanges the buffers with those of the ensemble, if there is one.
    fn swap_buffers(&mut self) {
        if let Some(shared) = &self.shared {
            // A panic in another member's step leaves buffers that the next step fills anew.
            std::mem::swap(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner), &mut self.buffers);
        }
    }
}

impl TrainStep for Sae {
    fn step(
        &mut self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
        schedule: StepParams,
    ) -> Result<StepStats, StepError> {
        self.swap_buffers();
        let stats = self.take_step(input, target, schedule);
        self.swap_buffers();
        stats
    }

    fn state(&self) -> Result<TrainState, StepError> {
        Ok(TrainState::of(self))
    }
}

impl Trainer for Sae {
    fn config(&self) -> &TrainConfig {
        &self.config
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn progress_mut(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn dictionary(&self) -> Result<LinearDictionary, StepError> {
        Ok(Self::dictionary(self))
    }

    fn launch(
        &mut self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
        schedule: StepParams,
    ) -> Result<(), StepError> {
        self.launched = Some(self.step(input, target, schedule)?);
        Ok(())
    }

    fn finish(&mut self) -> Result<StepStats, StepError> {
        Ok(self.launched.take().expect("a step was launched"))
    }

    fn into_sae(self: Box<Self>) -> Result<Sae, StepError> {
        Ok(*self)
    }
}

/// The processor that this program runs on.
#[derive(Debug, Default)]
pub struct Cpu {
    buffers: Arc<Mutex<Buffers>>,
}

impl Device for Cpu {
    fn bring(&mut self, sae: Sae) -> Result<Box<dyn Trainer>, StepError> {
        Ok(Box::new(Sae { shared: Some(Arc::clone(&self.buffers)), ..sae }))
    }
}

/// Sums over tiles, in their order, to the figures of the step and the number of entries.
fn summarise<'a>(
    sums: impl Iterator<Item = &'a TileSums>,
    rows: usize,
    d: usize,
    alpha: f32,
    coefficient: f32,
) -> (StepStats, u64) {
    let (mut all, mut entries) = (BatchSums::default(), 0);
    let mut columns = vec![0.0_f64; d];
    for sums in sums {
        all.squared_error += sums.squared_error;
        all.objective += sums.objective;
        all.penalty += sums.penalty;
        all.codes += sums.codes;
        all.active += sums.active;
        all.squares += sums.squares;
        all.aux_error += sums.aux_error;
        entries += sums.entries;
        columns.iter_mut().zip(&sums.columns).for_each(|(total, column)| *total += f64::from(*column));
    }
    all.column_squares = columns.iter().map(|c| c * c).sum();
    (all.stats(rows, d, alpha, coefficient), entries)
}
