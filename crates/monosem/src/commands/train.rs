//! `monosem train`.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use monosem_activations::{Batches, Store};
use monosem_sae::{
    AuxK, BatchTopK, EarlyStopping, Family, Gated, JumpRelu, Matryoshka, Precision, Relu, RunOptions, Space, Spaces,
    StepStats, Tied, TopK, TrainConfig, TrainOutcome, TrainState, Trainer,
};
use ndarray::{Array2, ArrayViewMut2};
use serde_json::{Value, json};

use super::{Bar, open_hook};
use crate::cli::{self, FamilyName};
use crate::evaluation::Rows;
use crate::metrics::Metrics;
use crate::nodes::input_scale;
use crate::output::{note, say};
use crate::{device, exit, interrupt};

/// Steps between checkpoints.
const CHECKPOINT_EVERY: u64 = 100;

/// Rows behind a measurement on held-out activations.
const HELD_OUT_ROWS: usize = 16_384;

/// The paper's L1 coefficient.
const ALPHA: f32 = 8.577e-4;

/// One autoencoder of those that are trained together.
struct Member {
    /// Its folder in the output folder; empty for the only one.
    name: String,
    config: TrainConfig,
}

/// Trains sparse autoencoders on a store of activations.
pub(crate) fn train(args: &cli::Train) -> Result<u8> {
    device::choose(args.device)?;
    interrupt::listen()?;
    let store = Store::open(&args.activations)?;
    let (hook, rows) = open_hook(&store, args.hook)?;
    let rows = Rows::new(rows, args.max_norm)?;
    let target_rows = args.target_hook.map(|hook| rows.at(store.hook(hook)?)).transpose()?;
    let members = members(args, rows.width())?;
    if members.iter().any(|m| m.config.precision == Precision::Bf16) && !Precision::Bf16.is_native() {
        note!("this processor has no AVX512-BF16: --precision bf16 is slower than f32 here");
    }
    for member in &members {
        member.config.validate(rows.width()).with_context(|| member.name.clone())?;
    }
    let space = |rows: &Rows| Ok::<_, anyhow::Error>(Space { d: rows.width(), scale: input_scale(rows)? });
    let spaces = Spaces { input: space(&rows)?, target: target_rows.as_ref().map(space).transpose()? };
    let held_out = args.held_out.as_deref().map(|folder| held_out(args, folder)).transpose()?;

    let batch_rows = members[0].config.batch;
    let order = Batches::new(rows.len(), batch_rows, args.seed);
    let mut indices = vec![0; batch_rows];
    let mut batch = |step: u64, input: ArrayViewMut2<'_, f32>, target: Option<ArrayViewMut2<'_, f32>>| {
        order.batch_into(step, &mut indices);
        rows.gather(&indices, input)?;
        match (&target_rows, target) {
            (Some(rows), Some(target)) => rows.gather(&indices, target),
            _ => Ok(()),
        }
    };
    let checkpoint = args.out.join("checkpoint");
    let done = steps_done(&members, &checkpoint)?;
    check_order(
        &checkpoint,
        done.iter().any(|(_, steps)| *steps > 0),
        &json!({
            "activations": args.activations, "hook": hook, "target_hook": args.target_hook, "rows": rows.len(), "max_norm": args.max_norm,
            "seed": args.seed, "held_out": args.held_out,
        }),
    )?;
    // Opened by the first step: what an earlier run wrote is cut only when this one goes on from it.
    let mut metrics = None;
    let mut bar = Bar::new("train");
    let steps = members.iter().map(|member| member.config.steps).max().unwrap_or(0);
    // The one that trains longest is shown.
    let shown = (0..members.len()).max_by_key(|i| (members[*i].config.steps, std::cmp::Reverse(*i))).unwrap_or(0);
    let mut failed = None;
    let mut on_step = |i: usize, step: u64, stats: &StepStats, _: &dyn Trainer| {
        let Member { name, config } = &members[i];
        let opened = match &mut metrics {
            Some(metrics) => Ok(metrics),
            none => Metrics::open(&args.out, args.metrics_every, &done).map(|opened| none.insert(opened)),
        };
        match opened.and_then(|metrics| metrics.add(name, step, batch_rows, config.schedule(step - 1), stats)) {
            Ok(speed) if i == shown => bar.show(step, steps, &figures(stats, speed, &members[i], members.len())),
            Ok(_) if interrupt::requested() => ControlFlow::Break(()),
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    let options = RunOptions {
        checkpoint_folder: Some(&checkpoint),
        checkpoint_every: CHECKPOINT_EVERY,
        held_out: held_out.as_ref().map(|(input, target)| (input.view(), target.as_ref().map(|t| t.view()))),
    };
    let configs: Vec<TrainConfig> = members.iter().map(|member| member.config.clone()).collect();
    let outcome = device::train_ensemble(&configs, spaces, &mut batch, options, &mut on_step);
    drop(bar);
    if let Some(error) = failed {
        return Err(error);
    }
    let TrainOutcome::Finished(trained) = outcome? else {
        note!("stopped; the same command goes on from {}", checkpoint.display());
        return Ok(exit::INTERRUPTED);
    };
    let manifest = store.manifest();
    for (Member { name, config }, sae) in members.iter().zip(trained) {
        let metadata = json!({
            "method": format!("sae-{}", config.family.name()), "hook": hook, "target_hook": args.target_hook, "train": config,
            "steps": sae.steps_done(), "input_scale": spaces.input.scale, "model": manifest.source.model, "text": manifest.source.text,
        });
        let folder = args.out.join(name);
        sae.dictionary().save(&folder, metadata)?;
        say!("{} {}", folder.display(), sae.dictionary().describe());
    }
    Ok(exit::OK)
}

/// What the bar says of a step.
fn figures(stats: &StepStats, speed: f64, member: &Member, members: usize) -> String {
    let StepStats { loss, fvu_batch, l0, dead, .. } = stats;
    let of = if members > 1 { format!(" ({members} members, figures of {})", member.name) } else { String::new() };
    format!("steps, loss {loss:.4}, FVU {fvu_batch:.4}, L0 {l0:.1}, dead {dead}, {speed:.0} vectors/s{of}")
}

/// Refuses to go on from a checkpoint with other rows, or the same in another order.
fn check_order(checkpoint: &Path, begun: bool, order: &Value) -> Result<()> {
    let path = checkpoint.join("order.json");
    if begun && path.is_file() {
        let found: Value =
            serde_json::from_slice(&std::fs::read(&path)?).with_context(|| path.display().to_string())?;
        let differs = order.as_object().into_iter().flatten().find(|(key, value)| found[key.as_str()] != **value);
        if let Some((key, value)) = differs {
            bail!(
                "{}: the run there has {key} {}, not {value}; remove the folder to start afresh",
                checkpoint.display(),
                found[key.as_str()]
            );
        }
        return Ok(());
    }
    std::fs::create_dir_all(checkpoint).with_context(|| format!("cannot create {}", checkpoint.display()))?;
    std::fs::write(&path, order.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

/// The steps that each member's checkpoint has behind it.
fn steps_done(members: &[Member], checkpoint: &Path) -> Result<Vec<(String, u64)>> {
    let done = members.iter().enumerate().map(|(i, member)| {
        let folder = checkpoint.join(format!("member-{i}"));
        let done = if TrainState::is_in(&folder) { TrainState::load(&folder)?.step } else { 0 };
        Ok((member.name.clone(), done))
    });
    done.collect()
}

/// Rows spread over a store that training does not see, and their targets.
fn held_out(args: &cli::Train, folder: &Path) -> Result<(Array2<f32>, Option<Array2<f32>>)> {
    let store = Store::open(folder)?;
    let (_, rows) = open_hook(&store, args.hook)?;
    let rows = Rows::new(rows, args.max_norm)?;
    let target = args.target_hook.map(|hook| rows.at(store.hook(hook)?)).transpose()?;
    let target = target.map(|rows| rows.sample(HELD_OUT_ROWS)).transpose()?;
    Ok((rows.sample(HELD_OUT_ROWS)?.0, target.map(|(target, _)| target)))
}

/// The settings of one autoencoder as the options give them.
fn config(args: &cli::Train, d_in: usize) -> Result<TrainConfig> {
    ensure!(args.ratio.is_finite() && args.ratio > 0.0, "--ratio {} must be above 0", args.ratio);
    let n_latents = args.latents.unwrap_or_else(|| ((args.ratio * d_in as f64).round() as usize).max(1));
    let k = args.k;
    let family = match args.family {
        FamilyName::Tied => Family::Tied(Tied {}),
        FamilyName::Relu => {
            Family::Relu(Relu { subtract_decoder_bias: args.subtract_decoder_bias, decoder_bias: true })
        }
        FamilyName::TopK => Family::TopK(TopK { k }),
        FamilyName::BatchTopK => Family::BatchTopK(BatchTopK { k }),
        FamilyName::JumpRelu => {
            let (bandwidth, initial_threshold) = (args.bandwidth, args.initial_threshold);
            Family::JumpRelu(JumpRelu { bandwidth, initial_threshold })
        }
        FamilyName::Gated => Family::Gated(Gated {}),
        FamilyName::Matryoshka => {
            let parts = || {
                let mut parts: Vec<usize> = [8, 4, 2, 1].map(|part| (n_latents / part).max(1)).to_vec();
                parts.dedup();
                parts
            };
            let prefixes = if args.prefixes.is_empty() { parts() } else { args.prefixes.clone() };
            Family::Matryoshka(Matryoshka { k, prefixes })
        }
    };
    let early = EarlyStopping {
        every: args.early_every,
        patience: args.early_patience,
        min_improvement: args.early_min_improvement,
    };
    Ok(TrainConfig {
        alpha: args.alpha.unwrap_or_else(|| default_alpha(&family)),
        family,
        n_latents,
        lr: args.lr,
        batch: args.batch,
        steps: args.steps,
        adam: args.adam,
        precision: args.precision.unwrap_or_else(fastest),
        lr_warmup_steps: args.lr_warmup_steps,
        lr_decay_steps: args.lr_decay_steps,
        sparsity_warmup_steps: args.sparsity_warmup_steps,
        clip_norm: args.clip_norm,
        dead_after_steps: args.dead_after_steps,
        aux_k: args.aux_k.map(|k| AuxK { k, coefficient: args.aux_coefficient }),
        resample_every: args.resample_every,
        early_stopping: args.held_out.as_ref().map(|_| early),
        seed: args.seed,
        ..TrainConfig::default()
    })
}

/// Over five seeds dictionaries trained with either differ far less than those of two seeds do (benches/README.md).
fn fastest() -> Precision {
    if Precision::Bf16.is_native() { Precision::Bf16 } else { Precision::F32 }
}

fn default_alpha(family: &Family) -> f32 {
    if matches!(family, Family::TopK(_) | Family::BatchTopK(_) | Family::Matryoshka(_)) { 0.0 } else { ALPHA }
}

/// Those that are trained: the one of the options, or those of the members' file.
fn members(args: &cli::Train, d_in: usize) -> Result<Vec<Member>> {
    let base = config(args, d_in)?;
    let Some(path) = &args.members else {
        return Ok(vec![Member { name: String::new(), config: base }]);
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: Value = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let list = match file["member"].as_array() {
        Some(list) if file.as_object().is_some_and(|keys| keys.len() == 1) => list,
        _ => bail!("{}: expected nothing but [[member]] tables", path.display()),
    };
    let mut members: Vec<Member> = Vec::new();
    for (i, keys) in list.iter().enumerate() {
        let about = || format!("{}: member {i}", path.display());
        let mut settings = serde_json::to_value(&base)?;
        let name = keys["name"].as_str().with_context(|| format!("{} has no name", about()))?;
        let is_folder = !name.is_empty() && Path::new(name).file_name().is_some_and(|file| file == name);
        ensure!(is_folder && name != "checkpoint", "{}: {name:?} cannot be the name of its folder", about());
        ensure!(members.iter().all(|member| member.name != name), "{}: there are two named {name:?}", about());
        for (key, value) in keys.as_object().into_iter().flatten().filter(|(key, _)| *key != "name") {
            settings[key] = value.clone();
        }
        let mut config: TrainConfig = serde_json::from_value(settings).with_context(about)?;
        if keys.get("alpha").is_none() && keys.get("family").is_some() && args.alpha.is_none() {
            config.alpha = default_alpha(&config.family);
        }
        members.push(Member { name: name.to_owned(), config });
    }
    ensure!(!members.is_empty(), "{} has no [[member]]", path.display());
    Ok(members)
}
