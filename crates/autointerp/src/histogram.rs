use std::collections::BTreeMap;

/// How often each token is behind each part of a feature's range of activations: figure 11 of arXiv 2309.08600.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenHistogram {
    /// Ends of equal bins, ascending, one more than there are bins; each bin has its upper end, and the first one both.
    pub edges: Vec<f64>,
    /// The tokens most frequent in the upper half of the bins, and of equal ones the most frequent in all, the most frequent first, with the
    /// number of positions in each bin.
    pub tokens: Vec<(u32, Vec<u64>)>,
    /// Positions with any other token, for each bin.
    pub other: Vec<u64>,
}

impl TokenHistogram {
    /// Counts positions of which `tokens` and `values` hold the token and the activation, in `n_bins` from `low` to the largest
    /// activation, by the `n_tokens` most frequent tokens. `None` where no activation is above `low`.
    ///
    /// # Panics
    /// If there are not as many tokens as values, no bin is asked for, or a value is below `low` or not finite.
    #[must_use]
    pub fn new(tokens: &[u32], values: &[f32], low: f32, n_bins: usize, n_tokens: usize) -> Option<Self> {
        assert_eq!(tokens.len(), values.len(), "{} tokens, {} values", tokens.len(), values.len());
        assert!(n_bins > 0, "a histogram without bins");
        let high = values.iter().copied().fold(low, f32::max);
        if high <= low {
            return None;
        }
        let edges = edges(low, high, n_bins);
        let mut counts: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (token, value) in tokens.iter().zip(values) {
            assert!(value.is_finite() && *value >= low, "an activation of {value} in a histogram from {low}");
            counts.entry(*token).or_insert_with(|| vec![0; n_bins])[bin(&edges, *value)] += 1;
        }
        let mut ranked: Vec<(u32, Vec<u64>)> = counts.into_iter().collect();
        let frequency = |counts: &[u64]| (counts[n_bins / 2..].iter().sum::<u64>(), counts.iter().sum::<u64>());
        ranked.sort_by(|a, b| frequency(&b.1).cmp(&frequency(&a.1)).then(a.0.cmp(&b.0)));
        let mut other = vec![0; n_bins];
        for (_, counts) in ranked.split_off(ranked.len().min(n_tokens)) {
            other.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        Some(Self { edges, tokens: ranked, other })
    }

    /// Where the upper half of the bins begins: positions whose activation is above this are in it.
    #[must_use]
    pub fn middle(&self) -> f64 {
        self.edges[(self.edges.len() - 1) / 2]
    }
}

/// Equal parts of the range; in `f64`, so that none is empty however close the ends are.
fn edges(low: f32, high: f32, n_bins: usize) -> Vec<f64> {
    let (low, high) = (f64::from(low), f64::from(high));
    let edge = |i: usize| if i == n_bins { high } else { low + (high - low) * i as f64 / n_bins as f64 };
    (0..=n_bins).map(edge).collect()
}

/// The bin whose upper end is the first one that the value does not pass.
fn bin(edges: &[f64], value: f32) -> usize {
    edges[1..edges.len() - 1].partition_point(|edge| f64::from(value) > *edge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tokens_are_counted_bin_by_bin() {
        // From 0 to 4 in four bins: an end belongs to the bin below it.
        let (tokens, values) = ([7, 7, 8, 8, 8, 9, 5], [4.0, 3.5, 2.0, 1.5, 1.0, 2.1, 0.1]);
        let found = TokenHistogram::new(&tokens, &values, 0.0, 4, 3).unwrap();
        assert_eq!(found.edges, [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(found.middle(), 2.0);
        // In the upper half there are 7, 7 and 9; then 8, of which there are more than of 5.
        let expected = [(7, vec![0, 0, 0, 2]), (9, vec![0, 0, 1, 0]), (8, vec![1, 2, 0, 0])];
        assert_eq!(found.tokens, expected);
        assert_eq!(found.other, [1, 0, 0, 0]);
    }

    #[test]
    fn signed_values_have_their_whole_range() {
        let found = TokenHistogram::new(&[1, 2, 1], &[-3.0, 1.0, -1.0], -3.0, 2, 8).unwrap();
        assert_eq!(found.edges, [-3.0, -1.0, 1.0]);
        // 2 is in the upper half alone, although there are more of 1.
        assert_eq!(found.tokens, [(2, vec![0, 1]), (1, vec![2, 0])]);
    }

    #[test]
    fn nothing_above_the_lower_end_is_no_histogram() {
        assert_eq!(TokenHistogram::new(&[], &[], 0.0, 10, 3), None);
        assert_eq!(TokenHistogram::new(&[4, 4], &[2.5, 2.5], 2.5, 10, 3), None);
    }

    #[test]
    #[should_panic(expected = "an activation of -1 in a histogram from 0")]
    fn values_below_the_lower_end_are_refused() {
        let _ = TokenHistogram::new(&[1, 1], &[1.0, -1.0], 0.0, 10, 3);
    }

    proptest! {
        #[test]
        fn every_position_is_in_one_bin(
            rows in prop::collection::vec((0u32..9, 0f32..5.0), 1..200), n_bins in 1usize..12, n_tokens in 0usize..12
        ) {
            let (tokens, values): (Vec<u32>, Vec<f32>) = rows.into_iter().unzip();
            let Some(found) = TokenHistogram::new(&tokens, &values, 0.0, n_bins, n_tokens) else { return Ok(()) };
            prop_assert!(found.tokens.len() <= n_tokens && found.edges.is_sorted());
            for (i, ends) in found.edges.windows(2).enumerate() {
                let lowest = |value: f64| i == 0 && value == ends[0];
                let inside = |value: &&f32| { let v = f64::from(**value); (v > ends[0] && v <= ends[1]) || lowest(v) };
                let counted: u64 = found.tokens.iter().map(|(_, counts)| counts[i]).sum();
                prop_assert_eq!(counted + found.other[i], values.iter().filter(inside).count() as u64);
            }
        }
    }
}
