use std::ops::ControlFlow;

use monosem_dictionary::{Activation, LinearDictionary};
use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate, s};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::eigen::{eigh_descending, largest_entry, orient};
use crate::error::validate_iteration;
use crate::fastica::fastica;
use crate::product::product;
use crate::{DecomposeError, Moments, gaussian, to_f32};

/// Rows whitened at once, in `f64`.
const TILE_ROWS: usize = 1024;

/// How FastICA is run. The defaults are those of scikit-learn, which the paper's baselines were made with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IcaConfig {
    /// Number of sources; of the whitened directions those of largest variance are kept. None: as many as there are dimensions.
    pub n_components: Option<usize>,
    /// Iterations at most.
    pub max_iter: usize,
    /// The fit has converged when `1 - |cos|` of the angle that any source's direction turned by in an iteration is below this.
    pub tol: f64,
    /// Of the random matrix that the iteration starts from.
    pub seed: u64,
}

impl Default for IcaConfig {
    fn default() -> Self {
        Self { n_components: None, max_iter: 200, tol: 1e-4, seed: 0 }
    }
}

impl IcaConfig {
    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`DecomposeError::Config`] with the field, its value and what would be valid.
    pub fn validate(&self) -> Result<(), DecomposeError> {
        if self.n_components == Some(0) {
            return Err(DecomposeError::config("n_components", 0, "expected at least 1, or none for every dimension"));
        }
        validate_iteration(self.max_iter, self.tol)
    }
}

/// Independent components of activations: FastICA on standardised rows, `source = unmixing ((x - mean) / scale)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Ica {
    /// Mean of the activations `[d]`.
    pub mean: Array1<f64>,
    /// Standard deviation of each dimension `[d]` (divided by the count); 1 where a dimension is constant.
    pub scale: Array1<f64>,
    /// From standardised activations to sources `[n, d]`, a source a row. The sources are uncorrelated and of variance 1 on the rows that
    /// were fitted. The entry of largest magnitude of a row is positive.
    pub unmixing: Array2<f64>,
    /// The pseudo-inverse of `unmixing`, transposed so that a source is a row again, `[n, d]`: `standardised x = mixingᵀ source`.
    pub mixing: Array2<f64>,
    /// Number n of sources: fewer than asked for where the rows vary in fewer directions than that (above rounding).
    pub n_kept: usize,
    /// Whether the iteration came below the tolerance. Gaussian directions have no stable sources: then it may never.
    pub converged: bool,
    /// Iterations done.
    pub iterations: usize,
}

impl Ica {
    /// Fits to the rows of `x` `[n, d]`: parallel FastICA, logcosh, symmetric decorrelation, whitened by the eigenvectors of the
    /// covariance, as scikit-learn's `FastICA(whiten="unit-variance", whiten_solver="eigh")` after its `StandardScaler`.
    ///
    /// Not to converge is no error: see [`converged`](Self::converged). After every iteration `progress` is given its number, from 1, and
    /// the largest turn `1 - |cos|`; when it breaks, the result is `None`.
    ///
    /// # Errors
    /// If the config is invalid or asks for more sources than dimensions, a value is not finite, there are fewer rows than sources
    /// (or than two), nothing varies, or LAPACK does not converge.
    pub fn fit(
        x: ArrayView2<'_, f32>,
        config: &IcaConfig,
        progress: &mut dyn FnMut(usize, f64) -> ControlFlow<()>,
    ) -> Result<Option<Self>, DecomposeError> {
        let whitening = Whitening::of(x, config)?;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let n = whitening.n_kept();
        let start = Array2::from_shape_simple_fn((n, n), || gaussian(&mut rng));
        Self::fit_from(x, whitening, &start, config, progress)
    }

    fn fit_from(
        x: ArrayView2<'_, f32>,
        whitening: Whitening,
        start: &Array2<f64>,
        config: &IcaConfig,
        progress: &mut dyn FnMut(usize, f64) -> ControlFlow<()>,
    ) -> Result<Option<Self>, DecomposeError> {
        let white = whitening.apply(x);
        let Some(outcome) = fastica(white.view(), start, config.max_iter, config.tol, progress)? else {
            return Ok(None);
        };
        let mut w = outcome.w;
        let mut unmixing = product(w.view(), whitening.matrix.view());
        for (mut source, mut w) in unmixing.rows_mut().into_iter().zip(w.rows_mut()) {
            if source.as_slice().is_some_and(|source| largest_entry(source) < 0.0) {
                source.mapv_inplace(|v| -v);
                w.mapv_inplace(|v| -v);
            }
        }
        Ok(Some(Self {
            mixing: product(w.view(), whitening.inverse.view()),
            n_kept: unmixing.nrows(),
            unmixing,
            mean: whitening.mean,
            scale: whitening.scale,
            converged: outcome.converged,
            iterations: outcome.iterations,
        }))
    }

    /// Signed sources as codes, decoded with the mixing; the standardisation is folded into both sides. With as many sources as the rows
    /// vary in directions it reconstructs exactly.
    #[must_use]
    pub fn components(&self) -> LinearDictionary {
        let encoder = &self.unmixing / &self.scale;
        LinearDictionary {
            b_enc: encoder.dot(&self.mean).mapv(|v| -v as f32),
            w_enc: to_f32(&encoder),
            w_dec: to_f32(&(&self.mixing * &self.scale)),
            b_dec: to_f32(&self.mean),
            activation: Activation::Linear,
            threshold: None,
        }
    }

    /// Both signs of every source, of which the k largest are kept, decoded with the mixing. The sources have variance 1, so that their
    /// magnitudes compare like with like. With `k = 2 n` it is [`components`](Self::components) with its codes split by sign.
    #[must_use]
    pub fn top_k(&self, k: usize) -> LinearDictionary {
        let signed = self.components();
        let negated = |a: &Array2<f32>| concatenate![Axis(0), *a, a.mapv(|v| -v)];
        let opposite = signed.b_enc.mapv(|v| -v);
        LinearDictionary {
            w_enc: negated(&signed.w_enc),
            b_enc: concatenate![Axis(0), signed.b_enc, opposite],
            w_dec: negated(&signed.w_dec),
            b_dec: signed.b_dec,
            activation: Activation::TopK { k },
            threshold: None,
        }
    }

    /// What the paper's code compares features of: signed sources as codes, and as their directions the rows of the unmixing scaled to unit
    /// length, which live in the *standardised* space. These directions are not made to reconstruct; for FVU use
    /// [`components`](Self::components) or [`top_k`](Self::top_k).
    #[must_use]
    pub fn paper(&self) -> LinearDictionary {
        let mut directions = self.unmixing.clone();
        for mut row in directions.rows_mut() {
            let length = row.dot(&row).sqrt().max(f64::MIN_POSITIVE);
            row /= length;
        }
        LinearDictionary { w_dec: to_f32(&directions), b_dec: Array1::zeros(self.mean.len()), ..self.components() }
    }
}

/// The map from rows to uncorrelated coordinates of variance 1.
struct Whitening {
    mean: Array1<f64>,
    scale: Array1<f64>,
    /// Acts on standardised rows, `[n, d]`.
    matrix: Array2<f64>,
    /// Its pseudo-inverse, transposed, `[n, d]`.
    inverse: Array2<f64>,
}

impl Whitening {
    fn of(x: ArrayView2<'_, f32>, config: &IcaConfig) -> Result<Self, DecomposeError> {
        config.validate()?;
        let (rows, d) = x.dim();
        let wanted = config.n_components.unwrap_or(d);
        if wanted > d {
            let expected = format!("the activations have {d} dimensions, so at most {d}");
            return Err(DecomposeError::Config { key: "n_components", value: wanted.to_string(), expected });
        }
        if rows < wanted {
            return Err(DecomposeError::TooFewRows { rows, needed: wanted });
        }
        let mut moments = Moments::new(d);
        moments.add(x);
        let (mean, mut correlation) = moments.mean_and_covariance(0)?;

        let scale = correlation.diag().mapv(|variance| if variance > 0.0 { variance.sqrt() } else { 1.0 });
        correlation /= &scale;
        correlation /= &scale.view().insert_axis(Axis(1));
        let (variances, mut directions) = eigh_descending(&correlation, "the correlation matrix")?;
        // As scikit-learn does it, so that the same start takes the same path.
        orient(&mut directions, |direction| direction[0]);
        // Below this a variance is the rounding of the f32 values that came in.
        let negligible = d as f64 * f64::from(f32::EPSILON).powi(2) * variances.first().copied().unwrap_or(0.0);
        let n = variances.iter().take(wanted).take_while(|variance| **variance > negligible).count();
        if n == 0 {
            return Err(DecomposeError::NoVariance { columns: d });
        }
        let deviations = variances.slice(s![..n]).mapv(f64::sqrt).insert_axis(Axis(1));
        let directions = directions.slice(s![..n, ..]);
        Ok(Self { matrix: &directions / &deviations, inverse: &directions * &deviations, mean, scale })
    }

    fn n_kept(&self) -> usize {
        self.matrix.nrows()
    }

    /// Computed in `f64`, because the directions of least variance are stretched most, and kept in `f32`.
    fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut white = Array2::zeros((x.nrows(), self.n_kept()));
        let mut standard = Array2::zeros((TILE_ROWS.min(x.nrows()), x.ncols()));
        for (from, mut to) in x.axis_chunks_iter(Axis(0), TILE_ROWS).zip(white.axis_chunks_iter_mut(Axis(0), TILE_ROWS))
        {
            let mut standard = standard.slice_mut(s![..from.nrows(), ..]);
            standard.axis_iter_mut(Axis(0)).into_par_iter().zip(from.axis_iter(Axis(0))).for_each(|(mut to, from)| {
                ndarray::Zip::from(&mut to)
                    .and(&from)
                    .and(&self.mean)
                    .and(&self.scale)
                    .for_each(|to, from, mean, scale| *to = (f64::from(*from) - mean) / scale);
            });
            let tile = product(standard.view(), self.matrix.t());
            to.zip_mut_with(&tile, |to, from| *to = *from as f32);
        }
        white
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Golden, assert_reconstructs, assert_reconstructs_within, golden, mixed, rows};
    use monosem_dictionary::Dictionary;
    use proptest::prelude::*;

    fn go_on(_: usize, _: f64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn fit(x: &Array2<f32>, config: &IcaConfig) -> Ica {
        Ica::fit(x.view(), config, &mut go_on).unwrap().unwrap()
    }

    /// Rows of `got` against those of `want`: the same up to sign and order.
    fn assert_same_sources(got: &Array2<f64>, want: &Array2<f64>, tolerance: f64) {
        let mut taken = vec![false; want.nrows()];
        for got in got.rows() {
            let cos = |want: ndarray::ArrayView1<'_, f64>| got.dot(&want) / (got.dot(&got) * want.dot(&want)).sqrt();
            let (at, want) = want
                .rows()
                .into_iter()
                .enumerate()
                .max_by(|(_, a), (_, b)| cos(*a).abs().total_cmp(&cos(*b).abs()))
                .unwrap();
            assert!(!std::mem::replace(&mut taken[at], true), "two sources match source {at}");
            let size = want.fold(0.0_f64, |a, v| a.max(v.abs()));
            let worst = (&got - &(&want * cos(want).signum())).fold(0.0_f64, |a, v| a.max(v.abs()));
            assert!(worst < tolerance * size, "source {at} is off by {worst} of {size}");
        }
    }

    fn agrees_with_scikit_learn(golden: &Golden, prefix: &str, w_init: &str, config: &IcaConfig) {
        let x = golden.matrix("x").mapv(|v| v as f32);
        let whitening = Whitening::of(x.view(), config).unwrap();
        let ica = Ica::fit_from(x.view(), whitening, &golden.matrix(w_init), config, &mut go_on).unwrap().unwrap();
        assert!(ica.converged);
        assert_eq!(ica.iterations as f64, golden.vector(&format!("{prefix}_iterations"))[0]);
        assert!((&ica.mean - golden.vector("mean")).iter().all(|v| v.abs() < 1e-9));
        assert!((&ica.scale / golden.vector("scale")).iter().all(|v| (v - 1.0).abs() < 1e-10));
        assert_same_sources(&ica.unmixing, &golden.matrix(&format!("{prefix}_components")), 1e-5);
        assert_same_sources(&ica.mixing, &golden.matrix(&format!("{prefix}_mixing")).t().to_owned(), 1e-5);
    }

    #[test]
    fn it_agrees_with_scikit_learn_from_the_same_start() {
        agrees_with_scikit_learn(&golden(), "ica", "w_init", &IcaConfig::default());
        let six = IcaConfig { n_components: Some(6), tol: 1e-6, ..IcaConfig::default() };
        agrees_with_scikit_learn(&golden(), "ica_6", "ica_6_w_init", &six);
    }

    #[test]
    fn another_seed_finds_the_same_sources() {
        let x = golden().matrix("x").mapv(|v| v as f32);
        let config = IcaConfig { tol: 1e-9, ..IcaConfig::default() };
        let (a, b) = (fit(&x, &config), fit(&x, &IcaConfig { seed: 5, ..config.clone() }));
        assert_same_sources(&a.unmixing, &b.unmixing, 1e-3);
        assert_eq!(fit(&x, &config), a);
    }

    #[test]
    fn dictionaries_reconstruct_and_keep_the_strongest_sources() {
        let x = golden().matrix("x").mapv(|v| v as f32);
        let ica = fit(&x, &IcaConfig::default());
        assert_reconstructs_within(&ica.components(), &x, 1e-5);
        assert_reconstructs_within(&ica.top_k(20), &x, 1e-5);
        let sources = ica.components().encode(x.view()).to_dense();
        assert_eq!(ica.paper().encode(x.view()).to_dense(), sources);
        assert!(ica.paper().w_dec.rows().into_iter().all(|row| (row.dot(&row) - 1.0).abs() < 1e-5));
        let variances = sources.mapv(f64::from).var_axis(Axis(0), 0.0);
        assert!(variances.iter().all(|v| (v - 1.0).abs() < 1e-4), "{variances}");

        let codes = ica.top_k(3).encode(x.view());
        for (sources, (latents, values)) in sources.rows().into_iter().zip(codes.rows()) {
            let mut magnitudes: Vec<f32> = sources.iter().map(|v| v.abs()).collect();
            magnitudes.sort_unstable_by(|a, b| b.total_cmp(a));
            let mut kept = values.to_vec();
            kept.sort_unstable_by(|a, b| b.total_cmp(a));
            assert_eq!(latents.len(), 3);
            assert!(kept.iter().zip(&magnitudes).all(|(a, b)| (a - b).abs() < 1e-5 * b.max(1.0)));
        }
    }

    #[test]
    fn directions_in_which_nothing_varies_are_left_out() {
        let mut x = mixed(500, 6, 3);
        let copy = &x.column(0) * 2.0 + x.column(1);
        x.column_mut(4).assign(&copy);
        x.column_mut(5).fill(7.0);
        let ica = fit(&x, &IcaConfig::default());
        assert_eq!((ica.n_kept, ica.unmixing.dim(), ica.scale[5]), (4, (4, 6), 1.0));
        assert_reconstructs_within(&ica.components(), &x, 1e-5);
    }

    #[test]
    fn what_cannot_be_fitted_is_said() {
        let config = IcaConfig::default();
        let fails = |x: &Array2<f32>, config: &IcaConfig| Ica::fit(x.view(), config, &mut go_on).unwrap_err();
        let x = rows(8, 5, 1);
        assert_eq!(fails(&rows(4, 5, 1), &config), DecomposeError::TooFewRows { rows: 4, needed: 5 });
        assert_eq!(fails(&Array2::ones((9, 5)), &config), DecomposeError::NoVariance { columns: 5 });
        let mut broken = x.clone();
        broken[[6, 2]] = f32::NEG_INFINITY;
        let message = fails(&broken, &config).to_string();
        assert!(message.contains("row 6, column 2 is -inf"), "{message}");
        for (config, word) in [
            (IcaConfig { n_components: Some(6), ..config.clone() }, "at most 5"),
            (IcaConfig { n_components: Some(0), ..config.clone() }, "at least 1"),
            (IcaConfig { max_iter: 0, ..config.clone() }, "max_iter = 0"),
            (IcaConfig { tol: f64::NAN, ..config.clone() }, "tol = NaN"),
        ] {
            let message = fails(&x, &config).to_string();
            assert!(message.contains(word), "{message}");
        }
        assert!(serde_json::from_str::<IcaConfig>(r#"{"iterations": 5}"#).is_err());
        assert_eq!(serde_json::from_str::<IcaConfig>("{}").unwrap(), config);
    }

    #[test]
    fn it_stops_where_it_is_told_to_and_says_when_it_has_not_converged() {
        let x = mixed(300, 5, 2);
        let mut seen = Vec::new();
        let config = IcaConfig { tol: 1e-30, max_iter: 4, ..IcaConfig::default() };
        let stopped = Ica::fit(x.view(), &config, &mut |iteration, turned| {
            seen.push((iteration, turned));
            if iteration == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(stopped, Ok(None));
        assert_eq!(seen.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [1, 2]);
        let ica = fit(&x, &config);
        assert_eq!((ica.converged, ica.iterations), (false, 4));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn whitening_gives_the_identity_covariance(n in 40usize..1500, d in 1usize..9, k in 1usize..9, offset in -20.0_f32..20.0, seed in any::<u64>()) {
            let x = mixed(n, d, seed) + offset;
            let config = IcaConfig { n_components: Some(k.min(d)), ..IcaConfig::default() };
            let whitening = Whitening::of(x.view(), &config).unwrap();
            let mut moments = Moments::new(whitening.n_kept());
            moments.add(whitening.apply(x.view()).view());
            let (mean, covariance) = moments.mean_and_covariance(0).unwrap();
            prop_assert!(mean.iter().all(|v| v.abs() < 1e-5));
            prop_assert!((covariance - Array2::<f64>::eye(whitening.n_kept())).iter().all(|v| v.abs() < 1e-5));
        }

        #[test]
        fn as_many_sources_as_dimensions_reconstruct(n in 60usize..400, d in 1usize..7, seed in any::<u64>()) {
            let x = mixed(n, d, seed) + 1.5;
            let ica = fit(&x, &IcaConfig { max_iter: 5, seed, ..IcaConfig::default() });
            assert_reconstructs(&ica.components(), &x);
            assert_reconstructs(&ica.top_k(2 * d), &x);
        }
    }
}
