//! Interventions on any text.

mod common;

use std::ops::ControlFlow;

use common::{D_MODEL, Model, argmax};
use monosem_dictionary::{Activation, Dictionary, LinearDictionary};
use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_patching::{Change, Intervention, PatchingError, Steering};
use ndarray::{Array2, s};
use proptest::prelude::*;

fn intervention(layer: usize, site: Site, features: &[usize], change: Change) -> Intervention {
    Intervention { hook: HookPoint::new(layer, site), features: features.to_vec(), change }
}

fn dictionary(seed: u64) -> LinearDictionary {
    LinearDictionary::random(16, D_MODEL, Activation::Relu, seed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_factor_of_one_changes_nothing(seed in 0u64..100, tokens in prop::collection::vec(0u32..20, 1..10)) {
        let (model, dictionary) = (Model::new(20, 2, seed), dictionary(seed));
        let same = [intervention(1, Site::MlpOut, &[0, 3, 7], Change::Scale(1.0))];
        let steered = Steering::new(&model, &dictionary, &same, &[]).unwrap().steer(&tokens).unwrap();
        prop_assert_eq!(&steered.base, &steered.steered);
        prop_assert!(steered.changes(20, 0.0).iter().all(|c| c.base == c.steered));
    }

    #[test]
    fn a_change_is_made_along_the_decoder(seed in 0u64..100, tokens in prop::collection::vec(0u32..20, 2..10)) {
        let (model, dictionary) = (Model::new(20, 2, seed), dictionary(seed));
        let at = HookPoint::new(0, Site::ResidPost);
        let edits = [
            intervention(0, Site::ResidPost, &[2], Change::Set(1.5)),
            intervention(0, Site::ResidPost, &[5, 9], Change::Ablate),
            intervention(0, Site::ResidPost, &[11], Change::Scale(-2.0)),
        ];
        let batch = Array2::from_shape_vec((1, tokens.len()), tokens.clone()).unwrap();
        let by_hand = model.forward(batch.view(), &mut |point, mut x| {
            if point == at {
                let codes = dictionary.encode(x.slice(s![0, .., ..])).to_dense();
                for position in 1..tokens.len() {
                    let mut row = x.slice_mut(s![0, position, ..]);
                    let c = codes.row(position);
                    for (latent, change) in [(2, 1.5 - c[2]), (5, -c[5]), (9, -c[9]), (11, -3.0 * c[11])] {
                        row.scaled_add(change, &dictionary.w_dec.row(latent));
                    }
                }
            }
            ControlFlow::Continue(())
        });
        let ControlFlow::Continue(by_hand) = by_hand else { unreachable!() };
        let steered = Steering::new(&model, &dictionary, &edits, &[0]).unwrap().steer(&tokens).unwrap();
        let error = &steered.steered - &by_hand.slice(s![0, tokens.len() - 1, ..]);
        prop_assert!(error.iter().all(|e| e.abs() < 1e-4), "{}", error);
    }

    #[test]
    fn continuations_are_the_most_probable_tokens(seed in 0u64..100) {
        let (model, dictionary) = (Model::new(20, 2, seed), dictionary(seed));
        let strong = [intervention(1, Site::ResidPost, &[4], Change::Set(30.0))];
        let steering = Steering::new(&model, &dictionary, &strong, &[]).unwrap();
        for steered in [false, true] {
            let continued = steering.continue_greedily(&[1, 2, 3], 4, steered).unwrap();
            let mut text = vec![1, 2, 3];
            for token in continued {
                let logits = steering.steer(&text).unwrap();
                prop_assert_eq!(token, argmax(if steered { logits.steered.view() } else { logits.base.view() }));
                text.push(token);
            }
        }
        // The context holds 32 tokens.
        prop_assert_eq!(steering.continue_greedily(&[0; 30], 9, true).unwrap().len(), 2);
    }
}

#[test]
fn changes_are_sorted_and_leave_out_what_never_occurs() {
    let (model, dictionary) = (Model::new(20, 2, 3), dictionary(3));
    let strong = [intervention(1, Site::ResidPost, &[4], Change::Set(5.0))];
    let steered = Steering::new(&model, &dictionary, &strong, &[]).unwrap().steer(&[7, 8]).unwrap();
    let changes = steered.changes(5, 0.0);
    assert_eq!(changes.len(), 5);
    assert!(changes.is_sorted_by(|a, b| (a.steered - a.base).abs() >= (b.steered - b.base).abs()));
    let likely = steered.changes(20, 0.05);
    assert!(likely.len() < 20 && likely.iter().all(|c| c.base.max(c.steered) >= 0.05_f64.ln()));
}

#[test]
fn interventions_that_make_no_sense_are_refused() {
    let (model, dictionary) = (Model::new(20, 2, 3), dictionary(3));
    let refused = |edits: &[Intervention]| Steering::new(&model, &dictionary, edits, &[]).err().unwrap();
    let post = Site::ResidPost;
    assert_eq!(
        refused(&[intervention(0, post, &[16], Change::Ablate)]),
        PatchingError::NoFeature { feature: 16, n_latents: 16 }
    );
    assert!(matches!(refused(&[intervention(2, post, &[1], Change::Ablate)]), PatchingError::NoHookPoint { .. }));
    assert!(matches!(refused(&[intervention(0, Site::MlpPost, &[1], Change::Ablate)]), PatchingError::Width { .. }));
    let error = refused(&[intervention(0, post, &[1], Change::Set(f32::NAN))]);
    assert_eq!(error.to_string(), "change: expected a finite number, not Set(NaN)");
    let error =
        refused(&[intervention(0, post, &[1], Change::Ablate), intervention(0, post, &[2, 1], Change::Set(1.0))]);
    assert_eq!(error.to_string(), "features: 1 is named twice at blocks.0.hook_resid_post");
    let steering = Steering::new(&model, &dictionary, &[], &[]).unwrap();
    assert!(steering.steer(&[]).is_err() && steering.steer(&[20]).is_err() && steering.steer(&[0; 33]).is_err());
}
