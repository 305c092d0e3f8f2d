//! Attention, backwards.
//!
//! ```text
//! s = q k / sqrt(head_dim), p = softmax(s), z = p v
//! dv = p^T dz, dp = dz v^T, ds = p (dp - sum(p dp)), dq = ds k / sqrt(head_dim), dk = ds^T q / sqrt(head_dim)
//! ```
//!
//! The weights `p` are computed again, tile by tile, so none of them are kept (<https://arxiv.org/abs/2205.14135>, appendix B.2).

use rayon::prelude::*;

use crate::attention::{Heads, TILE, exponentials};
use crate::math::{sum_of_products, vectorised};
use crate::pass::Rows;
use crate::product::{Into, Matrix, product};

/// The gradients of one key and value head and of the queries that look at it.
struct Group {
    /// `[position, queries of the group, head_dim]`.
    dq: Vec<f32>,
    /// `[position, head_dim]`.
    dk: Vec<f32>,
    /// `[position, head_dim]`.
    dv: Vec<f32>,
}

impl Heads {
    /// The gradient with respect to rows of queries, keys and values, where `dz` is the one with respect to what [`Self::attend`] makes of them.
    pub(crate) fn backward(&self, qkv: &Rows, dz: &Rows, dqkv: &mut Rows, positions: usize) {
        let (width, z_width) = (self.width(), self.n_heads * self.head_dim);
        assert_eq!(
            (qkv.width, dz.width, dqkv.width),
            (width, z_width, width),
            "attention over other heads than its input's"
        );
        let inputs = qkv.data.par_chunks(positions * width).zip(dz.data.par_chunks(positions * z_width));
        dqkv.data.par_chunks_mut(positions * width).zip(inputs).for_each(|(dqkv, (qkv, dz))| {
            // Keys and values gather from all queries, so a task is a group of heads; its sums have one order.
            let groups: Vec<Group> = (0..self.n_kv_heads).into_par_iter().map(|kv| self.group(qkv, dz, kv)).collect();
            for (kv, group) in groups.iter().enumerate() {
                self.scatter(group, kv, dqkv);
            }
        });
    }

    /// One group of one context.
    fn group(&self, qkv: &[f32], dz: &[f32], kv: usize) -> Group {
        let Self { n_heads, n_kv_heads, head_dim } = *self;
        let (width, z_width, members) = (self.width(), n_heads * head_dim, n_heads / n_kv_heads);
        let positions = qkv.len() / width;
        let zeros = |heads: usize| vec![0.0; positions * heads * head_dim];
        let mut gradients = Group { dq: zeros(members), dk: zeros(1), dv: zeros(1) };
        let scale = 1.0 / (head_dim as f32).sqrt();
        for first in (0..positions).step_by(TILE) {
            let rows = TILE.min(positions - first);
            let (stacked, keys) = (members * rows, first + rows);
            // The queries of the group share their keys and values: stacked, they make one product of each kind.
            let stack = |from: &[f32], width: usize| -> Vec<f32> {
                let row = |i: usize| (first + i % rows) * width + (kv * members + i / rows) * head_dim;
                (0..stacked).flat_map(|i| &from[row(i)..][..head_dim]).copied().collect()
            };
            let dz = stack(dz, z_width);
            // Padding gets no gradient, nor do most positions of the last block.
            if dz.iter().all(|&d| d == 0.0) {
                continue;
            }
            let mut q = stack(qkv, width);
            q.iter_mut().for_each(|q| *q *= scale);
            let k = Matrix::strided(&qkv[(n_heads + kv) * head_dim..], keys, head_dim, width);
            let v = Matrix::strided(&qkv[(n_heads + n_kv_heads + kv) * head_dim..], keys, head_dim, width);
            let (mut p, mut ds) = (vec![0.0; stacked * keys], vec![0.0; stacked * keys]);
            product(&mut p, Matrix::new(&q, stacked, head_dim), k.transposed(), Into::Replace, 1);
            product(&mut ds, Matrix::new(&dz, stacked, head_dim), v.transposed(), Into::Replace, 1);
            vectorised(|| {
                for (i, (p, ds)) in p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
                    let (p, unseen) = p.split_at_mut(first + i % rows + 1);
                    let (ds, no_gradient) = ds.split_at_mut(p.len());
                    softmax_backward(p, ds);
                    unseen.fill(0.0);
                    no_gradient.fill(0.0);
                }
            });
            let (p, ds) = (Matrix::new(&p, stacked, keys), Matrix::new(&ds, stacked, keys));
            let seen = keys * head_dim;
            product(&mut gradients.dv[..seen], p.transposed(), Matrix::new(&dz, stacked, head_dim), Into::Add, 1);
            product(&mut gradients.dk[..seen], ds.transposed(), Matrix::new(&q, stacked, head_dim), Into::Add, 1);
            // The queries are not needed any more: their place takes their gradients.
            product(&mut q, ds, k, Into::Replace, 1);
            for (i, dq) in q.chunks_exact(head_dim).enumerate() {
                let to = &mut gradients.dq[((first + i % rows) * members + i / rows) * head_dim..][..head_dim];
                to.iter_mut().zip(dq).for_each(|(to, d)| *to = d * scale);
            }
        }
        gradients
    }

    /// Writes the gradients of a group to their places in the rows of a context.
    fn scatter(&self, group: &Group, kv: usize, dqkv: &mut [f32]) {
        let Self { n_heads, n_kv_heads, head_dim } = *self;
        let queries = n_heads / n_kv_heads * head_dim;
        let parts = group.dq.chunks_exact(queries).zip(group.dk.chunks_exact(head_dim));
        let parts = parts.zip(group.dv.chunks_exact(head_dim));
        for (row, ((dq, dk), dv)) in dqkv.chunks_exact_mut(self.width()).zip(parts) {
            row[kv * queries..][..queries].copy_from_slice(dq);
            row[(n_heads + kv) * head_dim..][..head_dim].copy_from_slice(dk);
            row[(n_heads + n_kv_heads + kv) * head_dim..][..head_dim].copy_from_slice(dv);
        }
    }
}

/// Replaces scores by their softmax `p`, and the gradient with respect to `p` by the one with respect to the scores.
#[inline(always)]
fn softmax_backward(scores: &mut [f32], gradient: &mut [f32]) {
    let share = 1.0 / exponentials(scores);
    scores.iter_mut().for_each(|p| *p *= share);
    let mean = sum_of_products(scores, gradient, 0.0);
    gradient.iter_mut().zip(scores).for_each(|(d, p)| *d = *p * (*d - mean));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attention::tests::reference;

    /// Numbers in [-1, 1] without a pattern that products would meet.
    fn numbers(n: usize, seed: usize) -> Vec<f64> {
        (0..n).map(|i| f64::from((((i + seed) * 7919 + seed * 104_729) % 1009) as f32 / 504.0 - 1.0)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn gradients_are_differences_of_the_definition(
            positions in 1usize..150, groups in 1usize..3, group in 1usize..4, half in 1usize..5, size in 0.1f64..6.0, seed in 0usize..500,
        ) {
            let heads = Heads { n_heads: groups * group, n_kv_heads: groups, head_dim: 2 * half };
            let f32s = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
            let (width, z_width) = (heads.width(), heads.n_heads * heads.head_dim);
            let qkv: Vec<f64> = numbers(positions * width, seed).iter().map(|x| f64::from((x * size) as f32)).collect();
            let dz = numbers(positions * z_width, seed + 1);
            let mut dqkv = Rows::new(2 * positions, width);
            // Twice the same context: contexts do not mix.
            let twice = |values: &[f64], width| Rows { data: f32s(&[values, values].concat()), width };
            heads.backward(&twice(&qkv, width), &twice(&dz, z_width), &mut dqkv, positions);
            let (one, other) = dqkv.data.split_at(positions * width);
            prop_assert_eq!(one, other);
            for direction in [2, 3] {
                let direction = numbers(positions * width, seed + direction);
                let h = 1e-4;
                let moved = |h: f64| -> f64 {
                    let qkv: Vec<f64> = qkv.iter().zip(&direction).map(|(x, d)| x + h * d).collect();
                    reference(&heads, &qkv, positions).iter().zip(&dz).map(|(z, d)| z * d).sum()
                };
                let want = (moved(h) - moved(-h)) / (2.0 * h);
                let terms = one.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d);
                let (got, scale) = terms.fold((0.0, 0.0), |(sum, squares), t| (sum + t, squares + t * t));
                prop_assert!((got - want).abs() < 1e-4 * scale.sqrt().max(1e-2), "{got} {want}");
            }
        }
    }

    #[test]
    fn positions_without_a_gradient_give_none_to_later_ones() {
        let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 4 };
        let positions = 100;
        let qkv = Rows {
            data: numbers(positions * heads.width(), 1).iter().map(|&x| x as f32).collect(),
            width: heads.width(),
        };
        let mut dz = Rows::new(positions, 8);
        dz.data[70 * 8..71 * 8].fill(1.0);
        let mut dqkv = Rows::new(positions, heads.width());
        heads.backward(&qkv, &dz, &mut dqkv, positions);
        let row = |i: usize| &dqkv.data[i * heads.width()..][..heads.width()];
        assert!((71..positions).all(|i| row(i).iter().all(|&d| d == 0.0)));
        // Only the position itself asks; those before it answer.
        assert!((0..70).all(|i| row(i)[..8].iter().all(|&d| d == 0.0) && row(i)[8..].iter().all(|&d| d != 0.0)));
        assert!(row(70).iter().all(|&d| d != 0.0));
    }
}
