//! What is active in a batch: candidates that the encoder finds, the entries chosen from them by row, and the same by latent.

use crate::CudaError;
use crate::buffer::Buffer;
use crate::control::{ByLatent, Candidates, Encoder, Family, Gathered, Latents};
use crate::cublas::{Cublas, Rows};
use crate::gpu::Shared;

/// Rows and latents of one block of the encoder.
const TILE: usize = 128;

/// Rows of one block that looks for candidates in a product.
const STAGE_ROWS: usize = 32;

/// Rows of a chunk of the transposition.
const CHUNK: usize = 64;

/// Threads of kernels that have one for each value, and of those with a warp for each.
pub(crate) const BLOCK: u32 = 256;

/// Blocks of a histogram of the whole batch.
const HISTOGRAM_BLOCKS: u32 = 512;

/// Blocks for `n` threads.
pub(crate) fn threads(n: usize) -> (u32, u32) {
    (n.div_ceil(BLOCK as usize) as u32, 1)
}

/// Blocks for `n` warps.
pub(crate) fn warps(n: usize) -> (u32, u32) {
    threads(n * 32)
}

/// Turns `n` counts into where each begins, and the total behind them.
pub(crate) fn scan(gpu: &Shared, counts: u64, n: usize) -> Result<(), CudaError> {
    gpu.run("exclusive_scan", (1, 1), 1024, 0, &[&counts, &(n as u32)])
}

/// What is encoded: addresses of rows and of the encoder's, in f32 and, where candidates are looked for in bf16, rounded.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) x: u64,
    pub(crate) w: u64,
    pub(crate) ld: usize,
    pub(crate) rounded: Option<[u64; 2]>,
    /// Sums of squares of the rows.
    pub(crate) squares: u64,
    pub(crate) d: usize,
}

/// Which candidates become entries.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Choice {
    /// Those above their floors.
    All,
    /// The k largest of each row; `relative` becomes the smallest of them over the row's root mean square.
    Largest { k: usize, relative: u64 },
    /// The `control.wanted` largest of the batch.
    OfBatch,
}

/// Addresses of entries by row.
#[derive(Clone, Copy)]
pub(crate) struct Chosen {
    pub(crate) starts: u64,
    pub(crate) latents: u64,
    pub(crate) pre: u64,
}

/// Arrays that are kept from step to step.
#[derive(Default)]
pub(crate) struct Lists {
    /// Candidates that there is room for.
    pub(crate) capacity: usize,
    /// Of cuBLAS: a chunk of the product.
    product: Buffer<f32>,
    found: (Buffer<u32>, Buffer<f32>),
    segments: (Buffer<u32>, Buffer<u32>),
    /// Two sets that take turns: what is chosen from one goes to the other.
    sets: [(Buffer<u32>, Buffer<u32>, Buffer<f32>); 2],
    limits: Buffer<f32>,
    ties: Buffer<u32>,
    above: Buffer<u32>,
    equal: Buffer<u32>,
    histogram: Option<Buffer<u32>>,
    pub(crate) codes: Buffer<f32>,
    pub(crate) dots: Buffer<f32>,
    pub(crate) second: Buffer<f32>,
    pub(crate) second_dots: Buffer<f32>,
    places: Buffer<u32>,
    latent_starts: Buffer<u32>,
    rows: Buffer<u32>,
    by_codes: Buffer<f32>,
    deltas: Buffer<f32>,
    extras: [Buffer<f32>; 2],
    pub(crate) sums: Buffer<f32>,
    pub(crate) fired: Buffer<u32>,
}

impl Lists {
    /// Lists what counts of `encoder.rows` rows. `found` is the address of the number of candidates found, `control` that of the block of control.
    pub(crate) fn list(
        &mut self,
        gpu: &Shared,
        of: Operands,
        encoder: Encoder,
        choice: Choice,
        [control, found]: [u64; 2],
    ) -> Result<Chosen, CudaError> {
        let (rows, n) = (encoder.rows as usize, encoder.n_latents as usize);
        let blocks = n.div_ceil(TILE);
        self.capacity = self.capacity.max((rows * n).min((rows * TILE).max(1 << 16)));
        self.found.0.reserve(self.capacity)?;
        self.found.1.reserve(self.capacity)?;
        self.segments.0.reserve(blocks * rows)?;
        self.segments.1.reserve(blocks * rows)?;
        let (capacity, rows_u32, blocks_u32) = (self.capacity as u32, rows as u32, blocks as u32);
        let candidates = Candidates {
            latents: self.found.0.at(),
            pre: self.found.1.at(),
            starts: self.segments.0.at(),
            counts: self.segments.1.at(),
            found,
            capacity,
        };
        self.find(gpu, of, encoder, candidates)?;
        let mut now = self.set(0, rows)?;
        let counts = self.segments.1.at();
        gpu.run(
            "row_totals",
            threads(rows),
            BLOCK,
            0,
            &[&counts, &blocks_u32, &rows_u32, &found, &capacity, &now.starts],
        )?;
        scan(gpu, now.starts, rows)?;
        let segments = self.segments.0.at();
        let from: [u64; 2] = [candidates.latents, candidates.pre];
        gpu.run(
            "collect",
            warps(rows),
            BLOCK,
            0,
            &[&segments, &counts, &blocks_u32, &rows_u32, &from[0], &from[1], &now.starts, &now.latents, &now.pre],
        )?;
        let mut other = 1;
        if of.rounded.is_some() {
            let Encoder { scale, bias, floor, row_floor, .. } = encoder;
            gpu.run(
                "exact",
                (rows_u32, 1),
                BLOCK,
                0,
                &[&now.starts, &now.latents, &now.pre, &of.x, &of.w, &(of.ld as u32), &scale, &bias],
            )?;
            let to = self.set(other, rows)?;
            gpu.run(
                "count_above",
                warps(rows),
                BLOCK,
                0,
                &[&now.starts, &rows_u32, &now.latents, &now.pre, &floor, &row_floor, &to.starts],
            )?;
            scan(gpu, to.starts, rows)?;
            gpu.run(
                "keep_above",
                warps(rows),
                BLOCK,
                0,
                &[&now.starts, &rows_u32, &now.latents, &now.pre, &floor, &row_floor, &to.starts, &to.latents, &to.pre],
            )?;
            (now, other) = (to, 0);
        }
        if choice == Choice::All {
            return Ok(now);
        }
        let to = self.set(other, rows)?;
        self.limits.reserve(rows)?;
        self.ties.reserve(rows)?;
        let (limits, ties) = (self.limits.at(), self.ties.at());
        if let Choice::Largest { k, relative } = choice {
            let (k, d) = (k as u32, of.d as u32);
            gpu.run(
                "limits_of_rows",
                (rows_u32, 1),
                BLOCK,
                0,
                &[&now.starts, &now.pre, &k, &of.squares, &d, &limits, &ties, &to.starts, &relative, &control],
            )?;
        } else {
            self.limit_of_batch(gpu, now, to, rows, control)?;
        }
        scan(gpu, to.starts, rows)?;
        gpu.run(
            "keep_largest",
            warps(rows),
            BLOCK,
            0,
            &[&now.starts, &rows_u32, &now.latents, &now.pre, &limits, &ties, &to.starts, &to.latents, &to.pre],
        )?;
        Ok(to)
    }

    /// Multiplies, and lists what may count.
    fn find(&mut self, gpu: &Shared, of: Operands, encoder: Encoder, candidates: Candidates) -> Result<(), CudaError> {
        let (rows, n) = (encoder.rows as usize, encoder.n_latents as usize);
        let ([x, w], in_bf16) = (of.rounded.unwrap_or([of.x, of.w]), of.rounded.is_some());
        let blocks = n.div_ceil(TILE) as u32;
        let Some(cublas) = gpu.cublas.get() else {
            let kernel = if in_bf16 { "encode_bf16" } else { "encode_f32" };
            let grid = (blocks, rows.div_ceil(TILE) as u32);
            return gpu.run(kernel, grid, 256, 0, &[&x, &w, &(of.ld as u32), &encoder, &candidates]);
        };
        let chunk = Cublas::chunk(n).min(rows);
        self.product.reserve(chunk * n)?;
        let product = self.product.at();
        for first in (0..rows).step_by(chunk) {
            let here = chunk.min(rows - first);
            cublas.product(Rows { x, w, ld: of.ld, in_bf16 }, first, [here, n], product)?;
            let grid = (blocks, here.div_ceil(STAGE_ROWS) as u32);
            gpu.run("list_product", grid, 256, 0, &[&product, &(first as u32), &encoder, &candidates])?;
        }
        Ok(())
    }

    /// The limit of the whole batch's choice, and how many each row keeps.
    fn limit_of_batch(
        &mut self,
        gpu: &Shared,
        now: Chosen,
        to: Chosen,
        rows: usize,
        control: u64,
    ) -> Result<(), CudaError> {
        let histogram = match &self.histogram {
            Some(histogram) => histogram.at(),
            // Whoever reads it leaves zeros.
            None => self.histogram.insert(Buffer::from_slice(&[0; 256])?).at(),
        };
        let total = now.starts + 4 * rows as u64;
        for shift in [24_u32, 16, 8, 0] {
            gpu.run(
                "batch_histogram",
                (HISTOGRAM_BLOCKS, 1),
                256,
                0,
                &[&total, &now.pre, &shift, &control, &histogram],
            )?;
            gpu.run("batch_pick", (1, 1), 32, 0, &[&total, &shift, &histogram, &control])?;
        }
        self.above.reserve(rows)?;
        self.equal.reserve(rows + 1)?;
        let (above, equal, rows_u32) = (self.above.at(), self.equal.at(), rows as u32);
        gpu.run(
            "count_in_batch",
            warps(rows),
            BLOCK,
            0,
            &[&now.starts, &rows_u32, &now.pre, &control, &above, &equal],
        )?;
        scan(gpu, equal, rows)?;
        let (limits, ties) = (self.limits.at(), self.ties.at());
        gpu.run(
            "share_ties",
            threads(rows),
            BLOCK,
            0,
            &[&above, &equal, &rows_u32, &control, &limits, &ties, &to.starts],
        )
    }

    fn set(&mut self, which: usize, rows: usize) -> Result<Chosen, CudaError> {
        let (starts, latents, pre) = &mut self.sets[which];
        starts.reserve(rows + 1)?;
        latents.reserve(self.capacity)?;
        pre.reserve(self.capacity)?;
        Ok(Chosen { starts: starts.at(), latents: latents.at(), pre: pre.at() })
    }

    /// Room for codes and the gradients by them.
    pub(crate) fn make_room(&mut self, second: bool) -> Result<(), CudaError> {
        self.codes.reserve(self.capacity)?;
        self.dots.reserve(self.capacity)?;
        if second {
            self.second.reserve(self.capacity)?;
            self.second_dots.reserve(self.capacity)?;
        }
        Ok(())
    }

    /// Brings the entries into the order of latents, with the gradient by each pre-activation, and sums each latent's. Without a family those are
    /// the gradients by the codes.
    pub(crate) fn transpose(
        &mut self,
        gpu: &Shared,
        chosen: Chosen,
        rows: usize,
        n: usize,
        family: Option<(Family, Latents, usize)>,
    ) -> Result<(), CudaError> {
        let chunks = rows.div_ceil(CHUNK);
        self.places.reserve(chunks * n)?;
        self.latent_starts.reserve(n + 1)?;
        self.rows.reserve(self.capacity)?;
        self.by_codes.reserve(self.capacity)?;
        self.deltas.reserve(self.capacity)?;
        let n_extras = family.map_or(0, |(_, _, extras)| extras);
        for extra in &mut self.extras[..n_extras] {
            extra.reserve(self.capacity)?;
        }
        self.sums.reserve(3 * n)?;
        self.fired.reserve(n)?;
        let (places, latent_starts) = (self.places.at(), self.latent_starts.at());
        let (rows, chunk, n_u32, chunks) = (rows as u32, CHUNK as u32, n as u32, chunks as u32);
        let Chosen { starts, latents, pre } = chosen;
        gpu.run("count_by_latent", (chunks, 1), BLOCK, 0, &[&starts, &rows, &chunk, &latents, &n_u32, &places])?;
        gpu.run("total_by_latent", threads(n), BLOCK, 0, &[&places, &chunks, &n_u32, &latent_starts])?;
        scan(gpu, latent_starts, n)?;
        gpu.run("places_by_latent", threads(n), BLOCK, 0, &[&latent_starts, &chunks, &n_u32, &places])?;
        let extra = |i: usize| if i < n_extras { self.extras[i].at() } else { 0 };
        let extras = [extra(0), extra(1)];
        let out = ByLatent { rows: self.rows.at(), codes: self.by_codes.at(), deltas: self.deltas.at(), extras };
        let (codes, dots) = (self.codes.at(), self.dots.at());
        let gated = family.is_some_and(|(_, _, extras)| extras > 1);
        let second_dots = if gated { self.second_dots.at() } else { 0 };
        match family {
            Some((family, of, _)) => gpu.run(
                "place_by_latent",
                (chunks, 1),
                BLOCK,
                0,
                &[
                    &starts,
                    &rows,
                    &chunk,
                    &latents,
                    &pre,
                    &codes,
                    &dots,
                    &second_dots,
                    &family,
                    &of,
                    &n_u32,
                    &places,
                    &out,
                ],
            )?,
            None => gpu.run(
                "place_left_over",
                (chunks, 1),
                BLOCK,
                0,
                &[&starts, &rows, &chunk, &latents, &codes, &dots, &n_u32, &places, &out],
            )?,
        }
        let (sums, fired) = (self.sums.at(), self.fired.at());
        gpu.run(
            "sums_by_latent",
            warps(n),
            BLOCK,
            0,
            &[&latent_starts, &out.codes, &out.deltas, &extras[0], &extras[1], &n_u32, &sums, &fired],
        )
    }

    /// The entries by latent, and the rows that they are of.
    pub(crate) fn gathered(&self, x: u64, r: u64, stride: usize) -> Gathered {
        let Self { latent_starts, rows, by_codes, deltas, .. } = self;
        let stride = stride as u32;
        Gathered {
            starts: latent_starts.at(),
            rows: rows.at(),
            codes: by_codes.at(),
            deltas: deltas.at(),
            x,
            r,
            stride,
        }
    }
}
