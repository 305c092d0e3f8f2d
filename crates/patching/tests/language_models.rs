//! The same laws on transformers, where the shape of a batch may change the last bits.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::close;
use monosem_dictionary::{Activation, Dictionary, LinearDictionary};
use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_lm::{LanguageModel, LoadOptions};
use monosem_patching::{
    Change, Circuit, CircuitConfig, CircuitLayer, Half, Intervention, Occurrence, Patching, PatchingConfig,
    SelectionConfig, Start, Steering, accuracy,
};

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
                .select(&SelectionConfig { thresholds, seed: 0, start: Start::LargestChanges(20) }, &mut |_, _| {
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

/// Two dictionaries of the residual stream of a model, and texts.
fn circuit_case(name: &str) -> (LanguageModel, [LinearDictionary; 2], Vec<Occurrence>) {
    let model = model(name);
    let dictionary = |seed| LinearDictionary::random(40, model.d_model(), Activation::Relu, seed);
    let dictionaries = [dictionary(5), dictionary(6)];
    let text = |i: u32| Occurrence { tokens: (0..4 + i % 5).map(|p| (i * 31 + p * 17 + 5) % 50).collect() };
    (model, dictionaries, (0..12).map(text).collect())
}

fn layers<'a>(dictionaries: &'a [LinearDictionary; 2], last: usize) -> [CircuitLayer<'a>; 2] {
    let layer = |layer, dictionary| CircuitLayer { hook: HookPoint::new(layer, Site::ResidPost), dictionary };
    [layer(0, &dictionaries[0]), layer(last, &dictionaries[1])]
}

const CIRCUIT: CircuitConfig =
    CircuitConfig { drop_positions: Vec::new(), edges_per_node: 3, least_effect: 0.01, max_ablations: None };

#[test]
fn edges_of_a_circuit_are_what_ablation_does() {
    for name in ["gpt2-tiny", "llama-tiny", "neox-tiny"] {
        let (model, dictionaries, texts) = circuit_case(name);
        let layers = layers(&dictionaries, model.n_layers() - 1);
        let trace = |config: &CircuitConfig, target: usize| {
            Circuit::trace(&model, &layers, target, &mut |_, _| texts.clone(), config, &mut |_, _| {
                ControlFlow::Continue(())
            })
        };
        let (target, circuit) =
            (0..40).find_map(|target| Some((target, trace(&CIRCUIT, target).ok()?))).expect("some latent is active");
        assert_eq!((circuit.nodes[0].hook, circuit.nodes[0].feature), (layers[1].hook, target));
        assert!(!circuit.edges.is_empty() && circuit.edges.len() <= 3);
        for edge in &circuit.edges {
            assert_eq!((edge.to, circuit.nodes[edge.from].hook), (0, layers[0].hook));
            assert!(edge.effect().abs() >= 0.01 && edge.effects.len() == circuit.nodes[0].n_occurrences);
        }
        // The strongest of all that were ablated are the edges.
        let mut sizes: Vec<f64> = circuit.candidates.iter().map(|c| c.effect.abs()).collect();
        sizes.sort_by(|a, b| b.total_cmp(a));
        let kept: Vec<f64> = circuit.edges.iter().map(|edge| edge.effect().abs()).collect();
        assert_eq!(kept, sizes[..kept.len()]);
        // The first edge by other means: the model steered, and the last position encoded.
        let source = circuit.nodes[circuit.edges[0].from].feature;
        let change = Intervention { hook: layers[0].hook, features: vec![source], change: Change::Ablate };
        let steering = Steering::new(&model, &dictionaries[0], &[change], &[]).unwrap();
        let mut expected = Vec::new();
        for text in &texts {
            let activation = |steered: bool| {
                let found = steering.activations(&text.tokens, layers[1].hook, steered).unwrap();
                let codes = dictionaries[1].encode(found.slice(ndarray::s![-1.., ..]));
                let (latents, values) = codes.row(0);
                latents.iter().position(|l| *l as usize == target).map_or(0.0, |i| f64::from(values[i]))
            };
            let (before, after) = (activation(false), activation(true));
            if before > 0.0 {
                expected.push((before - after) / before);
            }
        }
        assert!(
            close(&circuit.edges[0].effects, &expected, 1e-3),
            "{name}: {:?} {expected:?}",
            circuit.edges[0].effects
        );
        let few = trace(&CircuitConfig { max_ablations: Some(2), ..CIRCUIT }, target).unwrap();
        assert_eq!(few.candidates.len(), 2);
        let strict = trace(&CircuitConfig { least_effect: 1e9, ..CIRCUIT }, target).unwrap();
        assert!(strict.edges.is_empty() && strict.nodes.len() == 1);
        let dot = circuit.to_dot(&|_, feature| format!("the \"{feature}\""));
        assert!(dot.starts_with("digraph circuit {") && dot.contains("the \\\"") && dot.contains("n1 -> n0"), "{dot}");
    }
}

#[test]
fn attribution_of_a_circuit_is_the_effect_of_small_ablations() {
    let (model, mut dictionaries, texts) = circuit_case("llama-tiny");
    dictionaries[0].w_dec *= 0.01;
    let layers = layers(&dictionaries, model.n_layers() - 1);
    let circuit = (0..40)
        .find_map(|target| {
            let config = CircuitConfig { least_effect: 0.0, ..CIRCUIT };
            let mut go_on = |_, _| ControlFlow::Continue(());
            Circuit::trace(&model, &layers, target, &mut |_, _| texts.clone(), &config, &mut go_on).ok()
        })
        .expect("some latent is active");
    let largest = circuit.candidates.iter().map(|c| c.effect.abs()).fold(0.0, f64::max);
    for candidate in &circuit.candidates {
        assert!((candidate.effect - candidate.attribution).abs() < 0.05 * largest, "{candidate:?}, {largest}");
    }
}

#[test]
fn circuits_that_make_no_sense_are_refused() {
    let (model, dictionaries, texts) = circuit_case("llama-tiny");
    let layers = layers(&dictionaries, model.n_layers() - 1);
    let refused = |layers: &[CircuitLayer<'_>], target: usize| {
        let mut go_on = |_, _| ControlFlow::Continue(());
        Circuit::trace(&model, layers, target, &mut |_, _| texts.clone(), &CIRCUIT, &mut go_on).unwrap_err().to_string()
    };
    assert!(refused(&layers[..1], 0).contains("expected two or more in ascending order, not blocks.0.hook_resid_post"));
    assert!(refused(&[layers[1], layers[0]], 0).contains("ascending order"));
    assert!(refused(&layers, 40).contains("feature 40 is not in a dictionary of 40 latents"));
    let inside = CircuitLayer { hook: HookPoint::new(0, Site::MlpOut), ..layers[0] };
    assert!(refused(&[inside, layers[1]], 0).contains("expected dictionaries of the residual stream after a block"));
    let mut silent = dictionaries.clone();
    silent[1].b_enc.fill(-1e6);
    let dead = CircuitLayer { dictionary: &silent[1], ..layers[1] };
    assert!(refused(&[layers[0], dead], 3).contains("feature 3 of"));
}
