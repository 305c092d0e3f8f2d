//! Synthetic data with known features.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use monosem_sae::{AdamMode, Family, Init, PlantedConfig, Relu, TrainConfig};
use serde::{Deserialize, Serialize};

use super::{cases, distinct, latents, not_negative, positive};

/// Synthetic data with known features (the paper's toy model).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planted {
    /// Width of the data.
    pub d_in: usize,
    /// Number of true features.
    pub n_features: usize,
    /// Mean number of features active in a row, before the decay.
    pub mean_active: f64,
    /// Feature i is active with probability proportional to this to the power i.
    pub decay: f64,
    /// `uncorrelated`, `correlated`, `independent`.
    pub generators: Vec<Generator>,
    /// Multiply each strength by a second uniform draw.
    pub second_strength: bool,
    /// Standard deviation of the Gaussian noise added.
    pub noise: f32,
    /// Dictionary sizes as multiples of the width.
    pub ratios: Vec<f64>,
    /// L1 coefficients on the scale of the paper's code.
    pub alphas: Vec<f32>,
    /// Adam's learning rate.
    pub lr: f32,
    /// Fresh rows in a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
    /// Adam as published, or as the paper's code ran it.
    pub adam: AdamMode,
    /// Fresh rows to measure on.
    pub evaluate_rows: usize,
    /// Draws features, data and initial weights.
    pub seed: u64,
    /// The experiment of the code behind the paper: sizes and coefficients, as heat maps.
    #[serde(default)]
    pub grid: Option<Grid>,
    /// Runs whose figures the paper's code is known to give.
    #[serde(default)]
    pub anchors: Vec<Anchor>,
}

/// Untied autoencoders without a decoder's bias on the data of [`Planted`], a size with a coefficient each, begun and trained as in the code of the paper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Dictionary sizes as multiples of the number of true features (not of the width).
    pub ratios: Vec<f64>,
    /// L1 coefficients on the scale of that experiment: `mse + alpha * mean of sum(c) / n_latents`.
    pub alphas: Vec<f32>,
    /// Adam's learning rate.
    pub lr: f32,
    /// Fresh rows in a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
}

/// A run of the paper's code whose figures are known, and how it is run here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// What it is called in results: no comma, no equals sign.
    pub name: String,
    /// Width of the data.
    pub d_in: usize,
    /// Number of true features.
    pub n_features: usize,
    /// Mean number of features active in a row, before the decay.
    pub mean_active: f64,
    /// Feature i is active with probability proportional to this to the power i.
    pub decay: f64,
    /// How active features are drawn.
    pub generator: Generator,
    /// Multiply each strength by a second uniform draw.
    pub second_strength: bool,
    /// Which autoencoder.
    pub family: Family,
    /// How its weights begin.
    pub init: Init,
    /// Number of latents.
    pub n_latents: usize,
    /// Its coefficient: for `loss = mse + alpha * mean of sum(c)`.
    pub alpha: f32,
    /// Whether the loss divides `alpha` by the number of latents, as that of the grid does.
    pub alpha_over_latents: bool,
    /// Adam's learning rate.
    pub lr: f32,
    /// Fresh rows in a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
    /// Adam as published, or as the paper's code ran it.
    pub adam: AdamMode,
    /// Draw features, data and initial weights; a run for each.
    pub seeds: Vec<u64>,
    /// Fresh batches to measure FVU and L0 on.
    pub evaluate_batches: u64,
    /// What the paper's code gave, by metric: `mmcs`, `fvu`, `l0`, `silent_latents` (in ten batches).
    pub theirs: BTreeMap<String, f64>,
}

/// How the active features of a row are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generator {
    /// Each on its own.
    Uncorrelated,
    /// Through one multivariate normal draw per batch.
    Correlated,
    /// The same with the identity as its covariance: probabilities change from batch to batch, each on its own.
    Independent,
}

impl Generator {
    /// The word used in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uncorrelated => "uncorrelated",
            Self::Correlated => "correlated",
            Self::Independent => "independent",
        }
    }
}

impl Planted {
    pub(super) fn validate(&self) -> Result<()> {
        positive("planted.ratios", &self.ratios)?;
        not_negative("planted.alphas", &self.alphas)?;
        if self.generators.is_empty() || self.evaluate_rows == 0 || self.d_in == 0 || self.n_features == 0 {
            bail!("planted: generators, evaluate_rows, d_in and n_features must not be empty or zero");
        }
        distinct("planted.generators", &self.generators)?;
        for (ratio, alpha) in self.cases() {
            self.train_config(ratio, alpha).validate(self.d_in).context("[planted]")?;
        }
        if let Some(grid) = &self.grid {
            positive("planted.grid.ratios", &grid.ratios)?;
            not_negative("planted.grid.alphas", &grid.alphas)?;
            distinct("planted.grid.ratios", &grid.ratios)?;
            distinct("planted.grid.alphas", &grid.alphas)?;
            if grid.ratios.windows(2).any(|pair| pair[0] > pair[1]) {
                bail!("planted.grid.ratios must ascend: each dictionary is compared with the next larger one");
            }
            for (ratio, alpha) in cases(&grid.ratios, &grid.alphas) {
                self.grid_config(grid, ratio, alpha).validate(self.d_in).context("[planted.grid]")?;
            }
        }
        let names: Vec<&str> = self.anchors.iter().map(|anchor| anchor.name.as_str()).collect();
        distinct("planted.anchors", &names)?;
        self.anchors.iter().try_for_each(Anchor::validate)
    }

    /// The training settings of one autoencoder of the grid.
    #[must_use]
    pub fn grid_config(&self, grid: &Grid, ratio: f64, alpha: f32) -> TrainConfig {
        let n_latents = latents(ratio, self.n_features);
        TrainConfig {
            n_latents,
            alpha: alpha / n_latents as f32,
            lr: grid.lr,
            batch: grid.batch,
            steps: grid.steps,
            seed: self.seed,
            ..as_in_the_code(Family::Relu(Relu { subtract_decoder_bias: false, decoder_bias: false }), Init::Orthogonal)
        }
    }

    /// Every ratio with every alpha.
    #[must_use]
    pub fn cases(&self) -> Vec<(f64, f32)> {
        cases(&self.ratios, &self.alphas)
    }

    /// The training settings of one autoencoder.
    #[must_use]
    pub fn train_config(&self, ratio: f64, alpha: f32) -> TrainConfig {
        TrainConfig {
            n_latents: latents(ratio, self.d_in),
            alpha,
            lr: self.lr,
            batch: self.batch,
            steps: self.steps,
            adam: self.adam,
            seed: self.seed,
            ..TrainConfig::default()
        }
    }
}

/// Decoder rows are brought back to length 1 and their gradients are left as they are; nothing revives dead latents.
fn as_in_the_code(family: Family, init: Init) -> TrainConfig {
    TrainConfig { family, init, project_decoder_gradient: false, dead_after_steps: u64::MAX, ..TrainConfig::default() }
}

impl Anchor {
    fn validate(&self) -> Result<()> {
        let name = &self.name;
        if name.is_empty() || name.contains(['=', ',']) {
            bail!("planted.anchors.name = {name:?}: a name without a comma or an equals sign");
        }
        if self.seeds.is_empty() || self.evaluate_batches == 0 || self.n_features == 0 {
            bail!("planted.anchors {name:?}: seeds, evaluate_batches and n_features must not be empty or zero");
        }
        distinct("planted.anchors.seeds", &self.seeds)?;
        const METRICS: [&str; 4] = ["mmcs", "fvu", "l0", "silent_latents"];
        if let Some(metric) = self.theirs.keys().find(|metric| !METRICS.contains(&metric.as_str())) {
            bail!("planted.anchors {name:?}: theirs.{metric} is not one of {}", METRICS.join(", "));
        }
        self.train_config(0).validate(self.d_in).with_context(|| format!("planted.anchors {name:?}"))
    }

    /// The training settings of one run.
    #[must_use]
    pub fn train_config(&self, seed: u64) -> TrainConfig {
        let by = if self.alpha_over_latents { self.n_latents as f32 } else { 1.0 };
        TrainConfig {
            n_latents: self.n_latents,
            alpha: self.alpha / by,
            lr: self.lr,
            batch: self.batch,
            steps: self.steps,
            adam: self.adam,
            seed,
            ..as_in_the_code(self.family.clone(), self.init)
        }
    }

    /// The data of one run.
    #[must_use]
    pub fn data_config(&self, seed: u64) -> PlantedConfig {
        PlantedConfig {
            d_in: self.d_in,
            n_features: self.n_features,
            mean_active: self.mean_active,
            decay: self.decay,
            correlated: self.generator != Generator::Uncorrelated,
            second_strength: self.second_strength,
            noise: 0.0,
            seed,
        }
    }
}
