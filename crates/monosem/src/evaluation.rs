//! Dictionaries measured on held-out activations.

use anyhow::Result;
use monosem_activations::HookStore;
use monosem_dictionary::{Dictionary, Evaluation, Evaluator, column_mean};
use ndarray::{Array2, ArrayView2, Axis};

/// Rows encoded and decoded at once.
const CHUNK: usize = 4096;

/// At most `limit` rows spread evenly over a store, and the document of each (blocks of 128 rows where documents are not known): the
/// groups that intervals are taken over.
pub(crate) fn held_out_rows(store: &HookStore, limit: usize) -> Result<(Array2<f32>, Vec<u32>)> {
    let n = store.len().min(limit);
    let indices: Vec<usize> = (0..n).map(|i| i * store.len() / n.max(1)).collect();
    let mut rows = Array2::zeros((n, store.width()));
    store.gather(&indices, rows.view_mut())?;
    let documents = store.documents()?;
    let groups = indices.iter().map(|i| documents.as_ref().map_or(*i as u32 / 128, |documents| documents[*i]));
    Ok((rows, groups.collect()))
}

/// FVU, L0 and activity of a dictionary on rows `x` `[n, d_in]`, whose groups give the intervals.
pub(crate) fn evaluate(dictionary: &dyn Dictionary, x: ArrayView2<'_, f32>, groups: &[u32]) -> Evaluation {
    let mut evaluator = Evaluator::new(column_mean(x), dictionary.n_latents());
    for (x, groups) in x.axis_chunks_iter(Axis(0), CHUNK).zip(groups.chunks(CHUNK)) {
        let codes = dictionary.encode(x);
        evaluator.add(x, &codes, dictionary.decode(&codes).view(), groups);
    }
    evaluator.finish()
}
