//! Weights to begin with.

use rand::{Rng, RngExt};

use crate::kernels::norm;
use crate::parameters::SHORTEST;

/// Uniform within `bound` of 0.
pub(crate) fn uniform(rng: &mut impl Rng, n: usize, bound: f32) -> Vec<f32> {
    (0..n).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect()
}

/// Brings rows `d` wide to a length.
pub(crate) fn set_lengths(rows: &mut [f32], d: usize, length: f32) {
    for row in rows.chunks_exact_mut(d) {
        let factor = length / norm(row).max(SHORTEST);
        row.iter_mut().for_each(|w| *w *= factor);
    }
}

/// A random matrix `[n, d]` whose rows or columns, whichever are fewer, are orthogonal and of length 1.
pub(crate) fn orthogonal(rng: &mut impl Rng, n: usize, d: usize) -> Vec<f32> {
    let (few, many) = (n.min(d), n.max(d));
    let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(few);
    for _ in 0..few {
        let mut vector: Vec<f64> = (0..many).map(|_| gaussian(rng)).collect();
        // Once more takes away what rounding left the first time.
        for _ in 0..2 {
            for other in &vectors {
                let along: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                vector.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
        vector.iter_mut().for_each(|v| *v /= length);
        vectors.push(vector);
    }
    let at = |row: usize, column: usize| if n <= d { vectors[row][column] } else { vectors[column][row] };
    (0..n).flat_map(|row| (0..d).map(move |column| (row, column))).map(|(row, column)| at(row, column) as f32).collect()
}

/// One standard normal number (Box and Muller; the logarithm's argument is in (0, 1]).
pub(crate) fn gaussian(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn the_fewer_of_rows_and_columns_are_orthogonal() {
        for (n, d) in [(5, 9), (9, 5), (7, 7)] {
            let values = orthogonal(&mut ChaCha8Rng::seed_from_u64(1), n, d);
            let matrix = Array2::from_shape_vec((n, d), values).unwrap();
            let product = if n <= d { matrix.dot(&matrix.t()) } else { matrix.t().dot(&matrix) };
            let off = &product - &Array2::<f32>::eye(n.min(d));
            assert!(off.iter().all(|v| v.abs() < 1e-6), "{product}");
        }
    }
}
