use ndarray::Array2;

/// Sparse codes in compressed-sparse-row form: for each row the latents that are active and their values.
///
/// Latents of a row are in ascending order, each at most once; a stored value is never zero.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Codes {
    n_latents: usize,
    /// `offsets[i]..offsets[i + 1]` are the entries of row i.
    offsets: Vec<usize>,
    latents: Vec<u32>,
    values: Vec<f32>,
}

impl Codes {
    /// No rows yet, over `n_latents` latents.
    ///
    /// # Panics
    /// If `n_latents` does not fit in 32 bits.
    #[must_use]
    pub fn new(n_latents: usize) -> Self {
        assert!(u32::try_from(n_latents).is_ok(), "{n_latents} latents do not fit in 32 bits");
        Self { n_latents, offsets: vec![0], latents: Vec::new(), values: Vec::new() }
    }

    /// The nonzero entries of `dense` `[n, n_latents]`.
    #[must_use]
    pub fn from_dense(dense: &Array2<f32>) -> Self {
        let mut codes = Self::new(dense.ncols());
        for row in dense.rows() {
            codes.push_row((0u32..).zip(row.iter().copied()));
        }
        codes
    }

    /// Appends a row of `(latent, value)` pairs in ascending order of latents; zeros are left out.
    ///
    /// # Panics
    /// If the latents do not ascend or one is not below `n_latents`.
    pub fn push_row(&mut self, entries: impl IntoIterator<Item = (u32, f32)>) {
        let start = self.latents.len();
        for (latent, value) in entries {
            assert!(
                (latent as usize) < self.n_latents,
                "latent {latent} in a dictionary of {} latents",
                self.n_latents
            );
            assert!(
                self.latents.len() == start || self.latents[self.latents.len() - 1] < latent,
                "latent {latent} is not above the one before it in its row"
            );
            if value != 0.0 {
                self.latents.push(latent);
                self.values.push(value);
            }
        }
        self.offsets.push(self.latents.len());
    }

    /// Appends the rows of `other`.
    ///
    /// # Panics
    /// If `other` is over another number of latents.
    pub fn extend(&mut self, other: &Self) {
        assert_eq!(self.n_latents, other.n_latents, "codes over {} and {} latents", self.n_latents, other.n_latents);
        let start = self.latents.len();
        self.offsets.extend(other.offsets[1..].iter().map(|offset| start + offset));
        self.latents.extend_from_slice(&other.latents);
        self.values.extend_from_slice(&other.values);
    }

    /// Number of latents the codes are over, active or not.
    #[must_use]
    pub fn n_latents(&self) -> usize {
        self.n_latents
    }

    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of nonzero codes in all rows.
    #[must_use]
    pub fn nnz(&self) -> usize {
        self.latents.len()
    }

    /// Active latents and their values in row `i`.
    ///
    /// # Panics
    /// If there is no row `i`.
    #[must_use]
    pub fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let entries = self.offsets[i]..self.offsets[i + 1];
        (&self.latents[entries.clone()], &self.values[entries])
    }

    /// Every row, in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = (&[u32], &[f32])> {
        (0..self.n_rows()).map(|i| self.row(i))
    }

    /// Every code multiplied by `factor` (not zero).
    pub fn scale(&mut self, factor: f32) {
        assert!(factor != 0.0, "a zero factor would store zeros");
        self.values.iter_mut().for_each(|value| *value *= factor);
    }

    /// The codes as a dense array `[n, n_latents]`, for small cases.
    #[must_use]
    pub fn to_dense(&self) -> Array2<f32> {
        let mut dense = Array2::zeros((self.n_rows(), self.n_latents));
        for (i, (latents, values)) in self.rows().enumerate() {
            for (latent, value) in latents.iter().zip(values) {
                dense[[i, *latent as usize]] = *value;
            }
        }
        dense
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dense_and_sparse_hold_the_same(rows in 0usize..6, values in prop::collection::vec(prop_oneof![Just(0.0_f32), -2.0_f32..2.0], 30)) {
            let dense = Array2::from_shape_fn((rows, 5), |(i, j)| values[i * 5 + j]);
            let codes = Codes::from_dense(&dense);
            prop_assert_eq!(codes.to_dense(), dense.clone());
            prop_assert_eq!(codes.nnz(), dense.iter().filter(|v| **v != 0.0).count());
            let mut twice = codes.clone();
            twice.extend(&codes);
            prop_assert_eq!(twice.n_rows(), 2 * rows);
            for i in 0..rows {
                prop_assert_eq!(twice.row(rows + i), codes.row(i));
            }
        }
    }

    #[test]
    #[should_panic(expected = "latent 3 in a dictionary of 3 latents")]
    fn a_latent_out_of_range_is_refused() {
        Codes::new(3).push_row([(3, 1.0)]);
    }
}
