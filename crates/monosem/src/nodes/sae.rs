//! `sae-HOOK-rRATIO-aALPHA`: one sparse autoencoder, trained on the captured rows in an order drawn from its seed.

use std::ops::ControlFlow;

use anyhow::{Result, anyhow};
use monosem_activations::{Batches, Store};
use monosem_dictionary::LinearDictionary;
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_sae::{OnStep, RunOptions, Sae, Spaces, StepStats, TrainConfig, TrainOutcome, Trainer};
use ndarray::{Array2, ArrayViewMut2};
use serde_json::json;

use super::curve::{self, Curve};
use super::{Label, capture, node, sae_name, sae_setting, save_rows, write_json};
use crate::device;
use crate::evaluation::Rows;
use crate::profile::{FamilyCase, Interp, Language};

/// The dictionary inside the node's folder.
pub(super) const DICTIONARY: &str = "dictionary";

/// Rows behind the scale of the activations.
const SCALE_ROWS: usize = 65_536;

/// What a node's key covers whose work is [`fit_all`].
pub(super) const CODE: [&str; 6] =
    ["sae", "sae-cuda", "activations", "monosem/nodes/sae", "monosem/device", "monosem/evaluation"];

/// Steps between checkpoints: a second run loses at most this much.
const CHECKPOINT_EVERY: u64 = 100;

pub(super) fn nodes(language: &Language, hook: HookPoint) -> Vec<Node<'_>> {
    language.cases().into_iter().map(|case| node_of(language, hook, case)).collect()
}

/// The nodes of autoencoders that only causal tasks and circuits want.
pub(super) fn causal_nodes(language: &Language) -> Vec<Node<'_>> {
    let tied = language.causal_cases().into_iter().map(|(hook, ratio, alpha)| node_of(language, hook, (ratio, alpha)));
    let families = language.causal_families().into_iter().filter_map(|hook| families_node(language, hook));
    tied.chain(families).collect()
}

fn node_of(language: &Language, hook: HookPoint, (ratio, alpha): (f64, f32)) -> Node<'_> {
    let config = language.train_config(ratio, alpha, 1);
    let params = json!({
        "hook": hook,
        "ratio": ratio,
        "train": config,
        "max_norm": language.max_norm,
        "scale_inputs": language.sae.scale_inputs,
        "curve_every": language.sae.curve_every,
        "curve_rows": language.sae.curve_rows,
    });
    let deps = vec![capture::TRAIN.into(), capture::HELD_OUT.into()];
    let code = [&CODE[..], &["monosem/nodes/curve"]].concat();
    let weight = config.steps as f64 * config.batch as f64 * ratio / 160_000.0;
    node(sae_name(hook, ratio, alpha), deps, params, &code, weight, move |ctx| run(language, hook, ratio, alpha, ctx))
}

fn run(language: &Language, hook: HookPoint, ratio: f64, alpha: f32, ctx: &Ctx<'_>) -> Result<()> {
    let rows = rows(language, hook, capture::TRAIN, ctx)?;
    if rows.left_out() > 0 {
        ctx.message(&format!("{} rows of extreme norm are left out", rows.left_out()));
    }
    let curve_rows = self::rows(language, hook, capture::HELD_OUT, ctx)?.sample(language.sae.curve_rows)?;
    let config = language.train_config(ratio, alpha, rows.width());
    let label = Label::new("training", "sae-tied", hook, sae_setting(ratio, alpha));

    let mut curve = Curve::open(ctx)?;
    let mut failed = None;
    let mut on_step = |step: u64, stats: &StepStats, trainer: &dyn Trainer| {
        ctx.progress(step, config.steps, "steps");
        if step.is_multiple_of(language.sae.curve_every) || step == config.steps {
            let dictionary = trainer.dictionary().map_err(anyhow::Error::from);
            let noted = dictionary.and_then(|d| curve.add(curve::point(&label, step, stats, &d, &curve_rows)));
            if let Err(error) = noted {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let fitted = fit(&rows, &config, language.sae.scale_inputs, ctx, &mut on_step);
    if let Some(error) = failed {
        return Err(error);
    }
    let (sae, scale) = fitted?;
    let metadata = json!({
        "method": "sae-tied", "hook": hook, "ratio": ratio, "train": config, "input_scale": scale,
        "model": language.model.to_string(), "text": language.text.to_string(),
    });
    sae.dictionary().save(&ctx.out().join(DICTIONARY), metadata)?;
    write_json(
        &ctx.out().join("training.json"),
        &json!({ "input_scale": scale, "config": config, "rows": rows.len() }),
    )?;
    save_rows(ctx, &curve.into_rows())
}

/// The control `sae-random-HOOK`: an autoencoder like one of the others, on the model with weights drawn anew.
pub(super) fn random_node<'a>(language: &'a Language, interp: &'a Interp, hook: HookPoint) -> Option<Node<'a>> {
    let random = interp.random_model.as_ref()?;
    let config = TrainConfig { steps: random.steps, ..language.train_config(interp.ratio, interp.alpha, 1) };
    let params = json!({
        "hook": hook, "ratio": interp.ratio, "config": config, "max_norm": language.max_norm,
        "scale_inputs": language.sae.scale_inputs,
    });
    let weight = config.steps as f64 * config.batch as f64 * interp.ratio / 160_000.0;
    let deps = vec![capture::RANDOM_TRAIN.into()];
    let node = node(random_name(hook), deps, params, &CODE, weight, move |ctx| {
        let rows = rows(language, hook, capture::RANDOM_TRAIN, ctx)?;
        let config = language.train_config(interp.ratio, interp.alpha, rows.width());
        let config =
            TrainConfig { steps: random.steps, lr_decay_steps: config.lr_decay_steps.min(random.steps / 2), ..config };
        let mut on_step = |step: u64, _: &StepStats, _: &dyn Trainer| {
            ctx.progress(step, config.steps, "steps");
            if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let (sae, scale) = fit(&rows, &config, language.sae.scale_inputs, ctx, &mut on_step)?;
        let metadata = json!({
            "method": "sae-tied", "hook": hook, "ratio": interp.ratio, "train": config, "input_scale": scale,
            "model": format!("{} with weights drawn anew, seed {}", language.model, random.seed),
        });
        Ok(sae.dictionary().save(&ctx.out().join(DICTIONARY), metadata)?)
    });
    Some(node)
}

pub(super) fn random_name(hook: HookPoint) -> String {
    format!("sae-random-{hook}")
}

/// The node that trains a profile's other families at a hook point, all in one pass over the activations.
pub(super) fn families_node(language: &Language, hook: HookPoint) -> Option<Node<'_>> {
    let configs = |d_in| -> Vec<TrainConfig> {
        language.families.iter().map(|case| language.family_config(case, d_in)).collect()
    };
    if language.families.is_empty() {
        return None;
    }
    let params = json!({
        "hook": hook, "train": configs(1), "ratios": language.families.iter().map(|case| case.ratio).collect::<Vec<_>>(),
        "max_norm": language.max_norm, "scale_inputs": language.sae.scale_inputs,
    });
    let size: f64 = language.families.iter().map(|case| case.ratio).sum();
    let weight = language.sae.steps as f64 * language.sae.batch as f64 * size / 140_000.0;
    let node = node(families_name(hook), vec![capture::TRAIN.into()], params, &CODE, weight, move |ctx| {
        let rows = rows(language, hook, capture::TRAIN, ctx)?;
        let configs = configs(rows.width());
        for (config, case) in configs.iter().zip(&language.families) {
            config.validate(rows.width()).map_err(|e| anyhow!("[language.families] {}: {e}", case.method()))?;
        }
        let mut on_step = |member: usize, step: u64, _: &StepStats, _: &dyn Trainer| {
            if member == 0 {
                ctx.progress(step, configs[0].steps, "steps");
            }
            if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let (trained, scale) = fit_all(&rows, &configs, language.sae.scale_inputs, ctx, &mut on_step)?;
        for ((case, config), sae) in language.families.iter().zip(&configs).zip(trained) {
            let metadata = json!({
                "method": case.method(), "hook": hook, "ratio": case.ratio, "train": config, "input_scale": scale,
                "model": language.model.to_string(), "text": language.text.to_string(),
            });
            sae.dictionary().save(&ctx.out().join(folder(case)), metadata)?;
        }
        Ok(())
    });
    Some(node)
}

pub(super) fn families_name(hook: HookPoint) -> String {
    format!("sae-families-{hook}")
}

/// The folder of one of them inside the node's.
pub(super) fn folder(case: &FamilyCase) -> String {
    format!("{}-{}", case.method(), case.setting())
}

/// The dictionaries of a profile's other families, in its order.
pub(super) fn families(language: &Language, hook: HookPoint, ctx: &Ctx<'_>) -> Result<Vec<LinearDictionary>> {
    let load = |case: &FamilyCase| Ok(LinearDictionary::load(&ctx.dep(&families_name(hook))?.join(folder(case)))?);
    language.families.iter().map(load).collect()
}

/// Trains on `rows` in the seed's order, checkpointing; the autoencoder and the factor its inputs were scaled by.
fn fit(
    rows: &Rows,
    config: &TrainConfig,
    scale_inputs: bool,
    ctx: &Ctx<'_>,
    on_step: &mut dyn FnMut(u64, &StepStats, &dyn Trainer) -> ControlFlow<()>,
) -> Result<(Sae, f32)> {
    let configs = std::slice::from_ref(config);
    let (mut trained, scale) =
        fit_all(rows, configs, scale_inputs, ctx, &mut |_, step, stats, trainer| on_step(step, stats, trainer))?;
    Ok((trained.remove(0), scale))
}

/// As [`fit`], several that read the same batches.
pub(super) fn fit_all(
    rows: &Rows,
    configs: &[TrainConfig],
    scale_inputs: bool,
    ctx: &Ctx<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<(Vec<Sae>, f32)> {
    let config = &configs[0];
    let order = Batches::new(rows.len(), config.batch, config.seed);
    let mut indices = vec![0; config.batch];
    let mut batch = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        order.batch_into(step, &mut indices);
        rows.gather(&indices, out)
    };
    let scale = if scale_inputs { input_scale(rows)? } else { 1.0 };
    let checkpoint = ctx.partial().join("checkpoint");
    let options = RunOptions {
        checkpoint_folder: Some(&checkpoint),
        checkpoint_every: CHECKPOINT_EVERY,
        ..RunOptions::default()
    };
    match device::train_ensemble(configs, Spaces::autoencoder(rows.width(), scale), &mut batch, options, on_step)? {
        TrainOutcome::Finished(trained) => Ok((trained, scale)),
        TrainOutcome::Interrupted { .. } => {
            ctx.check()?;
            Err(anyhow!("training stopped early although nothing asked it to"))
        }
    }
}

/// The rows that count of a hook point in one of the stores.
pub(super) fn rows(language: &Language, hook: HookPoint, store: &str, ctx: &Ctx<'_>) -> Result<Rows> {
    Rows::new(Store::open(&ctx.dep(store)?.join(capture::STORE))?.hook(hook)?, language.max_norm)
}

/// The factor that brings activations to unit mean square, measured on rows spread over the store.
pub(crate) fn input_scale(rows: &Rows) -> Result<f32> {
    let n = rows.len().min(SCALE_ROWS);
    let indices: Vec<usize> = (0..n).map(|i| i * rows.len() / n).collect();
    let mut total = 0.0;
    let mut chunk = Array2::zeros((4096.min(n), rows.width()));
    for indices in indices.chunks(4096) {
        let mut chunk = chunk.slice_mut(ndarray::s![..indices.len(), ..]);
        rows.gather(indices, chunk.view_mut())?;
        total += chunk.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    }
    let mean_square = total / (n * rows.width()) as f64;
    if mean_square > 0.0 { Ok((1.0 / mean_square.sqrt()) as f32) } else { Err(anyhow!("all activations are zero")) }
}
