use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use ndarray_linalg::{JobSvd, SVDDC};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::eigen::eigh_descending;
use crate::product::product;
use crate::{DecomposeError, Moments, gaussian};

/// Rows edited at once.
const TILE_ROWS: usize = 512;

/// An affine map that removes what a linear classifier or regression could read a concept from: `r(x) = x - L R (x - mean)`, with `L` `[d, rank]`, `R` `[rank, d]` and `R L = 1`, so
/// that a second application changes nothing more.
///
/// [`leace`](Self::leace) and [`class_means`](Self::class_means) make the means of all classes equal on the rows that they are fitted to. By Belrose et al. 2023, "LEACE: Perfect linear concept erasure
/// in closed form" (arXiv 2306.03819), theorem 3.1, no affine predictor of the class with a convex loss then does better on these rows than a constant. On other rows something may be left.
#[derive(Debug, Clone, PartialEq)]
pub struct Eraser {
    /// `[d]`.
    mean: Array1<f64>,
    /// `L` `[d, rank]`.
    left: Array2<f64>,
    /// `R` `[rank, d]`.
    right: Array2<f64>,
}

impl Eraser {
    /// Least-squares concept erasure: of all affine maps that make the classes' means equal, the one that moves the rows of `x` `[n, d]` least, in mean square. `labels` `[n]` are the
    /// classes of the rows, from 0 to `n_classes - 1`.
    ///
    /// `r(x) = x - W⁺ P W (x - mean)`, with `W = (Σ_xx^½)⁺` and P the orthogonal projection on the columns of `W Σ_xz` for one-hot labels z (Belrose et al. 2023, theorem 4.3). Covariances are those of the rows
    /// as the whole population, in `f64`, without shrinkage. They may be singular: dimensions along which nothing varies are left alone, and with fewer rows than dimensions the classes still end at one mean.
    ///
    /// The rank is at most one less than the number of classes and less where class means depend on each other linearly; directions whose canonical correlation with the labels is within rounding
    /// of zero, `√(d · 2⁻⁵²)`, do not count. Rank 0 leaves everything as it is.
    ///
    /// # Errors
    /// If there are fewer than two classes, labels and rows differ in number, a label is not below `n_classes`, a class has no row, a value is not finite, or LAPACK does not converge.
    pub fn leace(x: ArrayView2<'_, f32>, labels: &[usize], n_classes: usize) -> Result<Self, DecomposeError> {
        let Classes { mean, covariance, between } = Classes::of(x, labels, n_classes)?;
        let (variances, directions) = eigh_descending(&covariance, "the covariance")?;
        // What eigenvalues of rounding are: as for the pseudo-inverse in LAPACK's and NumPy's rank.
        let varies = variances.iter().take_while(|v| **v > x.ncols() as f64 * f64::EPSILON * variances[0]).count();
        let directions = directions.slice(ndarray::s![..varies, ..]);
        let deviations = variances.slice(ndarray::s![..varies]).mapv(f64::sqrt).insert_axis(Axis(1));
        // W up to a rotation, which cancels, one row for each direction along which something varies. The singular values are the canonical correlations of rows and labels.
        let whitened = product(directions, between.view()) / &deviations;
        let basis = column_space(&whitened, 1.0, x.ncols())?;
        Ok(Self {
            mean,
            left: product(directions.t(), (&basis * &deviations).view()),
            right: product((&basis / &deviations).t(), directions),
        })
    }

    /// The orthogonal projection that removes the differences between the means of classes: `r(x) = x - Q Qᵀ (x - mean)`, with orthonormal columns Q that span them. With two classes
    /// that is the direction from one mean to the other. It erases as [`leace`](Self::leace) does, with a larger edit in general. Directions along which the means differ by less than `√(d · 2⁻⁵²)`
    /// of the rows' root mean square distance from their mean do not count.
    ///
    /// # Errors
    /// As [`leace`](Self::leace).
    pub fn class_means(x: ArrayView2<'_, f32>, labels: &[usize], n_classes: usize) -> Result<Self, DecomposeError> {
        let Classes { mean, covariance, between } = Classes::of(x, labels, n_classes)?;
        Ok(Self::orthogonal(mean, column_space(&between, covariance.diag().sum().sqrt(), x.ncols())?))
    }

    /// A control: the orthogonal projection that removes `rank` random directions, uniform over all subspaces of that dimension, about `mean` `[d]`, such as that of the eraser it is compared with.
    ///
    /// # Errors
    /// If `rank` is above d, or LAPACK does not converge.
    pub fn random(mean: ArrayView1<'_, f64>, rank: usize, seed: u64) -> Result<Self, DecomposeError> {
        let d = mean.len();
        if rank > d {
            return Err(DecomposeError::config("rank", rank, &format!("rows {d} wide have at most {d} directions")));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let directions = Array2::from_shape_simple_fn((d, rank), || gaussian(&mut rng));
        let (basis, _) = left_singular(&directions, "random directions")?;
        Ok(Self::orthogonal(mean.to_owned(), basis))
    }

    fn orthogonal(mean: Array1<f64>, basis: Array2<f64>) -> Self {
        Self { mean, right: basis.t().to_owned(), left: basis }
    }

    /// Number of directions removed.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.right.nrows()
    }

    /// The point that the map leaves where it is: the mean of the rows it was fitted to `[d]`.
    #[must_use]
    pub fn mean(&self) -> ArrayView1<'_, f64> {
        self.mean.view()
    }

    /// Replaces every row of `x` `[n, d]` by r(x), computed in `f64` and rounded once.
    ///
    /// # Panics
    /// If the rows are not d wide.
    pub fn apply(&self, mut x: ArrayViewMut2<'_, f32>) {
        assert_eq!(x.ncols(), self.mean.len(), "rows {} wide for an eraser of {}", x.ncols(), self.mean.len());
        for mut tile in x.axis_chunks_iter_mut(Axis(0), TILE_ROWS) {
            let erased = self.erased(tile.mapv(f64::from));
            tile.zip_mut_with(&erased, |value, erased| *value = *erased as f32);
        }
    }

    fn erased(&self, x: Array2<f64>) -> Array2<f64> {
        let scores = product((&x - &self.mean).view(), self.right.t());
        x - product(scores.view(), self.left.t())
    }
}

/// What the classes of rows have to do with the rows.
struct Classes {
    /// Of all rows `[d]`.
    mean: Array1<f64>,
    /// Of all rows, divided by their number `[d, d]`.
    covariance: Array2<f64>,
    /// The cross-covariance `[d, n_classes]` of rows and one-hot labels, each label divided by the square root of its share p: `√p` times the class's mean less that of all. The columns span the same,
    /// and a whitened one does not depend on how frequent a class is.
    between: Array2<f64>,
}

impl Classes {
    fn of(x: ArrayView2<'_, f32>, labels: &[usize], n_classes: usize) -> Result<Self, DecomposeError> {
        if n_classes < 2 {
            return Err(DecomposeError::config("n_classes", n_classes, "expected at least 2 classes to tell apart"));
        }
        if labels.len() != x.nrows() {
            return Err(DecomposeError::Labels(format!("{} labels for {} rows", labels.len(), x.nrows())));
        }
        let mut counts = vec![0_usize; n_classes];
        for (row, label) in labels.iter().enumerate() {
            *counts.get_mut(*label).ok_or_else(|| {
                DecomposeError::Labels(format!("row {row} is of class {label}: classes are 0 to {}", n_classes - 1))
            })? += 1;
        }
        if let Some(class) = counts.iter().position(|count| *count == 0) {
            return Err(DecomposeError::Labels(format!("no row is of class {class} of {n_classes}: leave it out")));
        }
        let mut moments = Moments::new(x.ncols());
        moments.add(x);
        let (mean, covariance) = moments.mean_and_covariance(0)?;
        let mut sums = Array2::zeros((n_classes, x.ncols()));
        for (row, label) in x.rows().into_iter().zip(labels) {
            let mut sum = sums.row_mut(*label);
            ndarray::Zip::from(&mut sum)
                .and(row)
                .and(&mean)
                .for_each(|sum, value, mean| *sum += f64::from(*value) - mean);
        }
        // A sum over n is p times the difference of means.
        let size = |count: usize| (x.nrows() as f64 * count as f64).sqrt();
        sums.rows_mut().into_iter().zip(counts).for_each(|(mut sum, count)| sum /= size(count));
        Ok(Self { mean, covariance, between: sums.reversed_axes().as_standard_layout().into_owned() })
    }
}

/// Orthonormal columns that span those of `m`, but for directions in which these are no longer than rounding for rows `d` wide and of this `size`.
fn column_space(m: &Array2<f64>, size: f64, d: usize) -> Result<Array2<f64>, DecomposeError> {
    let (basis, lengths) = left_singular(m, "the means of classes")?;
    // A variance is known to d ε of the largest, a length to the root of that.
    let rounding = size * (d as f64 * f64::EPSILON).sqrt();
    let rank = lengths.iter().take_while(|length| **length > rounding).count();
    Ok(basis.slice(ndarray::s![.., ..rank]).to_owned())
}

/// Left singular vectors, as columns, and singular values, descending.
fn left_singular(m: &Array2<f64>, name: &'static str) -> Result<(Array2<f64>, Array1<f64>), DecomposeError> {
    if m.is_empty() {
        return Ok((Array2::zeros((m.nrows(), 0)), Array1::zeros(0)));
    }
    let failed = |problem: String| DecomposeError::Factorisation { matrix: name, problem };
    let (u, values, _) = m.svddc(JobSvd::Some).map_err(|e| failed(e.to_string()))?;
    Ok((u.ok_or_else(|| failed("no singular vectors".into()))?, values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{golden_leace, mixed, rows};
    use ndarray::s;
    use ndarray_linalg::Inverse;
    use proptest::prelude::*;

    /// Rows of correlated columns, whose classes have means of their own, and their labels, every class at least once.
    fn labelled(n: usize, d: usize, k: usize, seed: u64) -> (Array2<f32>, Vec<usize>) {
        let (mut x, means) = (mixed(n, d, seed), rows(k, d, seed ^ 2));
        let draws = rows(n, 1, seed ^ 3);
        let labels: Vec<usize> =
            (0..n).map(|i| if i < k { i } else { ((draws[[i, 0]] + 1.0) / 2.0 * k as f32) as usize % k }).collect();
        x.rows_mut().into_iter().zip(&labels).for_each(|(mut row, label)| row += &means.row(*label));
        (x, labels)
    }

    /// The means of classes less that of all rows `[k, d]`.
    fn differences(x: &Array2<f64>, labels: &[usize], k: usize) -> Array2<f64> {
        let mut means = Array2::zeros((k, x.ncols()));
        for (row, label) in x.rows().into_iter().zip(labels) {
            means.row_mut(*label).scaled_add(1.0 / labels.iter().filter(|l| *l == label).count() as f64, &row);
        }
        means - x.mean_axis(Axis(0)).unwrap()
    }

    fn largest(m: &Array2<f64>) -> f64 {
        m.fold(0.0, |largest, v| v.abs().max(largest))
    }

    fn mean_squared_edit(before: &Array2<f64>, after: &Array2<f64>) -> f64 {
        (after - before).mapv(|v| v * v).sum() / before.nrows() as f64
    }

    /// The part of the variance of one-hot labels that a least-squares probe explains on these rows.
    fn explained(x: &Array2<f64>, labels: &[usize], k: usize) -> f64 {
        let n = x.nrows() as f64;
        let centred = x - &x.mean_axis(Axis(0)).unwrap();
        let one_hot = Array2::from_shape_fn((x.nrows(), k), |(i, class)| f64::from(u8::from(labels[i] == class)));
        let one_hot = &one_hot - &one_hot.mean_axis(Axis(0)).unwrap();
        let (variances, directions) = eigh_descending(&(centred.t().dot(&centred) / n), "the covariance").unwrap();
        let projected = directions.dot(&centred.t()).dot(&one_hot) / n;
        let counts = |i: &usize| variances[*i] > 1e-10 * variances[0];
        let sum: f64 =
            (0..x.ncols()).filter(counts).map(|i| projected.row(i).mapv(|v| v * v).sum() / variances[i]).sum();
        sum / (one_hot.mapv(|v| v * v).sum() / n)
    }

    #[test]
    fn it_agrees_with_the_package_of_the_authors() {
        let golden = golden_leace();
        for (name, k) in [("plain", 4), ("wide", 3)] {
            let matrix = |what: &str| golden.matrix(&format!("{name}_{what}"));
            let x = matrix("x").mapv(|v| v as f32);
            let labels: Vec<usize> = golden.vector(&format!("{name}_labels")).iter().map(|v| *v as usize).collect();
            for (eraser, want) in [
                (Eraser::leace(x.view(), &labels, k).unwrap(), "leace"),
                (Eraser::class_means(x.view(), &labels, k).unwrap(), "orth"),
            ] {
                assert_eq!(eraser.rank(), k - 1);
                let off = largest(&(eraser.erased(matrix("x")) - matrix(want)));
                assert!(off < 1e-9, "{name} {want}: off by {off:e}");
            }
        }
    }

    #[test]
    fn a_probe_does_no_better_than_a_constant() {
        let (x, labels) = labelled(700, 20, 4, 1);
        let wide = x.mapv(f64::from);
        assert!(explained(&wide, &labels, 4) > 0.3);
        let eraser = Eraser::leace(x.view(), &labels, 4).unwrap();
        for eraser in [&eraser, &Eraser::class_means(x.view(), &labels, 4).unwrap()] {
            let left = explained(&eraser.erased(wide.clone()), &labels, 4);
            assert!(left < 1e-12, "{left:e} explained");
        }
        let control = Eraser::random(eraser.mean(), eraser.rank(), 1).unwrap();
        assert!(explained(&control.erased(wide), &labels, 4) > 0.3);
    }

    #[test]
    fn rows_are_erased_in_place_and_rounded_once() {
        let (x, labels) = labelled(TILE_ROWS + 70, 6, 2, 1);
        let eraser = Eraser::leace(x.view(), &labels, 2).unwrap();
        let mut erased = x.clone();
        eraser.apply(erased.view_mut());
        let want = eraser.erased(x.mapv(f64::from)).mapv(|v| v as f32);
        assert!(erased != x && (&erased - &want).iter().all(|off| off.abs() < 1e-6));
        // Every second row and column of a wider matrix, as a view of any strides.
        let mut wider = Array2::zeros((2 * x.nrows(), 12));
        wider.slice_mut(s![..;2, ..;2]).assign(&x);
        eraser.apply(wider.slice_mut(s![..;2, ..;2]));
        assert_eq!(wider.slice(s![..;2, ..;2]), erased);
        assert!(wider.slice(s![1..;2, ..]).iter().all(|v| *v == 0.0));
    }

    #[test]
    fn classes_with_one_mean_leave_everything_as_it_is() {
        let half = mixed(40, 5, 1);
        let x = ndarray::concatenate![Axis(0), half, half];
        let labels: Vec<usize> = (0..80).map(|i| i / 40).collect();
        for eraser in [Eraser::leace(x.view(), &labels, 2), Eraser::class_means(x.view(), &labels, 2)] {
            let mut erased = x.clone();
            let eraser = eraser.unwrap();
            eraser.apply(erased.view_mut());
            assert_eq!((eraser.rank(), erased), (0, x.clone()));
        }
        // Nor is there anything to erase where nothing varies.
        let constant = Array2::from_elem((6, 3), 2.5_f32);
        assert_eq!(Eraser::leace(constant.view(), &[0, 1, 0, 1, 0, 1], 2).unwrap().rank(), 0);
        assert_eq!(Eraser::class_means(constant.view(), &[0, 1, 0, 1, 0, 1], 2).unwrap().rank(), 0);
    }

    #[test]
    fn random_directions_are_orthonormal_and_the_seed_decides() {
        let mean = Array1::linspace(-1.0, 1.0, 8);
        let of = |rank, seed| Eraser::random(mean.view(), rank, seed).unwrap();
        let three = of(3, 7);
        assert_eq!((three.rank(), three.mean()), (3, mean.view()));
        assert!(largest(&(three.right.dot(&three.left) - Array2::<f64>::eye(3))) < 1e-12);
        assert!(three == of(3, 7) && three != of(3, 8));
        // With all directions gone, only the mean is left; with none, everything.
        let x = rows(5, 8, 1).mapv(f64::from);
        assert!(largest(&(of(8, 1).erased(x.clone()) - &mean)) < 1e-12);
        assert_eq!(of(0, 1).erased(x.clone()), x);
        let message = Eraser::random(mean.view(), 9, 1).unwrap_err().to_string();
        assert!(message.contains("rank = 9") && message.contains("at most 8"), "{message}");
    }

    #[test]
    fn what_cannot_be_erased_is_said() {
        let x = rows(6, 3, 1);
        let mut broken = x.clone();
        broken[[4, 1]] = f32::INFINITY;
        for (x, labels, k, words) in [
            (&x, vec![0; 6], 1, "n_classes = 1"),
            (&x, vec![0, 1], 2, "2 labels for 6 rows"),
            (&x, vec![0, 1, 0, 1, 2, 0], 2, "row 4 is of class 2"),
            (&x, vec![0, 2, 0, 2, 2, 0], 3, "no row is of class 1"),
            (&x, vec![0; 6], 2, "no row is of class 1"),
            (&broken, vec![0, 1, 0, 1, 0, 1], 2, "row 4, column 1 is inf"),
            (&Array2::zeros((0, 3)), vec![], 2, "no row is of class 0"),
        ] {
            for fitted in [Eraser::leace(x.view(), &labels, k), Eraser::class_means(x.view(), &labels, k)] {
                let message = fitted.unwrap_err().to_string();
                assert!(message.contains(words), "{message}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows 3 wide for an eraser of 4")]
    fn rows_of_another_width_are_refused() {
        Eraser::random(Array1::zeros(4).view(), 1, 1).unwrap().apply(rows(2, 3, 1).view_mut());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Also of fewer rows than dimensions, with a dimension that is constant and with two that are equal.
        #[test]
        fn the_classes_end_at_one_mean_and_a_second_time_changes_nothing(
            n in 6usize..200, d in 1usize..40, k in 2usize..6, offset in -50.0_f32..50.0, seed in any::<u64>()
        ) {
            let (mut x, labels) = labelled(n, d, k, seed);
            x += offset;
            if d > 3 {
                x.column_mut(1).fill(2.5);
                let copy = x.column(0).to_owned();
                x.column_mut(2).assign(&copy);
            }
            let wide = x.mapv(f64::from);
            let centred = &wide - &wide.mean_axis(Axis(0)).unwrap();
            for eraser in [Eraser::leace(x.view(), &labels, k).unwrap(), Eraser::class_means(x.view(), &labels, k).unwrap()] {
                prop_assert!(eraser.rank() < k && eraser.rank() <= d);
                let erased = eraser.erased(wide.clone());
                let left = largest(&differences(&erased, &labels, k));
                prop_assert!(left <= 1e-6 * largest(&centred), "{left:e} left of {}", largest(&differences(&wide, &labels, k)));
                // The mean of all stays, and so does a dimension that does not vary.
                let moved = (erased.mean_axis(Axis(0)).unwrap() - eraser.mean()).mapv(f64::abs);
                prop_assert!(moved.iter().all(|v| *v < 1e-7 * (1.0 + f64::from(offset.abs()))), "{moved}");
                prop_assert!(d <= 3 || erased.column(1).iter().all(|v| (v - 2.5).abs() < 1e-6));
                let twice = eraser.erased(erased.clone());
                prop_assert!(largest(&(twice - erased)) <= 1e-6 * largest(&centred));
            }
        }

        /// Every affine map that makes the means of classes equal and is a projection removes their differences `A` along some other directions `C`: `x - A (Cᵀ A)⁻¹ Cᵀ (x - mean)`.
        #[test]
        fn no_other_eraser_moves_the_rows_less(
            n in 60usize..300, d in 3usize..12, k in 2usize..4, size in prop::sample::select(vec![1e-3, 0.1, 10.0]), seed in any::<u64>()
        ) {
            let (x, labels) = labelled(n, d, k, seed);
            let wide = x.mapv(f64::from);
            let [leace, class_means] = [Eraser::leace(x.view(), &labels, k), Eraser::class_means(x.view(), &labels, k)].map(Result::unwrap);
            let least = mean_squared_edit(&wide, &leace.erased(wide.clone()));
            let of_class_means = mean_squared_edit(&wide, &class_means.erased(wide.clone()));
            prop_assert!(least <= of_class_means * (1.0 + 1e-9), "{least}, {of_class_means} of the class means");

            prop_assume!(leace.rank() == k - 1);
            let along = &leace.right.t() + &(rows(d, k - 1, seed ^ 9).mapv(f64::from) * size * largest(&leace.right));
            let crossing = along.t().dot(&leace.left);
            let Ok(inverse) = crossing.inv() else { return Ok(()) };
            let other = Eraser { right: inverse.dot(&along.t()), ..leace };
            let erased = other.erased(wide.clone());
            // Still an eraser, so that the comparison is fair, unless the directions hardly cross.
            prop_assume!(largest(&inverse) < 1e6);
            prop_assert!(largest(&differences(&erased, &labels, k)) < 1e-6);
            let more = mean_squared_edit(&wide, &erased);
            prop_assert!(least <= more * (1.0 + 1e-9), "{least}, {more} of another");
        }

        /// With a covariance that is not singular the least edit does not depend on the basis: to erase and to change the basis commute.
        #[test]
        fn another_basis_is_erased_alike(n in 60usize..300, d in 1usize..10, k in 2usize..4, offset in -5.0_f32..5.0, seed in any::<u64>()) {
            let (x, labels) = labelled(n, d, k, seed);
            // Diagonally dominant, so not singular.
            let basis = rows(d, d, seed ^ 5) + Array2::<f32>::eye(d) * (d as f32 + 1.0);
            let there = x.dot(&basis) + offset;
            let [here, eraser] = [Eraser::leace(x.view(), &labels, k), Eraser::leace(there.view(), &labels, k)].map(Result::unwrap);
            let erased = eraser.erased(there.mapv(f64::from));
            let size = largest(&there.mapv(f64::from));
            prop_assert!(largest(&differences(&erased, &labels, k)) <= 1e-9 * size);
            let expected = here.erased(x.mapv(f64::from)).dot(&basis.mapv(f64::from)) + f64::from(offset);
            let (_, covariance) = { let mut m = Moments::new(d); m.add(x.view()); m.mean_and_covariance(0).unwrap() };
            let (variances, _) = eigh_descending(&covariance, "the covariance").unwrap();
            prop_assume!(variances[d - 1] > 1e-4 * variances[0]);
            // The rows in the other basis were rounded to f32.
            let off = largest(&(erased - expected));
            prop_assert!(off <= 1e-3 * size, "off by {off:e} of {size}");
        }
    }
}
