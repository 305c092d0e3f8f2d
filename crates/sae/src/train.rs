use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use monosem_dictionary::{Dictionary as _, LinearDictionary, column_mean};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

use crate::{
    Cpu, Progress, Sae, SaeError, Spaces, StepError, StepParams, StepStats, TrainConfig, TrainState, TrainStep,
};

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

/// Called after every step with the number of the member (0 for the only one), the steps it has done, its figures, and itself; `Break` interrupts, except after the
/// last step.
pub type OnStep<'a> = dyn FnMut(usize, u64, &StepStats, &dyn Trainer) -> ControlFlow<()> + 'a;

/// One autoencoder in training on some device, as [`train_on`] drives it.
pub trait Trainer: TrainStep {
    /// The settings of the run.
    fn config(&self) -> &TrainConfig;

    /// What was done so far.
    fn progress(&self) -> &Progress;

    /// Steps taken since the weights were drawn.
    fn steps_done(&self) -> u64 {
        self.progress().steps_done
    }

    /// What was done so far, for the measurements of early stopping.
    fn progress_mut(&mut self) -> &mut Progress;

    /// The dictionary learned so far, in the units of the raw activations.
    ///
    /// # Errors
    /// If a device does not hand it over.
    fn dictionary(&self) -> Result<LinearDictionary, StepError>;

    /// Begins a step on the batch that its device was fed; a device of its own works on while the caller makes the next batch.
    ///
    /// # Errors
    /// As [`TrainStep::step`].
    fn launch(
        &mut self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
        schedule: StepParams,
    ) -> Result<(), StepError>;

    /// Waits for the step that was launched.
    ///
    /// # Errors
    /// As [`TrainStep::step`].
    ///
    /// # Panics
    /// If none was launched.
    fn finish(&mut self) -> Result<StepStats, StepError>;

    /// Brings it back to this processor.
    ///
    /// # Errors
    /// If a device does not hand it over.
    fn into_sae(self: Box<Self>) -> Result<Sae, StepError>;
}

/// Where autoencoders are trained.
pub trait Device {
    /// Takes one over, new or from a checkpoint.
    ///
    /// # Errors
    /// If there is no room for it, or the device does not work.
    fn bring(&mut self, sae: Sae) -> Result<Box<dyn Trainer>, StepError>;

    /// The batch of the next step of all that it trains, which it may copy while a step is under way. The same views are given to [`Trainer::launch`].
    ///
    /// # Errors
    /// If the device does not work.
    fn feed(&mut self, _input: ArrayView2<'_, f32>, _target: Option<ArrayView2<'_, f32>>) -> Result<(), StepError> {
        Ok(())
    }

    /// Whether it works on by itself after a launch, so that the next batch is best made then.
    fn works_alone(&self) -> bool {
        false
    }
}

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
    on_step: &mut dyn FnMut(u64, &StepStats, &dyn Trainer) -> ControlFlow<()>,
) -> Result<TrainOutcome, SaeError<E>> {
    let mut device = Cpu::default();
    let sae = begin(config, spaces, options.checkpoint_folder)?;
    let member = Member { trainer: device.bring(sae)?, folder: options.checkpoint_folder.map(Path::to_owned) };
    let mut on_step = |_: usize, done: u64, stats: &StepStats, trainer: &dyn Trainer| on_step(done, stats, trainer);
    Ok(match run(&mut device, vec![member], spaces, batches, options, &mut on_step)? {
        TrainOutcome::Finished(mut members) => TrainOutcome::Finished(members.remove(0)),
        TrainOutcome::Interrupted { steps_done } => TrainOutcome::Interrupted { steps_done },
    })
}

/// Trains several autoencoders of whatever families, sizes and settings in one pass over the activations, each exactly as if alone. They read the same
/// batches, so [`TrainConfig::batch`] is the same for all; their checkpoints are in folders of their own.
///
/// # Errors
/// As [`train`]; and if there is no member or their batches differ.
pub fn train_ensemble<E>(
    configs: &[TrainConfig],
    spaces: Spaces,
    batches: &mut Batches<'_, E>,
    options: RunOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<TrainOutcome<Vec<Sae>>, SaeError<E>> {
    train_on(&mut Cpu::default(), configs, spaces, batches, options, on_step)
}

/// As [`train_ensemble`], on a device. Checkpoints do not know of devices: a run may go on on another one.
///
/// # Errors
/// As [`train_ensemble`]; and if the device fails.
pub fn train_on<E>(
    device: &mut dyn Device,
    configs: &[TrainConfig],
    spaces: Spaces,
    batches: &mut Batches<'_, E>,
    options: RunOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<TrainOutcome<Vec<Sae>>, SaeError<E>> {
    let members = configs.iter().enumerate().map(|(i, config)| {
        let folder = options.checkpoint_folder.map(|folder| folder.join(format!("member-{i}")));
        if config.batch != configs[0].batch {
            let problem = format!("is {} for member {i} and {} for member 0", config.batch, configs[0].batch);
            return Err(crate::ConfigError { key: "batch", problem }.into());
        }
        Ok(Member { trainer: device.bring(begin(config, spaces, folder.as_deref())?)?, folder })
    });
    let members = members.collect::<Result<Vec<_>, SaeError<E>>>()?;
    if members.is_empty() {
        return Err(crate::ConfigError { key: "members", problem: "is empty, expected at least one".into() }.into());
    }
    run(device, members, spaces, batches, options, on_step)
}

struct Member {
    trainer: Box<dyn Trainer>,
    folder: Option<PathBuf>,
}

impl Member {
    fn is_finished(&self) -> bool {
        let (config, progress) = (self.trainer.config(), self.trainer.progress());
        let waited = config.early_stopping.is_some_and(|early| progress.since_best >= u64::from(early.patience));
        progress.steps_done >= config.steps || waited
    }

    fn save<E>(&self) -> Result<(), SaeError<E>> {
        match &self.folder {
            Some(folder) => Ok(self.trainer.state()?.save(folder)?),
            None => Ok(()),
        }
    }
}

/// The rows of one step.
struct Rows {
    step: u64,
    input: Array2<f32>,
    target: Option<Array2<f32>>,
}

impl Rows {
    fn new(rows: usize, spaces: Spaces) -> Self {
        let target = spaces.target.map(|target| Array2::zeros((rows, target.d)));
        Self { step: u64::MAX, input: Array2::zeros((rows, spaces.input.d)), target }
    }

    fn views(&self) -> (ArrayView2<'_, f32>, Option<ArrayView2<'_, f32>>) {
        (self.input.view(), self.target.as_ref().map(|target| target.view()))
    }

    /// Makes the rows of a step, unless they are there, and feeds them.
    fn prepare<E>(
        &mut self,
        step: u64,
        batches: &mut Batches<'_, E>,
        device: &mut dyn Device,
    ) -> Result<(), SaeError<E>> {
        if self.step == step {
            return Ok(());
        }
        self.step = u64::MAX;
        batches(step, self.input.view_mut(), self.target.as_mut().map(|target| target.view_mut()))
            .map_err(|source| SaeError::Batch { step, source })?;
        let (input, target) = self.views();
        device.feed(input, target)?;
        self.step = step;
        Ok(())
    }
}

fn run<E>(
    device: &mut dyn Device,
    mut members: Vec<Member>,
    spaces: Spaces,
    batches: &mut Batches<'_, E>,
    options: RunOptions<'_>,
    on_step: &mut OnStep<'_>,
) -> Result<TrainOutcome<Vec<Sae>>, SaeError<E>> {
    if members.iter().any(|member| member.trainer.config().early_stopping.is_some()) && options.held_out.is_none() {
        let problem = "needs held-out rows to measure on, and none were given".into();
        return Err(crate::ConfigError { key: "early_stopping", problem }.into());
    }
    let batch = members[0].trainer.config().batch;
    let (mut rows, mut next) = (Rows::new(batch, spaces), None);
    if device.works_alone() {
        next = Some(Rows::new(batch, spaces));
    }
    loop {
        // A killed run may have left members at different steps: those behind catch up first.
        let unfinished = members.iter().filter(|member| !member.is_finished());
        let Some(step) = unfinished.map(|member| member.trainer.steps_done()).min() else { break };
        rows.prepare(step, batches, device)?;
        let takes_part: Vec<usize> = (0..members.len())
            .filter(|i| !members[*i].is_finished() && members[*i].trainer.steps_done() == step)
            .collect();
        let is_last = |i: &usize| members[*i].trainer.config().steps <= step + 1;
        let goes_on = !takes_part.iter().all(is_last);
        let mut interrupted = false;
        // A device that works alone has the steps of all members before it, another one takes one after the other.
        for group in takes_part.chunks(if next.is_some() { takes_part.len() } else { 1 }) {
            for &i in group {
                let (input, target) = rows.views();
                let trainer = &mut members[i].trainer;
                let schedule = trainer.config().schedule(step);
                if let Err(source) = trainer.launch(input, target, schedule) {
                    let before = group.iter().take_while(|other| **other != i);
                    return failed(&mut members, before, i, source);
                }
            }
            if let Some(next) = next.as_mut().filter(|_| goes_on) {
                // What goes wrong with the next batch is told when its turn has come.
                let _ = next.prepare(step + 1, batches, device);
            }
            for &i in group {
                let stats = match members[i].trainer.finish() {
                    Ok(stats) => stats,
                    Err(source) => {
                        let after = group.iter().skip_while(|other| **other != i).skip(1);
                        return failed(&mut members, after, i, source);
                    }
                };
                let member = &mut members[i];
                let done = member.trainer.steps_done();
                if let (Some(early), Some(held_out)) = (member.trainer.config().early_stopping, options.held_out)
                    && done.is_multiple_of(early.every)
                {
                    let fvu = fvu(&member.trainer.dictionary()?, held_out.0, held_out.1) as f32;
                    member.trainer.progress_mut().measured(fvu, early);
                }
                interrupted |= on_step(i, done, &stats, &*member.trainer).is_break();
                let due = options.checkpoint_every > 0 && done.is_multiple_of(options.checkpoint_every);
                if due && !member.is_finished() {
                    member.save()?;
                }
            }
        }
        if interrupted && members.iter().any(|member| !member.is_finished()) {
            members.iter().try_for_each(Member::save)?;
            return Ok(TrainOutcome::Interrupted { steps_done: step + 1 });
        }
        if let Some(next) = &mut next {
            std::mem::swap(&mut rows, next);
        }
    }
    let back = members.into_iter().map(|member| member.trainer.into_sae());
    Ok(TrainOutcome::Finished(back.collect::<Result<_, _>>()?))
}

/// The step of member `i` could not be taken: the others are saved, with the step that some of them have launched.
fn failed<'a, T, E>(
    members: &mut [Member],
    launched: impl Iterator<Item = &'a usize>,
    i: usize,
    source: StepError,
) -> Result<T, SaeError<E>> {
    if members.len() == 1 {
        return Err(source.into());
    }
    for &other in launched {
        // One error is told; a member that fails as well keeps the weights it had.
        let _ = members[other].trainer.finish();
    }
    let mut others = members.iter().enumerate().filter(|(other, _)| *other != i);
    others.try_for_each(|(_, member)| member.save())?;
    Err(SaeError::Member { member: i, source })
}

impl Sae {
    /// Fraction of variance unexplained of rows, by the dictionary learned so far.
    ///
    /// # Panics
    /// If the rows are not as wide as what it reads and reconstructs.
    #[must_use]
    pub fn fvu(&self, input: ArrayView2<'_, f32>, target: Option<ArrayView2<'_, f32>>) -> f64 {
        fvu(&self.dictionary(), input, target)
    }
}

fn fvu(dictionary: &LinearDictionary, input: ArrayView2<'_, f32>, target: Option<ArrayView2<'_, f32>>) -> f64 {
    let target = target.unwrap_or(input);
    let mean = column_mean(target);
    let (mut error, mut variance) = (0.0, 0.0);
    let chunks = |rows: ArrayView2<'_, f32>| -> Vec<Array2<f32>> {
        rows.axis_chunks_iter(Axis(0), HELD_OUT_ROWS).map(|chunk| chunk.to_owned()).collect()
    };
    for (input, target) in chunks(input).iter().zip(chunks(target)) {
        let reconstruction = dictionary.decode(&dictionary.encode(input.view()));
        error += (reconstruction - &target).iter().map(|e| f64::from(*e).powi(2)).sum::<f64>();
        let deviations = target
            .rows()
            .into_iter()
            .flat_map(|row| row.iter().zip(&mean).map(|(x, mean)| (f64::from(*x) - *mean).powi(2)).collect::<Vec<_>>());
        variance += deviations.sum::<f64>();
    }
    error / variance
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
