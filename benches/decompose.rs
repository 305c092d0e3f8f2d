//! Seconds of PCA, of an iteration of FastICA and of NMF, and of non-negative codes, on activations as wide as SmolLM2-135M's residual stream.
//!
//! `cargo bench --bench decompose` prints a line per case; with `-- --json` a JSON object per line: `{bench, case, rows, d, threads, seconds, cpu_seconds}`,
//! the median iteration where there are several. Time on the processor, of all threads, is what a busy machine disturbs least; Linux counts it, in hundredths of a second. Further arguments name the cases: `pca` (moments included), `fastica`, `nmf` (as many components as dimensions),
//! `nmf-encode`. With `--rows FILE` (a file `activations-*.safetensors` of a store) the rows are activations, else mixtures of heavy-tailed sources.
//! With `--results FILE` the variances and components of PCA and the start and the unmixing of FastICA, run until it converges, are written
//! there as safetensors instead. Without `--bench` among the arguments, as cargo runs it in a test, the rows are few and narrow.
//!
//! `benches/peers/decompose_peers.py` runs it and scikit-learn by turns.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use monosem_decompose::{Ica, IcaConfig, Moments, Nmf, NmfConfig, NonNegative, Pca};
use monosem_dictionary::Dictionary;
use ndarray::{Array2, ArrayView2, s};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};

const CASES: [&str; 4] = ["pca", "fastica", "nmf", "nmf-encode"];

/// Rows of `nmf` and `nmf-encode`.
const NMF_ROWS: usize = 5_000;

/// Iterations timed (an odd number, for the median), after a first one that is not.
const TIMED: usize = 5;

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut take = |what: &str| arguments.iter().position(|a| a == what).map(|at| arguments.remove(at)).is_some();
    let (measured, json) = (take("--bench"), take("--json"));
    let mut file = |what: &str| {
        let at = arguments.iter().position(|a| a == what)?;
        arguments.remove(at);
        assert!(at < arguments.len(), "{what} needs a file");
        Some(arguments.remove(at))
    };
    let (rows, results) = (file("--rows"), file("--results"));
    let x = match rows {
        Some(path) => load_rows(Path::new(&path)),
        None if measured => mixtures(10_000, 576),
        None => mixtures(300, 24),
    };
    if let Some(path) = results {
        write_results(x.view(), Path::new(&path));
        return;
    }
    let unknown = arguments.iter().find(|a| !CASES.contains(&a.as_str()));
    assert!(unknown.is_none(), "no case {unknown:?}; there are {CASES:?}");
    for case in CASES.into_iter().filter(|case| arguments.is_empty() || arguments.iter().any(|a| a == case)) {
        let rows = if case.starts_with("nmf") { NMF_ROWS.min(x.nrows()) } else { x.nrows() };
        let Took { seconds, cpu_seconds } = time(case, x.slice(s![..rows, ..]));
        let (d, threads) = (x.ncols(), rayon::current_num_threads());
        if json {
            let line = serde_json::json!({
                "bench": "decompose", "case": case, "rows": rows, "d": d, "threads": threads, "seconds": seconds,
                "cpu_seconds": cpu_seconds,
            });
            println!("{line}");
        } else {
            println!("decompose {case} {rows} x {d}, threads {threads}: {seconds:.4} s");
        }
    }
}

/// A time, or a span of it.
#[derive(Clone, Copy)]
struct Took {
    seconds: f64,
    /// Of all threads of this program.
    cpu_seconds: Option<f64>,
}

impl Took {
    /// Since `start`, and since the program began.
    fn since(start: Instant) -> Self {
        // The 14th and 15th of the fields of proc(5), in ticks of a hundredth of a second; the second, a name, ends with a bracket.
        let cpu_ticks = |stat: String| {
            let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
            fields.map(str::parse::<f64>).sum::<Result<f64, _>>().ok()
        };
        let cpu_ticks = std::fs::read_to_string("/proc/self/stat").ok().and_then(cpu_ticks);
        Self { seconds: start.elapsed().as_secs_f64(), cpu_seconds: cpu_ticks.map(|ticks| ticks / 100.0) }
    }

    fn until(self, end: Self) -> Self {
        let cpu_seconds = self.cpu_seconds.zip(end.cpu_seconds).map(|(start, end)| end - start);
        Self { seconds: end.seconds - self.seconds, cpu_seconds }
    }
}

fn time(case: &str, x: ArrayView2<'_, f32>) -> Took {
    let whole = |task: &dyn Fn()| {
        let start = Instant::now();
        let before = Took::since(start);
        task();
        before.until(Took::since(start))
    };
    match case {
        "pca" => whole(&|| drop(pca(x))),
        "fastica" => {
            let config = IcaConfig { max_iter: TIMED + 1, tol: f64::MIN_POSITIVE, ..IcaConfig::default() };
            an_iteration(|progress| drop(Ica::fit(x, &config, progress).expect("finite rows")))
        }
        "nmf" => an_iteration(|progress| drop(nmf(x, progress))),
        _ => {
            let fitted = nmf(x, &mut |_, _| ControlFlow::Continue(()));
            let codes = NonNegative::new(fitted.dictionary(), None);
            whole(&|| assert!(codes.encode(x).nnz() > 0))
        }
    }
}

fn pca(x: ArrayView2<'_, f32>) -> Pca {
    let mut moments = Moments::new(x.ncols());
    moments.add(x);
    Pca::from_moments(&moments).expect("finite rows")
}

type Progress<'a> = &'a mut dyn FnMut(usize, f64) -> ControlFlow<()>;

fn nmf(x: ArrayView2<'_, f32>, progress: Progress<'_>) -> Nmf {
    let config = NmfConfig { max_iter: TIMED + 1, tol: f64::MIN_POSITIVE, ..NmfConfig::new(x.ncols()) };
    Nmf::fit(x, &config, progress).expect("finite rows").expect("not stopped")
}

/// The median from the end of an iteration to the end of the next, without what comes before and after.
fn an_iteration(fit: impl FnOnce(Progress<'_>)) -> Took {
    let (start, mut ends) = (Instant::now(), Vec::new());
    fit(&mut |_, _| {
        ends.push(Took::since(start));
        ControlFlow::Continue(())
    });
    let took: Vec<Took> = ends.windows(2).map(|pair| pair[0].until(pair[1])).collect();
    let median = |mut of: Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[TIMED / 2]
    };
    let cpu_seconds: Option<Vec<f64>> = took.iter().map(|took| took.cpu_seconds).collect();
    Took { seconds: median(took.iter().map(|took| took.seconds).collect()), cpu_seconds: cpu_seconds.map(median) }
}

/// Heavy-tailed sources, each mixed into four dimensions.
fn mixtures(n: usize, d: usize) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let sources = Array2::from_shape_simple_fn((n, d), || (rng.random::<f32>() * 2.0 - 1.0).powi(7));
    Array2::from_shape_fn((n, d), |(i, j)| (0..4).map(|k| sources[[i, (j + k * k * 31) % d]] / (k + 1) as f32).sum())
}

fn load_rows(path: &Path) -> Array2<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let view = file.tensor("activations").expect("a tensor named activations");
    assert_eq!(view.dtype(), Dtype::F32, "activations in f32");
    let values = view.data().as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    Array2::from_shape_vec((view.shape()[0], view.shape()[1]), values).expect("rows [n, d]")
}

/// What `Ica::fit` starts from, drawn as it does: normal numbers by Box and Muller.
fn start(seed: u64, n: usize) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((n, n), || {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
    })
}

fn write_results(x: ArrayView2<'_, f32>, path: &Path) {
    let pca = pca(x);
    let config = IcaConfig { max_iter: 500, tol: 1e-7, ..IcaConfig::default() };
    let ica = Ica::fit(x, &config, &mut |_, _| ControlFlow::Continue(())).expect("finite rows").expect("not stopped");
    println!("FastICA: {} iterations, converged: {}", ica.iterations, ica.converged);
    let tensors: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = [
        ("pca_explained_variance", pca.explained_variance.into_dyn()),
        ("pca_components", pca.components.into_dyn()),
        ("ica_unmixing", ica.unmixing.into_dyn()),
        ("ica_start", start(config.seed, ica.n_kept).into_dyn()),
    ]
    .map(|(name, array)| (name, (array.shape().to_vec(), array.iter().flat_map(|v| v.to_le_bytes()).collect())))
    .into();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (*name, TensorView::new(Dtype::F64, shape.clone(), bytes).expect("as many values as the shape says"))
    });
    let file = safetensors::serialize(views, None).expect("tensors of one kind");
    std::fs::write(path, file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
