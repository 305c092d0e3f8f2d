//! PCA and one iteration of FastICA on activations as wide as SmolLM2-135M's residual stream.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use monosem_decompose::{Ica, IcaConfig, Moments, Pca};
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const N: usize = 10_000;
const D: usize = 576;

/// Heavy-tailed sources, each mixed into four dimensions.
fn activations() -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let sources = Array2::from_shape_simple_fn((N, D), || (rng.random::<f32>() * 2.0 - 1.0).powi(7));
    Array2::from_shape_fn((N, D), |(i, j)| (0..4).map(|k| sources[[i, (j + k * k * 31) % D]] / (k + 1) as f32).sum())
}

fn pca(c: &mut Criterion) {
    let x = activations();
    let mut group = c.benchmark_group("decompose");
    group.sample_size(10).throughput(Throughput::Elements(N as u64));
    group.bench_function(format!("pca_{N}x{D}"), |b| {
        b.iter(|| {
            let mut moments = Moments::new(D);
            moments.add(x.view());
            black_box(Pca::from_moments(&moments).expect("finite rows"))
        });
    });
    group.finish();
}

/// Iterations alone: from the end of the first to the end of the last, without moments and whitening.
fn iterations(x: &Array2<f32>, iterations: u64) -> Duration {
    let max_iter = iterations as usize + 1;
    let config = IcaConfig { max_iter, tol: f64::MIN_POSITIVE, ..IcaConfig::default() };
    let mut first = None;
    let mut took = Duration::ZERO;
    let fitted = Ica::fit(x.view(), &config, &mut |_, _| {
        took = first.get_or_insert_with(Instant::now).elapsed();
        ControlFlow::Continue(())
    });
    black_box(fitted.expect("finite rows"));
    took
}

fn fastica(c: &mut Criterion) {
    let x = activations();
    let mut group = c.benchmark_group("decompose");
    group.sample_size(10).throughput(Throughput::Elements(N as u64));
    group.bench_function(format!("fastica_iteration_{N}x{D}"), |b| b.iter_custom(|n| iterations(&x, n)));
    group.finish();
}

criterion_group!(benches, pca, fastica);
criterion_main!(benches);
