//! `planted-GENERATOR-rRATIO-aALPHA`: an autoencoder on synthetic data, measured against the features that made the data.

use std::ops::ControlFlow;

use anyhow::{Result, anyhow};
use monosem_dictionary::{Dictionary as _, LinearDictionary, mmcs_estimate};
use monosem_graph::{Ctx, Node};
use monosem_report::ResultRow;
use monosem_sae::{
    Planted as Data, PlantedConfig, RunOptions, Sae, Spaces, StepStats, TrainConfig, TrainOutcome, Trainer,
};
use ndarray::{Array2, ArrayViewMut2, Axis, concatenate};
use serde_json::json;

use super::{Label, anchors, grid, node, sae_setting, save_rows};
use crate::device;
use crate::evaluation::evaluate;
use crate::profile::{Generator, Planted};

/// Steps between checkpoints.
const CHECKPOINT_EVERY: u64 = 500;
/// Points of a training curve.
const CURVE_POINTS: u64 = 20;
/// The index of the first batch that only measuring sees.
const FRESH: u64 = 1 << 40;

/// What a node's key covers whose work is [`train`] and [`measured`], besides its own file.
pub(super) const CODE: [&str; 6] =
    ["sae", "sae-cuda", "dictionary", "monosem/nodes/planted", "monosem/device", "monosem/evaluation"];

pub(super) fn nodes(planted: &Planted) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    for generator in &planted.generators {
        for (ratio, alpha) in planted.cases() {
            let name = format!("planted-{}-r{ratio}-a{alpha}", generator.name());
            let params = json!({
                "data": data_config(planted, *generator),
                "train": planted.train_config(ratio, alpha),
                "evaluate_rows": planted.evaluate_rows,
            });
            let weight = planted.steps as f64 * planted.batch as f64 * ratio * planted.d_in as f64 / 2e8;
            let generator = *generator;
            nodes.push(node(name, Vec::new(), params, &CODE, weight, move |ctx| {
                run(planted, generator, ratio, alpha, ctx)
            }));
        }
    }
    nodes.extend(planted.grid.iter().flat_map(|grid| grid::nodes(planted, grid)));
    nodes.extend(anchors::nodes(planted));
    nodes
}

/// The data of a profile.
pub(super) fn data_config(planted: &Planted, generator: Generator) -> PlantedConfig {
    PlantedConfig {
        d_in: planted.d_in,
        n_features: planted.n_features,
        mean_active: planted.mean_active,
        decay: planted.decay,
        correlated: generator != Generator::Uncorrelated,
        second_strength: planted.second_strength,
        noise: planted.noise,
        seed: planted.seed,
    }
}

/// Data of a generator, which a configuration alone does not tell.
pub(super) fn data_with(config: PlantedConfig, generator: Generator) -> Data {
    match generator {
        Generator::Independent => {
            let covariance = Array2::eye(config.n_features);
            Data::with_covariance(config, covariance.view())
        }
        Generator::Uncorrelated | Generator::Correlated => Data::new(config),
    }
}

/// Rows that no step has seen, of many batches: with correlation each has probabilities of its own.
pub(super) fn fresh_rows(data: &Data, batches: u64, rows: usize) -> Array2<f32> {
    let batches: Vec<Array2<f32>> = (0..batches).map(|i| data.sample(FRESH + i, rows)).collect();
    let views: Vec<_> = batches.iter().map(|batch| batch.view()).collect();
    concatenate(Axis(0), &views).expect("batches of one width")
}

/// What a dictionary makes of fresh rows, and of the true features.
pub(super) fn measured(
    label: &Label,
    dictionary: &LinearDictionary,
    data: &Data,
    fresh: &Array2<f32>,
) -> Vec<ResultRow> {
    let groups: Vec<u32> = (0..fresh.nrows() as u32).collect();
    let evaluation = evaluate(dictionary, fresh.view(), &groups);
    let (n, features) = (evaluation.n, data.features.nrows() as u64);
    vec![
        label.estimate("fvu", evaluation.fvu, n, "1"),
        label.estimate("l0", evaluation.l0, n, "latents"),
        label.row("dead_latents", evaluation.dead_latents() as f64, n, "latents"),
        label.row("n_latents", dictionary.w_dec.nrows() as f64, n, "latents"),
        label.estimate("mmcs", mmcs_estimate(data.features.view(), dictionary.w_dec.view()), features, "cosine"),
    ]
}

/// Batches of fresh rows in which a latent has to be silent to count as dead, as the code of the paper counts.
const SILENT_BATCHES: u64 = 10;

/// Latents that are silent in ten batches.
pub(super) fn silent(label: &Label, dictionary: &LinearDictionary, data: &Data, batch: usize) -> ResultRow {
    let rows = fresh_rows(data, SILENT_BATCHES, batch);
    let mut active = vec![false; dictionary.w_dec.nrows()];
    for (latents, _) in dictionary.encode(rows.view()).rows() {
        latents.iter().for_each(|j| active[*j as usize] = true);
    }
    let silent = active.iter().filter(|active| !**active).count();
    label.row("silent_latents", silent as f64, rows.nrows() as u64, "latents")
}

/// Trains on fresh data, from where an interrupted run stopped; `name` tells the runs of a node apart.
pub(super) fn train(configs: &[TrainConfig], data: &Data, name: &str, ctx: &Ctx<'_>) -> Result<Vec<Sae>> {
    let (steps, batch) = (configs[0].steps, configs[0].batch);
    let mut on_step = |_: usize, step: u64, _: &StepStats, _: &dyn Trainer| {
        ctx.progress(step, steps, "steps");
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut batches = |step: u64, mut out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        out.assign(&data.sample(step, batch));
        Ok::<(), std::convert::Infallible>(())
    };
    let checkpoint = ctx.partial().join(name);
    let options = RunOptions {
        checkpoint_folder: Some(&checkpoint),
        checkpoint_every: CHECKPOINT_EVERY,
        ..RunOptions::default()
    };
    let spaces = Spaces::autoencoder(data.features.ncols(), 1.0);
    match device::train_ensemble(configs, spaces, &mut batches, options, &mut on_step)? {
        TrainOutcome::Finished(trained) => Ok(trained),
        TrainOutcome::Interrupted { .. } => {
            ctx.check()?;
            Err(anyhow!("training stopped early although nothing asked it to"))
        }
    }
}

fn run(planted: &Planted, generator: Generator, ratio: f64, alpha: f32, ctx: &Ctx<'_>) -> Result<()> {
    let data = data_with(data_config(planted, generator), generator);
    let fresh = data.sample(FRESH, planted.evaluate_rows);
    let setting = format!("generator={},{}", generator.name(), sae_setting(ratio, alpha));
    let label = Label::new("planted", "sae-tied", "", setting);
    let train_config = planted.train_config(ratio, alpha);

    let training = Label { experiment: "training", ..label.clone() };
    let curve_file = ctx.partial().join("curve.json");
    let mut curve: Vec<ResultRow> =
        if curve_file.is_file() { monosem_report::read_results(&curve_file)? } else { Vec::new() };
    let mut failed = None;
    let mut on_step = |_: usize, step: u64, _: &StepStats, trainer: &dyn Trainer| {
        ctx.progress(step, planted.steps, "steps");
        if step.is_multiple_of((planted.steps / CURVE_POINTS).max(1)) {
            let label = training.with_setting(&format!("step={step}"));
            curve.retain(|row| row.setting != label.setting);
            let noted = trainer.dictionary().map_err(anyhow::Error::from).and_then(|dictionary| {
                curve.extend(
                    measured(&label, &dictionary, &data, &fresh).into_iter().filter(|row| row.metric != "n_latents"),
                );
                Ok(monosem_report::write_results(&curve_file, &curve)?)
            });
            if let Err(error) = noted {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut batch = |step: u64, mut out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        out.assign(&data.sample(step, planted.batch));
        Ok::<(), std::convert::Infallible>(())
    };
    let checkpoint = ctx.partial().join("checkpoint");
    let options = RunOptions {
        checkpoint_folder: Some(&checkpoint),
        checkpoint_every: CHECKPOINT_EVERY,
        ..RunOptions::default()
    };
    let spaces = Spaces::autoencoder(planted.d_in, 1.0);
    let configs = std::slice::from_ref(&train_config);
    let outcome = device::train_ensemble(configs, spaces, &mut batch, options, &mut on_step)?;
    if let Some(error) = failed {
        return Err(error);
    }
    let TrainOutcome::Finished(trained) = outcome else {
        ctx.check()?;
        return Err(anyhow!("training stopped early although nothing asked it to"));
    };
    let dictionary = trained[0].dictionary();
    dictionary.save(&ctx.out().join(super::sae::DICTIONARY), json!({ "method": "sae-tied", "train": train_config }))?;
    curve.extend(measured(&label, &dictionary, &data, &fresh));
    save_rows(ctx, &curve)
}
