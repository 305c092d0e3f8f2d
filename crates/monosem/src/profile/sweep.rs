//! Sweeps: many autoencoders at many places, measured and compared but not interpreted.

use anyhow::{Context as _, Result, bail, ensure};
use monosem_hooks::HookPoint;
use monosem_sae::{AuxK, BatchTopK, Family, Matryoshka, TopK, TrainConfig};
use serde::{Deserialize, Serialize};

use super::{Circuits, FamilyCase, Ioi, Language, distinct, not_negative, positive};

/// Autoencoders of every size with every coefficient at several hook points, those of one size in one pass over the activations: figures 6, 7 and 16 of the paper.
/// What is not said here is as in `[language.sae]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// Where; each in one sweep only. They are captured besides those of `[language.capture]`.
    pub hooks: Vec<HookPoint>,
    /// Which autoencoder: the paper has tied ones in the residual stream and untied ones without a decoder's bias in MLPs.
    pub family: Family,
    /// Dictionary sizes as multiples of the width of the activations, ascending.
    pub ratios: Vec<f64>,
    /// L1 coefficients, as those of `[language.sae]`.
    pub alphas: Vec<f32>,
    /// Draw the initial weights: each size and coefficient is trained from every seed, on the same batches. The first is the one that is measured in
    /// full; the others say which features come again.
    pub seeds: Vec<u64>,
    /// Steps.
    pub steps: u64,
    /// Steps at the end over which the learning rate falls to 0.
    pub lr_decay_steps: u64,
    /// Steps between two points of the training curves.
    pub curve_every: u64,
    /// Other families at the same places, each with several values of what makes it sparse.
    #[serde(default)]
    pub families: Vec<SweptFamily>,
}

/// A family with several values of what makes it sparse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweptFamily {
    /// Which family, with its own settings; a `k` among them is replaced.
    pub family: Family,
    /// Dictionary size as a multiple of the width of the activations.
    pub ratio: f64,
    /// Values of k for families that choose the largest codes, of the sparsity coefficient for others.
    pub sparsities: Vec<f32>,
    /// Steps over which the sparsity coefficient rises from 0.
    #[serde(default)]
    pub sparsity_warmup_steps: u64,
    /// The auxiliary loss for dead latents of the families that choose the largest codes.
    #[serde(default)]
    pub aux_k: Option<AuxK>,
}

impl SweptFamily {
    /// One case for each value.
    #[must_use]
    pub fn cases(&self) -> Vec<FamilyCase> {
        let of = |value: &f32| {
            let k = *value as usize;
            let (family, alpha) = match &self.family {
                Family::TopK(_) => (Family::TopK(TopK { k }), 0.0),
                Family::BatchTopK(_) => (Family::BatchTopK(BatchTopK { k }), 0.0),
                Family::Matryoshka(nested) => (Family::Matryoshka(Matryoshka { k, ..nested.clone() }), 0.0),
                other => (other.clone(), *value),
            };
            let (sparsity_warmup_steps, aux_k) = (self.sparsity_warmup_steps, self.aux_k);
            FamilyCase { family, ratio: self.ratio, alpha, sparsity_warmup_steps, aux_k }
        };
        self.sparsities.iter().map(of).collect()
    }
}

impl Sweep {
    /// The word for its autoencoders in results: `sae-tied`.
    #[must_use]
    pub fn method(&self) -> String {
        format!("sae-{}", self.family.name())
    }

    /// Every coefficient with every seed: the autoencoders of one size, those of the first seed first.
    #[must_use]
    pub fn members(&self) -> Vec<(f32, u64)> {
        self.seeds.iter().flat_map(|seed| self.alphas.iter().map(|alpha| (*alpha, *seed))).collect()
    }

    /// The other families, value by value.
    #[must_use]
    pub fn family_cases(&self) -> Vec<FamilyCase> {
        self.families.iter().flat_map(SweptFamily::cases).collect()
    }
}

impl Language {
    /// Every hook point at which dictionaries are compared: those of `[language.capture]`, then those that only sweeps or causal tasks
    /// want.
    #[must_use]
    pub fn hooks(&self) -> Vec<HookPoint> {
        let of_sweeps = self.sweep.iter().flat_map(|sweep| &sweep.hooks);
        self.captured_and(of_sweeps.chain(self.causal_tasks().flat_map(|task| &task.hooks)))
    }

    /// Every hook point whose activations are captured on the text to interpret by: those of `[language.capture]`, then those that only
    /// causal tasks or circuits want.
    #[must_use]
    pub fn interpreted_hooks(&self) -> Vec<HookPoint> {
        let of_tasks = self.causal_tasks().flat_map(|task| &task.hooks);
        self.captured_and(of_tasks.chain(self.circuits.iter().flat_map(|circuits| &circuits.hooks)))
    }

    /// Hook points, ratios and alphas of the autoencoders that are trained for causal tasks and circuits alone.
    #[must_use]
    pub fn causal_cases(&self) -> Vec<(HookPoint, f64, f32)> {
        let of_task = |task: &Ioi| {
            let of_hook =
                |hook: &HookPoint| task.alphas.iter().map(|alpha| (*hook, task.ratio, *alpha)).collect::<Vec<_>>();
            task.hooks.iter().flat_map(of_hook).collect::<Vec<_>>()
        };
        let of_circuits = |c: &Circuits| c.hooks.iter().map(|hook| (*hook, c.ratio, c.alpha)).collect::<Vec<_>>();
        let wanted = self.causal_tasks().flat_map(of_task).chain(self.circuits.iter().flat_map(of_circuits));
        let mut cases = Vec::new();
        for case in wanted.filter(|(hook, ..)| !self.capture.hooks.contains(hook)) {
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }

    /// Hook points at which the other families are trained for causal tasks alone.
    #[must_use]
    pub fn causal_families(&self) -> Vec<HookPoint> {
        let wanted = self.causal_tasks().filter(|task| task.families).flat_map(|task| &task.hooks);
        self.captured_and(wanted).split_off(self.capture.hooks.len())
    }

    fn causal_tasks(&self) -> impl Iterator<Item = &Ioi> {
        self.ioi.iter().chain(&self.tasks)
    }

    /// Every hook point whose activations are captured to train on.
    #[must_use]
    pub fn trained_hooks(&self) -> Vec<HookPoint> {
        self.captured_and(self.hooks().iter().chain(&self.interpreted_hooks()))
    }

    fn captured_and<'h>(&self, more: impl Iterator<Item = &'h HookPoint>) -> Vec<HookPoint> {
        let mut hooks = self.capture.hooks.clone();
        for hook in more {
            if !hooks.contains(hook) {
                hooks.push(*hook);
            }
        }
        hooks
    }

    /// The training settings of an autoencoder of a sweep on the activations of a hook point, `d_in` wide.
    #[must_use]
    pub fn sweep_config(
        &self,
        sweep: &Sweep,
        hook: HookPoint,
        ratio: f64,
        (alpha, seed): (f32, u64),
        d_in: usize,
    ) -> TrainConfig {
        let config = self.swept(sweep, self.train_config(ratio, alpha, d_in));
        let seed = seed_of(seed, hook, config.n_latents);
        TrainConfig { family: sweep.family.clone(), seed, ..config }
    }

    /// The training settings of a sweep's autoencoder of another family.
    #[must_use]
    pub fn sweep_family_config(&self, sweep: &Sweep, hook: HookPoint, case: &FamilyCase, d_in: usize) -> TrainConfig {
        let config = self.swept(sweep, self.family_config(case, d_in));
        TrainConfig { seed: seed_of(sweep.seeds[0], hook, config.n_latents), ..config }
    }

    fn swept(&self, sweep: &Sweep, config: TrainConfig) -> TrainConfig {
        TrainConfig { steps: sweep.steps, lr_decay_steps: sweep.lr_decay_steps, ..config }
    }

    pub(super) fn validate_sweeps(&self) -> Result<()> {
        let hooks: Vec<HookPoint> = self.sweep.iter().flat_map(|sweep| sweep.hooks.iter().copied()).collect();
        distinct("language.sweep.hooks", &hooks)?;
        for sweep in &self.sweep {
            positive("language.sweep.ratios", &sweep.ratios)?;
            not_negative("language.sweep.alphas", &sweep.alphas)?;
            distinct("language.sweep.ratios", &sweep.ratios)?;
            distinct("language.sweep.alphas", &sweep.alphas)?;
            distinct("language.sweep.seeds", &sweep.seeds)?;
            if sweep.hooks.is_empty() || sweep.seeds.is_empty() || sweep.curve_every == 0 {
                bail!("language.sweep: hooks and seeds must have an item, and curve_every be at least 1");
            }
            ensure!(
                sweep.ratios.windows(2).all(|pair| pair[0] < pair[1]),
                "language.sweep.ratios must ascend: each dictionary is compared with the next larger one"
            );
            for family in &sweep.families {
                positive("language.sweep.families.ratio", &[family.ratio])?;
                not_negative("language.sweep.families.sparsities", &family.sparsities)?;
            }
            let cases = sweep.family_cases();
            let names: Vec<_> = cases.iter().map(|case| (case.method(), case.setting())).collect();
            distinct("language.sweep.families", &names)?;
            if names.iter().any(|(method, _)| *method == sweep.method()) {
                bail!("language.sweep.families names {}, which the sweep itself trains", sweep.method());
            }
            // The width is not known before the model is read; what does not depend on it can be told now.
            let any_width = 1 << 10;
            for ratio in &sweep.ratios {
                for member in sweep.members() {
                    let config = self.sweep_config(sweep, sweep.hooks[0], *ratio, member, any_width);
                    config.validate(any_width).context("[language.sweep]")?;
                }
            }
        }
        Ok(())
    }
}

/// A seed for each layer and size: from one seed, dictionaries of several would begin with the same directions, and what they have in common after training
/// would in part be where they began.
fn seed_of(seed: u64, hook: HookPoint, n_latents: usize) -> u64 {
    let place = (hook.layer as u64) << 32 | n_latents as u64;
    // An odd factor (2^64 over the golden ratio) spreads neighbouring places.
    seed.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_sizes_begin_apart() {
        let hook = |layer| HookPoint::new(layer, monosem_hooks::Site::ResidPost);
        let mut seeds: Vec<u64> = (0..4)
            .flat_map(|seed| (0..8).flat_map(move |layer| [288, 576, 1152].map(|n| seed_of(seed, hook(layer), n))))
            .collect();
        let all = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), all);
    }
}
