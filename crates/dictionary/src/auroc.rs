use std::cmp::Ordering;

/// Area under the receiver operating characteristic: the probability that a value drawn where the label holds is larger than one drawn where
/// it does not, ties counting half (the Mann-Whitney statistic over the number of pairs). `None` where the labels are all the same.
///
/// ```
/// use monosem_dictionary::auroc;
///
/// assert_eq!(auroc(&[0.1, 0.4, 0.3, 0.8], &[false, true, false, true]), Some(1.0));
/// assert_eq!(auroc(&[0.0, 0.0], &[true, false]), Some(0.5));
/// ```
///
/// # Panics
/// If there are not as many values as labels.
#[must_use]
pub fn auroc(values: &[f32], labels: &[bool]) -> Option<f64> {
    Ranking::new(values).auroc(labels)
}

/// Values in order, for the AUROC of many labels, or of many draws of the same rows.
#[derive(Debug, Clone)]
pub struct Ranking {
    /// The places of the values in ascending order.
    order: Vec<usize>,
    /// Twice the rank of each value, from 2; equal values share the mean of theirs.
    doubled_ranks: Vec<u64>,
}

impl Ranking {
    /// Ranks the values; NaN is above everything.
    #[must_use]
    pub fn new(values: &[f32]) -> Self {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_unstable_by(|a, b| values[*a].total_cmp(&values[*b]));
        let mut doubled_ranks = vec![0; values.len()];
        let equal = |a: &usize, b: &usize| values[*a].partial_cmp(&values[*b]) == Some(Ordering::Equal);
        let mut before = 0u64;
        for ties in order.chunk_by(equal) {
            let n = ties.len() as u64;
            // Ranks before + 1 ..= before + n; twice their mean.
            ties.iter().for_each(|i| doubled_ranks[*i] = 2 * before + n + 1);
            before += n;
        }
        Self { order, doubled_ranks }
    }

    /// [`auroc`] of the values with these labels.
    ///
    /// # Panics
    /// If there are not as many labels as values.
    #[must_use]
    pub fn auroc(&self, labels: &[bool]) -> Option<f64> {
        assert_eq!(
            self.doubled_ranks.len(),
            labels.len(),
            "{} values, {} labels",
            self.doubled_ranks.len(),
            labels.len()
        );
        let positive = labels.iter().filter(|label| **label).count() as f64;
        let negative = labels.len() as f64 - positive;
        if positive == 0.0 || negative == 0.0 {
            return None;
        }
        let doubled: u64 =
            self.doubled_ranks.iter().zip(labels).filter(|(_, label)| **label).map(|(rank, _)| rank).sum();
        Some((doubled as f64 / 2.0 - positive * (positive + 1.0) / 2.0) / (positive * negative))
    }

    /// [`auroc`] of the values with these labels, each of them as often as `times` says: what a bootstrap asks for hundreds of times, without sorting
    /// again.
    ///
    /// # Panics
    /// If there are not as many labels or times as values.
    #[must_use]
    pub fn auroc_of_draw(&self, labels: &[bool], times: &[u32]) -> Option<f64> {
        let n = self.order.len();
        assert_eq!((labels.len(), times.len()), (n, n), "labels and times of {n} values");
        // Pairs that are won, twice: a tie is half a pair.
        let (mut doubled, mut positive, mut negative) = (0u64, 0u64, 0u64);
        for ties in self.order.chunk_by(|a, b| self.doubled_ranks[*a] == self.doubled_ranks[*b]) {
            let count = |wanted: bool| -> u64 {
                ties.iter().filter(|i| labels[**i] == wanted).map(|i| u64::from(times[*i])).sum()
            };
            let (holds, rest) = (count(true), count(false));
            doubled += holds * (2 * negative + rest);
            positive += holds;
            negative += rest;
        }
        (positive > 0 && negative > 0).then(|| doubled as f64 / 2.0 / (positive as f64 * negative as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_share_of_pairs(pairs in prop::collection::vec((0u8..6, any::<bool>()), 2..40)) {
            let (values, labels): (Vec<f32>, Vec<bool>) = pairs.iter().map(|(v, l)| (f32::from(*v), *l)).unzip();
            let mut wins = Vec::new();
            for (a, _) in pairs.iter().filter(|(_, label)| *label) {
                wins.extend(pairs.iter().filter(|(_, label)| !label).map(|(b, _)| match a.cmp(b) {
                    Ordering::Greater => 1.0,
                    Ordering::Equal => 0.5,
                    Ordering::Less => 0.0,
                }));
            }
            let expected = (!wins.is_empty()).then(|| wins.iter().sum::<f64>() / wins.len() as f64);
            match (auroc(&values, &labels), expected) {
                (Some(found), Some(expected)) => prop_assert!((found - expected).abs() < 1e-12),
                (found, expected) => prop_assert_eq!(found, expected),
            }
        }

        #[test]
        fn a_draw_is_the_rows_as_often_as_drawn(rows in prop::collection::vec((0u8..6, any::<bool>(), 0u32..4), 2..40)) {
            let values: Vec<f32> = rows.iter().map(|(v, _, _)| f32::from(*v)).collect();
            let labels: Vec<bool> = rows.iter().map(|(_, label, _)| *label).collect();
            let times: Vec<u32> = rows.iter().map(|(_, _, times)| *times).collect();
            let repeated = |i: usize| std::iter::repeat_n(i, times[i] as usize);
            let drawn: Vec<usize> = (0..rows.len()).flat_map(repeated).collect();
            let (drawn_values, drawn_labels): (Vec<f32>, Vec<bool>) = drawn.iter().map(|i| (values[*i], labels[*i])).unzip();
            prop_assert_eq!(Ranking::new(&values).auroc_of_draw(&labels, &times), auroc(&drawn_values, &drawn_labels));
        }

        #[test]
        fn opposite_values_and_opposite_labels_mirror_it(pairs in prop::collection::vec((-9i8..9, any::<bool>()), 2..40)) {
            let (values, labels): (Vec<f32>, Vec<bool>) = pairs.iter().map(|(v, l)| (f32::from(*v), *l)).unzip();
            let flipped: Vec<bool> = labels.iter().map(|label| !label).collect();
            let negated: Vec<f32> = values.iter().map(|value| -value).collect();
            if let Some(area) = auroc(&values, &labels) {
                prop_assert!((auroc(&values, &flipped).unwrap() - (1.0 - area)).abs() < 1e-12);
                prop_assert!((auroc(&negated, &labels).unwrap() - (1.0 - area)).abs() < 1e-12);
            }
        }
    }
}
