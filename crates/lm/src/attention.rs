//! Causal multi-head attention (<https://arxiv.org/abs/1706.03762>), with fewer key and value heads than query heads where the model has
//! grouped queries (<https://arxiv.org/abs/2305.13245>).

use rayon::prelude::*;

use crate::Config;
use crate::math::{exp, max, sum, vectorised};
use crate::pass::Rows;
use crate::product::{Into, Matrix, product};

/// Query positions that a task takes at a time. Keys after the last of them are never multiplied.
pub(crate) const TILE: usize = 64;

/// The heads of a block: rows of `qkv` are all queries, all keys, all values, `head_dim` each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    pub(crate) fn new(config: &Config) -> Self {
        Self { n_heads: config.n_heads, n_kv_heads: config.n_kv_heads, head_dim: config.head_dim }
    }

    /// Width of a row of queries, keys and values.
    pub(crate) fn width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Mixes the values of every head into `z` `[batch x position, n_heads * head_dim]`: `softmax(q k / sqrt(head_dim)) v` over the
    /// positions up to the query's own. Keys beyond it are left out rather than masked, so nothing they hold can reach the result.
    pub(crate) fn attend(&self, qkv: &Rows, z: &mut Rows, positions: usize) {
        let (width, z_width) = (self.width(), z.width);
        assert_eq!(
            (qkv.width, z_width),
            (width, self.n_heads * self.head_dim),
            "attention over other heads than its input's"
        );
        let contexts = z.data.par_chunks_mut(positions * z_width).zip(qkv.data.par_chunks(positions * width));
        contexts.for_each(|(z, qkv)| {
            z.par_chunks_mut(TILE * z_width).enumerate().for_each(|(tile, z)| self.attend_tile(qkv, z, tile * TILE));
        });
    }

    /// As [`Self::attend`] for the last positions of one context, as many as `z` has rows: `qkv` holds all positions, those before them included.
    pub(crate) fn attend_last(&self, qkv: &[f32], z: &mut Rows) {
        let z_width = z.width;
        let before = qkv.len() / self.width() - z.data.len() / z_width;
        let tiles = z.data.par_chunks_mut(TILE * z_width).enumerate();
        tiles.for_each(|(tile, z)| self.attend_tile(qkv, z, before + tile * TILE));
    }

    /// All heads of the queries from `first` on, as many as `z` has rows.
    pub(crate) fn attend_tile(&self, qkv: &[f32], z: &mut [f32], first: usize) {
        let Self { n_heads, n_kv_heads, head_dim } = *self;
        let (width, z_width) = (self.width(), n_heads * head_dim);
        let (rows, group) = (z.len() / z_width, n_heads / n_kv_heads);
        let keys = first + rows;
        let scale = 1.0 / (head_dim as f32).sqrt();
        // The queries of a group share their keys and values: stacked, they make one product of each kind.
        let mut q = vec![0.0; group * rows * head_dim];
        let mut scores = vec![0.0; group * rows * keys];
        let mut sums = vec![0.0; group * rows];
        for kv in 0..n_kv_heads {
            for (i, q) in q.chunks_exact_mut(head_dim).enumerate() {
                let (member, row) = (i / rows, i % rows);
                let from = &qkv[(first + row) * width + (kv * group + member) * head_dim..][..head_dim];
                q.iter_mut().zip(from).for_each(|(q, x)| *q = x * scale);
            }
            let k = Matrix::strided(&qkv[(n_heads + kv) * head_dim..], keys, head_dim, width);
            let v = Matrix::strided(&qkv[(n_heads + n_kv_heads + kv) * head_dim..], keys, head_dim, width);
            product(&mut scores, Matrix::new(&q, group * rows, head_dim), k.transposed(), Into::Replace, 1);
            vectorised(|| {
                for (i, (scores, total)) in scores.chunks_exact_mut(keys).zip(&mut sums).enumerate() {
                    let (seen, unseen) = scores.split_at_mut(first + i % rows + 1);
                    *total = exponentials(seen);
                    unseen.fill(0.0);
                }
            });
            // The queries are not needed any more: their place takes the mixed values.
            product(&mut q, Matrix::new(&scores, group * rows, keys), v, Into::Replace, 1);
            for (i, (mixed, total)) in q.chunks_exact(head_dim).zip(&sums).enumerate() {
                let (member, row) = (i / rows, i % rows);
                let to = &mut z[row * z_width + (kv * group + member) * head_dim..][..head_dim];
                to.iter_mut().zip(mixed).for_each(|(z, m)| *z = m / total);
            }
        }
    }
}

/// Replaces scores by `exp(score - largest score)` and returns their sum.
#[inline(always)]
pub(crate) fn exponentials(scores: &mut [f32]) -> f32 {
    let top = max(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - top);
    }
    sum(scores)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, one position at a time, in f64.
    pub(crate) fn reference(heads: &Heads, qkv: &[f64], positions: usize) -> Vec<f64> {
        let Heads { n_heads, n_kv_heads, head_dim } = *heads;
        let at = |position: usize, slot: usize, i: usize| qkv[position * heads.width() + slot * head_dim + i];
        let mut z = Vec::new();
        for query in 0..positions {
            for head in 0..n_heads {
                let kv = head / (n_heads / n_kv_heads);
                let score = |key: usize| {
                    (0..head_dim).map(|i| at(query, head, i) * at(key, n_heads + kv, i)).sum::<f64>()
                        / (head_dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..=query).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mix = |i: usize| {
                    weights.iter().enumerate().map(|(key, w)| w * at(key, n_heads + n_kv_heads + kv, i)).sum::<f64>()
                };
                z.extend((0..head_dim).map(|i| mix(i) / total));
            }
        }
        z
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn attention_follows_its_definition(
            positions in 1usize..150, groups in 1usize..3, group in 1usize..4, half in 1usize..5, size in 0.1f32..300.0,
        ) {
            let heads = Heads { n_heads: groups * group, n_kv_heads: groups, head_dim: 2 * half };
            let mut qkv = Rows::new(positions, heads.width());
            qkv.data.iter_mut().enumerate().for_each(|(i, x)| *x = (((i * 7919) % 1009) as f32 / 504.0 - 1.0) * size);
            let mut z = Rows::new(positions, heads.n_heads * heads.head_dim);
            heads.attend(&qkv, &mut z, positions);
            let whole = z.data.clone();
            for before in [positions / 2, positions - 1] {
                let mut last = Rows::new(positions - before, z.width);
                heads.attend_last(&qkv.data, &mut last);
                for (got, want) in last.data.iter().zip(&whole[before * z.width..]) {
                    prop_assert!((got - want).abs() < size * (1e-5 + 1e-6 * size * size), "{got} {want}");
                }
            }
            let exact: Vec<f64> = qkv.data.iter().map(|&x| f64::from(x)).collect();
            for (got, want) in z.data.iter().zip(reference(&heads, &exact, positions)) {
                // Scores of the order size^2 carry an f32 rounding of that size into the exponent.
                prop_assert!((f64::from(*got) - want).abs() < f64::from(size) * (1e-5 + 1e-6 * f64::from(size * size)), "{got} {want}");
            }
        }
    }
}
