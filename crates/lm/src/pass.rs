//! What a forward pass carries from block to block: its shape, its buffers, its hook.

use std::ops::ControlFlow;

use monosem_hooks::{Hook, HookPoint, Site};
use ndarray::ArrayViewMut3;
use rayon::prelude::*;

use crate::Config;
use crate::attention::Heads;
use crate::resume::Continued;
use crate::rope::Rotation;

/// Rows of activations, one per token.
pub(crate) struct Rows {
    pub(crate) data: Vec<f32>,
    pub(crate) width: usize,
}

impl Rows {
    pub(crate) fn new(rows: usize, width: usize) -> Self {
        Self { data: vec![0.0; rows * width], width }
    }

    /// Tiles of `rows` rows, to be worked on in parallel.
    pub(crate) fn tiles(&self, rows: usize) -> rayon::slice::Chunks<'_, f32> {
        self.data.par_chunks(rows * self.width)
    }

    /// Tiles of `rows` rows, to be written in parallel.
    pub(crate) fn tiles_mut(&mut self, rows: usize) -> rayon::slice::ChunksMut<'_, f32> {
        self.data.par_chunks_mut(rows * self.width)
    }
}

/// How the rows of a pass are split into tasks.
///
/// The split depends on the shape of the batch and not on the number of threads, because the sums inside a matrix product may depend on its
/// shape: so the results do not depend on the number of threads either.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Rows of a task.
    pub(crate) tile: usize,
    /// Threads that a task may use for its products: more than one where there are more threads than tasks.
    pub(crate) threads: usize,
}

impl Plan {
    pub(crate) fn new(rows: usize) -> Self {
        // A product reaches its full rate from some 500 rows on. Tasks of that size leave their results in the cache for what follows, and an even
        // number of them keeps two cores, or a multiple, equally busy.
        const TILE: usize = 512;
        let tasks = if rows < TILE { 1 } else { rows.div_ceil(TILE).next_multiple_of(2) };
        let tile = rows.div_ceil(tasks).max(1);
        let threads = rayon::current_num_threads().div_ceil(tasks);
        Self { tile, threads }
    }

    /// Rows of a piece of a tile: a tile is split for as many threads as it may use, in a few more pieces so that none waits long.
    fn piece(self) -> usize {
        if self.threads == 1 { self.tile } else { self.tile.div_ceil(2 * self.threads) }
    }

    /// The pieces of a tile of rows.
    pub(crate) fn pieces(self, rows: &[f32], width: usize) -> rayon::slice::Chunks<'_, f32> {
        rows.par_chunks(self.piece() * width)
    }

    /// The pieces of a tile of rows, each with the number of rows before it.
    pub(crate) fn pieces_mut(
        self,
        rows: &mut [f32],
        width: usize,
    ) -> impl IndexedParallelIterator<Item = (usize, &mut [f32])> {
        let piece = self.piece();
        rows.par_chunks_mut(piece * width).enumerate().map(move |(i, rows)| (i * piece, rows))
    }
}

/// The shape of a pass and what follows from it; shared by its tasks.
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) positions: usize,
    /// Position of the first token; above 0 where a text is read on.
    first: usize,
    /// The position of each row, where contexts of different lengths follow one another.
    of_rows: Option<Vec<usize>>,
    pub(crate) plan: Plan,
    pub(crate) heads: Heads,
    pub(crate) rotation: Option<Rotation>,
}

impl Shape {
    pub(crate) fn new(config: &Config, batch: usize, positions: usize, first: usize) -> Self {
        let rotation = config.rope.as_ref().map(|rope| Rotation::new(rope, first + positions));
        let plan = Plan::new(batch * positions);
        Self { batch, positions, first, of_rows: None, plan, heads: Heads::new(config), rotation }
    }

    /// The shape of rows at these positions, of contexts that follow one another.
    pub(crate) fn of_rows(config: &Config, of_rows: Vec<usize>) -> Self {
        let end = of_rows.iter().max().map_or(0, |last| last + 1);
        let plan = Plan::new(of_rows.len());
        Self { plan, batch: 1, of_rows: Some(of_rows), ..Self::new(config, 1, end, 0) }
    }

    /// Turns queries and keys in a tile of query, key and value rows that begins with row `first` of the pass.
    pub(crate) fn turn(&self, qkv: &mut [f32], first: usize) {
        let Some(rotation) = &self.rotation else { return };
        let turning = (self.heads.n_heads + self.heads.n_kv_heads) * self.heads.head_dim;
        for (i, row) in qkv.chunks_exact_mut(self.heads.width()).enumerate() {
            let row_of_pass = first + i;
            let position =
                self.of_rows.as_ref().map_or_else(|| self.first + row_of_pass % self.positions, |of| of[row_of_pass]);
            row[..turning].chunks_exact_mut(self.heads.head_dim).for_each(|head| rotation.turn(head, position));
        }
    }
}

/// What was run before the rows of a pass.
pub(crate) enum Before<'a> {
    /// Nothing: the rows are whole contexts.
    Nothing,
    /// The beginning of one text: queries, keys and values of all its positions so far, by block.
    Text(&'a mut [Vec<f32>]),
    /// The beginnings of several contexts.
    Contexts(Continued<'a>),
}

/// One forward pass.
pub(crate) struct Pass<'a> {
    pub(crate) shape: Shape,
    pub(crate) hook: &'a mut Hook<'a>,
    pub(crate) before: Before<'a>,
}

impl Pass<'_> {
    /// Mixes the values of every head, over the positions of the pass and those run before.
    pub(crate) fn attend(&mut self, layer: usize, qkv: &Rows, z: &mut Rows) {
        match &mut self.before {
            Before::Nothing => self.shape.heads.attend(qkv, z, self.shape.positions),
            Before::Text(past) => {
                past[layer].extend_from_slice(&qkv.data);
                self.shape.heads.attend_last(&past[layer], z);
            }
            Before::Contexts(continued) => continued.attend(layer, self.shape.heads, qkv, z),
        }
    }

    /// Where only the last position of each context counts, drops the other rows: the last block needs them for their keys and values alone.
    pub(crate) fn narrow(&mut self, layer: usize, x: &mut Rows, buffers: &mut Buffers) {
        if let Before::Contexts(continued) = &mut self.before {
            continued.narrow(layer, x, buffers);
        }
    }

    /// Shows the activations at a hook point to the hook, which may change them.
    pub(crate) fn visit(&mut self, layer: usize, site: Site, rows: &mut Rows) -> ControlFlow<()> {
        if let Before::Contexts(continued) = &self.before {
            continued.replace(HookPoint::new(layer, site), rows);
            return ControlFlow::Continue(());
        }
        let shape = (self.shape.batch, self.shape.positions, rows.width);
        let view = ArrayViewMut3::from_shape(shape, &mut rows.data).expect("a buffer has a row for every token");
        (self.hook)(HookPoint::new(layer, site), view)
    }
}

/// The intermediate results of a block, reused by every block of a pass.
pub(crate) struct Buffers {
    /// The normalised residual stream.
    pub(crate) normed: Rows,
    /// Queries, keys and values.
    pub(crate) qkv: Rows,
    /// The heads' mixed values.
    pub(crate) z: Rows,
    /// What attention adds.
    pub(crate) attn_out: Rows,
    /// What the MLP adds.
    pub(crate) mlp_out: Rows,
    /// The MLP's hidden units.
    pub(crate) post: Rows,
    /// Gate and up projections; empty in models without a gate.
    pub(crate) gate_up: Rows,
}

impl Buffers {
    pub(crate) fn new(config: &Config, rows: usize, gated: bool) -> Self {
        Self {
            normed: Rows::new(rows, config.d_model),
            qkv: Rows::new(rows, Heads::new(config).width()),
            z: Rows::new(rows, config.d_query()),
            attn_out: Rows::new(rows, config.d_model),
            mlp_out: Rows::new(rows, config.d_model),
            post: Rows::new(rows, config.d_mlp),
            gate_up: Rows::new(if gated { rows } else { 0 }, 2 * config.d_mlp),
        }
    }
}
