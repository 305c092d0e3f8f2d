//! GFLOP/s of bf16 products on one thread, beside the `gemm` crate's in `f32`.
//!
//! `cargo bench --bench bf16 [-- --json]` multiplies a tile of 256 activations with the encoder of an autoencoder (`d`, `n_latents`), three ways in turn: by
//! `gemm`, by `bf16::product`, and by `bf16::active`, which lists what is above a threshold (about 1 in 70) and writes nothing else. The rounding of the
//! activations counts, that of the encoder does not: it happens once for all tiles. Without `--bench` (as under `cargo test`) one tiny case runs.

use std::hint::black_box;
use std::time::Instant;

use monosem_bf16::{Active, Affine, Columns, Kernel, Rows, Store, active, product};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

fn main() {
    let flag = |name: &str| std::env::args().any(|a| a == name);
    if !flag("--bench") {
        measure((12, 24, 40), 1, true);
        return;
    }
    for n_latents in [2304, 9216] {
        measure((256, 576, n_latents), 41, flag("--json"));
    }
}

fn measure((rows, d, n_latents): (usize, usize, usize), rounds: usize, json: bool) {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    // Sums of twelve uniform draws are near enough to normal ones for the share above the threshold.
    let mut normal = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    let x: Vec<f32> = (0..rows * d).map(|_| normal()).collect();
    let w: Vec<f32> = (0..n_latents * d).map(|_| normal() / (d as f32).sqrt()).collect();
    let (scale, bias, threshold) = (vec![1.0; n_latents], vec![-2.2; n_latents], vec![0.0; n_latents]);
    let floor = vec![0.0; rows];
    let affine = Affine { scale: &scale, bias: &bias, threshold: &threshold, floor: &floor };
    let (kernel, mut encoder, mut tile) = (Kernel::detect(), Rows::default(), Columns::default());
    encoder.set(&w, d);
    let (mut out, mut found) = (vec![0.0; rows * n_latents], Active::default());

    let mut seconds = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        seconds[0].push(time(|| multiply(&w, &x, d, &mut out)));
        seconds[1].push(time(|| {
            tile.set(&x, d);
            product(kernel, &encoder, &tile, &mut out, rows, Store::Replace);
        }));
        seconds[2].push(time(|| {
            tile.set(&x, d);
            active(kernel, &encoder, &tile, affine, &mut found);
        }));
        black_box((&out, &found));
    }
    let gflop = 2.0 * (rows * d * n_latents) as f64 / 1e9;
    // Of every round apart: what else the machine does disturbs its parts alike.
    let ratio = |of: usize| median(seconds[0].iter().zip(&seconds[of]).map(|(f32, bf16)| f32 / bf16).collect());
    let share = found.len() as f64 / (rows * n_latents) as f64;
    for (of, name) in ["gemm f32", "product", "active"].into_iter().enumerate() {
        let (rate, ratio) = (gflop / median(seconds[of].clone()), ratio(of));
        if json {
            let line = serde_json::json!({
                "bench": "bf16", "case": name, "rows": rows, "d": d, "n_latents": n_latents, "native": kernel.is_native(), "share": share,
                "gflops": rate, "times_f32": ratio,
            });
            println!("{line}");
        } else {
            println!(
                "bf16 {name}: {rows} x {d} x {n_latents}: {rate:.0} GFLOP/s, {ratio:.2} times gemm ({share:.4} above)"
            );
        }
    }
}

/// `out = w xᵀ` in `f32`, on this thread.
#[allow(unsafe_code)]
fn multiply(w: &[f32], x: &[f32], d: usize, out: &mut [f32]) {
    let (m, n) = (w.len() / d, x.len() / d);
    assert!(w.len() == m * d && x.len() == n * d && out.len() == m * n);
    let (d, n_stride) = (d.cast_signed(), n.cast_signed());
    // SAFETY: the operands are whole rows of d values, `out` a unique slice of m * n initialised ones.
    unsafe {
        gemm::gemm(
            m,
            n,
            d.cast_unsigned(),
            out.as_mut_ptr(),
            1,
            n_stride,
            false,
            w.as_ptr(),
            1,
            d,
            x.as_ptr(),
            d,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
