//! Gradients at hook points against PyTorch (`data/golden/gradients.py`), against differences of the forward pass, and against their laws.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use monosem_hooks::{DifferentiableModel, HookPoint, HookedModel, Readout, Site};
use monosem_lm::{LanguageModel, LoadOptions, Precision};
use ndarray::{Array2, Array3, ArrayView3, Axis, Dimension, s};
use proptest::prelude::*;
use safetensors::SafeTensors;

const NAMES: [&str; 3] = ["neox-tiny", "gpt2-tiny", "llama-tiny"];

fn data(folder: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data")).join(folder)
}

fn load(name: &str) -> LanguageModel {
    LanguageModel::load(&data("golden").join(name), &LoadOptions::default()).unwrap()
}

/// Every kind of block: the three families, GPT-NeoX with its MLP after attention, and a model with contexts of more than one tile of queries.
static MODELS: LazyLock<Vec<(&str, LanguageModel)>> = LazyLock::new(|| {
    let mut models: Vec<_> = NAMES.into_iter().map(|name| (name, load(name))).collect();
    models.push(("toy", LanguageModel::load(&data("toy-model"), &LoadOptions::default()).unwrap()));
    let (folder, neox) = (tempfile::tempdir().unwrap(), data("golden/neox-tiny"));
    let config = std::fs::read_to_string(neox.join("config.json")).unwrap();
    let one_after_the_other = config.replace("\"use_parallel_residual\": true", "\"use_parallel_residual\": false");
    assert_ne!(config, one_after_the_other);
    std::fs::write(folder.path().join("config.json"), one_after_the_other).unwrap();
    std::fs::copy(neox.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    models.push(("sequential neox", LanguageModel::load(folder.path(), &LoadOptions::default()).unwrap()));
    models
});

/// A safetensors file.
struct File(Vec<u8>);

impl File {
    fn read(name: &str, file: &str) -> Self {
        Self(std::fs::read(data("golden").join(name).join(file)).unwrap())
    }

    /// Shape and bytes of a tensor, if the file has it.
    fn bytes(&self, name: &str) -> Option<(Vec<usize>, Vec<u8>)> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).ok().map(|tensor| (tensor.shape().to_vec(), tensor.data().to_vec()))
    }

    fn integers(&self, name: &str) -> (Vec<usize>, Vec<usize>) {
        let (shape, bytes) = self.bytes(name).unwrap();
        (shape, bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect())
    }

    fn floats(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (shape, bytes) = self.bytes(name)?;
        Some((shape, bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()))
    }
}

/// A residual stream as the model has it before block `layer`.
fn stream(model: &dyn HookedModel, tokens: &Array2<u32>, layer: usize) -> Array3<f32> {
    let at = match layer.checked_sub(1) {
        None => HookPoint::new(0, Site::ResidPre),
        Some(below) => HookPoint::new(below, Site::ResidPost),
    };
    let mut found = None;
    let _ = model.forward(tokens.view(), &mut |point, activations| {
        if point != at {
            return ControlFlow::Continue(());
        }
        found = Some(activations.to_owned());
        ControlFlow::Break(())
    });
    found.unwrap()
}

/// The gradient with respect to the stream, and all that the hook was shown.
fn gradients(
    model: &dyn DifferentiableModel,
    layer: usize,
    stream: &Array3<f32>,
    readout: Readout<'_>,
    mut cotangent: impl FnMut(ArrayView3<'_, f32>) -> Array3<f32>,
) -> (Array3<f32>, Vec<(HookPoint, Array3<f32>)>) {
    let mut seen = Vec::new();
    let result = model.backward(layer, stream.clone(), readout, &mut cotangent, &mut |point, gradient| {
        seen.push((point, gradient.to_owned()));
        ControlFlow::Continue(())
    });
    (result.continue_value().unwrap(), seen)
}

fn size(values: ArrayView3<'_, f32>) -> f32 {
    values.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// The largest difference, in units of the largest value.
fn apart(got: ArrayView3<'_, f32>, want: ArrayView3<'_, f32>) -> f32 {
    assert_eq!(got.dim(), want.dim());
    size((&got - &want).view()) / size(want).max(f32::MIN_POSITIVE)
}

fn dot<D: Dimension>(a: ndarray::ArrayView<'_, f32, D>, b: ndarray::ArrayView<'_, f32, D>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Numbers in [-1, 1].
fn numbers(shape: (usize, usize, usize), seed: usize) -> Array3<f32> {
    let (_, rows, width) = shape;
    let hash = |i: usize| (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
    Array3::from_shape_fn(shape, |(i, j, k)| (hash((i * rows + j) * width + k) % 20_011) as f32 / 10_005.0 - 1.0)
}

fn some_tokens(model: &dyn HookedModel, batch: usize, positions: usize, seed: usize) -> Array2<u32> {
    Array2::from_shape_fn((batch, positions), |(i, j)| {
        ((i * 7919 + j * 104_729 + seed * 31 + (i + seed) * j * j) % model.d_vocab()) as u32
    })
}

#[test]
fn gradients_are_those_of_autograd() {
    for name in NAMES {
        let (model, golden) = (load(name), File::read(name, "gradients.safetensors"));
        let (shape, ids) = File::read(name, "golden.safetensors").integers("input_ids");
        let tokens = Array2::from_shape_fn((shape[0], shape[1]), |(i, j)| ids[i * shape[1] + j] as u32);
        let ends = golden.integers("ends").1;
        let target = golden.floats("target").unwrap().1;
        let d_vocab = model.d_vocab();
        let mut loss = 0.0f64;
        // d KL(p || q) / d logits = p (ln p - ln q - KL), with p the softmax of the logits.
        let kl = |logits: ArrayView3<'_, f32>| {
            let mut cotangent = Array3::zeros(logits.dim());
            for (i, row) in logits.outer_iter().enumerate() {
                let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
                let terms = row.iter().zip(&target[i * d_vocab..]).map(|(&l, &q)| {
                    let log = f64::from(l) - total.ln();
                    (log.exp(), log - f64::from(q).ln())
                });
                let terms: Vec<(f64, f64)> = terms.collect();
                let kl: f64 = terms.iter().map(|(p, ratio)| p * ratio).sum();
                let row = terms.iter().zip(cotangent.index_axis_mut(Axis(0), i));
                row.for_each(|((p, ratio), d)| *d = (p * (ratio - kl)) as f32);
                loss += kl;
            }
            cotangent
        };
        let (returned, seen) = gradients(&model, 0, &stream(&model, &tokens, 0), Readout::Logits(&ends), kl);
        let want = f64::from(golden.floats("loss").unwrap().1[0]);
        assert!((loss / want - 1.0).abs() < 1e-5, "{name}: the loss is {loss}, not {want}");

        let mut expected: Vec<HookPoint> = Vec::new();
        let _ = model.forward(tokens.view(), &mut |point, _| {
            expected.push(point);
            ControlFlow::Continue(())
        });
        expected.reverse();
        assert_eq!(seen.iter().map(|(point, _)| *point).collect::<Vec<_>>(), expected, "{name}");

        let mut worst = 0.0f32;
        for (point, got) in &seen {
            let last = point.layer + 1 == model.n_layers();
            let stored = match point.site {
                Site::ResidPost if !last => HookPoint::new(point.layer + 1, Site::ResidPre),
                _ => *point,
            };
            let (_, want) = golden.floats(&stored.to_string()).unwrap_or_else(|| panic!("{name}: no {stored}"));
            let want = Array3::from_shape_vec(got.dim(), want).unwrap();
            let off = apart(got.view(), want.view());
            assert!(off < 1e-4, "{name}: the gradient at {point} is off by {off} of the largest");
            worst = worst.max(off);
            for (i, &end) in ends.iter().enumerate() {
                assert!(got.slice(s![i, end + 1.., ..]).iter().all(|&d| d == 0.0), "{name} {point}: padding");
            }
        }
        assert_eq!(returned, seen.last().unwrap().1);
        println!("{name}: gradients within {worst:e} of the largest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_step_changes_the_readout_as_the_gradient_says(
        which in 0usize..5, batch in 1usize..4, positions in 1usize..=128, layer in 0usize..=4, end in 0usize..=4,
        logits: bool, seed in 0usize..10_000,
    ) {
        let (name, model) = &MODELS[which];
        let positions = 1 + (positions - 1) % model.max_context();
        let (layer, end) = (layer % (model.n_layers() + 1), end % (model.n_layers() + 1));
        let (layer, end) = if logits { (layer, model.n_layers()) } else { (layer.min(end), layer.max(end)) };
        let ends: Vec<usize> = (0..batch).map(|i| (seed / (i + 1) + i) % positions).collect();
        let start = stream(model, &some_tokens(model, batch, positions, seed), layer);
        let readout = if logits { Readout::Logits(&ends) } else { Readout::Stream(end) };
        let width = if logits { model.d_vocab() } else { model.d_model() };
        let functional = numbers((batch, if logits { 1 } else { positions }, width), seed);
        let (gradient, _) = gradients(model, layer, &start, readout, |_| functional.clone());
        prop_assert_eq!(gradient.dim(), start.dim());

        let value = |by: f32, direction: &Array3<f32>| -> f64 {
            let moved = &start + &(direction * by);
            if logits {
                let all = model.forward_from(layer, moved, &mut |_, _| ControlFlow::Continue(()));
                let all = all.continue_value().unwrap();
                let rows = ends.iter().enumerate().map(|(i, &e)| dot(all.slice(s![i, e, ..]), functional.slice(s![i, 0, ..])));
                rows.sum()
            } else if layer == end {
                dot(moved.view(), functional.view())
            } else {
                let mut found = None;
                let _ = model.forward_from(layer, moved, &mut |point, activations| {
                    if point != HookPoint::new(end - 1, Site::ResidPost) {
                        return ControlFlow::Continue(());
                    }
                    found = Some(dot(activations.view(), functional.view()));
                    ControlFlow::Break(())
                });
                found.unwrap()
            }
        };
        // Half along the gradient, for a derivative that rounding does not hide, and half anywhere.
        let noise = numbers(start.dim(), seed + 1);
        let length = |a: &Array3<f32>| dot(a.view(), a.view()).sqrt() as f32;
        let direction = &gradient / length(&gradient).max(f32::MIN_POSITIVE) + &noise / length(&noise);
        let got = dot(gradient.view(), direction.view());
        // Central differences of two widths cancel the error of third order.
        let scale = length(&start) / (start.len() as f32).sqrt();
        let central = |h: f32| (value(h, &direction) - value(-h, &direction)) / (2.0 * f64::from(h));
        let (wide, narrow) = (central(scale * 0.04), central(scale * 0.02));
        let want = (4.0 * narrow - wide) / 3.0;
        let tolerance = 4e-3 * f64::from(length(&gradient));
        prop_assert!((got - want).abs() < tolerance, "{name} {readout:?} from {layer}: {got}, by differences {want}");
    }

    #[test]
    fn a_batch_is_its_contexts_and_padding_gets_nothing(
        which in 0usize..5, positions in 2usize..=128, layer in 0usize..=4, seed in 0usize..10_000,
    ) {
        let (name, model) = &MODELS[which];
        let positions = 2 + (positions - 2) % (model.max_context() - 1);
        let (batch, layer) = (3, layer % model.n_layers());
        let ends: Vec<usize> = (0..batch).map(|i| (seed / (i + 1)) % positions).collect();
        let start = stream(model, &some_tokens(model, batch, positions, seed), layer);
        let functional = numbers((batch, 1, model.d_vocab()), seed);
        let (_, whole) = gradients(model, layer, &start, Readout::Logits(&ends), |_| functional.clone());
        let sites = Site::ALL.into_iter().filter(|&site| model.width(site).is_some()).count();
        prop_assert_eq!(whole.len(), sites * (model.n_layers() - layer));
        for (i, &end) in ends.iter().enumerate() {
            let one = start.slice(s![i..=i, ..=end, ..]).to_owned();
            let (_, alone) =
                gradients(model, layer, &one, Readout::Logits(&[end]), |_| functional.slice(s![i..=i, .., ..]).to_owned());
            for ((point, whole), (other, alone)) in whole.iter().zip(&alone) {
                prop_assert_eq!(point, other);
                let off = apart(whole.slice(s![i..=i, ..=end, ..]), alone.view());
                prop_assert!(off < 2e-4, "{name} {point}: context {i} alone is off by {off}");
                prop_assert!(whole.slice(s![i, end + 1.., ..]).iter().all(|&d| d == 0.0), "{name} {point}: padding");
            }
        }
    }

    #[test]
    fn two_walks_make_one(which in 0usize..5, positions in 1usize..=64, layer in 0usize..=4, via in 0usize..=4, seed in 0usize..10_000) {
        let (name, model) = &MODELS[which];
        let (layer, via) = (layer % (model.n_layers() + 1), via % (model.n_layers() + 1));
        let (layer, via) = (layer.min(via), layer.max(via));
        let ends = [positions - 1, positions / 2];
        let start = stream(model, &some_tokens(model, 2, positions, seed), layer);
        let functional = numbers((2, 1, model.d_vocab()), seed);
        let (direct, all) = gradients(model, layer, &start, Readout::Logits(&ends), |_| functional.clone());
        let mut above = Vec::new();
        let (composed, mut below) = gradients(model, layer, &start, Readout::Stream(via), |middle| {
            let (gradient, seen) = gradients(model, via, &middle.to_owned(), Readout::Logits(&ends), |_| functional.clone());
            above = seen;
            gradient
        });
        prop_assert_eq!(&composed, &direct, "{} from {} by way of {}", name, layer, via);
        above.append(&mut below);
        prop_assert!(above == all, "{name} from {layer} by way of {via}");
    }
}

#[test]
fn gradients_of_sites_meet_in_the_stream() {
    for (name, model) in &*MODELS {
        let start = stream(model, &some_tokens(model, 2, 30, 1), 0);
        let functional = numbers((2, 1, model.d_vocab()), 1);
        let (_, seen) = gradients(model, 0, &start, Readout::Logits(&[29, 12]), |_| functional.clone());
        let at = |layer, site| seen.iter().find(|(p, _)| *p == HookPoint::new(layer, site)).map(|(_, g)| g);
        for layer in 0..model.n_layers() {
            let after = at(layer, Site::ResidPost);
            assert_eq!(at(layer, Site::MlpOut), after, "{name}: the MLP is added to the stream that leaves");
            let added_to = at(layer, Site::ResidMid).or(after);
            assert_eq!(at(layer, Site::AttnOut), added_to, "{name}: attention is added to the stream after it");
            assert!(layer == 0 || at(layer - 1, Site::ResidPost) == at(layer, Site::ResidPre), "{name}");
        }
    }
}

#[test]
fn a_hook_ends_the_walk() {
    for (name, model) in &*MODELS {
        let start = stream(model, &some_tokens(model, 1, 5, 1), 0);
        let last = HookPoint::new(1, Site::MlpPost);
        let mut seen = Vec::new();
        let mut ones = |readout: ArrayView3<'_, f32>| Array3::ones(readout.dim());
        let result = model.backward(0, start, Readout::Stream(2), &mut ones, &mut |point, _| {
            seen.push(point.site);
            if point == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(result.is_break());
        assert_eq!(seen, [Site::ResidPost, Site::MlpOut, Site::MlpPost], "{name}");
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    for (name, model) in &*MODELS {
        // Enough rows for several tiles of a pass, and a number that does not divide evenly.
        let start = stream(model, &some_tokens(model, 11, 61, 3), 0);
        let functional = numbers(start.dim(), 3);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| gradients(model, 0, &start, Readout::Stream(model.n_layers()), |_| functional.clone()))
        };
        let one = run(1);
        for threads in [2, 3, 8] {
            assert!(run(threads) == one, "{name}: {threads} threads give other values");
        }
    }
}

#[test]
fn the_layout_of_arrays_does_not_matter() {
    let model = &MODELS[0].1;
    let swapped =
        |a: &Array3<f32>| a.clone().permuted_axes([0, 2, 1]).as_standard_layout().to_owned().permuted_axes([0, 2, 1]);
    let start = stream(model, &some_tokens(model, 2, 9, 1), 0);
    let functional = numbers((2, 9, model.d_model()), 1);
    let plain = gradients(model, 0, &start, Readout::Stream(2), |_| functional.clone());
    assert!(!swapped(&start).is_standard_layout());
    assert!(gradients(model, 0, &swapped(&start), Readout::Stream(2), |_| swapped(&functional)) == plain);
}

#[test]
fn maps_in_bf16_give_nearly_the_same_gradients() {
    for name in NAMES {
        let options = LoadOptions { precision: Precision::Bf16, ..LoadOptions::default() };
        let rounded = LanguageModel::load(&data("golden").join(name), &options).unwrap();
        let plain = load(name);
        let start = stream(&plain, &some_tokens(&plain, 2, 20, 5), 0);
        let functional = numbers((2, 1, plain.d_vocab()), 5);
        let run = |model| gradients(model, 0, &start, Readout::Logits(&[19, 7]), |_| functional.clone()).0;
        let (got, want) = (run(&rounded), run(&plain));
        let cosine =
            dot(got.view(), want.view()) / (dot(got.view(), got.view()) * dot(want.view(), want.view())).sqrt();
        assert!(cosine > 0.999 && got != want, "{name}: cosine {cosine}");
    }
}

#[test]
fn an_empty_stream_has_an_empty_gradient() {
    let model = &MODELS[0].1;
    for (batch, positions) in [(0, 5), (3, 0)] {
        let result = model.backward(
            0,
            Array3::zeros((batch, positions, model.d_model())),
            Readout::Stream(2),
            &mut |_| unreachable!("nothing is read"),
            &mut |_, _| unreachable!("nothing is passed"),
        );
        assert_eq!(result.continue_value().unwrap().dim(), (batch, positions, model.d_model()));
    }
}

fn refused(layer: usize, width: usize, readout: Readout<'_>) {
    let start = Array3::ones((2, 4, width));
    let _ = gradients(&MODELS[0].1, layer, &start, readout, |_| Array3::zeros((1, 1, 1)));
}

#[test]
#[should_panic(expected = "a residual stream [2, 4, 63] is not d_model 64 wide")]
fn a_stream_of_another_width_is_named() {
    refused(0, 63, Readout::Stream(1));
}

#[test]
#[should_panic(expected = "block 2 is beyond the readout before block 1")]
fn a_readout_below_the_stream_is_named() {
    refused(2, 64, Readout::Stream(1));
}

#[test]
#[should_panic(expected = "block 3 is beyond the 2 of the model")]
fn a_readout_beyond_the_model_is_named() {
    refused(0, 64, Readout::Stream(3));
}

#[test]
#[should_panic(expected = "1 ends for 2 contexts")]
fn a_context_without_an_end_is_named() {
    refused(0, 64, Readout::Logits(&[1]));
}

#[test]
#[should_panic(expected = "position 4 is not among the 4")]
fn an_end_beyond_the_context_is_named() {
    refused(0, 64, Readout::Logits(&[1, 4]));
}

#[test]
#[should_panic(expected = "the cotangent [1, 1, 1] is not as large as its readout [2, 1, 97]")]
fn a_cotangent_of_another_shape_is_named() {
    refused(0, 64, Readout::Logits(&[1, 3]));
}
