//! One step on the device, from the rows of the batch to moved parameters: a list of kernels, put into a stream without waiting for any.

use monosem_bf16::Precision;
use monosem_sae::{AuxK, BF16_MARGIN, Family, Progress, Selection, StepParams, TrainConfig};

use crate::CudaError;
use crate::buffer::Buffer;
use crate::control::{
    Adam, Bounds, Control, Decoder, Encoder, Family as Formula, Figures, Gathered, Lists as OfRows, RowSums,
};
use crate::gpu::Shared;
use crate::lists::{BLOCK, Choice, Chosen, Lists, Operands, threads};
use crate::parameters::Parameters;

/// Rows, or latents, of one partial sum over columns.
const RUN: usize = 64;

/// Threads of blocks that work on a row or on a latent.
pub(crate) const ROW_BLOCK: u32 = 128;

/// Numbers of the formulas in `family.cuh`.
const RELU: u32 = 0;
const JUMP_RELU: u32 = 1;
const GATED: u32 = 2;

/// Rows of dead latents, gathered, and what they make of the batch.
#[derive(Default)]
struct Dead {
    enc: Buffer<f32>,
    dec: Buffer<f32>,
    bias: Buffer<f32>,
    length: Buffer<f32>,
    scale: Buffer<f32>,
    floor: Buffer<f32>,
    r: Buffer<f32>,
    errors: Buffer<f32>,
    relative: Buffer<f32>,
    /// Takes what kernels note of the choice among them.
    control: Buffer<Control>,
}

/// Arrays that are kept from step to step, and used by all autoencoders of a device.
#[derive(Default)]
pub(crate) struct Workspace {
    x: Buffer<f32>,
    target: Buffer<f32>,
    rounded: [Buffer<u16>; 2],
    squares: Buffer<f32>,
    raw_squares: Buffer<f32>,
    target_squares: Buffer<f32>,
    columns: Buffer<f32>,
    row_floor: Buffer<f32>,
    row_margin: Buffer<f32>,
    r: Buffer<f32>,
    second_r: Buffer<f32>,
    sums: [Buffer<f32>; 4],
    active: Buffer<u32>,
    relative: Buffer<f32>,
    bias_runs: Buffer<f32>,
    center_runs: Buffer<f32>,
    bias_gradient: Buffer<f32>,
    latent_squares: Buffer<f32>,
    lists: Lists,
    dead_lists: Lists,
    dead: Dead,
}

/// Where the search for candidates begins; see `Progress::last_choice`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Search {
    /// Candidates have to be above this.
    pub(crate) floor: f32,
    /// And above this many root mean squares of their row.
    pub(crate) hint: f32,
}

impl Search {
    /// Whether nothing that counts can have been missed.
    pub(crate) fn is_complete(self) -> bool {
        self.floor == 0.0 && self.hint == 0.0
    }
}

/// What one step works on.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) config: &'a TrainConfig,
    pub(crate) progress: &'a Progress,
    pub(crate) parameters: &'a Parameters,
    /// Addresses of the rows as they came, and of those to reconstruct (0 for the same).
    pub(crate) batch: [u64; 2],
    /// Factors on them.
    pub(crate) scales: [f32; 2],
    pub(crate) rows: usize,
    pub(crate) schedule: StepParams,
    pub(crate) search: Search,
    /// Address of the prefixes, and how many there are.
    pub(crate) ends: (u64, usize),
    /// Latents that the auxiliary loss looks at: their number, the address of their ids, and that of each latent's number among them.
    pub(crate) dead: (usize, u64, u64),
    /// Address of the block of control.
    pub(crate) control: u64,
}

impl Step<'_> {
    fn formula(&self) -> Formula {
        let penalty = (f64::from(self.schedule.alpha) / self.rows as f64) as f32;
        match &self.config.family {
            Family::JumpRelu(family) => Formula { formula: JUMP_RELU, penalty, bandwidth: family.bandwidth },
            Family::Gated(_) => Formula { formula: GATED, penalty, bandwidth: 0.0 },
            _ => Formula { formula: RELU, penalty, bandwidth: 0.0 },
        }
    }

    /// `2 / (rows d)`, the factor on a residual in the gradient of the reconstruction.
    fn whole(&self) -> f32 {
        (2.0 / (self.rows * self.parameters.d_out) as f64) as f32
    }

    fn residual(&self) -> f32 {
        self.whole() / self.ends.1 as f32
    }

    /// Floats in a row of residuals.
    fn stride(&self) -> usize {
        self.parameters.ld_out * self.ends.1
    }

    fn aux(&self) -> Option<AuxK> {
        self.config.aux_k.filter(|_| self.dead.0 > 0)
    }
}

impl Workspace {
    pub(crate) fn new() -> Result<Self, CudaError> {
        Ok(Self { dead: Dead { control: Buffer::new(1)?, ..Dead::default() }, ..Self::default() })
    }

    /// Makes room for as many candidates as were found, and some more.
    pub(crate) fn grow(&mut self, outcome: &Control) {
        let more = |found: u32| found as usize + found as usize / 4;
        self.lists.capacity = self.lists.capacity.max(more(outcome.found));
        self.dead_lists.capacity = self.dead_lists.capacity.max(more(outcome.aux_found));
    }

    /// The last batch as it was read, what had to be reconstructed, and the residuals: rows without their padding. The stream has to be idle.
    pub(crate) fn last_batch(&self, step: Step<'_>) -> Result<[Vec<f32>; 3], CudaError> {
        let Parameters { d_in, d_out, ld_in, ld_out, .. } = *step.parameters;
        let rows = |buffer: &Buffer<f32>, d: usize, ld: usize| {
            let wide = buffer.read(step.rows * ld)?;
            Ok::<_, CudaError>(wide.chunks_exact(ld).flat_map(|row| row[..d].iter().copied()).collect::<Vec<f32>>())
        };
        let x = rows(&self.x, d_in, ld_in)?;
        let target = if step.batch[1] == 0 { x.clone() } else { rows(&self.target, d_out, ld_out)? };
        Ok([x, target, rows(&self.r, d_out, ld_out)?])
    }

    /// Puts the choice of entries into the stream, and no more: it shows where the search may begin.
    pub(crate) fn probe(&mut self, gpu: &Shared, step: Step<'_>) -> Result<(), CudaError> {
        // Dead latents have their turn in the step itself.
        let step = Step { dead: (0, 0, 0), ..step };
        let chosen = self.choose(gpu, step)?;
        self.summarise(gpu, step, chosen, RowSums::default())
    }

    /// Puts a whole step into the stream.
    pub(crate) fn enqueue(&mut self, gpu: &Shared, step: Step<'_>) -> Result<(), CudaError> {
        let chosen = self.choose(gpu, step)?;
        self.reconstruct(gpu, step, chosen)?;
        self.auxiliary(gpu, step)?;
        let sums = self.reserve_sums(step.rows)?;
        self.summarise(gpu, step, chosen, sums)?;
        let of = (step.formula(), step.parameters.latents(), step.parameters.layout.extras.len());
        self.lists.transpose(gpu, chosen, step.rows, step.parameters.n, Some(of))?;
        self.update(gpu, step)
    }

    /// Loads the batch, encodes it and chooses what counts.
    fn choose(&mut self, gpu: &Shared, step: Step<'_>) -> Result<Chosen, CudaError> {
        let Parameters { layout, n, d_in, d_out, ld_in, ld_out, .. } = *step.parameters;
        let (rows, selection) = (step.rows, step.config.family.selection());
        let (rows_u32, control) = (rows as u32, step.control);
        let wanted = if let Selection::BatchTopK(k) = selection { k * rows } else { 0 };
        gpu.run("begin", (1, 1), 1, 0, &[&control, &(wanted as u32)])?;
        let (at, formula) = (step.parameters.at(), step.formula());
        let (derived, floor) = (step.parameters.derived.at(), step.parameters.floor.at());
        gpu.run(
            "derive",
            threads(n),
            BLOCK,
            0,
            &[&formula.formula, &formula.bandwidth, &at.extras[0].value, &at.n_latents, &derived, &floor],
        )?;

        for buffer in [&mut self.squares, &mut self.raw_squares, &mut self.row_floor, &mut self.row_margin] {
            buffer.reserve(rows)?;
        }
        self.x.reserve(rows * ld_in)?;
        let (x, squares, raw_squares) = (self.x.at(), self.squares.at(), self.raw_squares.at());
        let center = if layout.subtract_decoder_bias { step.parameters.b_dec().value } else { 0 };
        let [input, target] = step.batch;
        gpu.run(
            "load_rows",
            (rows_u32, 1),
            ROW_BLOCK,
            0,
            &[&input, &(d_in as u32), &(ld_in as u32), &step.scales[0], &center, &x, &squares, &raw_squares, &control],
        )?;
        if target != 0 {
            self.target.reserve(rows * ld_out)?;
            self.target_squares.reserve(rows)?;
            let (to, of_rows) = (self.target.at(), self.target_squares.at());
            gpu.run(
                "load_rows",
                (rows_u32, 1),
                ROW_BLOCK,
                0,
                &[
                    &target,
                    &(d_out as u32),
                    &(ld_out as u32),
                    &step.scales[1],
                    &0_u64,
                    &to,
                    &of_rows,
                    &of_rows,
                    &control,
                ],
            )?;
        }
        let raw = if target != 0 { target } else { input };
        self.column_sums(gpu, raw, [rows, d_out, d_out], step.scales[usize::from(target != 0)])?;

        let in_bf16 = step.config.precision == Precision::Bf16;
        if in_bf16 {
            for (buffer, (values, rows)) in self.rounded.iter_mut().zip([(x, rows), (at.enc.value, n)]) {
                buffer.reserve(rows * ld_in)?;
                let ld = ld_in as u32;
                gpu.run("round_rows", (rows as u32, 1), ROW_BLOCK, 0, &[&values, &ld, &ld, &buffer.at()])?;
            }
        }
        let margin = if in_bf16 { BF16_MARGIN } else { 0.0 };
        let encoder = self.limits(gpu, step, margin)?;
        let rounded = in_bf16.then(|| self.rounded.each_ref().map(Buffer::at));
        let of = Operands { x, w: at.enc.value, ld: ld_in, rounded, squares, d: d_in };
        self.relative.reserve(rows)?;
        let choice = match selection {
            Selection::Threshold => Choice::All,
            Selection::TopK(k) => Choice::Largest { k, relative: self.relative.at() },
            Selection::BatchTopK(_) => Choice::OfBatch,
        };
        self.lists.list(gpu, of, encoder, choice, [control, control + Control::FOUND])
    }

    /// What candidates have to exceed in each row.
    fn limits(&mut self, gpu: &Shared, step: Step<'_>, margin: f32) -> Result<Encoder, CudaError> {
        let Search { floor, hint } = step.search;
        let (squares, row_floor, row_margin) = (self.squares.at(), self.row_floor.at(), self.row_margin.at());
        let (rows, d) = (step.rows as u32, step.parameters.d_in as u32);
        gpu.run(
            "row_limits",
            threads(step.rows),
            BLOCK,
            0,
            &[&squares, &rows, &d, &floor, &hint, &margin, &row_floor, &row_margin],
        )?;
        let of = step.parameters;
        Ok(Encoder {
            scale: of.scale.at(),
            bias: of.at().bias.value,
            floor: of.floor.at(),
            length: of.length.at(),
            row_floor,
            row_margin,
            rows,
            n_latents: of.n as u32,
        })
    }

    /// Sums of columns over runs of rows, in `columns`.
    fn column_sums(
        &mut self,
        gpu: &Shared,
        values: u64,
        [rows, stride, width]: [usize; 3],
        scale: f32,
    ) -> Result<(), CudaError> {
        let runs = rows.div_ceil(RUN);
        self.columns.reserve(runs * width)?;
        let (rows, stride, run, to) = (rows as u32, stride as u32, RUN as u32, self.columns.at());
        let grid = (width.div_ceil(BLOCK as usize) as u32, runs as u32);
        gpu.run("column_sums", grid, BLOCK, 0, &[&values, &rows, &stride, &(width as u32), &run, &scale, &to])
    }

    fn reserve_sums(&mut self, rows: usize) -> Result<RowSums, CudaError> {
        for buffer in &mut self.sums {
            buffer.reserve(rows)?;
        }
        self.active.reserve(rows)?;
        let [squared_error, objective, penalty, codes] = self.sums.each_ref().map(Buffer::at);
        Ok(RowSums { squared_error, objective, penalty, codes, active: self.active.at() })
    }

    fn reconstruct(&mut self, gpu: &Shared, step: Step<'_>, chosen: Chosen) -> Result<(), CudaError> {
        let (rows, of, (ends, groups)) = (step.rows, step.parameters, step.ends);
        let second = of.layout.second_reconstruction;
        self.r.reserve(rows * step.stride())?;
        self.second_r.reserve(if second { rows * of.ld_out } else { 0 })?;
        self.lists.make_room(second)?;
        let sums = self.reserve_sums(rows)?;
        let target = if step.batch[1] == 0 { self.x.at() } else { self.target.at() };
        let lists = of_rows(&self.lists, chosen, second);
        let (r, second_r) = (self.r.at(), self.second_r.at());
        gpu.run(
            "reconstruct",
            (rows as u32, 1),
            ROW_BLOCK,
            0,
            &[
                &target,
                &lists,
                &of.decoder(),
                &step.formula(),
                &of.latents(),
                &ends,
                &(groups as u32),
                &step.residual(),
                &r,
                &second_r,
                &sums,
            ],
        )
    }

    /// Lets dead latents reconstruct what is left over.
    fn auxiliary(&mut self, gpu: &Shared, step: Step<'_>) -> Result<(), CudaError> {
        let Some(AuxK { k, coefficient }) = step.aux() else { return Ok(()) };
        let Parameters { d_in, ld_in, ld_out, .. } = *step.parameters;
        let (n, ids, _) = step.dead;
        let rows = step.rows;
        let dead = &mut self.dead;
        dead.enc.reserve(n * ld_in)?;
        dead.dec.reserve(n * ld_out)?;
        dead.bias.reserve(n)?;
        dead.length.reserve(n)?;
        if dead.scale.len() < n {
            // Of the largest number of them, once: the streams are idle then.
            dead.floor.write(&vec![0.0; n])?;
            dead.scale.write(&vec![1.0; n])?;
        }
        dead.relative.reserve(rows)?;
        dead.errors.reserve(rows)?;
        dead.r.reserve(rows * ld_out)?;
        let (at, decoder) = (step.parameters.at(), step.parameters.decoder());
        let (enc, dec, bias, length) = (dead.enc.at(), dead.dec.at(), dead.bias.at(), dead.length.at());
        let own_length = step.parameters.length.at();
        gpu.run(
            "gather_latents",
            (n as u32, 1),
            ROW_BLOCK,
            0,
            &[
                &ids,
                &(ld_in as u32),
                &(ld_out as u32),
                &at.enc.value,
                &decoder.dec,
                &at.bias.value,
                &own_length,
                &enc,
                &dec,
                &bias,
                &length,
            ],
        )?;
        let (scale, floor, relative) = (dead.scale.at(), dead.floor.at(), dead.relative.at());
        let (errors, aux_r, noted) = (dead.errors.at(), dead.r.at(), dead.control.at());
        let all = Step { search: Search::default(), ..step };
        let encoder = Encoder { scale, bias, floor, length, n_latents: n as u32, ..self.limits(gpu, all, 0.0)? };
        let of = Operands { x: self.x.at(), w: enc, ld: ld_in, rounded: None, squares: self.squares.at(), d: d_in };
        let found = step.control + Control::AUX_FOUND;
        let chosen = self.dead_lists.list(gpu, of, encoder, Choice::Largest { k, relative }, [noted, found])?;
        self.dead_lists.make_room(false)?;
        let lists = of_rows(&self.dead_lists, chosen, false);
        let decoder = Decoder { dec, scale, offset: 0, ld: ld_out as u32 };
        let (stride, residual, factor) = (step.stride() as u32, step.residual(), step.whole() * coefficient);
        gpu.run(
            "reconstruct_left_over",
            (rows as u32, 1),
            ROW_BLOCK,
            0,
            &[&self.r.at(), &stride, &residual, &lists, &decoder, &factor, &aux_r, &errors],
        )?;
        self.dead_lists.transpose(gpu, chosen, rows, n, None)
    }

    /// Sums what came of the rows; nothing did of those of a probe.
    fn summarise(&self, gpu: &Shared, step: Step<'_>, chosen: Chosen, sums: RowSums) -> Result<(), CudaError> {
        let d_out = step.parameters.d_out;
        let RowSums { squared_error, objective, penalty, codes, active } = sums;
        let selection = step.config.family.selection();
        let figures = Figures {
            squared_error,
            objective,
            penalty,
            codes,
            active,
            squares: if step.batch[1] == 0 { self.raw_squares.at() } else { self.target_squares.at() },
            columns: self.columns.at(),
            aux_errors: if step.aux().is_some() { self.dead.errors.at() } else { 0 },
            relative: if matches!(selection, Selection::TopK(_)) { self.relative.at() } else { 0 },
            starts: chosen.starts,
            rows: step.rows as u32,
            runs: step.rows.div_ceil(RUN) as u32,
            width: d_out as u32,
        };
        let bounds = Bounds {
            capacity: self.lists.capacity as u32,
            aux_capacity: self.dead_lists.capacity as u32,
            needs_all: u32::from(!step.search.is_complete()),
            alpha: step.schedule.alpha,
            coefficient: step.aux().map_or(0.0, |aux| aux.coefficient),
            worst: step.progress.worst_fvu(),
        };
        gpu.run("summarise", (1, 1), 1024, 0, &[&figures, &bounds, &step.control])
    }

    /// Gradients and moves of all parameters.
    fn update(&mut self, gpu: &Shared, step: Step<'_>) -> Result<(), CudaError> {
        let Parameters { layout, n, d_out, ld_in, ld_out, .. } = *step.parameters;
        let (control, sums, fired) = (step.control, self.lists.sums.at(), self.lists.fired.at());
        let (x, r, n_u32) = (self.x.at(), self.r.at(), n as u32);
        let at = step.parameters.at();
        let by = self.lists.gathered(x, r, step.stride());
        let (mut dead_by, mut numbers) = (Gathered { starts: 0, ..by }, 0);
        if step.aux().is_some() {
            let (n_dead, ids, of_latents) = step.dead;
            (dead_by, numbers) = (self.dead_lists.gathered(x, self.dead.r.at(), ld_out), of_latents);
            let dead_sums = self.dead_lists.sums.at();
            gpu.run("add_dead_sums", threads(n_dead), BLOCK, 0, &[&ids, &(n_dead as u32), &dead_sums, &sums])?;
        }
        let [size, root] = step.config.adam.factors(step.schedule.lr, step.progress.steps_done);
        let adam = Adam { size, root };
        if layout.decoder_bias {
            self.bias_gradient(gpu, step)?;
        }
        let (formula, derived, (ends, groups)) = (step.formula(), step.parameters.derived.at(), step.ends);
        let shared = 4 * (ld_in + if layout.tied { 0 } else { ld_out }) as u32;
        let project = u32::from(step.config.project_decoder_gradient);
        let pass = |squares: u64| {
            gpu.run(
                "update",
                (n_u32, 1),
                ROW_BLOCK,
                shared,
                &[
                    &at,
                    &formula,
                    &derived,
                    &sums,
                    &fired,
                    &by,
                    &dead_by,
                    &numbers,
                    &ends,
                    &(groups as u32),
                    &project,
                    &adam,
                    &squares,
                    &control,
                ],
            )
        };
        if let Some(most) = step.config.clip_norm {
            self.latent_squares.reserve(n)?;
            let squares = self.latent_squares.at();
            pass(squares)?;
            gpu.run("clip_factor", (1, 1), 1024, 0, &[&squares, &n_u32, &most, &control])?;
        }
        pass(0)?;
        if layout.decoder_bias {
            let gradient = self.bias_gradient.at();
            let bias = step.parameters.b_dec();
            gpu.run("step_bias", threads(d_out), BLOCK, 0, &[&gradient, &bias, &(d_out as u32), &adam, &control])?;
        }
        let after = u32::try_from(step.config.dead_after_steps).unwrap_or(u32::MAX);
        gpu.run("count_dead", threads(n), BLOCK, 0, &[&at.silent, &n_u32, &after, &control])
    }

    fn bias_gradient(&mut self, gpu: &Shared, step: Step<'_>) -> Result<(), CudaError> {
        let Parameters { layout, n, d_out, ld_in, .. } = *step.parameters;
        let (runs, run) = (step.rows.div_ceil(RUN), RUN as u32);
        self.bias_runs.reserve(runs * d_out)?;
        self.bias_gradient.reserve(d_out)?;
        let (r, to, width) = (self.r.at(), self.bias_runs.at(), d_out as u32);
        let columns = d_out.div_ceil(BLOCK as usize) as u32;
        gpu.run(
            "column_sums",
            (columns, runs as u32),
            BLOCK,
            0,
            &[&r, &(step.rows as u32), &(step.stride() as u32), &width, &run, &1.0_f32, &to],
        )?;
        let (mut center, center_runs) = (0, n.div_ceil(RUN));
        if layout.subtract_decoder_bias {
            self.center_runs.reserve(center_runs * d_out)?;
            center = self.center_runs.at();
            let (sums, enc) = (self.lists.sums.at(), step.parameters.at().enc.value);
            gpu.run(
                "through_center",
                (columns, center_runs as u32),
                BLOCK,
                0,
                &[&sums, &enc, &(n as u32), &(ld_in as u32), &width, &run, &center],
            )?;
        }
        let (gradient, control) = (self.bias_gradient.at(), step.control);
        gpu.run(
            "bias_gradient",
            (1, 1),
            1024,
            0,
            &[&to, &(runs as u32), &center, &(center_runs as u32), &width, &gradient, &control],
        )
    }
}

fn of_rows(lists: &Lists, chosen: Chosen, second: bool) -> OfRows {
    let Chosen { starts, latents, pre } = chosen;
    let (second, second_dots) = if second { (lists.second.at(), lists.second_dots.at()) } else { (0, 0) };
    OfRows { starts, latents, pre, codes: lists.codes.at(), dots: lists.dots.at(), second, second_dots }
}
