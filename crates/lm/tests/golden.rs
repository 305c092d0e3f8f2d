//! The three families against transformers: `data/golden/models.py` made the checkpoints and what they give.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_lm::{LanguageModel, LoadOptions};
use ndarray::{Array2, Array3, ArrayView3, Axis};
use safetensors::SafeTensors;

const NAMES: [&str; 3] = ["neox-tiny", "gpt2-tiny", "llama-tiny"];

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/golden")).join(name)
}

fn load(name: &str) -> LanguageModel {
    LanguageModel::load(&folder(name), &LoadOptions::default()).unwrap()
}

struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str) -> Self {
        Self(std::fs::read(folder(name).join("golden.safetensors")).unwrap())
    }

    fn tokens(&self) -> Array2<u32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let ids = file.tensor("input_ids").unwrap();
        let values = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
        Array2::from_shape_vec((ids.shape()[0], ids.shape()[1]), values.collect()).unwrap()
    }

    fn tensor(&self, name: &str) -> Array3<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let [a, b, c] = tensor.shape().try_into().unwrap();
        Array3::from_shape_vec((a, b, c), values.collect()).unwrap()
    }
}

fn distance(a: ArrayView3<'_, f32>, b: ArrayView3<'_, f32>) -> f32 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn logits(model: &LanguageModel, tokens: &Array2<u32>) -> Array3<f32> {
    model.forward(tokens.view(), &mut |_, _| ControlFlow::Continue(())).continue_value().unwrap()
}

/// Every hook point of a pass, in the order of the visits.
fn everything(model: &LanguageModel, tokens: &Array2<u32>) -> Vec<(HookPoint, Array3<f32>)> {
    let mut seen = Vec::new();
    let _ = model.forward(tokens.view(), &mut |point, activations| {
        seen.push((point, activations.to_owned()));
        ControlFlow::Continue(())
    });
    seen
}

fn at(seen: &[(HookPoint, Array3<f32>)], layer: usize, site: Site) -> &Array3<f32> {
    &seen.iter().find(|(p, _)| *p == HookPoint::new(layer, site)).unwrap().1
}

#[test]
fn hidden_states_and_logits_are_those_of_transformers() {
    for name in NAMES {
        let (model, golden) = (load(name), Golden::read(name));
        let tokens = golden.tokens();
        let seen = everything(&model, &tokens);
        for layer in 0..model.n_layers() {
            let want = golden.tensor(&format!("hidden_{layer}"));
            let got = distance(at(&seen, layer, Site::ResidPre).view(), want.view());
            assert!(got < 1e-4, "{name}: resid_pre of block {layer} is {got} off");
            if layer > 0 {
                let got = distance(at(&seen, layer - 1, Site::ResidPost).view(), want.view());
                assert!(got < 1e-4, "{name}: resid_post of block {} is {got} off", layer - 1);
            }
        }
        let got = distance(logits(&model, &tokens).view(), golden.tensor("logits").view());
        assert!(got < 1e-4, "{name}: logits are {got} off");
        println!("{name}: logits within {got:e}");
    }
}

#[test]
fn hook_points_come_in_order_and_as_wide_as_promised() {
    for name in NAMES {
        let model = load(name);
        let tokens = Golden::read(name).tokens();
        let seen = everything(&model, &tokens);
        let sites: Vec<Site> = Site::ALL.into_iter().filter(|&site| model.width(site).is_some()).collect();
        assert_eq!(sites.contains(&Site::ResidMid), name != "neox-tiny", "a parallel residual has no middle");
        let want: Vec<HookPoint> =
            (0..model.n_layers()).flat_map(|l| sites.iter().map(move |&site| HookPoint::new(l, site))).collect();
        assert_eq!(seen.iter().map(|(p, _)| *p).collect::<Vec<_>>(), want);
        for (point, activations) in &seen {
            let (batch, positions) = tokens.dim();
            assert_eq!(activations.dim(), (batch, positions, model.width(point.site).unwrap()), "{name} {point}");
        }
    }
}

#[test]
fn the_residual_stream_is_the_sum_of_what_is_written_to_it() {
    for name in NAMES {
        let model = load(name);
        let seen = everything(&model, &Golden::read(name).tokens());
        for layer in 0..model.n_layers() {
            let site = |site| at(&seen, layer, site);
            let sum = site(Site::ResidPre) + site(Site::AttnOut) + site(Site::MlpOut);
            assert!(distance(sum.view(), site(Site::ResidPost).view()) < 1e-5);
            if model.width(Site::ResidMid).is_some() {
                let sum = site(Site::ResidPre) + site(Site::AttnOut);
                assert!(distance(sum.view(), site(Site::ResidMid).view()) < 1e-5);
            }
        }
    }
}

#[test]
fn a_break_ends_the_pass_at_once() {
    let model = load("llama-tiny");
    let tokens = Golden::read("llama-tiny").tokens();
    for stop in everything(&model, &tokens).iter().map(|(p, _)| *p) {
        let mut last = None;
        let result = model.forward(tokens.view(), &mut |point, _| {
            last = Some(point);
            if point == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(result.is_break());
        assert_eq!(last, Some(stop));
    }
}

#[test]
fn continuing_from_any_block_gives_the_same_logits() {
    for name in NAMES {
        let model = load(name);
        let tokens = Golden::read(name).tokens();
        let (seen, want) = (everything(&model, &tokens), logits(&model, &tokens));
        for layer in 0..=model.n_layers() {
            let resid = if layer < model.n_layers() {
                at(&seen, layer, Site::ResidPre)
            } else {
                at(&seen, layer - 1, Site::ResidPost)
            };
            let mut first = None;
            // Once in standard order, once as a view with its axes swapped.
            let swapped =
                resid.clone().permuted_axes([0, 2, 1]).as_standard_layout().to_owned().permuted_axes([0, 2, 1]);
            for resid in [resid.clone(), swapped] {
                let mut hook = |point, _: ndarray::ArrayViewMut3<'_, f32>| {
                    first.get_or_insert(point);
                    ControlFlow::Continue(())
                };
                let got = model.forward_from(layer, resid, &mut hook).continue_value().unwrap();
                assert_eq!(got, want, "{name}: bitwise the same from block {layer}");
            }
            assert_eq!(first, (layer < model.n_layers()).then(|| HookPoint::new(layer, Site::ResidPre)));
        }
    }
}

#[test]
fn an_edit_flows_on_and_only_forward() {
    for name in NAMES {
        let model = load(name);
        let tokens = Golden::read(name).tokens();
        let before = everything(&model, &tokens);
        let points: Vec<HookPoint> = before.iter().map(|(p, _)| *p).collect();
        for (i, &edited) in points.iter().enumerate() {
            let mut after = Vec::new();
            let result = model.forward(tokens.view(), &mut |point, mut activations| {
                if point == edited {
                    activations.fill(0.0);
                }
                after.push(activations.to_owned());
                ControlFlow::Continue(())
            });
            for (j, (point, want)) in before.iter().enumerate() {
                if j < i {
                    assert_eq!(&after[j], want, "{name}: {edited} changed {point}, which comes before it");
                }
            }
            assert!(after[i].iter().all(|&x| x == 0.0));
            let parallel = model.width(Site::ResidMid).is_none();
            let last = distance(result.continue_value().unwrap().view(), logits(&model, &tokens).view());
            assert!(last > 1e-3, "{name}: zeroing {edited} does not reach the logits");
            // The sites that read what was edited.
            let next = match edited.site {
                Site::ResidPre => Some(Site::AttnZ),
                Site::AttnZ => Some(Site::AttnOut),
                Site::AttnOut if parallel => Some(Site::ResidPost),
                Site::AttnOut => Some(Site::ResidMid),
                Site::ResidMid => Some(Site::MlpPost),
                Site::MlpPost => Some(Site::MlpOut),
                Site::MlpOut => Some(Site::ResidPost),
                Site::ResidPost => None,
            };
            if let Some(next) = next {
                let j = points.iter().position(|p| *p == HookPoint::new(edited.layer, next)).unwrap();
                assert!(
                    distance(after[j].view(), before[j].1.view()) > 1e-3,
                    "{name}: {edited} does not reach {next:?}"
                );
            } else if i + 1 < points.len() {
                assert!(after[i + 1].iter().all(|&x| x == 0.0), "{name}: {edited} does not enter the next block");
            }
        }
        // Zeroed AttnOut leaves the stream as it was.
        let pre = at(&before, 0, Site::ResidPre);
        if model.width(Site::ResidMid).is_some() {
            let mut mid = None;
            let _ = model.forward(tokens.view(), &mut |point, mut activations| {
                match point.site {
                    Site::AttnOut => activations.fill(0.0),
                    Site::ResidMid => {
                        mid = Some(activations.to_owned());
                        return ControlFlow::Break(());
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            });
            assert_eq!(mid.as_ref(), Some(pre));
        }
    }
}

#[test]
fn padding_on_the_right_reaches_nothing() {
    for name in NAMES {
        let model = load(name);
        let tokens = Golden::read(name).tokens();
        let keep = 9;
        let mut other = tokens.clone();
        other.slice_mut(ndarray::s![.., keep..]).fill(3);
        let (a, b) = (logits(&model, &tokens), logits(&model, &other));
        let whole = |x: &Array3<f32>| x.slice(ndarray::s![.., ..keep, ..]).to_owned();
        assert_eq!(whole(&a), whole(&b), "{name}: bitwise the same before the padding");
        let short = logits(&model, &tokens.slice(ndarray::s![.., ..keep]).to_owned());
        assert!(distance(whole(&a).view(), short.view()) < 1e-4, "{name}: shorter contexts agree");
        let alone = logits(&model, &tokens.slice(ndarray::s![1..2, ..]).to_owned());
        assert!(
            distance(a.slice(ndarray::s![1..2, .., ..]), alone.view()) < 1e-4,
            "{name}: rows of a batch are independent"
        );
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for name in NAMES {
        let model = load(name);
        // Enough rows for several tiles, and a number that does not divide evenly.
        let tokens = Array2::from_shape_fn((11, 61), |(i, j)| ((i * 31 + j * 17) % 97) as u32);
        let run = |threads: usize, tokens: &Array2<u32>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (everything(&model, tokens), logits(&model, tokens)))
        };
        for tokens in
            [tokens.slice(ndarray::s![..1, ..9]).to_owned(), tokens.slice(ndarray::s![..3, ..]).to_owned(), tokens]
        {
            let one = run(1, &tokens);
            for threads in [2, 3, 8] {
                assert!(
                    run(threads, &tokens) == one,
                    "{name}: {threads} threads give other values for {:?}",
                    tokens.dim()
                );
            }
        }
    }
}

#[test]
fn centred_weights_give_the_same_logits_and_a_stream_of_mean_zero() {
    for name in ["neox-tiny", "gpt2-tiny"] {
        let options = LoadOptions { center_writing_weights: true, ..LoadOptions::default() };
        let model = LanguageModel::load(&folder(name), &options).unwrap();
        let golden = Golden::read(name);
        let tokens = golden.tokens();
        let got = distance(logits(&model, &tokens).view(), golden.tensor("logits").view());
        assert!(got < 1e-4, "{name}: logits are {got} off");
        let seen = everything(&model, &tokens);
        for (point, activations) in seen.iter().filter(|(p, _)| !matches!(p.site, Site::AttnZ | Site::MlpPost)) {
            let worst = activations.mean_axis(Axis(2)).unwrap().iter().fold(0.0f32, |a, x| a.max(x.abs()));
            assert!(worst < 1e-5, "{name}: mean {worst} at {point}");
        }
        let plain = everything(&load(name), &tokens);
        assert!(
            plain[0].1.mean_axis(Axis(2)).unwrap().iter().any(|x| x.abs() > 1e-3),
            "{name}: it was not centred before"
        );
        let redrawn = everything(&model.randomized(3), &tokens);
        let worst = redrawn[0].1.mean_axis(Axis(2)).unwrap().iter().fold(0.0f32, |a, x| a.max(x.abs()));
        assert!(worst < 1e-5, "{name}: redrawn weights stay centred");
    }
    let error = LanguageModel::load(
        &folder("llama-tiny"),
        &LoadOptions { center_writing_weights: true, ..LoadOptions::default() },
    )
    .err()
    .unwrap();
    assert!(error.to_string().contains("RMSNorm"), "{error}");
}

#[test]
fn redrawn_weights_depend_on_the_seed_and_are_others() {
    for name in NAMES {
        let model = load(name);
        let tokens = Golden::read(name).tokens();
        let (a, b, c) = (model.randomized(1), model.randomized(1), model.randomized(2));
        assert_eq!(logits(&a, &tokens), logits(&b, &tokens));
        assert_eq!(a.weights_hash(), b.weights_hash());
        assert_ne!(a.weights_hash(), c.weights_hash());
        assert_ne!(a.weights_hash(), model.weights_hash());
        assert!(distance(logits(&a, &tokens).view(), logits(&c, &tokens).view()) > 0.1);
        assert!(distance(logits(&a, &tokens).view(), logits(&model, &tokens).view()) > 0.1);
        let spread = |m: &LanguageModel| everything(m, &tokens)[0].1.std(0.0);
        assert!((spread(&a) / spread(&model) - 1.0).abs() < 0.1, "{name}: embeddings keep their spread");
    }
}

#[test]
#[should_panic(expected = "is not below the vocabulary size 97")]
fn an_unknown_token_is_named() {
    let _ = logits(&load("llama-tiny"), &Array2::from_elem((1, 2), 97));
}

#[test]
#[should_panic(expected = "65 positions do not fit in a context of 64")]
fn a_context_that_is_too_long_is_named() {
    let _ = logits(&load("gpt2-tiny"), &Array2::zeros((1, 65)));
}

#[test]
fn an_empty_batch_gives_no_logits() {
    let model = load("neox-tiny");
    assert_eq!(logits(&model, &Array2::zeros((0, 5))).dim(), (0, 5, 97));
    assert_eq!(logits(&model, &Array2::zeros((2, 0))).dim(), (2, 0, 97));
}

#[test]
fn a_text_read_in_pieces_gives_the_same_logits() {
    for name in NAMES {
        let (model, tokens) = (load(name), Golden::read(name).tokens());
        let whole = logits(&model, &tokens);
        let row = tokens.row(0).to_vec();
        let n = row.len();
        for cut in [0, 1, n / 2, n - 1] {
            let mut session = model.session();
            let first = session.read(&row[..cut]);
            // Another way on, which is taken back.
            session.read(&row[..n - cut]);
            session.truncate(cut);
            assert_eq!(session.tokens(), &row[..cut]);
            let mut branch = session.clone();
            let rest = branch.read(&row[cut..]);
            let states = ndarray::concatenate![Axis(0), first, rest];
            let found = branch.logits(states.view()).insert_axis(Axis(0));
            let apart = distance(found.view(), whole.slice(ndarray::s![..1, .., ..]));
            assert!(apart < 1e-4, "{name} cut at {cut}: {apart}");
        }
    }
}
