//! Feature absorption (Chanin et al., arXiv 2409.14507): a latent that stands for a general property is silent on some rows where the property holds,
//! because a latent of something more specific carries the property's direction along with its own.

use ndarray::{Array1, ArrayView1, ArrayView2, Axis};

use crate::{Codes, LinearDictionary, Probe};

/// When a latent counts as having absorbed the direction of a property in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AbsorptionRule {
    /// Least cosine of its decoder direction with the probe's direction: 0.025 in the paper and in SAEBench.
    pub cosine: f64,
    /// Least share of all that the row adds to the probe's log-odds: 0.4 in SAEBench (arXiv 2503.09532).
    pub share: f64,
    /// By how much it adds more to the log-odds than any other latent: 1 in the paper.
    pub margin: f64,
}

impl Default for AbsorptionRule {
    fn default() -> Self {
        Self { cosine: 0.025, share: 0.4, margin: 1.0 }
    }
}

/// The test for absorption of one property in one dictionary, by a dense probe of the property.
///
/// The probe's log-odds of a row are linear in the activation, so a latent with code `c` and decoder direction `v` adds `(c - c̄) v · w` to them, where `w`
/// are the probe's weights and `c̄` is the latent's mean code over the rows where the property does not hold; the whole row adds `w · (x - x̄)`, with `x̄` the
/// mean of those rows. A latent absorbs a row if no main latent is active there, no latent adds more, its direction has a cosine of at least
/// [`AbsorptionRule::cosine`] with `w`, and it adds at least [`AbsorptionRule::share`] of what the row adds, and [`AbsorptionRule::margin`] more than the next latent.
///
/// The paper asks which letter a word begins with, takes a latent's effect on the model's logits (by integrated gradients) for what it adds, and
/// has no share; SAEBench takes `c |v|` times the cosine, as here, with the share and without the margin. Neither subtracts means, so that a latent active
/// everywhere may count; here the mean over rows without the property is what a row is compared with.
#[derive(Debug, Clone)]
pub struct Absorption {
    rule: AbsorptionRule,
    weights: Array1<f64>,
    /// The log-odds, without the probe's bias, of the mean row where the property does not hold.
    rest: f64,
    /// What a unit of each latent's code adds to the log-odds.
    effects: Vec<f64>,
    cosines: Vec<f64>,
    /// Mean code of each latent where the property does not hold.
    mean_codes: Vec<f64>,
}

impl Absorption {
    /// For activations `x` `[n, d]`, their `codes` in the dictionary, and where the property holds: the rows that the means are taken over.
    ///
    /// # Panics
    /// If the rows of `x`, `codes` and `labels` are not as many, or the widths of `x`, the dictionary's decoder and the probe differ.
    #[must_use]
    pub fn new(
        dictionary: &LinearDictionary,
        probe: &Probe,
        x: ArrayView2<'_, f32>,
        codes: &Codes,
        labels: &[bool],
        rule: AbsorptionRule,
    ) -> Self {
        let n = x.nrows();
        assert_eq!((codes.n_rows(), labels.len()), (n, n), "codes and labels of {n} rows");
        let (n_latents, width) = dictionary.w_dec.dim();
        assert_eq!(codes.n_latents(), n_latents, "codes over other latents than the dictionary's");
        assert_eq!(
            (width, probe.weights.len()),
            (x.ncols(), x.ncols()),
            "a decoder and a probe of other widths than the rows"
        );
        let weights = probe.weights.clone();
        let rest: Vec<usize> = (0..n).filter(|i| !labels[*i]).collect();
        let share = 1.0 / rest.len().max(1) as f64;
        let mut mean_codes = vec![0.0; n_latents];
        for i in &rest {
            let (latents, values) = codes.row(*i);
            latents
                .iter()
                .zip(values)
                .for_each(|(latent, code)| mean_codes[*latent as usize] += share * f64::from(*code));
        }
        let rest = share * rest.iter().map(|i| dot(x.row(*i), &weights)).sum::<f64>();
        let effects: Vec<f64> = dictionary.w_dec.rows().into_iter().map(|v| dot(v, &weights)).collect();
        let length = weights.dot(&weights).sqrt();
        let cosine = |(effect, v): (&f64, ArrayView1<'_, f32>)| {
            let lengths = length * v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            if lengths > 0.0 { effect / lengths } else { 0.0 }
        };
        let cosines = effects.iter().zip(dictionary.w_dec.rows()).map(cosine).collect();
        Self { rule, weights, rest, effects, cosines, mean_codes }
    }

    /// The latent that absorbed the property's direction in row `x` `[d]` with the active `latents` and their `codes` (a row of [`Codes`]), if one
    /// did. Only rows where the property holds and the probe says so can be asked about.
    #[must_use]
    pub fn absorber(
        &self,
        x: ArrayView1<'_, f32>,
        (latents, codes): (&[u32], &[f32]),
        main: &[usize],
    ) -> Option<usize> {
        if is_active(latents, main) {
            return None;
        }
        let mut codes_here: Vec<f64> = self.mean_codes.iter().map(|mean| -mean).collect();
        latents.iter().zip(codes).for_each(|(latent, code)| codes_here[*latent as usize] += f64::from(*code));
        let (mut first, mut second) = ((f64::NEG_INFINITY, 0), f64::NEG_INFINITY);
        for (latent, (code, effect)) in codes_here.iter().zip(&self.effects).enumerate() {
            let adds = code * effect;
            if adds > first.0 {
                (second, first) = (first.0, (adds, latent));
            } else if adds > second {
                second = adds;
            }
        }
        let (adds, latent) = first;
        let whole = dot(x, &self.weights) - self.rest;
        let AbsorptionRule { cosine, share, margin } = self.rule;
        // Also that the latent is active: one that is silent where others are not has a part in the sum, but carries nothing.
        let absorbs = is_active(latents, &[latent])
            && self.cosines[latent] >= cosine
            && whole > 0.0
            && adds >= share * whole
            && adds - second >= margin;
        absorbs.then_some(latent)
    }
}

/// Whether one of the latents `wanted` is among the active ones, which ascend.
fn is_active(active: &[u32], wanted: &[usize]) -> bool {
    wanted.iter().any(|latent| u32::try_from(*latent).is_ok_and(|latent| active.binary_search(&latent).is_ok()))
}

fn dot(row: ArrayView1<'_, f32>, weights: &Array1<f64>) -> f64 {
    row.iter().zip(weights).map(|(x, w)| f64::from(*x) * w).sum()
}

/// The latents that a property is split over, by the rule of arXiv 2409.14507: those of the k-sparse probe with the largest k up to which every further
/// latent raises the F1 of the probe by more than `rise` (0.03 there). At least one where a latent is more active when the property holds, and at
/// most `most`.
///
/// `codes` `[n, n_latents]` are dense, `differences` what [`MeanDifferences`](crate::MeanDifferences) says of them: latents are taken in that order, the
/// paper's in the order of the weights of a probe with an L1 penalty. As there, only those that are more active where the property holds are, for the
/// silence of others means nothing. The probes are [`Probe::fit`] with `c`, their F1 is that on the same rows.
///
/// # Panics
/// If there are not as many rows as labels, or not as many latents as differences.
#[must_use]
pub fn main_latents(
    codes: ArrayView2<'_, f32>,
    labels: &[bool],
    differences: &[f64],
    rise: f64,
    most: usize,
    c: f64,
) -> Vec<usize> {
    assert_eq!(codes.ncols(), differences.len(), "{} latents, {} differences", codes.ncols(), differences.len());
    let mut order: Vec<usize> = (0..differences.len()).filter(|latent| differences[*latent] > 0.0).collect();
    order.sort_by(|a, b| differences[*b].total_cmp(&differences[*a]));
    let f1_of = |k: usize| {
        let chosen = codes.select(Axis(1), &order[..k]);
        let told = Probe::fit(chosen.view(), labels, c)?.logits(chosen.view());
        let hits = told.iter().zip(labels).filter(|(logit, label)| **logit > 0.0 && **label).count() as f64;
        let said = told.iter().filter(|logit| **logit > 0.0).count() as f64;
        let holds = labels.iter().filter(|label| **label).count() as f64;
        Some(2.0 * hits / (said + holds).max(1.0))
    };
    let mut best = f64::NEG_INFINITY;
    let rises = |k: &usize| {
        let f1 = f1_of(*k).unwrap_or(0.0);
        let rises = f1 > best + rise;
        best = f1;
        rises
    };
    let n = (1..=most.min(order.len())).take_while(rises).count();
    order.truncate(n);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Dictionary, MeanDifferences};
    use ndarray::{Array2, s};

    const ROWS: usize = 2000;
    /// One row in this many is one of the parent.
    const PARENT: usize = 4;
    /// One of the parent's rows in this many is one of the child.
    const CHILD: usize = 25;

    /// A property along the first direction that holds on every fourth row, one that implies it along the second, on every 25th of those, and
    /// something else along the third. Rows, where the first holds, and where the second does.
    fn rows() -> (Array2<f32>, Vec<bool>, Vec<bool>) {
        let parent: Vec<bool> = (0..ROWS).map(|i| i.is_multiple_of(PARENT)).collect();
        let child: Vec<bool> = (0..ROWS).map(|i| i.is_multiple_of(PARENT * CHILD)).collect();
        let x = Array2::from_shape_fn((ROWS, 3), |(i, j)| match j {
            0 => f32::from(u8::from(parent[i])),
            1 => f32::from(u8::from(child[i])),
            _ => (i * 7 % 11) as f32 / 11.0,
        });
        (x, parent, child)
    }

    /// Both dictionaries reconstruct the rows exactly.
    fn dictionary(w_enc: [[f32; 3]; 3], w_dec: [[f32; 3]; 3]) -> LinearDictionary {
        let mut dictionary = LinearDictionary::tied(ndarray::arr2(&w_enc), Activation::Relu);
        dictionary.w_dec = ndarray::arr2(&w_dec);
        dictionary
    }

    /// The parent's latent is silent where the child's, which carries both, is active.
    fn absorbing() -> LinearDictionary {
        dictionary(
            [[1.0, -1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        )
    }

    fn plain() -> LinearDictionary {
        let eye = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        dictionary(eye, eye)
    }

    fn main_latents_of(codes: ArrayView2<'_, f32>, labels: &[bool], most: usize) -> Vec<usize> {
        main_latents(codes, labels, &MeanDifferences::new(codes).of(labels), 0.03, most, 1.0)
    }

    fn absorbers(
        dictionary: &LinearDictionary,
        main: Option<&[usize]>,
        rule: AbsorptionRule,
    ) -> (Vec<usize>, Vec<Option<usize>>) {
        let (x, parent, _) = rows();
        let probe = Probe::fit(x.view(), &parent, 1.0).unwrap();
        let codes = dictionary.encode(x.view());
        assert!((dictionary.decode(&codes) - &x).iter().all(|e| e.abs() < 1e-6));
        let found = main_latents_of(codes.to_dense().view(), &parent, 10);
        let main = main.unwrap_or(&found).to_vec();
        let absorption = Absorption::new(dictionary, &probe, x.view(), &codes, &parent, rule);
        let asked = (0..ROWS).filter(|i| parent[*i]);
        let absorbed = asked.map(|i| absorption.absorber(x.row(i), codes.row(i), &main)).collect();
        (main, absorbed)
    }

    #[test]
    fn a_child_that_carries_its_parent_absorbs_its_share_of_the_rows() {
        // The child is one in 25 of the parent's rows: F1 rises from 48/49 by less than 0.03 with its latent.
        let (main, absorbed) = absorbers(&absorbing(), None, AbsorptionRule::default());
        assert_eq!(main, [0]);
        let (_, parent, child) = rows();
        let expected: Vec<Option<usize>> = (0..ROWS).filter(|i| parent[*i]).map(|i| child[i].then_some(1)).collect();
        assert_eq!(absorbed, expected);
        let rate = absorbed.iter().flatten().count() as f64 / absorbed.len() as f64;
        assert_eq!(rate, 1.0 / CHILD as f64);
    }

    #[test]
    fn nothing_is_absorbed_where_the_parent_has_all_of_its_rows() {
        let (main, absorbed) = absorbers(&plain(), None, AbsorptionRule::default());
        assert_eq!((main, absorbed.iter().flatten().count()), (vec![0], 0));
    }

    #[test]
    fn a_main_latent_absorbs_nothing() {
        let (_, absorbed) = absorbers(&absorbing(), Some(&[0, 1]), AbsorptionRule::default());
        assert_eq!(absorbed.iter().flatten().count(), 0);
    }

    #[test]
    fn each_part_of_the_rule_can_refuse() {
        let default = AbsorptionRule::default();
        let stricter = [
            AbsorptionRule { cosine: 0.999, ..default },
            AbsorptionRule { share: 1.5, ..default },
            AbsorptionRule { margin: 1e3, ..default },
        ];
        for rule in stricter {
            let (_, absorbed) = absorbers(&absorbing(), None, rule);
            assert_eq!(absorbed.iter().flatten().count(), 0, "{rule:?}");
        }
    }

    #[test]
    fn a_silent_parent_alone_is_not_absorption() {
        // Nothing carries the parent's direction where its latent is silent: the child's has only its own.
        let mut dictionary = absorbing();
        dictionary.w_dec.slice_mut(s![1, ..]).assign(&ndarray::array![0.0, 0.0, 1.0]);
        let (x, parent, _) = rows();
        let probe = Probe::fit(x.view(), &parent, 1.0).unwrap();
        let codes = dictionary.encode(x.view());
        let absorption = Absorption::new(&dictionary, &probe, x.view(), &codes, &parent, AbsorptionRule::default());
        let asked = (0..ROWS).filter(|i| parent[*i]);
        assert_eq!(asked.filter_map(|i| absorption.absorber(x.row(i), codes.row(i), &[0])).count(), 0);
    }

    #[test]
    fn latents_are_main_while_each_raises_f1() {
        // Three latents with a third of the property each, one that is active everywhere else, one that is always active.
        let labels: Vec<bool> = (0..900).map(|i| i < 90).collect();
        let codes = Array2::from_shape_fn((900, 5), |(i, j)| match j {
            0..=2 => f32::from(u8::from(i < 90 && i % 3 == j)),
            3 => f32::from(u8::from(i >= 90)),
            _ => 1.0,
        });
        let mut main = main_latents_of(codes.view(), &labels, 10);
        main.sort_unstable();
        assert_eq!(main, [0, 1, 2]);
        assert_eq!(main_latents_of(codes.view(), &labels, 2).len(), 2);
        assert_eq!(main_latents_of(codes.slice(s![.., 3..]), &labels, 10), [0_usize; 0]);
    }
}
