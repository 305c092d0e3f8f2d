//! The same laws on transformers, where the shape of a batch may change the last bits.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::close;
use monosem_dictionary::{Activation, LinearDictionary};
use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_lm::{LanguageModel, LoadOptions};
use monosem_patching::{Half, Patching, PatchingConfig, SelectionConfig, accuracy};

fn model(name: &str) -> LanguageModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden").join(name);
    LanguageModel::load(&folder, &LoadOptions::default()).unwrap()
}

#[test]
fn incremental_and_batched_runs_agree_with_whole_ones() {
    let (prompts, _) = common::prompts(40, 0, Half::Choose);
    for name in ["gpt2-tiny", "llama-tiny", "neox-tiny"] {
        let model = model(name);
        for site in [Site::ResidPost, Site::MlpOut] {
            let hook = HookPoint::new(0, site);
            let dictionary = LinearDictionary::random(64, model.d_model(), Activation::TopK { k: 8 }, 1);
            let config = PatchingConfig { hook, drop_positions: vec![0], with_error_term: false };
            let patching = Patching::new(&model, &dictionary, &prompts, &config).unwrap();
            let thresholds = vec![1e-9, 1e-7, 1e-5, 1e-3];
            let selection = patching
                .select(&SelectionConfig { thresholds, seed: 0, max_candidates: Some(20) }, &mut |_, _| {
                    ControlFlow::Continue(())
                })
                .unwrap();
            let mut state = patching.state(&selection.start.features);
            for &feature in &selection.start.features[..5] {
                state.toggle(feature);
            }
            let [a, b] = [state.evaluation(), patching.evaluate(&selection.start.features[5..])];
            assert!(close(&a.kl, &b.kl, 1e-6) && close(&a.logit_diff, &b.logit_diff, 1e-4), "{name} {site:?}");
            let exact = PatchingConfig { with_error_term: true, drop_positions: vec![], ..config };
            let patching = Patching::new(&model, &dictionary, &prompts, &exact).unwrap();
            let all = patching.evaluate(patching.candidates());
            assert!(site != Site::ResidPost || all.kl.iter().all(|kl| *kl < 1e-6), "{name}: {:?}", all.kl);
        }
    }
}

#[test]
fn accuracy_is_that_of_the_whole_pass() {
    let (prompts, _) = common::prompts(40, 0, Half::Choose);
    let model = model("neox-tiny");
    let found = accuracy(&model, &prompts).unwrap();
    for (prompt, diff) in prompts.iter().zip(&found.logit_diff) {
        let tokens = ndarray::Array2::from_shape_vec((1, prompt.tokens.len()), prompt.tokens.clone()).unwrap();
        let logits = model.forward(tokens.view(), &mut |_, _| ControlFlow::Continue(()));
        let ControlFlow::Continue(logits) = logits else { unreachable!() };
        let at = |name: u32| f64::from(logits[[0, prompt.end(), name as usize]]);
        assert!((at(prompt.answers[0]) - at(prompt.wrong[0]) - diff).abs() < 1e-4);
    }
    let right = found.logit_diff.iter().filter(|d| **d > 0.0).count();
    assert!((found.share() - right as f64 / 40.0).abs() < 1e-12);
}

#[test]
fn attributions_of_all_features_add_up() {
    let (prompts, _) = common::prompts(12, 0, Half::Choose);
    for name in ["gpt2-tiny", "llama-tiny", "neox-tiny"] {
        let model = model(name);
        for (layer, last) in [(0, false), (model.n_layers() - 1, true)] {
            let hook = HookPoint::new(layer, Site::ResidPost);
            let dictionary = LinearDictionary::identity(model.d_model());
            let config = PatchingConfig { hook, drop_positions: vec![], with_error_term: false };
            let patching = Patching::new(&model, &dictionary, &prompts, &config).unwrap();
            // Integrated gradients of a basis that explains everything are the whole change.
            let whole: f64 = patching.attribute(&model, 200).unwrap().iter().map(|e| e.kl_fall).sum();
            let kl = patching.unpatched().mean_kl();
            assert!((whole - kl).abs() < 0.02 * kl, "{name} {last}: {whole} of {kl}");
        }
    }
}

#[test]
fn attribution_is_the_effect_of_a_small_change() {
    let (prompts, _) = common::prompts(12, 0, Half::Choose);
    for (name, site) in [("llama-tiny", Site::ResidPost), ("gpt2-tiny", Site::MlpOut), ("neox-tiny", Site::AttnOut)] {
        let model = model(name);
        // Features that move activations by little: what they do is what the gradient says.
        let mut dictionary = LinearDictionary::random(24, model.d_model(), Activation::Relu, 3);
        dictionary.w_dec *= 0.02;
        let config = PatchingConfig { hook: HookPoint::new(0, site), drop_positions: vec![0], with_error_term: false };
        let patching = Patching::new(&model, &dictionary, &prompts, &config).unwrap();
        let attributed = patching.attribute(&model, 1).unwrap();
        let features: Vec<usize> = attributed.iter().map(|e| e.feature).collect();
        assert_eq!(features, patching.candidates());
        let exact = patching.single_effects(&features, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let largest = exact.iter().map(|e| e.kl_fall.abs()).fold(0.0, f64::max);
        for (a, e) in attributed.iter().zip(&exact) {
            assert!((a.kl_fall - e.kl_fall).abs() < 0.05 * largest, "{name}: {a:?} {e:?}");
        }
        assert!(patching.attribute(&model, 0).is_err());
        assert_eq!(patching.attribute(&model, 2).is_err(), site != Site::ResidPost);
    }
}
