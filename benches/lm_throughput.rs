//! Tokens per second through the first layers of a model, beside the rate of the bare matrix products in it.
//!
//! `cargo bench --bench lm_throughput [-- --json]` takes SmolLM2-135M through 18 layers. In the same run, alternating with it, the `gemm` crate
//! computes only the linear products of those layers, whole batch at once. `share` is the one rate over the other: 1 would mean that attention,
//! normalisation, activation and memory traffic cost nothing; with the model's maps in bf16 (a line of its own) it may be above 1. GFLOP/s counts the linear products only, in both. Without `--bench` (as under `cargo test`) one small
//! pass through a tiny checkpoint shows that the bench still works.

mod support;

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use gemm::Parallelism;
use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_lm::{Config, LanguageModel, LoadOptions, Precision};
use ndarray::Array2;

struct Case {
    batch: usize,
    positions: usize,
    layers: usize,
    rounds: usize,
}

fn main() {
    let flag = |name: &str| std::env::args().any(|a| a == name);
    if !flag("--bench") {
        let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/golden/llama-tiny"));
        measure("llama-tiny", &load(tiny), &Case { batch: 2, positions: 16, layers: 1, rounds: 1 }, true);
        return;
    }
    let models = load(&support::smollm2());
    for (batch, positions, rounds) in [(8, 128, 9), (1, 128, 25), (2, 1024, 5)] {
        measure("smollm2-135m", &models, &Case { batch, positions, layers: 18, rounds }, flag("--json"));
    }
}

const PRECISIONS: [(&str, Precision); 2] = [("f32", Precision::F32), ("bf16", Precision::Bf16)];

/// The model in either precision.
fn load(path: &Path) -> [LanguageModel; 2] {
    PRECISIONS.map(|(_, precision)| {
        let options = LoadOptions { precision, ..LoadOptions::default() };
        LanguageModel::load(path, &options).unwrap_or_else(|e| panic!("{e}"))
    })
}

/// `[d_in, d_out]` of the linear products of a Llama block.
fn products(c: &Config) -> [(usize, usize); 4] {
    let d_query = c.n_heads * c.head_dim;
    let d_key = c.n_kv_heads * c.head_dim;
    [(c.d_model, d_query + 2 * d_key), (d_query, c.d_model), (c.d_model, 2 * c.d_mlp), (c.d_mlp, c.d_model)]
}

fn measure(name: &str, models: &[LanguageModel; 2], case: &Case, json: bool) {
    let &Case { batch, positions, layers, rounds } = case;
    let (rows, shapes) = (batch * positions, products(models[0].config()));
    let d_vocab = models[0].d_vocab();
    let tokens = Array2::from_shape_fn((batch, positions), |(i, j)| ((i * 7919 + j * 104_729) % d_vocab) as u32);
    let last = HookPoint::new(layers - 1, Site::ResidPost);
    let pass = |model: &LanguageModel| {
        let result = model.forward(tokens.view(), &mut |point, activations| {
            black_box(&activations);
            if point == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(result.is_break(), "{last} was not reached");
    };
    // As many weights as the layers have, so that they come from memory here too.
    let weights: Vec<Vec<f32>> = (0..layers)
        .flat_map(|_| shapes)
        .map(|(d_in, d_out)| (0..d_in * d_out).map(|i| (i % 13) as f32 * 0.01).collect())
        .collect();
    let widest = shapes.iter().map(|&(d_in, d_out)| d_in.max(d_out)).max().unwrap_or(0);
    let x: Vec<f32> = (0..rows * widest).map(|i| (i % 17) as f32 * 0.01).collect();
    let mut y = vec![0.0; rows * widest];
    let mut bare = || {
        for (weight, &(d_in, d_out)) in weights.iter().zip(shapes.iter().cycle()) {
            multiply(&x[..rows * d_in], weight, &mut y[..rows * d_out], d_in, d_out);
        }
        black_box(&y);
    };
    models.iter().for_each(pass);
    bare();
    let (mut model_seconds, mut gemm_seconds) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..rounds {
        for (model, seconds_of) in models.iter().zip(&mut model_seconds) {
            seconds_of.push(seconds(|| pass(model)));
        }
        gemm_seconds.push(seconds(&mut bare));
    }
    let flop = (layers * rows) as f64 * shapes.iter().map(|&(d_in, d_out)| 2.0 * (d_in * d_out) as f64).sum::<f64>();
    let gemm_gflops = flop / median(gemm_seconds.clone()) / 1e9;
    let case = format!("{name} {batch}x{positions} {layers} layers");
    for ((precision, _), seconds) in PRECISIONS.iter().zip(model_seconds) {
        // The share of every round apart: what else the machine does disturbs all parts of a round alike.
        let share = median(seconds.iter().zip(&gemm_seconds).map(|(m, g)| g / m).collect());
        let time = median(seconds);
        let (tokens_per_s, gflops) = (rows as f64 / time, flop / time / 1e9);
        if json {
            let line = serde_json::json!({
                "bench": "lm_throughput", "case": case, "precision": precision, "tokens_per_s": tokens_per_s, "gflops": gflops,
                "gemm_gflops": gemm_gflops, "share": share
            });
            println!("{line}");
        } else {
            let percent = 100.0 * share;
            println!(
                "{case} {precision}: {tokens_per_s:.0} tokens/s, {gflops:.1} GFLOP/s of gemm's {gemm_gflops:.1}, share {percent:.1} %"
            );
        }
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// `y = x W^T` with `x` `[rows, d_in]` and `W` `[d_out, d_in]`.
#[allow(unsafe_code)]
fn multiply(x: &[f32], weight: &[f32], y: &mut [f32], d_in: usize, d_out: usize) {
    let rows = x.len() / d_in;
    assert_eq!((weight.len(), y.len()), (d_in * d_out, rows * d_out));
    let (stride_in, stride_out) = (d_in as isize, d_out as isize);
    // SAFETY: the strides and sizes are those of whole row-major matrices, whose lengths have just been checked; `y` is borrowed mutably.
    unsafe {
        gemm::gemm(
            rows,
            d_out,
            d_in,
            y.as_mut_ptr(),
            1,
            stride_out,
            false,
            x.as_ptr(),
            1,
            stride_in,
            weight.as_ptr(),
            stride_in,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}
