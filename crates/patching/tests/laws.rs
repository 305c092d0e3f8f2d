//! What has to hold whatever the model, the dictionary and the prompts.

mod common;

use std::ops::ControlFlow;

use common::{D_MODEL, Model, prompts};
use monosem_dictionary::{Activation, LinearDictionary};
use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_patching::{FeatureChange, Half, Patching, PatchingConfig, PatchingError, Prompt, SelectionConfig, Start};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

const SITES: [Site; 5] = [Site::ResidPre, Site::AttnOut, Site::ResidMid, Site::MlpOut, Site::ResidPost];

struct Case {
    model: Model,
    dictionary: LinearDictionary,
    prompts: Vec<Prompt>,
    config: PatchingConfig,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} prompts", self.config, self.prompts.len())
    }
}

impl Case {
    fn new(seed: u64, n: usize, hook: HookPoint, with_error_term: bool) -> Self {
        let (prompts, d_vocab) = prompts(n, seed, Half::Choose);
        let activation = if seed.is_multiple_of(2) { Activation::Relu } else { Activation::TopK { k: 5 } };
        let mut dictionary = LinearDictionary::random(24, D_MODEL, activation, seed);
        dictionary.b_dec.fill(0.3);
        dictionary.w_dec = LinearDictionary::random(24, D_MODEL, activation, seed + 1).w_dec;
        let config = PatchingConfig { hook, drop_positions: vec![0], with_error_term };
        Self { model: Model::new(d_vocab, 3, seed), dictionary, prompts, config }
    }

    fn patching(&self) -> Patching<'_> {
        Patching::new(&self.model, &self.dictionary, &self.prompts, &self.config).unwrap()
    }
}

fn go_on(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

prop_compose! {
    fn case()(seed in 0u64..200, n in 1usize..10, layer in 0usize..3, site in prop::sample::select(&SITES[..]), error in any::<bool>()) -> Case {
        Case::new(seed, n, HookPoint::new(layer, site), error)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_prompt_patched_with_itself_stays_the_same_bit_for_bit(mut case in case()) {
        for prompt in &mut case.prompts {
            prompt.target_tokens.clone_from(&prompt.tokens);
        }
        let patching = case.patching();
        prop_assert!(patching.candidates().is_empty());
        let all: Vec<usize> = (0..24).collect();
        let patched = patching.evaluate(&all);
        prop_assert!(patched.kl.iter().chain(&patched.edit_norm).all(|v| *v == 0.0));
        prop_assert_eq!(patched.logit_diff, patching.unpatched().logit_diff);
    }

    #[test]
    fn all_features_and_the_error_reach_the_counterfactual(seed in 0u64..200, layer in 0usize..3, post in any::<bool>()) {
        let site = if post { Site::ResidPost } else { Site::ResidPre };
        let mut case = Case::new(seed, 6, HookPoint::new(layer, site), true);
        case.config.drop_positions.clear();
        let patching = case.patching();
        let patched = patching.evaluate(patching.candidates());
        prop_assert!(patched.kl.iter().all(|kl| *kl < 1e-6), "{:?}", patched.kl);
        prop_assert!(patching.unpatched().mean_kl() > 1e-6);
        // Leaving the error out leaves something to be desired.
        case.config.with_error_term = false;
        let patching = case.patching();
        prop_assert!(patching.evaluate(patching.candidates()).mean_kl() > 1e-6);
    }

    #[test]
    fn the_order_of_a_set_does_not_matter(case in case(), order in Just((0..24).collect::<Vec<usize>>()).prop_shuffle(), k in 0usize..24) {
        let patching = case.patching();
        let mut sorted = order[..k].to_vec();
        sorted.sort_unstable();
        let twice = [&order[..k], &order[..k]].concat();
        let evaluation = patching.evaluate(&sorted);
        prop_assert_eq!(&evaluation, &patching.evaluate(&order[..k]));
        prop_assert_eq!(&evaluation, &patching.evaluate(&twice));
    }

    #[test]
    fn batches_and_padding_do_not_matter(case in case(), set in prop::collection::vec(0usize..24, 0..12)) {
        let together = case.patching().evaluate(&set);
        for (i, prompt) in case.prompts.iter().enumerate() {
            let alone = Patching::new(&case.model, &case.dictionary, std::slice::from_ref(prompt), &case.config).unwrap();
            let alone = alone.evaluate(&set);
            prop_assert_eq!((alone.kl[0], alone.logit_diff[0], alone.edit_norm[0]), (together.kl[i], together.logit_diff[i], together.edit_norm[i]));
        }
    }

    #[test]
    fn one_change_at_a_time_is_the_same_as_all_at_once(case in case(), toggles in prop::collection::vec(0usize..24, 1..20)) {
        let patching = case.patching();
        let mut state = patching.state(patching.candidates());
        for feature in toggles {
            let expected = state.kl_toggled(feature);
            let runs = state.n_runs();
            prop_assert_eq!(state.kl_toggled(feature), expected);
            state.toggle(feature);
            prop_assert_eq!(state.n_runs(), runs);
            prop_assert_eq!(state.kl(), expected);
            prop_assert_eq!(state.evaluation(), patching.evaluate(&state.features()));
        }
    }

    #[test]
    fn features_that_are_no_candidates_do_nothing(case in case(), set in prop::collection::vec(0usize..24, 0..12)) {
        let patching = case.patching();
        let is_candidate = |feature: &usize| patching.candidates().contains(feature);
        let candidates: Vec<usize> = set.iter().copied().filter(is_candidate).collect();
        let [all, fewer] = [&set, &candidates].map(|set| patching.evaluate(set));
        prop_assert_eq!((all.kl, all.edit_norm), (fewer.kl, fewer.edit_norm));
    }

    #[test]
    fn a_selection_is_nested_and_its_numbers_are_those_of_its_sets(
        case in case(), most in prop::option::of(0usize..30), order in prop::option::of(Just((0..24).collect::<Vec<usize>>()).prop_shuffle()), seed in 0u64..9,
    ) {
        let patching = case.patching();
        let start = match (most, &order) {
            (None, _) => Start::All,
            (Some(most), None) => Start::LargestChanges(most),
            (Some(most), Some(order)) => Start::First(most, order.clone()),
        };
        let config = SelectionConfig { thresholds: vec![1e-5, 1e-4, 1e-2, 0.1, 1.0, 1e3], seed, start: start.clone() };
        let selection = patching.select(&config, &mut go_on).unwrap();
        prop_assert_eq!(selection.full.features.len(), patching.candidates().len());
        prop_assert_eq!(selection.start.features.len() + selection.screened_out, patching.candidates().len());
        if let Start::First(most, order) = &start {
            let candidates = order.iter().filter(|f| patching.candidates().contains(f)).take(*most);
            prop_assert!(candidates.clone().all(|f| selection.start.features.contains(f)));
            prop_assert_eq!(candidates.count(), selection.start.features.len());
        }
        let start = selection.start.features.len();
        prop_assert!(selection.wider.iter().rev().zip(1..).all(|(set, i)| set.features.len() == start.max(1) << i));
        let mut outer = &selection.full;
        let steps = selection.steps.iter().map(|(_, accepted)| accepted);
        for accepted in selection.wider.iter().chain([&selection.start]).chain(steps) {
            prop_assert!(accepted.features.iter().all(|feature| outer.features.contains(feature)));
            prop_assert_eq!(&accepted.evaluation, &patching.evaluate(&accepted.features));
            outer = accepted;
        }
        // A threshold above every possible rise leaves nothing.
        prop_assert!(outer.features.is_empty());
        prop_assert_eq!(&selection, &patching.select(&config, &mut go_on).unwrap());
        prop_assert!(selection.sets().is_sorted_by(|a, b| a.len() > b.len()));
    }

    #[test]
    fn looking_ahead_decides_nothing(case in case(), seed in 0u64..9) {
        let patching = case.patching();
        let thresholds = vec![1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0];
        let config = SelectionConfig { thresholds: thresholds.clone(), seed, start: Start::All };
        let selection = patching.select(&config, &mut go_on).unwrap();
        // The same, one feature at a time.
        let mut state = patching.state(patching.candidates());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (threshold, (_, accepted)) in thresholds.into_iter().zip(&selection.steps) {
            let mut order = state.features();
            order.shuffle(&mut rng);
            for feature in order {
                if state.kl_toggled(feature) - state.kl() < threshold {
                    state.toggle(feature);
                }
            }
            prop_assert_eq!(&accepted.features, &state.features());
        }
    }

    #[test]
    fn a_single_effect_is_that_of_a_set_of_one(case in case()) {
        let patching = case.patching();
        let effects = patching.rank_by_single_effect(None, &mut go_on).unwrap();
        prop_assert!(effects.is_sorted_by(|a, b| a.kl_fall >= b.kl_fall));
        let nothing = patching.evaluate(&[]).mean_kl();
        for effect in &effects {
            prop_assert!((nothing - patching.evaluate(&[effect.feature]).mean_kl() - effect.kl_fall).abs() < 1e-12);
        }
        let order: Vec<usize> = effects.iter().map(|e| e.feature).collect();
        prop_assert_eq!(patching.nested(&order, &[order.len()])[0].mean_kl(), patching.evaluate(patching.candidates()).mean_kl());
    }
}

#[test]
fn an_edit_is_the_sum_of_its_features_directions() {
    let case = Case::new(4, 1, HookPoint::new(1, Site::ResidPost), false);
    let patching = case.patching();
    let feature = patching.candidates()[0];
    let change = patching.feature_changes(&[feature]).remove(0);
    let direction = case.dictionary.w_dec.row(feature);
    let length = f64::from(direction.dot(&direction).sqrt());
    let positions = case.prompts[0].tokens.len() - 1;
    let expected = change.total * length / positions as f64;
    assert!((patching.evaluate(&[feature]).mean_edit_norm() - expected).abs() < 1e-5);
    assert_eq!(change.n_prompts, 1);
}

#[test]
fn nothing_before_io_changes_and_dropped_positions_never_do() {
    let mut case = Case::new(2, 8, HookPoint::new(0, Site::ResidPost), false);
    case.config.drop_positions = (0..32).collect();
    assert!(case.patching().candidates().is_empty());
    case.config.drop_positions.clear();
    let patching = case.patching();
    let changes = patching.feature_changes(patching.candidates());
    let at = |change: &FeatureChange, mark: &str| change.at.iter().find(|(name, _)| name == mark).unwrap().1;
    assert!(changes.iter().any(|c| at(c, "IO") > 0.0) && changes.iter().any(|c| at(c, "END") > 0.0));
    let baba: Vec<Prompt> = case.prompts.iter().filter(|p| p.position("S1") < p.position("IO")).cloned().collect();
    let patching = Patching::new(&case.model, &case.dictionary, &baba, &case.config).unwrap();
    assert!(patching.feature_changes(patching.candidates()).iter().all(|c| at(c, "S1") == 0.0));
}

#[test]
fn work_ends_when_it_is_told_to() {
    let case = Case::new(0, 3, HookPoint::new(0, Site::ResidPost), false);
    let patching = case.patching();
    let config = SelectionConfig { thresholds: SelectionConfig::log_spaced(50), seed: 0, start: Start::All };
    let mut stop = |done: usize, _| if done < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
    assert_eq!(patching.select(&config, &mut stop), Err(PatchingError::Interrupted));
    assert_eq!(patching.rank_by_single_effect(None, &mut stop), Err(PatchingError::Interrupted));
    for thresholds in [vec![], vec![2.0, 1.0], vec![f64::NAN]] {
        assert!(SelectionConfig { thresholds, ..config.clone() }.validate().is_err());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::new(0, 3, HookPoint::new(0, Site::ResidPost), false);
    let refused = |hook: &str, prompts: &[Prompt]| {
        let config = PatchingConfig { hook: hook.parse().unwrap(), ..case.config.clone() };
        Patching::new(&case.model, &case.dictionary, prompts, &config).err().unwrap().to_string()
    };
    assert!(refused("blocks.3.hook_resid_post", &case.prompts).contains("no hook point blocks.3.hook_resid_post"));
    assert!(refused("blocks.0.attn.hook_z", &case.prompts).contains("no hook point"));
    assert_eq!(
        refused("blocks.0.mlp.hook_post", &case.prompts),
        "the dictionary reads activations 8 wide, but blocks.0.mlp.hook_post is 12 wide"
    );
    assert!(refused("blocks.0.hook_resid_post", &[]).starts_with("no prompts"));
    let mut prompts = case.prompts.clone();
    prompts[1].tokens[0] = case.model.d_vocab() as u32;
    assert!(refused("blocks.0.hook_resid_post", &prompts).contains("is not in the vocabulary"));
}

#[test]
#[should_panic(expected = "feature 24 in a dictionary of 24 latents")]
fn a_feature_out_of_range_is_a_fault() {
    let _ = Case::new(0, 1, HookPoint::new(0, Site::ResidPost), false).patching().evaluate(&[24]);
}

#[test]
#[should_panic(expected = "tokens with a counterfactual of")]
fn prompts_of_unequal_lengths_are_a_fault() {
    let mut case = Case::new(0, 4, HookPoint::new(0, Site::ResidPost), false);
    case.prompts[0].target_tokens.pop();
    let _ = case.patching();
}
