//! Milliseconds of a training step against those of its one dense product, the encoder's.
//!
//! `cargo bench --bench sae_step` prints a line per case; with `-- --json` a JSON object per line: `{bench, family, precision, d, n_latents, batch, l0,
//! threads, step_ms, gemm_ms, ratio, peak_bytes}`. Another argument selects cases: `n_latents=2304`, `l0=32`, `bf16`, `l0=start` (the first steps of a run,
//! where about half of all codes are active and the dense path is taken). Without `--bench` among the arguments, as cargo runs it in a test, one tiny case runs.
//! Steps and products alternate, so that both see the same machine, and medians are reported.

use std::time::Instant;

use monosem_sae::{AdamMode, Planted, PlantedConfig, Precision, StepPath, TiedSae, TrainConfig, TrainStep};
use ndarray::Array2;

struct Case {
    precision: Precision,
    d: usize,
    n_latents: usize,
    batch: usize,
    /// Mean number of active codes to measure at; `None` for the first steps of a run, where about half are active.
    l0: Option<f64>,
    measured: usize,
}

struct Line {
    l0: f64,
    step_ms: f64,
    gemm_ms: f64,
    peak_bytes: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |what: &str| arguments.iter().any(|a| a == what);
    let cases = if asked("--bench") {
        let case = |n_latents, l0, precision| Case { precision, d: 576, n_latents, batch: 2048, l0, measured: 25 };
        let both = [Precision::F32, Precision::Bf16];
        let sizes = [(2304, 32.0), (2304, 64.0), (9216, 32.0), (9216, 64.0)];
        let sparse = sizes.iter().flat_map(|&(n, l0)| both.map(|precision| case(n, Some(l0), precision)));
        sparse.chain([case(2304, None, Precision::F32)]).collect()
    } else {
        vec![Case { precision: Precision::Bf16, d: 24, n_latents: 48, batch: 64, l0: Some(6.0), measured: 2 }]
    };
    let filter = arguments.iter().skip(1).find(|a| !a.starts_with('-'));
    for case in cases {
        let precision = if case.precision == Precision::Bf16 { "bf16" } else { "f32" };
        let l0 = case.l0.map_or("start".into(), |l0| l0.to_string());
        let id = format!("n_latents={},l0={l0},{precision}", case.n_latents);
        if filter.is_some_and(|filter| !id.contains(filter.as_str())) {
            continue;
        }
        let line = measure(&case);
        let (threads, ratio) = (threads(), line.step_ms / line.gemm_ms);
        let Case { d, n_latents, batch, .. } = case;
        let Line { l0, step_ms, gemm_ms, peak_bytes } = line;
        if asked("--json") {
            let json = serde_json::json!({
                "bench": "sae_step", "family": "tied", "precision": precision, "d": d, "n_latents": n_latents, "batch": batch, "l0": l0,
                "threads": threads, "step_ms": step_ms, "gemm_ms": gemm_ms, "ratio": ratio, "peak_bytes": peak_bytes,
            });
            println!("{json}");
        } else {
            println!(
                "sae_step tied {precision} d {d} n_latents {n_latents} batch {batch} l0 {l0:.1} threads {threads}: step {step_ms:.2} ms, \
                 encoder product {gemm_ms:.2} ms, ratio {ratio:.2}, {:.0} vectors/s, {:.0} MB",
                batch as f64 / step_ms * 1e3,
                peak_bytes as f64 / 1e6
            );
        }
    }
}

fn measure(case: &Case) -> Line {
    let Case { precision, d, n_latents, batch, l0, measured } = *case;
    // As many true features as latents, their frequencies falling off as those of real activations do.
    let data = Planted::new(PlantedConfig {
        d_in: d,
        n_features: n_latents,
        mean_active: 4.0 * l0.unwrap_or(32.0).min(d as f64 / 4.0),
        decay: 0.01_f64.powf(1.0 / n_latents as f64),
        correlated: false,
        second_strength: false,
        noise: 0.02,
        seed: 1,
    });
    let batches: Vec<Array2<f32>> = (0..8).map(|i| data.sample(i, batch)).collect();
    let mean_square = batches[0].iter().map(|v| v * v).sum::<f32>() / batches[0].len() as f32;
    let config = TrainConfig {
        n_latents,
        alpha: 0.0,
        lr: 1e-3,
        batch,
        steps: u64::MAX,
        adam: AdamMode::Standard,
        precision,
        lr_warmup_steps: 0,
        lr_decay_steps: 0,
        seed: 1,
    };
    let mut sae = TiedSae::new(config, d, mean_square.sqrt().recip()).expect("the settings above are valid");
    let mut parameters = sae.config().schedule(0);
    if let Some(l0) = l0 {
        approach(&mut sae, &batches, l0);
        // Small steps from there, so that the density stays what it is while it is measured.
        parameters.lr = 1e-6;
    } else {
        sae.set_path(StepPath::Dense);
    }
    let w = sae.dictionary().w_enc;
    let mut pre = vec![0.0; batch * n_latents];
    let (mut steps, mut products, mut active) = (Vec::new(), Vec::new(), 0.0);
    for i in 0..measured + 2 {
        let x = &batches[i % batches.len()];
        let start = Instant::now();
        product(x, &w, &mut pre);
        products.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        let stats = sae.step(x.view(), parameters).expect("a finite step");
        steps.push(start.elapsed().as_secs_f64() * 1e3);
        active += f64::from(stats.l0) / (measured + 2) as f64;
    }
    Line { l0: active, step_ms: median(&mut steps), gemm_ms: median(&mut products), peak_bytes: sae.bytes() }
}

/// Trains until the mean number of active codes is near `l0`, steering the sparsity coefficient towards it.
fn approach(sae: &mut TiedSae, batches: &[Array2<f32>], l0: f64) {
    let mut parameters = sae.config().schedule(0);
    parameters.alpha = 1e-2;
    for i in 0..600 {
        let stats = sae.step(batches[i % batches.len()].view(), parameters).expect("a finite step");
        let off = (f64::from(stats.l0) / l0).ln();
        if off.abs() < 0.03 && i > 20 {
            return;
        }
        parameters.alpha = (f64::from(parameters.alpha) * (0.1 * off.clamp(-1.0, 1.0)).exp()).clamp(1e-6, 0.3) as f32;
        if off.abs() < 0.3 {
            parameters.lr = 2e-4;
        }
    }
}

/// As many as the thread pool starts.
fn threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn median(times: &mut Vec<f64>) -> f64 {
    // The first two warm the caches.
    times.drain(..2);
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The encoder's product by itself, as one call on all threads.
#[allow(unsafe_code)]
fn product(x: &Array2<f32>, w: &Array2<f32>, out: &mut [f32]) {
    let ((n, d), m) = (x.dim(), w.nrows());
    assert!(w.ncols() == d && out.len() == n * m && x.is_standard_layout() && w.is_standard_layout());
    // SAFETY: both operands are contiguous rows d wide, and `out` is a unique slice of n * m initialised values.
    unsafe {
        gemm::gemm(
            n,
            m,
            d,
            out.as_mut_ptr(),
            1,
            m.cast_signed(),
            false,
            x.as_ptr(),
            1,
            d.cast_signed(),
            w.as_ptr(),
            d.cast_signed(),
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
