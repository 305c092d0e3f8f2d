use ndarray::{Array1, Array2, ArrayView2, Axis, Zip, s};

/// Newton's method needs about ten steps; more than this many means that the arithmetic has run out of digits.
const MAX_STEPS: usize = 100;

/// The squared Newton decrement is about twice what the objective is above its minimum. From below this part of the objective on a whole step squares
/// the error, so that one is enough; much below, the rounding of the objective would hide whether it descends.
const LAST_STEP: f64 = 1e-10;

/// A linear probe: a logistic regression that tells from a row whether a label holds.
///
/// What the columns of the rows are is the caller's: activations (a dense probe), or the codes of a few latents (a sparse probe).
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// A weight per column, in log-odds per unit of that column.
    pub weights: Array1<f64>,
    /// The log-odds of a row of zeros.
    pub bias: f64,
}

impl Probe {
    /// The weights that minimise `|u|² / 2 + c Σᵢ sᵢ log(1 + exp(-yᵢ (u · zᵢ + b)))` over the rows of `x` `[n, d]`: `zᵢ` are the rows with every column brought to
    /// mean 0 and variance 1, so that the units of a column do not matter; `yᵢ` is 1 where the label holds and -1 elsewhere; `sᵢ` is n over twice the
    /// number of rows with that label, so that both labels weigh the same however rare one is. scikit-learn's `StandardScaler` before
    /// `LogisticRegression(C=c, class_weight="balanced")`, by Newton's method in `f64`. A column of one value gets weight 0.
    ///
    /// `None` where the label is the same everywhere.
    ///
    /// ```
    /// use monosem_dictionary::Probe;
    /// use ndarray::array;
    ///
    /// let x = array![[0.0_f32, 7.0], [1.0, 8.0], [2.0, 7.0], [3.0, 8.0]];
    /// let probe = Probe::fit(x.view(), &[false, false, true, true], 1.0).unwrap();
    /// assert!(probe.logits(x.view()).iter().map(|logit| *logit > 0.0).eq([false, false, true, true]));
    /// ```
    ///
    /// # Panics
    /// If there are not as many rows as labels, or `c` is not positive.
    #[must_use]
    pub fn fit(x: ArrayView2<'_, f32>, labels: &[bool], c: f64) -> Option<Self> {
        assert_eq!(x.nrows(), labels.len(), "{} rows, {} labels", x.nrows(), labels.len());
        assert!(c > 0.0, "c = {c}");
        let (n, d) = x.dim();
        let holds = labels.iter().filter(|label| **label).count();
        if holds == 0 || holds == n {
            return None;
        }
        let (mean, deviation) = moments(x);
        // Standardised, and a last column of ones for the bias.
        let mut z = Array2::ones((n, d + 1));
        for (mut z, x) in z.rows_mut().into_iter().zip(x.rows()) {
            Zip::from(z.slice_mut(s![..d])).and(x).and(&mean).and(&deviation).for_each(|z, x, mean, deviation| {
                *z = if *deviation > 0.0 { (f64::from(*x) - mean) / deviation } else { 0.0 };
            });
        }
        let weight = |label: bool| c * n as f64 / (2.0 * if label { holds } else { n - holds } as f64);
        let rows: Vec<(f64, f64)> = labels.iter().map(|l| (if *l { 1.0 } else { -1.0 }, weight(*l))).collect();
        let u = minimise(&z, &rows);
        let weights = Array1::from_shape_fn(d, |j| if deviation[j] > 0.0 { u[j] / deviation[j] } else { 0.0 });
        let bias = u[d] - weights.dot(&mean);
        Some(Self { weights, bias })
    }

    /// The log-odds of the rows of `x` `[n, d]`; the probe says that the label holds where they are positive.
    ///
    /// # Panics
    /// If `x` is not as wide as the rows that the probe was fitted to.
    #[must_use]
    pub fn logits(&self, x: ArrayView2<'_, f32>) -> Vec<f64> {
        assert_eq!(x.ncols(), self.weights.len(), "rows {} wide for a probe of {}", x.ncols(), self.weights.len());
        let dot = |row: ndarray::ArrayView1<'_, f32>| {
            row.iter().zip(&self.weights).map(|(x, w)| f64::from(*x) * w).sum::<f64>()
        };
        x.rows().into_iter().map(|row| dot(row) + self.bias).collect()
    }
}

/// By how much each column is larger on average where a label holds than elsewhere, for many labels of the same rows.
///
/// By magnitude the order is that of the correlation with the label. The latents of a k-sparse probe are chosen so by Gurnee et al. (arXiv
/// 2305.01610) and SAEBench (arXiv 2503.09532), who take the difference as it is, in units that differ from latent to latent.
#[derive(Debug, Clone)]
pub struct MeanDifferences<'x> {
    x: ArrayView2<'x, f32>,
    mean: Array1<f64>,
    deviation: Array1<f64>,
}

impl<'x> MeanDifferences<'x> {
    /// For the columns of `x` `[n, d]`.
    #[must_use]
    pub fn new(x: ArrayView2<'x, f32>) -> Self {
        let (mean, deviation) = moments(x);
        Self { x, mean, deviation }
    }

    /// The mean of each column where the label holds, less the mean where it does not, in standard deviations of the column over all rows; 0 for a column of
    /// one value, and where the label is the same everywhere.
    ///
    /// # Panics
    /// If there are not as many labels as rows.
    #[must_use]
    pub fn of(&self, labels: &[bool]) -> Vec<f64> {
        assert_eq!(self.x.nrows(), labels.len(), "{} rows, {} labels", self.x.nrows(), labels.len());
        let holds = labels.iter().filter(|label| **label).count() as f64;
        let rest = labels.len() as f64 - holds;
        if holds == 0.0 || rest == 0.0 {
            return vec![0.0; self.x.ncols()];
        }
        let mut sum = Array1::<f64>::zeros(self.x.ncols());
        for (row, _) in self.x.rows().into_iter().zip(labels).filter(|(_, label)| **label) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        // Deviations from the mean add up to 0, so those of the rest are the opposite.
        let difference = |((sum, mean), deviation): ((&f64, &f64), &f64)| match *deviation > 0.0 {
            true => (sum - holds * mean) * (1.0 / holds + 1.0 / rest) / deviation,
            false => 0.0,
        };
        sum.iter().zip(&self.mean).zip(&self.deviation).map(difference).collect()
    }
}

/// Mean and standard deviation of every column.
fn moments(x: ArrayView2<'_, f32>) -> (Array1<f64>, Array1<f64>) {
    let mean = crate::column_mean(x);
    let mut square = Array1::<f64>::zeros(x.ncols());
    for row in x.rows() {
        let values = row.iter().zip(&mean);
        square.iter_mut().zip(values).for_each(|(square, (x, mean))| *square += (f64::from(*x) - mean).powi(2));
    }
    // What the rounding of a mean leaves of a column of one value is none of its variance.
    Zip::from(&mut square).and(&mean).for_each(|square, mean| {
        *square /= x.nrows().max(1) as f64;
        *square = if *square > 1e-24 * mean * mean { square.sqrt() } else { 0.0 };
    });
    (mean, square)
}

/// Newton's method with halved steps where a whole one does not descend; `rows` are the sign and the weight of each row of `z`, whose last
/// column is the bias, which is not penalised.
fn minimise(z: &Array2<f64>, rows: &[(f64, f64)]) -> Array1<f64> {
    let d = z.ncols() - 1;
    let objective = |u: &Array1<f64>| {
        let losses = z.dot(u).into_iter().zip(rows).map(|(logit, (y, s))| s * softplus(-y * logit));
        u.slice(s![..d]).mapv(|u| u * u).sum() / 2.0 + losses.sum::<f64>()
    };
    let mut u = Array1::zeros(d + 1);
    let mut value = objective(&u);
    for _ in 0..MAX_STEPS {
        let logits = z.dot(&u);
        let miss = |(logit, (y, _)): (&f64, &(f64, f64))| 1.0 / (1.0 + (y * logit).exp());
        let misses: Array1<f64> = logits.iter().zip(rows).map(miss).collect();
        let slopes: Array1<f64> = misses.iter().zip(rows).map(|(miss, (y, s))| -s * y * miss).collect();
        let mut gradient = z.t().dot(&slopes);
        let roots: Array1<f64> =
            misses.iter().zip(rows).map(|(miss, (_, s))| (s * miss * (1.0 - miss)).sqrt()).collect();
        let curved = z * &roots.insert_axis(Axis(1));
        let mut hessian = curved.t().dot(&curved);
        for j in 0..d {
            gradient[j] += u[j];
            hessian[[j, j]] += 1.0;
        }
        let Some(step) = solve(hessian, &gradient) else { break };
        let decrement = gradient.dot(&step);
        if decrement < LAST_STEP * value.max(1.0) {
            return u - step;
        }
        let lower = (0..30).map(|halvings| 0.5_f64.powi(halvings)).find_map(|size| {
            let next = &u - &(&step * size);
            let reached = objective(&next);
            (reached <= value - 0.25 * size * decrement).then_some((next, reached))
        });
        let Some(lower) = lower else { break };
        (u, value) = lower;
    }
    u
}

/// `log(1 + exp(x))`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The solution of `a x = b` for a symmetric positive definite `a`, by Cholesky's factorisation; `None` where `a` is not positive definite in `f64`.
fn solve(mut a: Array2<f64>, b: &Array1<f64>) -> Option<Array1<f64>> {
    let n = b.len();
    // The lower triangle becomes the factor.
    for j in 0..n {
        let (before, here) = (a.slice(s![j, ..j]).to_owned(), a[[j, j]]);
        let pivot = here - before.dot(&before);
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        let root = pivot.sqrt();
        a[[j, j]] = root;
        for i in j + 1..n {
            a[[i, j]] = (a[[i, j]] - a.slice(s![i, ..j]).dot(&before)) / root;
        }
    }
    let mut x = b.clone();
    for i in 0..n {
        x[i] = (x[i] - a.slice(s![i, ..i]).dot(&x.slice(s![..i]))) / a[[i, i]];
    }
    for i in (0..n).rev() {
        x[i] = (x[i] - a.slice(s![i + 1.., i]).dot(&x.slice(s![i + 1..]))) / a[[i, i]];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    /// What scikit-learn found: `data/golden/probe.py`.
    struct Golden(Vec<u8>);

    impl Golden {
        fn read() -> Self {
            Self(std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden/probe.safetensors")).unwrap())
        }

        fn bytes<const N: usize>(&self, name: &str) -> Vec<[u8; N]> {
            let tensors = SafeTensors::deserialize(&self.0).unwrap();
            let tensor = tensors.tensor(name).unwrap();
            tensor.data().chunks_exact(N).map(|bytes| bytes.try_into().unwrap()).collect()
        }

        fn f64(&self, name: &str) -> Vec<f64> {
            self.bytes(name).into_iter().map(f64::from_le_bytes).collect()
        }

        fn rows(&self) -> (Array2<f32>, Vec<bool>) {
            let labels: Vec<bool> = self.bytes::<1>("labels").into_iter().map(|[label]| label != 0).collect();
            let x: Vec<f32> = self.bytes("x").into_iter().map(f32::from_le_bytes).collect();
            (Array2::from_shape_vec((labels.len(), x.len() / labels.len()), x).unwrap(), labels)
        }
    }

    #[test]
    fn it_is_scikit_learn_s() {
        let golden = Golden::read();
        let (x, labels) = golden.rows();
        for (c, name) in [(0.01, "0.01"), (1.0, "1"), (1000.0, "1000")] {
            let probe = Probe::fit(x.view(), &labels, c).unwrap();
            let close = |got: &[f64], want: &[f64]| {
                assert_eq!(got.len(), want.len());
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() < 1e-5 * want.abs().max(1.0), "c = {c}: {got}, not {want}");
                }
            };
            close(&probe.weights.to_vec(), &golden.f64(&format!("weights_{name}")));
            close(&[probe.bias], &golden.f64(&format!("bias_{name}")));
            close(&probe.logits(x.view()), &golden.f64(&format!("logits_{name}")));
        }
    }

    fn labelled() -> impl Strategy<Value = (Array2<f32>, Vec<bool>)> {
        (4usize..40).prop_flat_map(|n| {
            let values = prop::collection::vec(-5.0_f32..5.0, n * 3);
            (values, prop::collection::vec(any::<bool>(), n))
                .prop_map(move |(values, labels)| (Array2::from_shape_vec((n, 3), values).unwrap(), labels))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_a_minimum((x, labels) in labelled(), c in prop_oneof![Just(0.01), Just(1.0), Just(1e6)]) {
            let holds = labels.iter().filter(|label| **label).count();
            let probe = Probe::fit(x.view(), &labels, c);
            prop_assert_eq!(probe.is_some(), holds > 0 && holds < labels.len());
            let Some(probe) = probe else { return Ok(()) };
            // The gradient over the weights of standardised columns, and over the bias.
            let (mean, deviation) = moments(x.view());
            let n = labels.len() as f64;
            let mut gradient = [0.0; 4];
            let mut size = 1.0_f64;
            for ((row, label), logit) in x.rows().into_iter().zip(&labels).zip(probe.logits(x.view())) {
                let (target, count) = if *label { (1.0, holds as f64) } else { (0.0, n - holds as f64) };
                let slope = c * n / (2.0 * count) * (1.0 / (1.0 + (-logit).exp()) - target);
                (0..3).for_each(|j| gradient[j] += slope * (f64::from(row[j]) - mean[j]) / deviation[j]);
                gradient[3] += slope;
                size += slope.abs();
            }
            (0..3).for_each(|j| gradient[j] += probe.weights[j] * deviation[j]);
            prop_assert!(gradient.iter().all(|g| g.abs() < 1e-5 * size), "{:?} of {}", gradient, size);
        }

        #[test]
        fn units_do_not_matter((x, labels) in labelled(), scale in 0.01_f32..100.0, shift in -3.0_f32..3.0) {
            let mut other = x.clone();
            other.column_mut(1).mapv_inplace(|v| v * scale + shift);
            let differences = MeanDifferences::new(x.view()).of(&labels);
            for (a, b) in differences.iter().zip(MeanDifferences::new(other.view()).of(&labels)) {
                prop_assert!((a - b).abs() < 1e-3 * a.abs().max(1.0), "{} {}", a, b);
            }
            let Some(probe) = Probe::fit(x.view(), &labels, 1.0) else { return Ok(()) };
            let moved = Probe::fit(other.view(), &labels, 1.0).unwrap();
            for (a, b) in probe.logits(x.view()).iter().zip(moved.logits(other.view())) {
                prop_assert!((a - b).abs() < 1e-2 * a.abs().max(1.0), "{} {}", a, b);
            }
        }

        #[test]
        fn differences_are_correlations_in_other_units((x, labels) in labelled()) {
            let n = labels.len() as f64;
            let p = labels.iter().filter(|label| **label).count() as f64 / n;
            prop_assume!(p > 0.0 && p < 1.0);
            let (mean, deviation) = moments(x.view());
            for (j, difference) in MeanDifferences::new(x.view()).of(&labels).into_iter().enumerate() {
                let products = labels.iter().zip(x.column(j)).map(|(l, x)| (f64::from(u8::from(*l)) - p) * (f64::from(*x) - mean[j]));
                let correlation = products.sum::<f64>() / n / (deviation[j] * (p * (1.0 - p)).sqrt());
                prop_assert!((difference * (p * (1.0 - p)).sqrt() - correlation).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_column_of_one_value_tells_nothing() {
        let x = Array2::from_shape_fn((30, 2), |(i, j)| if j == 0 { 0.1 } else { i as f32 });
        let labels: Vec<bool> = (0..30).map(|i| i >= 15).collect();
        let probe = Probe::fit(x.view(), &labels, 1.0).unwrap();
        assert_eq!(probe.weights[0], 0.0);
        assert!(probe.weights[1] > 0.0);
        assert_eq!(MeanDifferences::new(x.view()).of(&labels)[0], 0.0);
    }

    #[test]
    fn labels_that_a_column_separates_have_finite_weights() {
        let x = Array2::from_shape_fn((400, 1), |(i, _)| if i < 200 { 0.0 } else { 1.0 + i as f32 });
        let labels: Vec<bool> = (0..400).map(|i| i >= 200).collect();
        for c in [1e-3, 1.0, 1e9] {
            let probe = Probe::fit(x.view(), &labels, c).unwrap();
            assert!(probe.weights[0].is_finite() && probe.weights[0] > 0.0 && probe.bias.is_finite(), "{probe:?}");
        }
    }
}
