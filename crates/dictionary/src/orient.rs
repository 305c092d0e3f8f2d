use ndarray::{Array1, ArrayView2, Axis};

use crate::{Dictionary, LinearDictionary};

/// Rows whose pre-activations are held at once.
const TILE_ROWS: usize = 256;

impl LinearDictionary {
    /// Turns each latent so that its heavier tail on the rows of `x` `[n, d_in]` is the positive one: the sign of the third central moment of
    /// its pre-activations.
    ///
    /// The sign of a principal or independent component means nothing, yet scores look at positive activations only; a component that
    /// is peaked on its negative side is understated as long as nobody turns it. Reconstructions stay as they are.
    ///
    /// # Panics
    /// If `x` is not `d_in` wide, or the activation is not [`Activation::Linear`](crate::Activation::Linear): a ReLU has cut one of the tails.
    #[must_use]
    pub fn oriented(&self, x: ArrayView2<'_, f32>) -> Self {
        assert_eq!(x.ncols(), self.d_in(), "rows {} wide, a dictionary of inputs {} wide", x.ncols(), self.d_in());
        assert_eq!(self.activation, crate::Activation::Linear, "only signed codes can be turned");
        let sign = self.third_moments(x).mapv(|moment| if moment < 0.0 { -1.0_f32 } else { 1.0 });
        let column = sign.view().insert_axis(Axis(1));
        Self {
            w_enc: &self.w_enc * &column,
            b_enc: &self.b_enc * &sign,
            w_dec: &self.w_dec * &column,
            b_dec: self.b_dec.clone(),
            activation: self.activation,
            threshold: None,
        }
    }

    /// `E (c - E c)^3` of each latent, over the rows of `x`.
    fn third_moments(&self, x: ArrayView2<'_, f32>) -> Array1<f64> {
        let n_latents = self.n_latents();
        let mut sums = [(); 3].map(|()| Array1::<f64>::zeros(n_latents));
        for tile in x.axis_chunks_iter(Axis(0), TILE_ROWS) {
            for row in self.encode(tile).to_dense().rows() {
                for (j, c) in row.iter().copied().map(f64::from).enumerate() {
                    sums[0][j] += c;
                    sums[1][j] += c * c;
                    sums[2][j] += c * c * c;
                }
            }
        }
        let n = x.nrows().max(1) as f64;
        let [first, second, third] = sums.map(|sum| sum / n);
        Array1::from_shape_fn(n_latents, |j| third[j] - 3.0 * first[j] * second[j] + 2.0 * first[j].powi(3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activation;
    use ndarray::{Array2, array};

    #[test]
    fn heavy_tails_turn_positive_and_reconstructions_stay() {
        // The first column has its outlier below, the second above; a constant added to both changes nothing.
        let mut x = Array2::from_shape_fn((40, 2), |(i, j)| 5.0 + ((i * 7 + j * 3) % 5) as f32 * 0.1);
        x[[3, 0]] = -20.0;
        x[[9, 1]] = 20.0;
        let mut dictionary = LinearDictionary::identity(2);
        dictionary.b_enc = array![1.0, -2.0];
        let oriented = dictionary.oriented(x.view());
        assert_eq!(oriented.w_enc, array![[-1.0, 0.0], [0.0, 1.0]]);
        assert_eq!(oriented.b_enc, array![-1.0, -2.0]);
        assert_eq!(oriented.decode(&oriented.encode(x.view())), dictionary.decode(&dictionary.encode(x.view())));
        assert_eq!(oriented.oriented(x.view()), oriented);
    }

    #[test]
    #[should_panic(expected = "only signed codes")]
    fn a_relu_cannot_be_turned() {
        let relu = LinearDictionary::tied(Array2::eye(2), Activation::Relu);
        let _ = relu.oriented(Array2::zeros((3, 2)).view());
    }
}
