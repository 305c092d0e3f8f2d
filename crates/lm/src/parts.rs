//! Steps that the families' blocks have in common. Each takes all rows, in tiles that keep what one stage hands to the next in the cache.

use rayon::prelude::*;

use crate::Activation;
use crate::linear::Linear;
use crate::math::{activate, activate_gated};
use crate::norm::Norm;
use crate::pass::{Plan, Rows, Shape};

/// `qkv = turn(W norm(x) + b)`: the queries, keys and values of every head, turned where the model has rotary embeddings.
pub(crate) fn queries_keys_values(
    x: &Rows,
    norm: &Norm,
    map: &Linear,
    normed: &mut Rows,
    qkv: &mut Rows,
    shape: &Shape,
) {
    let plan = shape.plan;
    let (d_model, width) = (x.width, qkv.width);
    let tiles = (x.tiles(plan.tile), normed.tiles_mut(plan.tile), qkv.tiles_mut(plan.tile)).into_par_iter();
    tiles.enumerate().for_each(|(i, (x, normed, qkv))| {
        normalise(x, norm, normed, d_model, plan);
        map.apply(normed, qkv, plan.threads);
        plan.pieces_mut(qkv, width).for_each(|(row, qkv)| shape.turn(qkv, i * plan.tile + row));
    });
}

/// `post = activation(W norm(x) + b)`: the hidden units of a plain MLP.
pub(crate) fn hidden_units(
    x: &Rows,
    norm: &Norm,
    map: &Linear,
    f: Activation,
    normed: &mut Rows,
    post: &mut Rows,
    plan: Plan,
) {
    let (d_model, d_mlp) = (x.width, post.width);
    let tiles = (x.tiles(plan.tile), normed.tiles_mut(plan.tile), post.tiles_mut(plan.tile)).into_par_iter();
    tiles.for_each(|(x, normed, post)| {
        normalise(x, norm, normed, d_model, plan);
        map.apply(normed, post, plan.threads);
        plan.pieces_mut(post, d_mlp).for_each(|(_, post)| activate(f, post));
    });
}

/// `post = activation(gate) * up`, where `gate` and `up` are the halves of `W norm(x) + b`: the hidden units of a gated MLP
/// (<https://arxiv.org/abs/2002.05202>).
pub(crate) fn gated_hidden_units(
    (x, norm): (&Rows, &Norm),
    map: &Linear,
    f: Activation,
    (normed, gate_up, post): (&mut Rows, &mut Rows, &mut Rows),
    plan: Plan,
) {
    let (d_model, d_mlp, tile) = (x.width, post.width, plan.tile);
    let tiles = (x.tiles(tile), normed.tiles_mut(tile), gate_up.tiles_mut(tile), post.tiles_mut(tile)).into_par_iter();
    tiles.for_each(|(x, normed, gate_up, post)| {
        normalise(x, norm, normed, d_model, plan);
        map.apply(normed, gate_up, plan.threads);
        let pieces = plan.pieces(gate_up, 2 * d_mlp).zip(plan.pieces_mut(post, d_mlp));
        pieces.for_each(|(gate_up, (_, post))| {
            for (row, post) in gate_up.chunks_exact(2 * d_mlp).zip(post.chunks_exact_mut(d_mlp)) {
                let (gate, up) = row.split_at(d_mlp);
                activate_gated(f, gate, up, post);
            }
        });
    });
}

/// `normed = norm(x)` on a tile.
pub(crate) fn normalise(x: &[f32], norm: &Norm, normed: &mut [f32], width: usize, plan: Plan) {
    let pieces = plan.pieces(x, width).zip(plan.pieces_mut(normed, width));
    pieces.for_each(|(x, (_, normed))| norm.apply(x, normed));
}

/// `y = norm(x)`.
pub(crate) fn norm_rows(x: &Rows, norm: &Norm, y: &mut Rows, plan: Plan) {
    let width = x.width;
    let tiles = (x.tiles(plan.tile), y.tiles_mut(plan.tile)).into_par_iter();
    tiles.for_each(|(x, y)| normalise(x, norm, y, width, plan));
}

/// `y = W x + b`.
pub(crate) fn project(x: &Rows, map: &Linear, y: &mut Rows, plan: Plan) {
    (x.tiles(plan.tile), y.tiles_mut(plan.tile)).into_par_iter().for_each(|(x, y)| map.apply(x, y, plan.threads));
}

/// `x += y`.
pub(crate) fn add(x: &mut Rows, y: &Rows) {
    // Each piece is a few tens of microseconds of memory traffic.
    const PIECE: usize = 1 << 16;
    let pieces = x.data.par_chunks_mut(PIECE).zip(y.data.par_chunks(PIECE));
    pieces.for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}
