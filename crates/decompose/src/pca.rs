use monosem_dictionary::{Activation, LinearDictionary};
use ndarray::{Array1, Array2, Axis, concatenate};

use crate::eigen::{eigh_descending, largest_entry, orient};
use crate::{DecomposeError, Moments, to_f32};

/// Principal components of activations: the eigenvectors of their covariance.
///
/// As dictionaries they come in the three forms that "Sparse Autoencoders Find Highly Interpretable Features in Language Models"
/// compares with: [`top_k`](Self::top_k), [`rotation`](Self::rotation) and [`non_negative`](Self::non_negative).
#[derive(Debug, Clone, PartialEq)]
pub struct Pca {
    /// Mean of the activations `[d]`.
    pub mean: Array1<f64>,
    /// Orthonormal directions `[d, d]`, a component a row, by descending variance. The entry of largest magnitude of a row is positive.
    pub components: Array2<f64>,
    /// Variance along each component `[d]`, divided by `count - 1`.
    pub explained_variance: Array1<f64>,
}

impl Pca {
    /// All components of the rows that `moments` was given.
    ///
    /// # Errors
    /// If a value was not finite, if there are fewer than two rows, or if LAPACK does not converge.
    pub fn from_moments(moments: &Moments) -> Result<Self, DecomposeError> {
        let (mean, covariance) = moments.mean_and_covariance(1)?;
        let (explained_variance, mut components) = eigh_descending(&covariance, "the covariance")?;
        orient(&mut components, largest_entry);
        Ok(Self { mean, components, explained_variance })
    }

    /// Signed scores of the centred activations on every component: `c = V (x - mean)`, `x_hat = Vᵀ c + mean`. Reconstructs exactly.
    #[must_use]
    pub fn rotation(&self) -> LinearDictionary {
        let directions = to_f32(&self.components);
        LinearDictionary {
            w_dec: directions.clone(),
            w_enc: directions,
            b_enc: self.components.dot(&self.mean).mapv(|v| -v as f32),
            b_dec: to_f32(&self.mean),
            activation: Activation::Linear,
            threshold: None,
        }
    }

    /// The paper's top-k baseline: the k largest scores of `[V; -V]` on the activations as they are, uncentred, without biases: the
    /// k components with the largest magnitudes. With `k = 2 d` it reconstructs exactly.
    #[must_use]
    pub fn top_k(&self, k: usize) -> LinearDictionary {
        LinearDictionary::both_signs(&to_f32(&self.components), Activation::TopK { k })
    }

    /// The paper's non-negative form for causal tests: `c = ReLU([V; -V] (x - mean))`, `x_hat = [V; -V]ᵀ c + mean`; `2 d` latents.
    /// Reconstructs exactly.
    #[must_use]
    pub fn non_negative(&self) -> LinearDictionary {
        let rotation = self.rotation();
        let opposite = rotation.b_enc.mapv(|v| -v);
        LinearDictionary {
            b_enc: concatenate![Axis(0), rotation.b_enc, opposite],
            b_dec: rotation.b_dec,
            ..LinearDictionary::both_signs(&rotation.w_enc, Activation::Relu)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{assert_reconstructs_within, golden, mixed, rows};
    use monosem_dictionary::Dictionary;
    use proptest::prelude::*;

    fn of(x: &Array2<f32>) -> Pca {
        let mut moments = Moments::new(x.ncols());
        moments.add(x.view());
        Pca::from_moments(&moments).unwrap()
    }

    #[test]
    fn it_agrees_with_scikit_learn() {
        let golden = golden();
        let x = golden.matrix("x").mapv(|v| v as f32);
        let pca = of(&x);
        let close = |got: &Array1<f64>, want: &Array1<f64>| {
            got.iter().zip(want).for_each(|(g, w)| assert!((g - w).abs() < 1e-10 * w.abs().max(1.0), "{g} {w}"));
        };
        close(&pca.mean, &golden.vector("mean"));
        close(&pca.explained_variance, &golden.vector("pca_explained_variance"));
        let want = golden.matrix("pca_components");
        for (got, want) in pca.components.rows().into_iter().zip(want.rows()) {
            let sign = got.dot(&want).signum();
            assert!(got.iter().zip(want).all(|(g, w)| (g - sign * w).abs() < 1e-8), "{got} {want}");
            assert!(got.iter().fold(0.0_f64, |a, b| if b.abs() > a.abs() { *b } else { a }) > 0.0);
        }
    }

    #[test]
    fn fewer_rows_than_columns_and_a_constant_column_are_no_trouble() {
        let mut x = rows(5, 9, 1);
        x.column_mut(3).fill(2.5);
        let pca = of(&x);
        assert!(pca.explained_variance.iter().all(|v| *v >= 0.0 && v.is_finite()));
        assert!(pca.explained_variance[4] < 1e-12 * pca.explained_variance[0]);
        assert_reconstructs_within(&pca.rotation(), &x, 1e-4);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn laws_of_the_components(n in 2usize..200, d in 1usize..12, offset in -50.0_f32..50.0, seed in any::<u64>()) {
            let x = mixed(n, d, seed) + offset;
            let mut moments = Moments::new(d);
            moments.add(x.view());
            let pca = Pca::from_moments(&moments).unwrap();
            let (_, covariance) = moments.mean_and_covariance(1).unwrap();
            let trace = covariance.diag().sum();
            prop_assert!((pca.explained_variance.sum() - trace).abs() <= 1e-9 * trace.max(1e-12));
            prop_assert!(pca.explained_variance.windows(2).into_iter().all(|v| v[0] >= v[1]));
            let gram = pca.components.dot(&pca.components.t());
            prop_assert!((gram - Array2::<f64>::eye(d)).iter().all(|v| v.abs() < 1e-10));

            assert_reconstructs_within(&pca.rotation(), &x, 1e-4);
            assert_reconstructs_within(&pca.non_negative(), &x, 1e-4);
            assert_reconstructs_within(&pca.top_k(2 * d), &x, 1e-4);

            // The two signed halves of the non-negative codes are the positive and negative parts of the scores.
            let (scores, halves) = (pca.rotation().encode(x.view()).to_dense(), pca.non_negative().encode(x.view()).to_dense());
            for ((i, j), score) in scores.indexed_iter() {
                // Not bitwise: another number of latents may take another path through the product.
                let slack = 1e-5 * (score.abs() + offset.abs() + 1.0);
                prop_assert!((halves[[i, j]] - score.max(0.0)).abs() < slack);
                prop_assert!((halves[[i, d + j]] - (-score).max(0.0)).abs() < slack);
            }
        }

        #[test]
        fn top_k_keeps_the_largest_scores(k in 0usize..7, seed in any::<u64>()) {
            let x = mixed(40, 6, seed);
            let pca = of(&x);
            let codes = pca.top_k(k).encode(x.view());
            let v = to_f32(&pca.components);
            for (i, (latents, values)) in codes.rows().enumerate() {
                let mut scores: Vec<f32> = v.dot(&x.row(i)).iter().map(|s| s.abs()).collect();
                scores.sort_unstable_by(|a, b| b.total_cmp(a));
                prop_assert!(latents.len() <= k);
                let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
                prop_assert!(k == 0 || smallest >= scores[k - 1] * (1.0 - 1e-4) - 1e-5);
            }
        }
    }
}
