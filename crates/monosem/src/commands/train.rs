//! `monosem train`.

use anyhow::{Result, ensure};
use monosem_activations::{Batches, Store};
use monosem_sae::{RunOptions, Sae, Spaces, StepStats, TrainConfig, TrainOutcome};
use ndarray::ArrayViewMut2;
use serde_json::json;

use super::{Bar, check_device, open_hook};
use crate::cli;
use crate::evaluation::Rows;
use crate::nodes::input_scale;
use crate::output::{note, say};
use crate::{exit, interrupt};

/// Steps between checkpoints.
const CHECKPOINT_EVERY: u64 = 100;

/// Trains a sparse autoencoder on a store of activations.
pub(crate) fn train(args: &cli::Train) -> Result<u8> {
    check_device(args.device)?;
    interrupt::listen()?;
    let store = Store::open(&args.activations)?;
    let (hook, rows) = open_hook(&store, args.hook)?;
    let rows = Rows::new(rows, args.max_norm)?;
    ensure!(args.ratio.is_finite() && args.ratio > 0.0, "--ratio {} must be above 0", args.ratio);
    let n_latents = args.latents.unwrap_or_else(|| ((args.ratio * rows.width() as f64).round() as usize).max(1));
    let config = TrainConfig {
        n_latents,
        alpha: args.alpha,
        lr: args.lr,
        batch: args.batch,
        steps: args.steps,
        adam: args.adam,
        precision: args.precision,
        lr_warmup_steps: args.lr_warmup_steps,
        lr_decay_steps: args.lr_decay_steps,
        seed: args.seed,
        ..TrainConfig::default()
    };
    config.validate(rows.width())?;
    let order = Batches::new(rows.len(), config.batch, config.seed);
    let mut indices = vec![0; config.batch];
    let mut batch = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        order.batch_into(step, &mut indices);
        rows.gather(&indices, out)
    };
    let mut bar = Bar::new("train");
    let mut on_step = |step: u64, stats: &StepStats, _: &Sae| {
        bar.show(step, config.steps, &format!("steps, loss {:.4}, L0 {:.1}", stats.loss, stats.l0))
    };
    let scale = input_scale(&rows)?;
    let checkpoint = args.out.join("checkpoint");
    let options = RunOptions {
        checkpoint_folder: Some(&checkpoint),
        checkpoint_every: CHECKPOINT_EVERY,
        ..RunOptions::default()
    };
    let spaces = Spaces::autoencoder(rows.width(), scale);
    let outcome = monosem_sae::train(&config, spaces, &mut batch, options, &mut on_step)?;
    drop(bar);
    let TrainOutcome::Finished(sae) = outcome else {
        note!("stopped; the same command goes on from {}", checkpoint.display());
        return Ok(exit::INTERRUPTED);
    };
    let manifest = store.manifest();
    let metadata = json!({
        "method": "sae-tied", "hook": hook, "train": config, "input_scale": scale,
        "model": manifest.source.model, "text": manifest.source.text,
    });
    sae.dictionary().save(&args.out, metadata)?;
    say!("{} {}", args.out.display(), sae.dictionary().describe());
    Ok(exit::OK)
}
