use std::ops::ControlFlow;
use std::path::Path;

use ndarray::{Array2, ArrayViewMut2};

use crate::{SaeError, StepStats, TiedSae, TrainConfig, TrainState, TrainStep};

/// How a training run ended.
#[allow(clippy::large_enum_variant, reason = "one value per run")]
pub enum TrainOutcome {
    /// All steps were taken.
    Finished(TiedSae),
    /// `on_step` asked to stop. The state was written to the checkpoint folder, if there is one: the same call goes on from there.
    Interrupted {
        /// Steps taken.
        steps_done: u64,
    },
}

/// Trains a tied autoencoder, or goes on where an interrupted run of the same settings stopped; both end in the same bytes.
///
/// - `batches(step, out)` fills `out` `[config.batch, d_in]` with the rows of step `step` (the first is 0). It must give the same rows for the
///   same step every time: a resumed run asks for steps that an interrupted one has seen.
/// - `checkpoint_folder` takes the state every `checkpoint_every` steps (0: never) and when interrupted. What is there when the run has finished
///   is left there for the caller to remove.
/// - `on_step(steps_done, stats, sae)` is called after every step; `Break` interrupts, except after the last step.
///
/// # Errors
/// If a setting makes no sense, a batch cannot be made or holds values that are not finite, training diverges (the last checkpoint is kept), a
/// checkpoint cannot be written or read, or the one found is of other settings: the message names the first that differs.
#[allow(clippy::type_complexity, reason = "the closures' arguments are the documentation")]
pub fn train<E>(
    config: &TrainConfig,
    d_in: usize,
    input_scale: f32,
    batches: &mut dyn FnMut(u64, ArrayViewMut2<'_, f32>) -> Result<(), E>,
    checkpoint_folder: Option<&Path>,
    checkpoint_every: u64,
    on_step: &mut dyn FnMut(u64, &StepStats, &TiedSae) -> ControlFlow<()>,
) -> Result<TrainOutcome, SaeError<E>> {
    config.validate(d_in)?;
    let mut sae = match checkpoint_folder.filter(|folder| TrainState::is_in(folder)) {
        Some(folder) => resume(folder, config, d_in, input_scale)?,
        None => TiedSae::new(config.clone(), d_in, input_scale)?,
    };
    let mut batch = Array2::zeros((config.batch, d_in));
    while sae.steps_done() < config.steps {
        let step = sae.steps_done();
        batches(step, batch.view_mut()).map_err(|source| SaeError::Batch { step, source })?;
        let stats = sae.step(batch.view(), config.schedule(step))?;
        let done = sae.steps_done();
        let interrupted = on_step(done, &stats, &sae).is_break() && done < config.steps;
        let due = checkpoint_every > 0 && done.is_multiple_of(checkpoint_every) && done < config.steps;
        if let Some(folder) = checkpoint_folder.filter(|_| interrupted || due) {
            sae.state()?.save(folder)?;
        }
        if interrupted {
            return Ok(TrainOutcome::Interrupted { steps_done: done });
        }
    }
    Ok(TrainOutcome::Finished(sae))
}

fn resume<E>(folder: &Path, config: &TrainConfig, d_in: usize, input_scale: f32) -> Result<TiedSae, SaeError<E>> {
    let state = TrainState::load(folder)?;
    let settings = |config: &TrainConfig, d_in: usize, input_scale: f32| {
        let mut settings = match serde_json::to_value(config) {
            Ok(serde_json::Value::Object(settings)) => settings,
            _ => serde_json::Map::new(),
        };
        settings.insert("d_in".into(), d_in.into());
        settings.insert("input_scale".into(), f64::from(input_scale).into());
        settings
    };
    let expected = settings(config, d_in, input_scale);
    let found = settings(&state.config, state.d_in, state.input_scale);
    if let Some((key, expected)) = expected.into_iter().find(|(key, value)| found.get(key) != Some(value)) {
        let found = found.get(&key).map_or_else(|| "nothing".into(), ToString::to_string);
        return Err(SaeError::OtherRun { folder: folder.into(), key, found, expected: expected.to_string() });
    }
    Ok(TiedSae::from_state(state)?)
}
