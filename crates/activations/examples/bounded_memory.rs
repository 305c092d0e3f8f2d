//! Captures a million rows of 576 values, reads them shuffled for two epochs, and prints rates and the peak of resident memory.
//!
//! ```text
//! cargo run --release -p monosem-activations --example bounded_memory -- [folder] [rows] [f32|f16|bf16] [uniform|local]
//! ```

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use monosem_activations::{Batches, CaptureConfig, Dtype, Locality, SourceInfo, Store, capture};
use monosem_hooks::{Hook, HookPoint, HookedModel, Site};
use ndarray::{Array2, Array3, ArrayView2};

const WIDTH: usize = 576;
const LENGTH: usize = 129;
const BATCH: usize = 2048;

/// One block whose residual stream is a cheap function of the token.
struct Cheap;

impl HookedModel for Cheap {
    fn n_layers(&self) -> usize {
        1
    }

    fn d_vocab(&self) -> usize {
        50_000
    }

    fn max_context(&self) -> usize {
        LENGTH
    }

    fn width(&self, site: Site) -> Option<usize> {
        (site == Site::ResidPost).then_some(WIDTH)
    }

    fn forward(&self, tokens: ArrayView2<'_, u32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        let mut acts = Array3::zeros((tokens.nrows(), tokens.ncols(), WIDTH));
        for (mut row, &token) in acts.rows_mut().into_iter().zip(tokens) {
            row.iter_mut().enumerate().for_each(|(d, x)| *x = (token as f32) * 1e-3 + d as f32);
        }
        hook(HookPoint::new(0, Site::ResidPost), acts.view_mut())?;
        ControlFlow::Continue(Array3::zeros((tokens.nrows(), tokens.ncols(), 1)))
    }

    fn forward_from(&self, _: usize, _: Array3<f32>, _: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        ControlFlow::Break(())
    }
}

/// Peak resident set of this process in MiB, where the system tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "target/bounded-memory".to_owned());
    let rows: usize = arguments.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let dtype: Dtype = arguments.next().map_or(Ok(Dtype::F16), |n| n.parse())?;
    let local = arguments.next().is_some_and(|n| n == "local");

    let contexts = rows.div_ceil(LENGTH - 1);
    let tokens = Array2::from_shape_fn((contexts, LENGTH), |(c, p)| ((c * LENGTH + p) % 50_000) as u32);
    let hook = HookPoint::new(0, Site::ResidPost);
    let config = CaptureConfig { hooks: vec![hook], dtype, ..CaptureConfig::default() };
    let start = Instant::now();
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let (view, source) = (tokens.view(), SourceInfo::default());
    let manifest = capture(&Cheap, view, view, &config, &source, Path::new(&folder), go_on)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("captured {} x {WIDTH} {dtype} in {seconds:.2} s, {:.0} rows/s", manifest.rows, rows as f64 / seconds);
    println!("peak resident {:?} MiB", peak());

    let acts = Store::open(Path::new(&folder))?.hook(hook)?;
    let locality = Locality { block_rows: 64, blocks: 2048 };
    let batches =
        if local { Batches::with_locality(acts.len(), BATCH, 0, locality) } else { Batches::new(acts.len(), BATCH, 0) };
    let mut batch = Array2::zeros((BATCH, WIDTH));
    let (mut indices, mut sum) = (vec![0; BATCH], 0.0);
    for epoch in 0..2 {
        let (start, steps) = (Instant::now(), acts.len() / BATCH);
        for step in epoch * steps..(epoch + 1) * steps {
            batches.batch_into(step as u64, &mut indices);
            acts.gather(&indices, batch.view_mut())?;
            sum += f64::from(batch[[0, 0]]);
        }
        let seconds = start.elapsed().as_secs_f64();
        let rate = (steps * BATCH) as f64 / seconds;
        println!(
            "epoch {epoch}: {steps} shuffled batches of {BATCH} in {seconds:.2} s, {rate:.0} rows/s (checksum {sum:.3})"
        );
    }
    println!("peak resident {:?} MiB", peak());
    Ok(())
}
