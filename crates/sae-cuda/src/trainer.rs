//! An autoencoder whose parameters are on a device.

use std::rc::Rc;

use monosem_dictionary::LinearDictionary;
use monosem_sae::{
    BatchSums, LastBatch, Progress, Sae, Selection, Spaces, StepError, StepParams, StepStats, TrainConfig, TrainState,
    TrainStep, Trainer, first_decoder_bias,
};
use ndarray::ArrayView2;

use crate::CudaError;
use crate::buffer::{Buffer, failed};
use crate::control::Control;
use crate::gpu::Shared;
use crate::parameters::Parameters;
use crate::step::{ROW_BLOCK, Search, Step};

/// Candidates of a choice have to be above this share of what was the limit in the step before: of a batch, and of a row relative to its size. Where too few are,
/// half as much is asked of them, and after [`HINT_TIMES`] nothing.
const BATCH_HINT: f32 = 0.95;
const ROW_HINT: f32 = 0.8;
const HINT_AGAIN: f32 = 0.5;
const HINT_TIMES: u32 = 8;

/// Rows that show what the limit may be where no step has.
const PROBE_ROWS: usize = 256;

/// An autoencoder or transcoder in training on a GPU.
pub struct CudaSae {
    config: TrainConfig,
    spaces: Spaces,
    progress: Progress,
    parameters: Parameters,
    ends: Buffer<u32>,
    n_ends: usize,
    /// Latents that were dead after the last step.
    n_dead: usize,
    /// Those that the auxiliary loss looks at, and each latent's number among them.
    dead: (Buffer<u32>, Buffer<u32>, usize),
    launched: Option<Launched>,
    control: Buffer<Control>,
    /// What came of a step that was waited for at once, and its batch: one after which latents begin anew.
    waited: Option<(Control, [Vec<f32>; 3])>,
    // Last, for everything above lives on it.
    gpu: Rc<Shared>,
}

impl Drop for CudaSae {
    fn drop(&mut self) {
        // What is given back has to be so on its own device.
        let _ = self.gpu.enter();
    }
}

/// A step that is under way.
#[derive(Clone, Copy)]
struct Launched {
    batch: [u64; 2],
    rows: usize,
    schedule: StepParams,
    search: Search,
    attempts: u32,
}

impl CudaSae {
    pub(crate) fn new(gpu: Rc<Shared>, sae: Sae) -> Result<Self, StepError> {
        let state = sae.state()?;
        let on = |error: CudaError| gpu.step_error(&error);
        gpu.enter().map_err(on)?;
        let config = state.config.clone();
        let prefixes: Vec<u32> = config.family.prefixes().iter().map(|end| *end as u32).collect();
        let ends = if prefixes.is_empty() { vec![config.n_latents as u32] } else { prefixes };
        let parameters = Parameters::load(&state).map_err(on)?;
        let silent = state.tensors.get("silent").into_iter().flatten();
        let n_dead = silent.filter(|steps| f64::from(**steps) >= config.dead_after_steps as f64).count();
        let trainer = Self {
            progress: *sae.progress(),
            spaces: state.spaces,
            ends: Buffer::from_slice(&ends).map_err(on)?,
            n_ends: ends.len(),
            config,
            parameters,
            n_dead,
            dead: (Buffer::default(), Buffer::default(), 0),
            launched: None,
            control: Buffer::new(1).map_err(on)?,
            waited: None,
            gpu: Rc::clone(&gpu),
        };
        trainer.measure().map_err(on)?;
        Ok(trainer)
    }

    /// The lengths of the encoder's rows, which follow from them.
    fn measure(&self) -> Result<(), CudaError> {
        let (at, tied) = (self.parameters.at(), u32::from(self.parameters.layout.tied));
        let grid = (at.n_latents, 1);
        self.gpu.run("measure", grid, ROW_BLOCK, 0, &[&at.enc.value, &at.ld_in, &tied, &at.scale, &at.length])?;
        self.synchronize()
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.gpu.stream.synchronize().map_err(failed("run a step"))
    }

    fn step_of(&self, launched: Launched) -> Step<'_> {
        Step {
            config: &self.config,
            progress: &self.progress,
            parameters: &self.parameters,
            batch: launched.batch,
            scales: [self.spaces.input.scale, self.spaces.output().scale],
            rows: launched.rows,
            schedule: launched.schedule,
            search: launched.search,
            ends: (self.ends.at(), self.n_ends),
            dead: (self.dead.2, self.dead.0.at(), self.dead.1.at()),
            control: self.control.at(),
        }
    }

    /// Chooses the dead latents of this step.
    fn list_dead(&mut self) -> Result<(), CudaError> {
        self.dead.2 = 0;
        if self.config.aux_k.is_none() || self.n_dead == 0 {
            return Ok(());
        }
        let silent = self.parameters.silent.read(self.parameters.n)?;
        let some = self.progress.dead_of_step(&self.config, silent.into_iter());
        let mut numbers = vec![Control::NONE; self.parameters.n];
        for (number, j) in (0..).zip(&some) {
            numbers[*j as usize] = number;
        }
        self.dead.0.write(&some)?;
        self.dead.1.write(&numbers)?;
        self.dead.2 = some.len();
        Ok(())
    }

    /// Where the search for the largest codes begins.
    fn search(&self, mut launched: Launched) -> Result<Search, CudaError> {
        // Of a batch of zeros there is none.
        let last = Some(self.progress.last_choice).filter(|last| last.is_finite()).unwrap_or(0.0);
        let from = |choice: f32| match self.config.family.selection() {
            Selection::Threshold => Search::default(),
            Selection::TopK(_) => Search { floor: 0.0, hint: choice * ROW_HINT },
            Selection::BatchTopK(_) => Search { floor: choice * BATCH_HINT, hint: 0.0 },
        };
        if !from(last).is_complete()
            || self.config.family.selection() == Selection::Threshold
            || launched.rows <= PROBE_ROWS
        {
            return Ok(from(last));
        }
        launched.rows = PROBE_ROWS;
        loop {
            let mut workspace = self.gpu.workspace.borrow_mut();
            workspace.probe(&self.gpu, self.step_of(launched))?;
            let outcome = self.gpu.wait_for(&self.control)?;
            if outcome.halted & Control::NO_ROOM == 0 {
                return Ok(from(if outcome.chosen.is_finite() { outcome.chosen } else { 0.0 }));
            }
            workspace.grow(&outcome);
        }
    }

    fn begin(
        &mut self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
        schedule: StepParams,
    ) -> Result<(), CudaError> {
        self.gpu.enter()?;
        if self.progress.steps_done == 0
            && self.parameters.layout.decoder_bias
            && let Some(bias) = first_decoder_bias(self.spaces, target.unwrap_or(input))
        {
            self.parameters.set_decoder_bias(&bias)?;
        }
        self.list_dead()?;
        let (batch, rows) = self.gpu.fed()?;
        if rows as u64 * self.parameters.n as u64 > u64::from(u32::MAX) {
            let problem =
                format!("{rows} rows x {} latents are more than 2^32; use a smaller batch", self.parameters.n);
            return Err(CudaError::Failed { action: "encode a batch", problem });
        }
        let mut launched = Launched { batch, rows, schedule, search: Search::default(), attempts: 0 };
        launched.search = self.search(launched)?;
        self.gpu.workspace.borrow_mut().enqueue(&self.gpu, self.step_of(launched))?;
        if self.progress.may_resample_next(&self.config) {
            // The buffers are those of all members: the next one's step would take them.
            let outcome = self.outcome(&mut launched)?;
            let batch = self.gpu.workspace.borrow().last_batch(self.step_of(launched))?;
            self.waited = Some((outcome, batch));
        }
        self.launched = Some(launched);
        Ok(())
    }

    /// Waits for the step, and puts it into the stream again where it found that more room or a wider search is needed: nothing has moved then.
    fn outcome(&self, launched: &mut Launched) -> Result<Control, CudaError> {
        loop {
            let outcome = self.gpu.wait_for(&self.control)?;
            let mut workspace = self.gpu.workspace.borrow_mut();
            if outcome.bad_row != Control::NONE || outcome.halted & (Control::NO_ROOM | Control::SHORT) == 0 {
                return Ok(outcome);
            }
            if outcome.halted & Control::NO_ROOM != 0 {
                workspace.grow(&outcome);
            } else {
                launched.attempts += 1;
                let Search { floor, hint } = launched.search;
                launched.search = if launched.attempts < HINT_TIMES {
                    Search { floor: floor * HINT_AGAIN, hint: hint * HINT_AGAIN }
                } else {
                    Search::default()
                };
            }
            workspace.enqueue(&self.gpu, self.step_of(*launched))?;
        }
    }

    /// Starts dead latents anew, on the host.
    fn resample(&mut self, [x, target, residuals]: &[Vec<f32>; 3]) -> Result<(), StepError> {
        let gpu = Rc::clone(&self.gpu);
        let on = |error: CudaError| gpu.step_error(&error);
        let mut sae = self.sae()?;
        sae.resample(LastBatch { x, target, residuals });
        self.parameters = Parameters::load(&sae.state()?).map_err(on)?;
        self.measure().map_err(on)
    }

    fn sae(&self) -> Result<Sae, StepError> {
        Sae::from_state(self.state()?).map_err(|error| StepError::Device {
            device: self.gpu.name().to_owned(),
            problem: format!("hands over weights that are none: {error}"),
        })
    }
}

impl TrainStep for CudaSae {
    fn step(
        &mut self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
        schedule: StepParams,
    ) -> Result<StepStats, StepError> {
        self.gpu.enter().and_then(|()| self.gpu.feed(input, target)).map_err(|error| self.gpu.step_error(&error))?;
        self.launch(input, target, schedule)?;
        self.finish()
    }

    fn state(&self) -> Result<TrainState, StepError> {
        self.gpu.enter().map_err(|error| self.gpu.step_error(&error))?;
        Ok(TrainState {
            config: self.config.clone(),
            spaces: self.spaces,
            step: self.progress.steps_done,
            counters: self.progress.counters(),
            tensors: self.parameters.save().map_err(|error| self.gpu.step_error(&error))?,
        })
    }
}

impl Trainer for CudaSae {
    fn config(&self) -> &TrainConfig {
        &self.config
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn progress_mut(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn dictionary(&self) -> Result<LinearDictionary, StepError> {
        Ok(self.sae()?.dictionary())
    }

    fn launch(
        &mut self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
        schedule: StepParams,
    ) -> Result<(), StepError> {
        let rows = input.nrows();
        assert_eq!(input.ncols(), self.parameters.d_in, "a batch {} wide for {:?}", input.ncols(), self.spaces.input);
        assert!(rows > 0, "a batch without rows");
        assert_eq!(target.map(|t| t.dim()), self.spaces.target.map(|t| (rows, t.d)), "what has to be reconstructed");
        self.begin(input, target, schedule).map_err(|error| self.gpu.step_error(&error))
    }

    fn finish(&mut self) -> Result<StepStats, StepError> {
        let mut launched = self.launched.take().expect("a step was launched");
        self.gpu.enter().map_err(|error| self.gpu.step_error(&error))?;
        let (of, batch) = match self.waited.take() {
            Some((outcome, batch)) => (outcome, Some(batch)),
            None => (self.outcome(&mut launched).map_err(|error| self.gpu.step_error(&error))?, None),
        };
        let (step, lr) = (self.progress.steps_done, launched.schedule.lr);
        if of.bad_row != Control::NONE {
            if step == 0 && self.parameters.layout.decoder_bias {
                let zero = vec![0.0; self.parameters.d_out];
                self.parameters.set_decoder_bias(&zero).map_err(|error| self.gpu.step_error(&error))?;
            }
            return Err(StepError::NotFinite { step, row: of.bad_row as usize });
        }
        let sums = BatchSums {
            squared_error: of.squared_error,
            objective: of.objective,
            penalty: of.penalty,
            codes: of.codes,
            active: of.active,
            squares: of.squares,
            column_squares: of.column_squares,
            aux_error: of.aux_error,
        };
        let coefficient = self.config.aux_k.map_or(0.0, |aux| aux.coefficient);
        let mut stats = sums.stats(launched.rows, self.parameters.d_out, launched.schedule.alpha, coefficient);
        self.progress.check(&stats, lr)?;
        if of.not_finite != 0 {
            return Err(StepError::Diverged { step, what: "a weight is not finite", lr });
        }
        self.progress.advance(&stats, launched.rows, of.entries, of.chosen, self.config.family.selection());
        stats.dead = of.dead as usize;
        self.n_dead = stats.dead;
        if self.progress.resamples(&self.config, &stats)?
            && let Some(batch) = batch
        {
            self.resample(&batch)?;
        }
        Ok(stats)
    }

    fn into_sae(self: Box<Self>) -> Result<Sae, StepError> {
        self.sae()
    }
}
