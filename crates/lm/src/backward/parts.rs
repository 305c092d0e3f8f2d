//! Steps back that the families' blocks have in common: those of [`crate::parts`], in reverse. Each takes all rows, in the same tiles.

use rayon::prelude::*;

use crate::Activation;
use crate::backward::walk::{Gradients, Kept};
use crate::linear::Linear;
use crate::math::{activate_backward, activate_gated_backward};
use crate::norm::Norm;
use crate::parts::{normalise, queries_keys_values};
use crate::pass::{Plan, Rows, Shape};

/// Back through `y = W x + b`.
pub(crate) fn project_backward(dy: &Rows, map: &Linear, dx: &mut Rows, plan: Plan) {
    let tiles = (dy.tiles(plan.tile), dx.tiles_mut(plan.tile)).into_par_iter();
    tiles.for_each(|(dy, dx)| map.backward(dy, dx, plan.threads));
}

/// Back through `y = norm(x)`: adds to `dx`, and uses up `dy`.
pub(crate) fn norm_backward(x: &Rows, norm: &Norm, dy: &mut Rows, dx: &mut Rows, plan: Plan) {
    let width = x.width;
    let tiles = (x.tiles(plan.tile), dy.tiles_mut(plan.tile), dx.tiles_mut(plan.tile)).into_par_iter();
    tiles.for_each(|(x, dy, dx)| norm_tile(norm, x, dy, dx, width, plan));
}

fn norm_tile(norm: &Norm, x: &[f32], dy: &mut [f32], dx: &mut [f32], width: usize, plan: Plan) {
    let pieces = plan.pieces(x, width).zip(plan.pieces_mut(dy, width)).zip(plan.pieces_mut(dx, width));
    pieces.for_each(|((x, (_, dy)), (_, dx))| norm.backward(x, dy, dx));
}

/// Back through `post = activation(W norm(x) + b)`, the hidden units of a plain MLP: adds to the gradient `dx` of the stream that it reads.
pub(crate) fn hidden_units_backward(
    (kept, norm): (&Kept, &Norm),
    map: &Linear,
    f: Activation,
    b: &mut Gradients,
    dx: &mut Rows,
    plan: Plan,
) {
    through_mlp((kept.read_by_mlp(), norm), map, b, dx, plan, |pre, post| activate_backward(f, pre, post));
}

/// Back through `post = activation(gate) * up`, where `gate` and `up` are the halves of `W norm(x) + b`, the hidden units of a gated MLP: adds
/// to the gradient `dx` of the stream that it reads.
pub(crate) fn gated_hidden_units_backward(
    (kept, norm): (&Kept, &Norm),
    map: &Linear,
    f: Activation,
    b: &mut Gradients,
    dx: &mut Rows,
    plan: Plan,
) {
    let d_mlp = b.post.width;
    through_mlp((kept.read_by_mlp(), norm), map, b, dx, plan, |pre, post| {
        for (row, post) in pre.chunks_exact_mut(2 * d_mlp).zip(post.chunks_exact(d_mlp)) {
            let (gate, up) = row.split_at_mut(d_mlp);
            activate_gated_backward(f, gate, up, post);
        }
    });
}

/// `slopes` is given rows of pre-activations, computed again, with the gradients of the hidden units, and replaces them by their own gradients.
fn through_mlp(
    (x, norm): (&Rows, &Norm),
    map: &Linear,
    b: &mut Gradients,
    dx: &mut Rows,
    plan: Plan,
    slopes: impl Fn(&mut [f32], &[f32]) + Sync,
) {
    let (d_model, d_pre, d_mlp, tile) = (x.width, b.pre.width, b.post.width, plan.tile);
    let buffers = (b.normed.tiles_mut(tile), b.pre.tiles_mut(tile), b.post.tiles(tile));
    let tiles = (x.tiles(tile), buffers.0, buffers.1, buffers.2, dx.tiles_mut(tile)).into_par_iter();
    tiles.for_each(|(x, normed, pre, post, dx)| {
        normalise(x, norm, normed, d_model, plan);
        map.apply(normed, pre, plan.threads);
        let pieces = plan.pieces_mut(pre, d_pre).zip(plan.pieces(post, d_mlp));
        pieces.for_each(|((_, pre), post)| slopes(pre, post));
        map.backward(pre, normed, plan.threads);
        norm_tile(norm, x, normed, dx, d_model, plan);
    });
}

/// Back through `z = attention(turn(W norm(x) + b))`, from the gradient of `z` in its buffer: adds to the gradient `dx` of the stream that it
/// reads.
pub(crate) fn attention_backward(
    (kept, norm): (&Kept, &Norm),
    map: &Linear,
    b: &mut Gradients,
    dx: &mut Rows,
    shape: &Shape,
) {
    let (x, plan) = (&kept.resid_pre, shape.plan);
    queries_keys_values(x, norm, map, &mut b.normed, &mut b.qkv, shape);
    shape.heads.backward(&b.qkv, &b.z, &mut b.dqkv, shape.positions);
    let width = b.dqkv.width;
    let tiles = (x.tiles(plan.tile), b.dqkv.tiles_mut(plan.tile), b.normed.tiles_mut(plan.tile));
    let tiles = (tiles.0, tiles.1, tiles.2, dx.tiles_mut(plan.tile)).into_par_iter();
    tiles.enumerate().for_each(|(i, (x, dqkv, dnormed, dx))| {
        plan.pieces_mut(dqkv, width).for_each(|(row, dqkv)| turn_back(shape, dqkv, i * plan.tile + row));
        map.backward(dqkv, dnormed, plan.threads);
        norm_tile(norm, x, dnormed, dx, kept.resid_pre.width, plan);
    });
}

/// Turns the gradients of queries and keys back, in rows that begin with row `first` of the pass.
fn turn_back(shape: &Shape, dqkv: &mut [f32], first: usize) {
    let Some(rotation) = &shape.rotation else { return };
    let head_dim = shape.heads.head_dim;
    let turned = (shape.heads.n_heads + shape.heads.n_kv_heads) * head_dim;
    for (i, row) in dqkv.chunks_exact_mut(shape.heads.width()).enumerate() {
        let position = (first + i) % shape.positions;
        row[..turned].chunks_exact_mut(head_dim).for_each(|head| rotation.turn_back(head, position));
    }
}
