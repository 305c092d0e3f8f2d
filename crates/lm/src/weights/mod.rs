//! Weight files: whatever their format, they give named tensors as rows of `f32`.

pub(crate) mod gguf;
pub(crate) mod map;
pub(crate) mod quant;
pub(crate) mod safetensors;

use crate::LmError;

/// Where a model's tensors come from. Names are those of the Hugging Face layout, whatever the file calls them.
pub(crate) trait Source {
    /// Whether there is a tensor of that name.
    fn has(&self, name: &str) -> bool;

    /// The tensor's values in row-major order.
    ///
    /// # Errors
    /// If it is absent, of another shape, of a type that cannot be read, or cut short.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LmError>;

    /// BLAKE3 of the weight files, in hexadecimal.
    fn hash(&self) -> &str;
}

/// Swaps rows and columns of a `[rows, columns]` matrix.
pub(crate) fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    assert_eq!(matrix.len(), rows * columns, "a matrix of {} values is not [{rows}, {columns}]", matrix.len());
    let mut out = vec![0.0; matrix.len()];
    // Square blocks, so that neither side is walked with a stride that misses the cache at every step.
    const BLOCK: usize = 32;
    for top in (0..rows).step_by(BLOCK) {
        for left in (0..columns).step_by(BLOCK) {
            for r in top..rows.min(top + BLOCK) {
                for c in left..columns.min(left + BLOCK) {
                    out[c * rows + r] = matrix[r * columns + c];
                }
            }
        }
    }
    out
}
