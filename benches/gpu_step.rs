//! Milliseconds of a training step on an NVIDIA GPU, alone and in a run that makes and copies batches.
//!
//! `cargo bench --bench gpu_step` prints a line per case; with `-- --json` a JSON object per line: `{bench, device, family, precision, product, d, n_latents, batch, l0, step_ms, run_ms, flops, sparse_flops,
//! bytes}`. Further arguments select the cases whose id holds them all: `tied`, `d=4096`, `n_latents=4096`, `bf16`, `cublas`. `benches/peers/gpu_step_peers.py` runs it and PyTorch by turns and
//! says how far each is from the floor; `cargo xtask gpu` builds a folder with both for a machine without Rust. Without `--bench` among the arguments, as cargo runs it in a test, tiny cases
//! run. Without a GPU it says so.
//!
//! Rows are normal deviates, and biases such that as many codes are active as the case says: the work of a step depends on nothing else.

use std::time::Instant;

use monosem_sae::{
    BatchTopK, Device as _, Family, Precision, Sae, Spaces, Tied, TopK, TrainConfig, TrainStep as _, Trainer as _,
};
use monosem_sae_cuda::Gpu;
use ndarray::Array2;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use statrs::distribution::{ContinuousCDF as _, Normal};

#[derive(Clone)]
struct Case {
    family: Family,
    precision: Precision,
    d: usize,
    n_latents: usize,
    batch: usize,
    l0: usize,
    steps: usize,
}

impl Case {
    fn id(&self) -> String {
        let Self { family, d, n_latents, .. } = self;
        format!("{},d={d},n_latents={n_latents},{}", family.name(), self.precision())
    }

    fn precision(&self) -> &'static str {
        if self.precision == Precision::Bf16 { "bf16" } else { "f32" }
    }

    /// Of the encoder's product.
    fn flops(&self) -> f64 {
        2.0 * (self.batch * self.n_latents * self.d) as f64
    }

    /// Of reconstruction, its products with the rows, and the gradients of both sides.
    fn sparse_flops(&self, l0: f64) -> f64 {
        8.0 * l0 * (self.batch * self.d) as f64
    }

    /// What cannot stay on the chip, each once: parameters and moments are read and written, and read by the encoder; the batch comes, is centred, encoded and gathered from,
    /// residuals are written and gathered from.
    fn bytes(&self) -> f64 {
        let sides = if matches!(self.family, Family::Tied(_)) { 1 } else { 2 };
        (4 * self.d * ((6 * sides + 1) * self.n_latents + 6 * self.batch)) as f64
    }
}

fn cases(measured: bool) -> Vec<Case> {
    let both = [Precision::F32, Precision::Bf16];
    let (sizes, batch, l0, steps) = if measured {
        (vec![(512, 8), (512, 32), (1024, 8), (1024, 32), (4096, 8), (4096, 32)], 8192, 64, 20)
    } else {
        (vec![(24, 2)], 64, 6, 2)
    };
    let mut cases = Vec::new();
    for (d, ratio) in sizes {
        for family in [Family::Tied(Tied {}), Family::TopK(TopK { k: l0 }), Family::BatchTopK(BatchTopK { k: l0 })] {
            for precision in both {
                cases.push(Case { family: family.clone(), precision, d, n_latents: ratio * d, batch, l0, steps });
            }
        }
    }
    cases
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut take = |what: &str| arguments.iter().position(|a| a == what).map(|at| arguments.remove(at)).is_some();
    let (measured, as_json) = (take("--bench"), take("--json"));
    if let Err(problem) = Gpu::open(0) {
        let line = json!({ "bench": "gpu_step", "not_run": problem.to_string() });
        println!("{}", if as_json { line.to_string() } else { format!("gpu_step: not run: {problem}") });
        return;
    }
    for (case, cublas) in cases(measured).into_iter().flat_map(|case| [(case.clone(), false), (case, true)]) {
        let product = if cublas { "cublas" } else { "own" };
        let id = format!("{},{product}", case.id());
        if !arguments.iter().all(|filter| id.contains(filter.as_str())) {
            continue;
        }
        let mut gpu = Gpu::open(0).expect("it was there before");
        if let Some(problem) = cublas.then(|| gpu.use_cublas().err()).flatten() {
            eprintln!("gpu_step {id}: not run: {problem}");
            continue;
        }
        let Measured { l0, step_ms, run_ms } = measure(&mut gpu, &case);
        let (flops, sparse_flops, bytes) = (case.flops(), case.sparse_flops(l0), case.bytes());
        if as_json {
            let Case { d, n_latents, batch, .. } = case;
            let line = json!({
                "bench": "gpu_step", "device": gpu.name(), "family": case.family.name(), "precision": case.precision(), "product": product, "d": d, "n_latents": n_latents,
                "batch": batch, "l0": l0, "step_ms": step_ms, "run_ms": run_ms, "flops": flops, "sparse_flops": sparse_flops, "bytes": bytes,
            });
            println!("{line}");
        } else {
            println!(
                "gpu_step {id} on {}: L0 {l0:.1}, step {step_ms:.3} ms, {:.0} vectors/s, encoder alone at {:.1} TFLOP/s or more; in a run {run_ms:.3} ms, {:.0} vectors/s",
                gpu.name(),
                case.batch as f64 / step_ms * 1e3,
                flops / step_ms / 1e9,
                case.batch as f64 / run_ms * 1e3,
            );
        }
    }
}

struct Measured {
    l0: f64,
    step_ms: f64,
    run_ms: f64,
}

/// The median time of a step whose batch is on the device, and that of a step of a run.
fn measure(gpu: &mut Gpu, case: &Case) -> Measured {
    let Case { family, precision, d, n_latents, batch, l0, steps } = case;
    let config = TrainConfig {
        family: family.clone(),
        n_latents: *n_latents,
        // Small, so that the density stays what it is.
        lr: 1e-7,
        batch: *batch,
        steps: *steps as u64,
        precision: *precision,
        seed: 1,
        ..TrainConfig::default()
    };
    let spaces = Spaces::autoencoder(*d, 1.0);
    let mut state =
        Sae::new(config.clone(), spaces).expect("the settings above are valid").state().expect("on the CPU");
    if let Family::Tied(_) = family {
        let share = *l0 as f64 / *n_latents as f64;
        let bias = Normal::standard().inverse_cdf(share) as f32;
        state.tensors.get_mut("b_enc").expect("every family has it").fill(bias);
    }
    let sae = Sae::from_state(state).expect("the state above");
    let rows = normal_rows(*batch, *d);

    let mut trainer = gpu.train(sae).expect("room for it");
    let mut one_step = |gpu: &mut Gpu, step: usize, next: Option<&mut Array2<f32>>| {
        let start = Instant::now();
        trainer.launch(rows.view(), None, config.schedule(step as u64)).expect("a step");
        // As a run does it: the next batch is made and copied while the device works.
        if let Some(next) = next {
            next.assign(&rows);
            gpu.feed(next.view(), None).expect("room for a batch");
        }
        let stats = trainer.finish().expect("a finite step");
        (start.elapsed().as_secs_f64() * 1e3, f64::from(stats.l0))
    };
    gpu.feed(rows.view(), None).expect("room for a batch");
    // The first ones make room, and load the kernels.
    (0..3).for_each(|step| _ = one_step(gpu, step, None));
    let (alone, l0): (Vec<f64>, Vec<f64>) = (0..*steps).map(|step| one_step(gpu, step, None)).unzip();
    let mut next = rows.clone();
    (0..2).for_each(|step| _ = one_step(gpu, step, Some(&mut next)));
    let in_a_run = (0..*steps).map(|step| one_step(gpu, step, Some(&mut next)).0).collect();
    Measured { l0: l0.iter().sum::<f64>() / l0.len() as f64, step_ms: median(alone), run_ms: median(in_a_run) }
}

fn normal_rows(rows: usize, d: usize) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut next = || {
        let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    };
    Array2::from_shape_simple_fn((rows, d), &mut next)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
