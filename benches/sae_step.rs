//! Milliseconds of a training step of every family against those of its one dense product, the encoder's.
//!
//! `cargo bench --bench sae_step` prints a line per case; with `-- --json` a JSON object per line: `{bench, family, precision, d, n_latents, batch, l0,
//! threads, step_ms, gemm_ms, ratio, peak_bytes, state_bytes}`. Further arguments select the cases whose id holds them all: `tied`, `n_latents=2304`, `l0=32`,
//! `bf16`, `l0=start` (the first steps of a run, where about half of all codes are active and the dense path is taken), `curve` (numbers of latents up to
//! 65,536; only when asked for). Without `--bench` among the arguments, as cargo runs it in a test, one tiny case of each family runs.
//!
//! `benches/peers/sae_step_peers.py` runs it and the Python libraries by turns. With `--rows FILE` (a file `activations-*.safetensors` of a store, as `monosem capture` writes it) the batches are real activations without the few rows of
//! extreme norm; else they are planted features. Steps and products alternate, so that both see the same machine, and medians are reported.

use std::path::Path;
use std::time::Instant;

use monosem_sae::{
    BatchTopK, Family, Gated, JumpRelu, Matryoshka, Planted, PlantedConfig, Precision, Relu, Sae, Spaces, StepPath,
    StepStats, Tied, TopK, TrainConfig, TrainStep,
};
use ndarray::{Array2, s};

struct Case {
    family: Family,
    precision: Precision,
    d: usize,
    n_latents: usize,
    batch: usize,
    /// Mean number of active codes to measure at; `None` for the first steps of a run, where about half are active.
    l0: Option<f64>,
    measured: usize,
    /// Not among the cases unless it is asked for.
    curve: bool,
}

struct Line {
    l0: f64,
    step_ms: f64,
    gemm_ms: f64,
    ratio: f64,
    peak_bytes: usize,
    state_bytes: usize,
}

impl Case {
    fn id(&self) -> String {
        let l0 = self.l0.map_or("start".into(), |l0| l0.to_string());
        let curve = if self.curve { ",curve" } else { "" };
        format!("{},n_latents={},l0={l0},{}{curve}", self.family.name(), self.n_latents, self.precision())
    }

    fn precision(&self) -> &'static str {
        if self.precision == Precision::Bf16 { "bf16" } else { "f32" }
    }
}

fn families(n_latents: usize, l0: f64) -> Vec<Family> {
    let (k, prefixes) = (l0 as usize, [8, 4, 2, 1].map(|part| n_latents / part).to_vec());
    vec![
        Family::Tied(Tied {}),
        Family::Relu(Relu::default()),
        Family::TopK(TopK { k }),
        Family::BatchTopK(BatchTopK { k }),
        Family::JumpRelu(JumpRelu { bandwidth: 0.1, initial_threshold: 1.5 }),
        Family::Gated(Gated {}),
        Family::Matryoshka(Matryoshka { k, prefixes }),
    ]
}

fn cases(measured: bool) -> Vec<Case> {
    let both = [Precision::F32, Precision::Bf16];
    let mut cases = Vec::new();
    if !measured {
        for family in families(48, 6.0) {
            let precision = Precision::Bf16;
            cases.push(Case {
                family,
                precision,
                d: 24,
                n_latents: 48,
                batch: 64,
                l0: Some(6.0),
                measured: 2,
                curve: false,
            });
        }
        return cases;
    }
    let mut add = |family: &Family, precision, n_latents, l0, curve| {
        let family = family.clone();
        cases.push(Case { family, precision, d: 576, n_latents, batch: 2048, l0, measured: 25, curve });
    };
    for (n_latents, l0) in [(2304, 32.0), (2304, 64.0), (9216, 32.0), (9216, 64.0)] {
        for family in families(n_latents, l0) {
            both.into_iter().for_each(|precision| add(&family, precision, n_latents, Some(l0), false));
        }
    }
    add(&Family::Tied(Tied {}), Precision::F32, 2304, None, false);
    add(&Family::Gated(Gated {}), Precision::F32, 2304, None, false);
    for n_latents in [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536] {
        for family in [Family::Tied(Tied {}), Family::TopK(TopK { k: 32 })] {
            both.into_iter().for_each(|precision| add(&family, precision, n_latents, Some(32.0), true));
        }
    }
    cases
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut take = |what: &str| arguments.iter().position(|a| a == what).map(|at| arguments.remove(at)).is_some();
    let (measured, json) = (take("--bench"), take("--json"));
    let rows = arguments.iter().position(|a| a == "--rows").map(|at| {
        arguments.remove(at);
        assert!(at < arguments.len(), "--rows needs a file");
        load_rows(Path::new(&arguments.remove(at)))
    });
    for case in cases(measured) {
        let id = case.id();
        if !arguments.iter().all(|filter| id.contains(filter.as_str())) || (case.curve && arguments.is_empty()) {
            continue;
        }
        let line = measure(&case, rows.as_ref());
        let (threads, family, precision) = (threads(), case.family.name(), case.precision());
        let Case { d, n_latents, batch, .. } = case;
        let Line { l0, step_ms, gemm_ms, ratio, peak_bytes, state_bytes } = line;
        if json {
            let json = serde_json::json!({
                "bench": "sae_step", "family": family, "precision": precision, "d": d, "n_latents": n_latents, "batch": batch, "l0": l0,
                "threads": threads, "step_ms": step_ms, "gemm_ms": gemm_ms, "ratio": ratio, "peak_bytes": peak_bytes,
                "state_bytes": state_bytes, "data": if rows.is_some() { "activations" } else { "planted" },
            });
            println!("{json}");
        } else {
            println!(
                "sae_step {family} {precision} d {d} n_latents {n_latents} batch {batch} l0 {l0:.1} threads {threads}: step {step_ms:.2} ms, \
                 encoder product {gemm_ms:.2} ms, ratio {ratio:.2}, {:.0} vectors/s, state {:.0} MB and {:.0} MB",
                batch as f64 / step_ms * 1e3,
                state_bytes as f64 / 1e6,
                (peak_bytes - state_bytes) as f64 / 1e6
            );
        }
    }
}

/// Rows whose norm is over this multiple of the median are attention sinks, which training leaves out.
const MAX_NORM: f32 = 20.0;

/// The rows of a file of a store, in an order that mixes its contexts.
fn load_rows(path: &Path) -> Array2<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let view = file.tensor("activations").expect("a tensor named activations");
    assert_eq!(view.dtype(), safetensors::Dtype::F32, "activations in f32");
    let values = view.data().as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    let rows = Array2::from_shape_vec((view.shape()[0], view.shape()[1]), values).expect("rows [n, d]");
    let norms: Vec<f32> = rows.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect();
    let limit = MAX_NORM * f64::from(median(norms.iter().map(|n| f64::from(*n)).collect()) as f32) as f32;
    let mut kept: Vec<usize> = (0..norms.len()).filter(|i| norms[*i] <= limit).collect();
    kept.sort_by_key(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    rows.select(ndarray::Axis(0), &kept)
}

/// Batches: all those that the rows given make, or eight of as many true features as latents, their frequencies falling off as those of real activations do.
fn batches(case: &Case, rows: Option<&Array2<f32>>) -> Vec<Array2<f32>> {
    if let Some(rows) = rows {
        assert!(rows.ncols() == case.d && rows.nrows() >= case.batch, "a batch of {} x {}", case.batch, case.d);
        let n = rows.nrows() / case.batch;
        return (0..n).map(|i| rows.slice(s![i * case.batch..(i + 1) * case.batch, ..]).to_owned()).collect();
    }
    let data = Planted::new(PlantedConfig {
        d_in: case.d,
        n_features: case.n_latents.min(16_384),
        mean_active: 4.0 * case.l0.unwrap_or(32.0).min(case.d as f64 / 4.0),
        decay: 0.01_f64.powf(1.0 / case.n_latents.min(16_384) as f64),
        correlated: false,
        second_strength: false,
        noise: 0.02,
        seed: 1,
    });
    (0..8).map(|i| data.sample(i, case.batch)).collect()
}

fn measure(case: &Case, rows: Option<&Array2<f32>>) -> Line {
    let Case { family, precision, d, n_latents, batch, l0, measured, .. } = case;
    let batches = batches(case, rows);
    let mean_square = batches[0].iter().map(|v| v * v).sum::<f32>() / batches[0].len() as f32;
    let config = TrainConfig {
        family: family.clone(),
        n_latents: *n_latents,
        lr: 1e-3,
        batch: *batch,
        steps: u64::MAX,
        precision: *precision,
        seed: 1,
        ..TrainConfig::default()
    };
    let spaces = Spaces::autoencoder(*d, mean_square.sqrt().recip());
    let mut sae = Sae::new(config, spaces).expect("the settings above are valid");
    let mut parameters = sae.config().schedule(0);
    if let Some(l0) = l0 {
        approach(&mut sae, &batches, *l0);
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
        let stats = step(&mut sae, x, parameters);
        steps.push(start.elapsed().as_secs_f64() * 1e3);
        active += f64::from(stats.l0) / (measured + 2) as f64;
    }
    // Of every round apart: what else the machine does disturbs both alike. The first two warm the caches.
    let ratio = median(steps[2..].iter().zip(&products[2..]).map(|(step, product)| step / product).collect());
    Line {
        l0: active,
        step_ms: median(steps[2..].to_vec()),
        gemm_ms: median(products[2..].to_vec()),
        ratio,
        peak_bytes: sae.bytes(),
        state_bytes: sae.state_bytes(),
    }
}

fn step(sae: &mut Sae, x: &Array2<f32>, parameters: monosem_sae::StepParams) -> StepStats {
    sae.step(x.view(), None, parameters).expect("a finite step")
}

/// Trains until the mean number of active codes is near `l0`, steering the sparsity coefficient towards it; families that choose the largest need no steering.
fn approach(sae: &mut Sae, batches: &[Array2<f32>], l0: f64) {
    let mut parameters = sae.config().schedule(0);
    if matches!(sae.config().family, Family::TopK(_) | Family::BatchTopK(_) | Family::Matryoshka(_)) {
        (0..30).for_each(|i| _ = step(sae, &batches[i % batches.len()], parameters));
        return;
    }
    parameters.alpha = if matches!(sae.config().family, Family::JumpRelu(_)) { 1e-3 } else { 3e-3 };
    for i in 0..400 {
        let stats = step(sae, &batches[i % batches.len()], parameters);
        let off = (f64::from(stats.l0) / l0).ln();
        // Not on the way through, but where it stays.
        if off.abs() < 0.05 && i > 100 {
            return;
        }
        let turn = 0.02 * off.clamp(-1.0, 1.0);
        parameters.alpha = (f64::from(parameters.alpha) * turn.exp()).clamp(1e-6, 0.3) as f32;
    }
}

/// As many as the thread pool starts.
fn threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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
