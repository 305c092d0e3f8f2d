use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use monosem_dictionary::{Dictionary as _, column_mean};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

use crate::{EarlyStopping, Sae, SaeError, Spaces, StepStats, TrainConfig, TrainState, TrainStep as _};

/// Rows of a held-out set that are encoded at once.
const HELD_OUT_ROWS: usize = 4096;

/// How a training run ended.
#[allow(clippy::large_enum_variant, reason = "one value per run")]
pub enum TrainOutcome<T = Sae> {
    /// All steps were taken, or early stopping ended it.
    Finished(T),
    /// `on_step` asked to stop. The state was written to the checkpoint folder, if there is one: the same call goes on from there.
    Interrupted {
        /// Steps taken.
        steps_done: u64,
    },
}

/// Where a run keeps its state, and what it is measured on.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions<'a> {
    /// Takes the state when interrupted, and now and then. What is there when the run has finished is left there for the caller to remove.
    pub checkpoint_folder: Option<&'a Path>,
    /// Steps between checkpoints; 0 for none but those of interruptions.
    pub checkpoint_every: u64,
    /// Rows that [`TrainConfig::early_stopping`] measures on: inputs, and for a transcoder targets.
    pub held_out: Option<(ArrayView2<'a, f32>, Option<ArrayView2<'a, f32>>)>,
}

/// Fills `input` `[config.batch, d_in]`, and for a transcoder `target` `[config.batch, d_out]`, with the rows of step `step` (the first is 0). It must give the
/// same rows for the same step every time: a resumed run asks for steps that an interrupted one has seen.
pub type Batches<'a, E> = dyn FnMut(u64, ArrayViewMut2<'_, f32>, Option<ArrayViewMut2<'_, f32>>) -> Result<(), E> + 'a;

/// Called after every step with the steps done, its figures, and the autoencoder; `Break` interrupts, except after the last step.
pub type OnStep<'a> = dyn FnMut(u64, &StepStats, &Sae) -> ControlFlow<()> + 'a;

/// Trains an autoencoder or transcoder, or goes on where an interrupted run of the same settings stopped; both end in the same bytes.
///
/// # Errors
/// If a setting makes no sense, a batch cannot be made or holds values that are not finite, training diverges (the last checkpoint is kept), a
/// checkpoint cannot be written or read, or the one found is of other settings: the message names the first that differs.
pub fn train<E>(
    config: &TrainConfig,
    spaces: Spaces,
    batches: &mut Batches<'_, E>,
    options: RunOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<TrainOutcome, SaeError<E>> {
    let member = Member {
        sae: begin(config, spaces, options.checkpoint_folder)?,
        folder: options.checkpoint_folder.map(Path::to_owned),
    };
    let outcome = run(vec![member], batches, options, &mut |_, done, stats, sae| on_step(done, stats, sae))?;
    Ok(match outcome {
        TrainOutcome::Finished(mut members) => TrainOutcome::Finished(members.remove(0)),
        TrainOutcome::Interrupted { steps_done } => TrainOutcome::Interrupted { steps_done },
    })
}

/// Trains several autoencoders of whatever families, sizes and settings in one pass over the activations, each exactly as if alone. They read the same
/// batches, so [`TrainConfig::batch`] is the same for all; their checkpoints are in folders of their own. `on_step` also gets the number of the member.
///
/// # Errors
/// As [`train`]; and if there is no member or their batches differ.
pub fn train_ensemble<E>(
    configs: &[TrainConfig],
    spaces: Spaces,
    batches: &mut Batches<'_, E>,
    options: RunOptions<'_>,
    on_step: &mut dyn FnMut(usize, u64, &StepStats, &Sae) -> ControlFlow<()>,
) -> Result<TrainOutcome<Vec<Sae>>, SaeError<E>> {
    let members = configs.iter().enumerate().map(|(i, config)| {
        let folder = options.checkpoint_folder.map(|folder| folder.join(format!("member-{i}")));
        if config.batch != configs[0].batch {
            let problem = format!("is {} for member {i} and {} for member 0", config.batch, configs[0].batch);
            return Err(crate::ConfigError { key: "batch", problem }.into());
        }
        Ok(Member { sae: begin(config, spaces, folder.as_deref())?, folder })
    });
    let members = members.collect::<Result<Vec<_>, SaeError<E>>>()?;
    if members.is_empty() {
        return Err(crate::ConfigError { key: "members", problem: "is empty, expected at least one".into() }.into());
    }
    run(members, batches, options, on_step)
}

struct Member {
    sae: Sae,
    folder: Option<PathBuf>,
}

impl Member {
    fn is_finished(&self) -> bool {
        let config = self.sae.config();
        let waited = config.early_stopping.is_some_and(|early| self.sae.memory.since_best >= u64::from(early.patience));
        self.sae.steps_done() >= config.steps || waited
    }

    fn save<E>(&self) -> Result<(), SaeError<E>> {
        match &self.folder {
            Some(folder) => Ok(self.sae.state()?.save(folder)?),
            None => Ok(()),
        }
    }
}

fn run<E>(
    mut members: Vec<Member>,
    batches: &mut Batches<'_, E>,
    options: RunOptions<'_>,
    on_step: &mut dyn FnMut(usize, u64, &StepStats, &Sae) -> ControlFlow<()>,
) -> Result<TrainOutcome<Vec<Sae>>, SaeError<E>> {
    let spaces = members[0].sae.spaces();
    if members.iter().any(|member| member.sae.config().early_stopping.is_some()) && options.held_out.is_none() {
        let problem = "needs held-out rows to measure on, and none were given".into();
        return Err(crate::ConfigError { key: "early_stopping", problem }.into());
    }
    let (rows, alone) = (members[0].sae.config().batch, members.len() == 1);
    let mut input = Array2::zeros((rows, spaces.input.d));
    let mut target = spaces.target.map(|target| Array2::zeros((rows, target.d)));
    // One set of buffers goes round.
    let mut buffers = crate::sae::Buffers::default();
    loop {
        // A killed run may have left members at different steps: those behind catch up first.
        let unfinished = members.iter().filter(|member| !member.is_finished());
        let Some(step) = unfinished.map(|member| member.sae.steps_done()).min() else { break };
        batches(step, input.view_mut(), target.as_mut().map(|target| target.view_mut()))
            .map_err(|source| SaeError::Batch { step, source })?;
        let mut interrupted = false;
        for i in 0..members.len() {
            let member = &mut members[i];
            if member.is_finished() || member.sae.steps_done() != step {
                continue;
            }
            let schedule = member.sae.config().schedule(step);
            std::mem::swap(&mut buffers, &mut member.sae.buffers);
            let stepped = member.sae.step(input.view(), target.as_ref().map(|target| target.view()), schedule);
            std::mem::swap(&mut buffers, &mut member.sae.buffers);
            let stats = match stepped {
                Ok(stats) => stats,
                Err(source) if alone => return Err(source.into()),
                Err(source) => {
                    let mut others = members.iter().enumerate().filter(|(other, _)| *other != i);
                    others.try_for_each(|(_, member)| member.save())?;
                    return Err(SaeError::Member { member: i, source });
                }
            };
            let done = member.sae.steps_done();
            if let (Some(early), Some(held_out)) = (member.sae.config().early_stopping, options.held_out)
                && done.is_multiple_of(early.every)
            {
                member.sae.measure(early, held_out);
            }
            interrupted |= on_step(i, done, &stats, &member.sae).is_break();
            if options.checkpoint_every > 0 && done.is_multiple_of(options.checkpoint_every) && !member.is_finished() {
                member.save()?;
            }
        }
        if interrupted && members.iter().any(|member| !member.is_finished()) {
            members.iter().try_for_each(Member::save)?;
            return Ok(TrainOutcome::Interrupted { steps_done: step + 1 });
        }
    }
    Ok(TrainOutcome::Finished(members.into_iter().map(|member| member.sae).collect()))
}

impl Sae {
    /// Fraction of variance unexplained of rows, by the dictionary learned so far.
    ///
    /// # Panics
    /// If the rows are not as wide as what it reads and reconstructs.
    #[must_use]
    pub fn fvu(&self, input: ArrayView2<'_, f32>, target: Option<ArrayView2<'_, f32>>) -> f64 {
        let (dictionary, target) = (self.dictionary(), target.unwrap_or(input));
        let mean = column_mean(target);
        let (mut error, mut variance) = (0.0, 0.0);
        let chunks = |rows: ArrayView2<'_, f32>| -> Vec<Array2<f32>> {
            rows.axis_chunks_iter(Axis(0), HELD_OUT_ROWS).map(|chunk| chunk.to_owned()).collect()
        };
        for (input, target) in chunks(input).iter().zip(chunks(target)) {
            let reconstruction = dictionary.decode(&dictionary.encode(input.view()));
            error += (reconstruction - &target).iter().map(|e| f64::from(*e).powi(2)).sum::<f64>();
            let deviations = target.rows().into_iter().flat_map(|row| {
                row.iter().zip(&mean).map(|(x, mean)| (f64::from(*x) - *mean).powi(2)).collect::<Vec<_>>()
            });
            variance += deviations.sum::<f64>();
        }
        error / variance
    }

    fn measure(&mut self, early: EarlyStopping, (input, target): (ArrayView2<'_, f32>, Option<ArrayView2<'_, f32>>)) {
        let fvu = self.fvu(input, target) as f32;
        if fvu < self.memory.best_fvu * (1.0 - early.min_improvement) {
            (self.memory.best_fvu, self.memory.since_best) = (fvu, 0);
        } else {
            self.memory.since_best += 1;
        }
    }
}

/// A new autoencoder, or the one that an interrupted run left in `folder`.
fn begin<E>(config: &TrainConfig, spaces: Spaces, folder: Option<&Path>) -> Result<Sae, SaeError<E>> {
    match folder.filter(|folder| TrainState::is_in(folder)) {
        Some(folder) => resume(folder, config, spaces),
        None => Ok(Sae::new(config.clone(), spaces)?),
    }
}

fn resume<E>(folder: &Path, config: &TrainConfig, spaces: Spaces) -> Result<Sae, SaeError<E>> {
    let state = TrainState::load(folder)?;
    let settings = |config: &TrainConfig, spaces: Spaces| {
        let mut settings = match serde_json::to_value(config) {
            Ok(serde_json::Value::Object(settings)) => settings,
            _ => serde_json::Map::new(),
        };
        settings.insert("d_in".into(), spaces.input.d.into());
        settings.insert("d_out".into(), spaces.output().d.into());
        settings.insert("input_scale".into(), f64::from(spaces.input.scale).into());
        settings.insert("target_scale".into(), f64::from(spaces.output().scale).into());
        settings
    };
    let (expected, found) = (settings(config, spaces), settings(&state.config, state.spaces));
    if let Some((key, expected)) = expected.into_iter().find(|(key, value)| found.get(key) != Some(value)) {
        let found = found.get(&key).map_or_else(|| "nothing".into(), ToString::to_string);
        return Err(SaeError::OtherRun { folder: folder.into(), key, found, expected: expected.to_string() });
    }
    Ok(Sae::from_state(state)?)
}
