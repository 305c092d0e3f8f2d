//! Edits of activations by any function, and what features do to the next token.

mod common;

use std::ops::ControlFlow;

use common::{D_MODEL, Model, close};
use monosem_dictionary::{Activation, LinearDictionary};
use monosem_hooks::{HookPoint, HookedModel, Site};
use monosem_patching::{
    Change, EditFrom, EditPlace, EditedPrompts, Half, Intervention, Occurrence, PatchingError, Steering, accuracy,
    kl_of_edits, logit_effect,
};
use ndarray::{Array2, Array3, ArrayViewMut2, s};
use proptest::prelude::*;

fn place(layer: usize, site: Site) -> EditPlace {
    EditPlace { hook: HookPoint::new(layer, site), drop_positions: vec![0], norm_limit: f32::INFINITY }
}

fn on(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Whole passes with the rows at `positions` changed.
fn by_hand(model: &Model, at: HookPoint, tokens: &[u32], positions: &[usize], shift: f32) -> Array3<f32> {
    let batch = Array2::from_shape_vec((1, tokens.len()), tokens.to_vec()).unwrap();
    let logits = model.forward(batch.view(), &mut |point, mut x| {
        if point == at {
            positions.iter().for_each(|position| x.slice_mut(s![0, *position, ..]).mapv_inplace(|v| v + shift));
        }
        ControlFlow::Continue(())
    });
    let ControlFlow::Continue(logits) = logits else { unreachable!() };
    logits
}

fn log_p(logits: &Array3<f32>, position: usize) -> Vec<f64> {
    let row = logits.slice(s![0, position, ..]).mapv(f64::from);
    let total = row.mapv(f64::exp).sum().ln();
    row.iter().map(|logit| logit - total).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn an_edit_that_does_nothing_changes_nothing(seed in 0u64..100, inside in any::<bool>()) {
        let (prompts, d_vocab) = common::prompts(24, seed, Half::Choose);
        let model = Model::new(d_vocab, 3, seed);
        let place = place(1, if inside { Site::MlpPost } else { Site::ResidPost });
        let nothing = EditedPrompts::new(&model, &prompts, &place, EditFrom::Start).unwrap().evaluate(&|_| {}).unwrap();
        let plain = accuracy(&model, &prompts).unwrap();
        prop_assert_eq!(&nothing.log_odds, &plain.logit_diff);
        prop_assert_eq!(nothing.right() as f64 / 24.0, plain.share());
        prop_assert!(nothing.edit_norm.iter().all(|norm| *norm == 0.0));
        let texts = Array2::from_shape_fn((3, 7), |(i, p)| ((i * 5 + p * 3) % d_vocab) as u32);
        let kl = kl_of_edits(&model, texts.view(), &place, &[&|_| {}], &mut on).unwrap();
        prop_assert_eq!(kl, vec![vec![0.0; 3]]);
    }

    #[test]
    fn edits_are_made_where_they_should_be_and_nowhere_else(seed in 0u64..100, inside in any::<bool>(), late in 0usize..3) {
        let (prompts, d_vocab) = common::prompts(6, seed, Half::Report);
        let model = Model::new(d_vocab, 3, seed);
        let place = place(1, if inside { Site::MlpOut } else { Site::ResidPost });
        let from = [EditFrom::Start, EditFrom::FirstChange, EditFrom::End][late];
        let shift = |mut x: ArrayViewMut2<'_, f32>| x.mapv_inplace(|v| v + 0.25);
        let edited = EditedPrompts::new(&model, &prompts, &place, from).unwrap();
        let (rows, origins) = edited.activations();
        let found = edited.evaluate(&shift).unwrap();
        let mut n_rows = 0;
        for (i, prompt) in prompts.iter().enumerate() {
            let first = [1, prompt.first_change().max(1), prompt.end()][late];
            let positions: Vec<usize> = (first..prompt.tokens.len()).collect();
            n_rows += positions.len();
            prop_assert_eq!(origins.iter().filter(|origin| **origin == i).count(), positions.len());
            let logits = by_hand(&model, place.hook, &prompt.tokens, &positions, 0.25);
            let of = |token: u32| f64::from(logits[[0, prompt.end(), token as usize]]);
            let odds = of(prompt.answers[0]) - of(prompt.wrong[0]);
            prop_assert!((found.log_odds[i] - odds).abs() < 1e-4);
            let p = of(prompt.answers[0]).exp() / (of(prompt.answers[0]).exp() + of(prompt.wrong[0]).exp());
            prop_assert!((found.p_correct()[i] - p).abs() < 1e-5);
        }
        prop_assert_eq!(rows.dim(), (n_rows, D_MODEL));
        // Every entry moves by a quarter.
        let norm = 0.25 * (D_MODEL as f64).sqrt();
        prop_assert!(close(&found.edit_norm, &[norm; 6], 1e-5), "{:?}", found.edit_norm);
    }

    #[test]
    fn kl_is_that_of_whole_passes(seed in 0u64..100, inside in any::<bool>()) {
        let model = Model::new(20, 2, seed);
        let place = place(0, if inside { Site::AttnOut } else { Site::ResidPre });
        let texts = Array2::from_shape_fn((2, 6), |(i, p)| ((seed as usize + i * 7 + p * p) % 20) as u32);
        let small = |mut x: ArrayViewMut2<'_, f32>| x.mapv_inplace(|v| v + 0.1);
        let large = |mut x: ArrayViewMut2<'_, f32>| x.mapv_inplace(|v| v + 0.5);
        let mut steps = Vec::new();
        let found = kl_of_edits(&model, texts.view(), &place, &[&small, &large], &mut |done, total| {
            steps.push((done, total));
            ControlFlow::Continue(())
        }).unwrap();
        prop_assert_eq!(steps, vec![(1, 4), (2, 4), (3, 4), (4, 4)]);
        for (shift, kl) in [0.1, 0.5].into_iter().zip(&found) {
            for (text, kl) in texts.outer_iter().zip(kl) {
                let passes = [vec![], (1..6).collect::<Vec<_>>()]
                    .map(|positions| by_hand(&model, place.hook, &text.to_vec(), &positions, shift));
                let at = |position| -> f64 {
                    let [p, q] = [0, 1].map(|i| log_p(&passes[i], position));
                    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
                };
                let by_hand = (1..6).map(at).sum::<f64>() / 5.0;
                prop_assert!((kl - by_hand).abs() < 1e-4 * by_hand.max(0.1), "{} {}", kl, by_hand);
            }
        }
    }

    #[test]
    fn the_effect_is_that_of_removing_the_feature_from_the_last_position(seed in 0u64..60) {
        let model = Model::new(20, 2, seed);
        let at = HookPoint::new(0, Site::ResidPost);
        let dictionary = LinearDictionary::random(16, D_MODEL, Activation::Relu, seed);
        let ablate = Intervention { hook: at, features: vec![5], change: Change::Ablate };
        let texts = [vec![3, 1, 4, seed as u32 % 20], vec![9, 2, (seed as u32 + 7) % 20]].map(|tokens| Occurrence { tokens });
        let found = logit_effect(&model, &dictionary, &ablate, &texts).unwrap();
        prop_assert_eq!((found.n_texts, found.changes.len()), (2, 20));
        let mut means = vec![0.0; 20];
        for Occurrence { tokens } in &texts {
            let last = tokens.len() - 1;
            let batch = Array2::from_shape_vec((1, tokens.len()), tokens.clone()).unwrap();
            let log_p = [0.0, 1.0].map(|removed| {
                let logits = model.forward(batch.view(), &mut |point, mut x| {
                    if point == at {
                        let mut row = x.slice_mut(s![0, last, ..]);
                        let code: f32 = dictionary.w_enc.row(5).dot(&row.view());
                        row.scaled_add(-removed * code.max(0.0), &dictionary.w_dec.row(5));
                    }
                    ControlFlow::Continue(())
                });
                let ControlFlow::Continue(logits) = logits else { unreachable!() };
                log_p(&logits, last)
            });
            means.iter_mut().enumerate().for_each(|(t, mean)| *mean += (log_p[1][t] - log_p[0][t]) / 2.0);
        }
        let changes: Vec<f64> = found.changes.iter().map(|c| c.steered - c.base).collect();
        prop_assert!(close(&changes, &means, 1e-5), "{:?} {:?}", changes, means);
    }

    #[test]
    fn the_effect_is_that_of_steering_where_no_other_position_is_active(seed in 0u64..60) {
        let model = Model::new(20, 2, seed);
        let at = HookPoint::new(1, Site::ResidMid);
        let tokens = vec![3, seed as u32 % 20];
        let basis = LinearDictionary::identity(D_MODEL);
        let x = Steering::new(&model, &basis, &[], &[]).unwrap().activations(&tokens, at, false).unwrap();
        // Zero at the first position, |x1 - x0|^2 at the second.
        let mut dictionary = LinearDictionary::random(16, D_MODEL, Activation::Relu, seed);
        let apart = &x.row(1) - &x.row(0);
        dictionary.b_enc[5] = -apart.dot(&x.row(0));
        dictionary.w_enc.row_mut(5).assign(&apart);
        let ablate = [Intervention { hook: at, features: vec![5], change: Change::Ablate }];
        let steered = Steering::new(&model, &dictionary, &ablate, &[]).unwrap().steer(&tokens).unwrap();
        let found = logit_effect(&model, &dictionary, &ablate[0], &[Occurrence { tokens }]).unwrap();
        prop_assert_eq!(found.largest(20, 0.0), steered.changes(20, 0.0));
    }
}

#[test]
fn attention_sinks_are_left_alone() {
    let (prompts, d_vocab) = common::prompts(4, 0, Half::Choose);
    let model = Model::new(d_vocab, 2, 1);
    let all = place(1, Site::ResidPost);
    let (rows, _) = EditedPrompts::new(&model, &prompts, &all, EditFrom::Start).unwrap().activations();
    let mut norms: Vec<f32> = rows.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect();
    norms.sort_by(f32::total_cmp);
    let limit = norms[norms.len() / 2];
    let limited = EditPlace { norm_limit: limit, ..all };
    let (few, _) = EditedPrompts::new(&model, &prompts, &limited, EditFrom::Start).unwrap().activations();
    assert_eq!(few.nrows(), norms.iter().filter(|norm| **norm <= limit).count());
    // Where everything is a sink, nothing is edited.
    let none = EditPlace { norm_limit: 0.0, ..limited };
    let edited = EditedPrompts::new(&model, &prompts, &none, EditFrom::Start).unwrap();
    let found = edited.evaluate(&|mut x| x.fill(9.0)).unwrap();
    assert_eq!((found.log_odds, found.edit_norm), (accuracy(&model, &prompts).unwrap().logit_diff, vec![0.0; 4]));
}

#[test]
fn effects_are_sorted_and_leave_out_what_never_occurs() {
    let model = Model::new(20, 2, 3);
    let dictionary = LinearDictionary::identity(D_MODEL);
    let set = Intervention { hook: HookPoint::new(1, Site::ResidPost), features: vec![2], change: Change::Set(4.0) };
    let texts = [Occurrence { tokens: vec![7, 8] }, Occurrence { tokens: vec![1, 2, 3] }];
    let found = logit_effect(&model, &dictionary, &set, &texts).unwrap();
    let size = |c: &monosem_patching::TokenChange| (c.steered - c.base).abs();
    let all = found.largest(20, 0.0);
    assert_eq!(all.len(), 20);
    assert!(all.is_sorted_by(|a, b| size(a) >= size(b)) && size(&all[0]) > 0.1);
    let likely = found.largest(20, 0.05);
    assert!(likely.len() < 20 && likely.iter().all(|c| all.contains(c)));
    assert_eq!(found.largest(3, 0.0), all[..3]);
    // Of one text the means are its numbers.
    let one = logit_effect(&model, &dictionary, &set, &texts[..1]).unwrap();
    let steered = Steering::new(&model, &dictionary, &[set], &[0]).unwrap().steer(&[7, 8]).unwrap();
    assert_eq!(one.largest(20, 0.05), steered.changes(20, 0.05));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (prompts, d_vocab) = common::prompts(4, 0, Half::Choose);
    let model = Model::new(d_vocab, 2, 1);
    let nowhere = place(2, Site::ResidPost);
    let error = EditedPrompts::new(&model, &prompts, &nowhere, EditFrom::Start).err().unwrap();
    assert!(matches!(error, PatchingError::NoHookPoint { n_layers: 2, .. }), "{error}");
    let here = place(1, Site::ResidPost);
    assert_eq!(EditedPrompts::new(&model, &[], &here, EditFrom::Start).err().unwrap(), PatchingError::NoPrompts);
    let edited = EditedPrompts::new(&model, &prompts, &here, EditFrom::Start).unwrap();
    let error = edited.evaluate(&|mut x| x.fill(f32::INFINITY)).unwrap_err();
    assert_eq!(error, PatchingError::NotFinite { what: "the edit" });
    let texts = Array2::from_elem((1, 4), d_vocab as u32);
    assert!(matches!(kl_of_edits(&model, texts.view(), &here, &[], &mut on), Err(PatchingError::Tokens { .. })));
    let texts = Array2::<u32>::zeros((2, 4));
    let stopped = kl_of_edits(&model, texts.view(), &here, &[&|_| {}], &mut |_, _| ControlFlow::Break(()));
    assert_eq!(stopped.unwrap_err(), PatchingError::Interrupted);
    let dictionary = LinearDictionary::identity(D_MODEL);
    let ablate = Intervention { hook: here.hook, features: vec![0], change: Change::Ablate };
    assert_eq!(logit_effect(&model, &dictionary, &ablate, &[]).unwrap_err().to_string(), "texts: expected one or more");
    let empty = [Occurrence { tokens: vec![] }];
    assert!(matches!(logit_effect(&model, &dictionary, &ablate, &empty), Err(PatchingError::Tokens { .. })));
}
