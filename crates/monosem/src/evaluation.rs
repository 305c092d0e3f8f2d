//! The rows that dictionaries are made from and measured on, and the measuring.

use anyhow::{Result, ensure};
use monosem_activations::{ActivationError, HookStore};
use monosem_dictionary::{Codes, Dictionary, Evaluation, Evaluator, column_mean};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

/// Rows read, encoded or decoded at once.
const CHUNK: usize = 4096;

/// The rows of a store that count: all but those whose norm is far above the median.
///
/// Beyond the first position, a few tokens in ten thousand become attention sinks too. Their norms are 200 times the median's, so that
/// nine rows in 36,000 can hold nine tenths of all variance; with them, scaling, training and FVU are about those few rows.
pub(crate) struct Rows {
    store: HookStore,
    /// Rows that count; `None` where all do.
    kept: Option<Vec<usize>>,
    norm_limit: f32,
}

impl Rows {
    /// Leaves out the rows whose norm is over `max_norm` times the median norm; none if it is infinite.
    pub(crate) fn new(store: HookStore, max_norm: f64) -> Result<Self> {
        ensure!(max_norm >= 1.0, "max_norm {max_norm}: a multiple of the median norm, at least 1, or inf");
        if max_norm.is_infinite() {
            return Ok(Self { store, kept: None, norm_limit: f32::INFINITY });
        }
        let mut norms = Vec::with_capacity(store.len());
        let mut chunk = Array2::zeros((CHUNK, store.width()));
        for start in (0..store.len()).step_by(CHUNK) {
            let mut chunk = chunk.slice_mut(s![..CHUNK.min(store.len() - start), ..]);
            store.rows(start, chunk.view_mut())?;
            norms.extend(chunk.rows().into_iter().map(|row| row.dot(&row).sqrt()));
        }
        ensure!(!norms.is_empty(), "the store has no rows at {}", store.hook());
        let mut sorted = norms.clone();
        let middle = sorted.len() / 2;
        let median = *sorted.select_nth_unstable_by(middle, f32::total_cmp).1;
        let norm_limit = (max_norm * f64::from(median)) as f32;
        let kept: Vec<usize> = (0..norms.len()).filter(|i| norms[*i] <= norm_limit).collect();
        let kept = (kept.len() < norms.len()).then_some(kept);
        Ok(Self { store, kept, norm_limit })
    }

    /// The same rows at another hook point of the store.
    pub(crate) fn at(&self, store: HookStore) -> Result<Self> {
        let (here, there) = (self.store.len(), store.len());
        ensure!(
            here == there,
            "{} has {there} rows and {} has {here}: not of the same tokens",
            store.hook(),
            self.store.hook()
        );
        Ok(Self { store, kept: self.kept.clone(), norm_limit: f32::INFINITY })
    }

    /// Number of rows that count.
    pub(crate) fn len(&self) -> usize {
        self.kept.as_ref().map_or(self.store.len(), Vec::len)
    }

    /// Number of rows left out.
    pub(crate) fn left_out(&self) -> usize {
        self.store.len() - self.len()
    }

    pub(crate) fn width(&self) -> usize {
        self.store.width()
    }

    /// The largest norm that counts.
    pub(crate) fn norm_limit(&self) -> f32 {
        self.norm_limit
    }

    /// Reads the rows `indices`, counted among those that count.
    pub(crate) fn gather(&self, indices: &[usize], out: ArrayViewMut2<'_, f32>) -> Result<(), ActivationError> {
        match &self.kept {
            None => self.store.gather(indices, out),
            Some(kept) => self.store.gather(&indices.iter().map(|i| kept[*i]).collect::<Vec<_>>(), out),
        }
    }

    /// At most `limit` rows spread evenly over the store, and the document of each (blocks of 128 rows where documents are not known): the
    /// groups that intervals are taken over.
    pub(crate) fn sample(&self, limit: usize) -> Result<(Array2<f32>, Vec<u32>)> {
        let n = self.len().min(limit);
        let indices: Vec<usize> = (0..n).map(|i| i * self.len() / n.max(1)).collect();
        let mut rows = Array2::zeros((n, self.width()));
        self.gather(&indices, rows.view_mut())?;
        let documents = self.store.documents()?;
        let group = |i: &usize| {
            let row = self.kept.as_ref().map_or(*i, |kept| kept[*i]);
            documents.as_ref().map_or(row as u32 / 128, |documents| documents[row])
        };
        Ok((rows, indices.iter().map(group).collect()))
    }
}

/// FVU, L0 and activity of a dictionary on rows `x` `[n, d_in]`, whose groups give the intervals.
pub(crate) fn evaluate(dictionary: &dyn Dictionary, x: ArrayView2<'_, f32>, groups: &[u32]) -> Evaluation {
    evaluate_codes(dictionary, x, groups, &mut |_| ())
}

/// The same, handing over the codes on their way.
pub(crate) fn evaluate_codes(
    dictionary: &dyn Dictionary,
    x: ArrayView2<'_, f32>,
    groups: &[u32],
    each: &mut dyn FnMut(&Codes),
) -> Evaluation {
    let mut evaluator = Evaluator::new(column_mean(x), dictionary.n_latents());
    for (x, groups) in x.axis_chunks_iter(Axis(0), CHUNK).zip(groups.chunks(CHUNK)) {
        let codes = dictionary.encode(x);
        each(&codes);
        evaluator.add(x, &codes, dictionary.decode(&codes).view(), groups);
    }
    evaluator.finish()
}
