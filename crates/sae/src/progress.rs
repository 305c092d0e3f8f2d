//! What a step leaves for the next one besides the parameters, and what follows from the figures of a step: the same for trainers on every device.

use std::collections::BTreeMap;

use ndarray::{ArrayView2, Axis};

use crate::family::{REMEMBERED, Selection};
use crate::{ConfigError, EarlyStopping, Spaces, StepError, StepStats, TrainConfig};

/// A reconstruction so much worse than none, and than the first one, means that training has diverged.
const DIVERGED_FVU: f32 = 100.0;

/// Most dead latents that the auxiliary loss looks at in one step; of more, each step takes the next ones.
const MOST_DEAD: usize = 4096;

/// Numbers that one step leaves for the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub steps_done: u64,
    /// Rows of the last batch.
    pub last_rows: u64,
    /// Pre-activations of it that counted, whether or not they gave a code.
    pub last_entries: u64,
    /// FVU of the first batch.
    pub first_fvu: f32,
    /// What the search for the largest codes begins with: of a batch the smallest code that was chosen from the last one, of rows the smallest limit of a row
    /// relative to its root mean square.
    pub last_choice: f32,
    /// For families that choose from a batch, a running mean of [`Self::last_choice`].
    pub threshold: f32,
    /// The lowest FVU measured on held-out rows.
    pub best_fvu: f32,
    /// Measurements since then.
    pub since_best: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            steps_done: 0,
            last_rows: 0,
            last_entries: 0,
            first_fvu: 0.0,
            last_choice: 0.0,
            threshold: 0.0,
            best_fvu: f32::INFINITY,
            since_best: 0,
        }
    }
}

impl Progress {
    /// By name, those of `f32` as their bits: the counters of a [`crate::TrainState`].
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let bits = |value: f32| u64::from(value.to_bits());
        let counters = [
            ("last_rows", self.last_rows),
            ("last_entries", self.last_entries),
            ("first_fvu", bits(self.first_fvu)),
            ("last_choice", bits(self.last_choice)),
            ("threshold", bits(self.threshold)),
            ("best_fvu", bits(self.best_fvu)),
            ("since_best", self.since_best),
        ];
        counters.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// From counters.
    ///
    /// # Errors
    /// If one is missing or is not what it should be.
    pub fn from_counters(steps_done: u64, counters: &BTreeMap<String, u64>) -> Result<Self, ConfigError> {
        let error = |key: &str, problem: &str| ConfigError { key: "state", problem: format!("{key:?} {problem}") };
        let count = |name: &str| counters.get(name).copied().ok_or_else(|| error(name, "is missing"));
        let value = |name: &str| {
            let bits = u32::try_from(count(name)?).map_err(|_| error(name, "is not the bits of an f32"))?;
            Ok::<_, ConfigError>(f32::from_bits(bits))
        };
        Ok(Self {
            steps_done,
            last_rows: count("last_rows")?,
            last_entries: count("last_entries")?,
            first_fvu: value("first_fvu")?,
            last_choice: value("last_choice")?,
            threshold: value("threshold")?,
            best_fvu: value("best_fvu")?,
            since_best: count("since_best")?,
        })
    }

    /// The largest FVU of a batch that does not mean that training has diverged.
    #[must_use]
    pub fn worst_fvu(&self) -> f32 {
        if self.steps_done > 0 { DIVERGED_FVU * self.first_fvu.max(1.0) } else { f32::INFINITY }
    }

    /// Whether a step with such figures, of weights that have not moved yet, may be taken.
    ///
    /// # Errors
    /// If training has diverged.
    pub fn check(&self, stats: &StepStats, lr: f32) -> Result<(), StepError> {
        let step = self.steps_done;
        if !stats.loss.is_finite() {
            return Err(StepError::Diverged { step, what: "the loss is not finite", lr });
        }
        if stats.fvu_batch > self.worst_fvu() {
            let what = "the reconstruction is a hundred times worse than at the first step";
            return Err(StepError::Diverged { step, what, lr });
        }
        Ok(())
    }

    /// Counts a step that was taken. `chosen` is the next [`Self::last_choice`].
    pub fn advance(&mut self, stats: &StepStats, rows: usize, entries: u64, chosen: f32, selection: Selection) {
        if self.steps_done == 0 {
            self.first_fvu = stats.fvu_batch;
        }
        self.steps_done += 1;
        (self.last_rows, self.last_entries) = (rows as u64, entries);
        self.last_choice = chosen;
        if let Selection::BatchTopK(_) = selection {
            let share = (1.0 / self.steps_done as f32).max(1.0 / REMEMBERED);
            self.threshold += (chosen - self.threshold) * share;
        }
    }

    /// Notes an FVU on held-out rows.
    pub fn measured(&mut self, fvu: f32, by: EarlyStopping) {
        if fvu < self.best_fvu * (1.0 - by.min_improvement) {
            (self.best_fvu, self.since_best) = (fvu, 0);
        } else {
            self.since_best += 1;
        }
    }

    /// The dead latents, ascending, that the auxiliary loss of the next step looks at, from the steps since each latent was active.
    #[must_use]
    pub fn dead_of_step(&self, config: &TrainConfig, silent: impl Iterator<Item = u32>) -> Vec<u32> {
        let is_dead = |(_, silent): &(u32, u32)| u64::from(*silent) >= config.dead_after_steps;
        let all: Vec<u32> = (0..).zip(silent).filter(is_dead).map(|(j, _)| j).collect();
        let first = (self.steps_done as usize).wrapping_mul(MOST_DEAD) % all.len().max(1);
        let mut some: Vec<u32> = all.iter().cycle().skip(first).take(all.len().min(MOST_DEAD)).copied().collect();
        some.sort_unstable();
        some
    }

    /// Whether dead latents begin anew after the next step, if it can be taken.
    #[must_use]
    pub fn may_resample_next(&self, config: &TrainConfig) -> bool {
        let (done, every) = (self.steps_done + 1, config.resample_every);
        every > 0 && done.is_multiple_of(every) && done <= config.steps / 2
    }

    /// After a step that was taken: whether dead latents begin anew now.
    ///
    /// # Errors
    /// If all latents are dead and nothing brings them back any more.
    pub fn resamples(&self, config: &TrainConfig, stats: &StepStats) -> Result<bool, StepError> {
        let step = self.steps_done.saturating_sub(1);
        if (Self { steps_done: step, ..*self }).may_resample_next(config) {
            return Ok(true);
        }
        let later = config.resample_every > 0 && self.steps_done <= config.steps / 2;
        if stats.dead == config.n_latents && config.aux_k.is_none() && !later {
            return Err(StepError::AllDead { step, after: config.dead_after_steps });
        }
        Ok(false)
    }
}

/// Sums over the rows of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BatchSums {
    /// Of `(x_hat - x)^2`.
    pub squared_error: f64,
    /// The same of all reconstructions that the loss counts, in units of one.
    pub objective: f64,
    /// Of the family's penalty.
    pub penalty: f64,
    /// Of codes.
    pub codes: f64,
    /// Active codes.
    pub active: u64,
    /// Of `x^2`.
    pub squares: f64,
    /// Squares of the sums of columns of `x`.
    pub column_squares: f64,
    /// Squared error of what dead latents make of the residuals.
    pub aux_error: f64,
}

impl BatchSums {
    /// The figures of a step on `rows` rows of `d` values; `coefficient` is that of the auxiliary loss. Dead latents are not counted here.
    #[must_use]
    pub fn stats(&self, rows: usize, d: usize, alpha: f32, coefficient: f32) -> StepStats {
        let n = rows as f64;
        let values = n * d as f64;
        let deviation = self.squares - self.column_squares / n;
        // Of a single row, or of equal ones, nothing but rounding is left.
        let fvu = if deviation > 1e-6 * self.squares { self.squared_error / deviation } else { 0.0 };
        let aux = f64::from(coefficient) * self.aux_error / values;
        let loss = self.objective / values + f64::from(alpha) * self.penalty / n + aux;
        StepStats {
            loss: loss as f32,
            mse: (self.squared_error / values) as f32,
            l1: (self.codes / n) as f32,
            l0: (self.active as f64 / n) as f32,
            fvu_batch: fvu as f32,
            aux: aux as f32,
            dead: 0,
        }
    }
}

/// Where the decoder's bias starts, in scaled units: the mean of the first batch, the best reconstruction by a bias alone. Nothing if a value is not finite.
#[must_use]
pub fn first_decoder_bias(spaces: Spaces, target: ArrayView2<'_, f32>) -> Option<Vec<f32>> {
    let scale = f64::from(spaces.output().scale);
    let mean = target.mapv(f64::from).mean_axis(Axis(0))?;
    mean.iter().all(|m| m.is_finite()).then(|| mean.iter().map(|m| (m * scale) as f32).collect())
}
