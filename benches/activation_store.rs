//! The activation store at the width of SmolLM2-135M's residual stream: capture, contiguous reads, shuffled reads.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use monosem_activations::{Batches, CaptureConfig, Dtype, HookStore, Locality, SourceInfo, Store, capture};
use monosem_hooks::{Hook, HookPoint, HookedModel, Site};
use ndarray::{Array2, Array3, ArrayView2};

const WIDTH: usize = 576;
const LENGTH: usize = 129;
const BATCH: usize = 2048;
const ROWS: usize = 128 * 1024;

/// A model that costs nothing: the same activations whatever the tokens.
struct Constant(Array3<f32>);

impl HookedModel for Constant {
    fn n_layers(&self) -> usize {
        1
    }

    fn d_vocab(&self) -> usize {
        1
    }

    fn max_context(&self) -> usize {
        LENGTH
    }

    fn width(&self, site: Site) -> Option<usize> {
        (site == Site::ResidPost).then_some(WIDTH)
    }

    fn forward(&self, tokens: ArrayView2<'_, u32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        let mut acts = self.0.clone();
        hook(point(), acts.slice_mut(ndarray::s![..tokens.nrows(), .., ..]))?;
        ControlFlow::Continue(Array3::zeros((tokens.nrows(), tokens.ncols(), 1)))
    }

    fn forward_from(&self, _: usize, _: Array3<f32>, _: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        ControlFlow::Break(())
    }
}

fn point() -> HookPoint {
    HookPoint::new(0, Site::ResidPost)
}

fn write(rows: usize, dtype: Dtype, out: &Path) {
    let config = CaptureConfig { hooks: vec![point()], dtype, ..CaptureConfig::default() };
    let shape = (config.batch_contexts, LENGTH, WIDTH);
    let model = Constant(Array3::from_shape_fn(shape, |(c, p, d)| ((c * 31 + p * 7 + d) % 97) as f32 - 48.0));
    let tokens = Array2::zeros((rows / (LENGTH - 1), LENGTH));
    let go_on = &mut |_, _| ControlFlow::Continue(());
    capture(&model, tokens.view(), tokens.view(), &config, &SourceInfo::default(), out, go_on).expect("a store");
}

fn captures(c: &mut Criterion) {
    let mut group = c.benchmark_group("capture");
    let rows = 32 * 1024;
    group.sample_size(10).throughput(Throughput::Elements(rows as u64));
    for dtype in Dtype::ALL {
        group.bench_function(format!("{dtype}/{rows}x{WIDTH}"), |b| {
            b.iter_with_large_drop(|| {
                let folder = tempfile::tempdir().expect("a folder");
                write(rows, dtype, folder.path());
                folder
            });
        });
    }
}

fn reads(c: &mut Criterion) {
    let mut batch = Array2::zeros((BATCH, WIDTH));
    for dtype in [Dtype::F16, Dtype::F32] {
        let folder = tempfile::tempdir().expect("a folder");
        write(ROWS, dtype, folder.path());
        let store = Store::open(folder.path()).expect("a store");
        for (access, mapped) in [("mapped", usize::MAX), ("by-position", 0)] {
            let acts = store.hook_within(point(), mapped).expect("a hook");
            let id = |name: &str| BenchmarkId::new(name, format!("{access}/{dtype}/{BATCH}-of-{ROWS}x{WIDTH}"));
            let mut group = c.benchmark_group("read");
            group.throughput(Throughput::Elements(BATCH as u64));
            let mut start = 0;
            group.bench_function(id("contiguous"), |b| {
                b.iter(|| {
                    acts.rows(start, batch.view_mut()).expect("rows");
                    start = (start + BATCH) % ROWS;
                    black_box(batch[[0, 0]])
                });
            });
            let mut shuffled = |acts: &HookStore, batches: &Batches, name| {
                let (mut step, mut rows) = (0, vec![0; BATCH]);
                group.bench_function(id(name), |b| {
                    b.iter(|| {
                        batches.batch_into(step, &mut rows);
                        acts.gather(&rows, batch.view_mut()).expect("rows");
                        step += 1;
                        black_box(batch[[0, 0]])
                    });
                });
            };
            shuffled(&acts, &Batches::new(ROWS, BATCH, 0), "shuffled");
            let locality = Locality { block_rows: 64, blocks: 256 };
            shuffled(&acts, &Batches::with_locality(ROWS, BATCH, 0, locality), "shuffled-locally");
        }
    }
}

fn indices(c: &mut Criterion) {
    let mut group = c.benchmark_group("batches");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut rows = vec![0; BATCH];
    for len in [1_000_000, 100_000_000] {
        let batches = Batches::new(len, BATCH, 0);
        let mut step = 0;
        group.bench_function(format!("{BATCH}-of-{len}"), |b| {
            b.iter(|| {
                batches.batch_into(step, &mut rows);
                step += 1;
                black_box(rows[0])
            });
        });
    }
}

criterion_group!(benches, captures, reads, indices);
criterion_main!(benches);
