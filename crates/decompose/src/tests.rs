//! Data and checks that the tests of several modules share.

use monosem_dictionary::{Dictionary, LinearDictionary};
use ndarray::{Array1, Array2};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;

/// Uniform values in [-1, 1).
pub(crate) fn rows(n: usize, d: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((n, d), || rng.random::<f32>() * 2.0 - 1.0)
}

/// Sparse sources, mixed.
pub(crate) fn mixed(n: usize, d: usize, seed: u64) -> Array2<f32> {
    rows(n, d, seed).mapv(|v| v.powi(5)).dot(&(rows(d, d, seed ^ 1) + Array2::<f32>::eye(d)))
}

/// Every row comes back within `tolerance` of the largest magnitude in `x`.
pub(crate) fn assert_reconstructs_within(dictionary: &LinearDictionary, x: &Array2<f32>, tolerance: f32) {
    let x_hat = dictionary.decode(&dictionary.encode(x.view()));
    let size = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    let worst = (&x_hat - x).iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    assert!(worst <= tolerance * size, "off by {worst} in rows of size {size}");
}

/// Every row comes back, but for the rounding of `f32`: how far that may go depends on how large the codes' parts are that cancel out.
pub(crate) fn assert_reconstructs(dictionary: &LinearDictionary, x: &Array2<f32>) {
    let LinearDictionary { w_enc, b_enc, w_dec, b_dec, .. } = dictionary;
    let size = |m: &Array2<f32>| m.mapv(|v| f64::from(v.abs()));
    let codes = size(x).dot(&size(w_enc).t()) + b_enc.mapv(|v| f64::from(v.abs()));
    let parts = codes.dot(&size(w_dec)) + b_dec.mapv(|v| f64::from(v.abs()));
    // Each weight is rounded once, and each sum once for each of its terms.
    let roundings = (w_enc.ncols() + w_enc.nrows() + 4) as f64 * f64::from(f32::EPSILON);
    let x_hat = dictionary.decode(&dictionary.encode(x.view()));
    for ((x_hat, x), parts) in x_hat.iter().zip(x).zip(&parts) {
        let (off, bound) = (f64::from(x_hat - x).abs(), parts * roundings);
        assert!(off <= bound, "{x_hat} for {x}: off by {off:e}, more than {bound:e}");
    }
}

/// What scikit-learn computed.
pub(crate) struct Golden(Vec<u8>);

/// Of PCA and ICA: see `data/golden/decompose.py`.
pub(crate) fn golden() -> Golden {
    Golden::named("decompose.safetensors")
}

/// Of NMF: see `data/golden/decompose_nmf.py`.
pub(crate) fn golden_nmf() -> Golden {
    Golden::named("decompose-nmf.safetensors")
}

/// Of the erasure of concepts: see `data/golden/leace.py`.
pub(crate) fn golden_leace() -> Golden {
    Golden::named("leace.safetensors")
}

/// The rows that [`golden_nmf`] is of: those fitted, and those held out.
pub(crate) fn golden_nmf_rows() -> [Array2<f32>; 2] {
    let golden = golden();
    let x = (golden.matrix("x") / golden.vector("scale")).mapv(|v| v as f32);
    [0..600, 600..700].map(|rows| x.slice(ndarray::s![rows, ..]).to_owned())
}

impl Golden {
    fn named(file: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden");
        Self(std::fs::read(std::path::Path::new(folder).join(file)).unwrap())
    }

    fn values(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let values = match tensor.dtype() {
            safetensors::Dtype::F32 => {
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
            }
            _ => tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        };
        (tensor.shape().to_vec(), values)
    }

    pub(crate) fn matrix(&self, name: &str) -> Array2<f64> {
        let (shape, values) = self.values(name);
        Array2::from_shape_vec((shape[0], shape[1]), values).unwrap()
    }

    pub(crate) fn vector(&self, name: &str) -> Array1<f64> {
        self.values(name).1.into()
    }
}
