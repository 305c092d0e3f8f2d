//! Whole runs: what is planted is found; interrupted runs end as if they had not been; bad input is named.

mod common;

use std::convert::Infallible;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{config, data, families, has_dense_path, mean_square, step_on, target_of, transcoder};
use monosem_dictionary::{Dictionary as _, mmcs};
use monosem_sae::{
    AuxK, EarlyStopping, Family, JumpRelu, Matryoshka, Planted, PlantedConfig, RunOptions, Sae, SaeError, Spaces,
    StepError, TopK, TrainConfig, TrainOutcome, TrainState, TrainStep, Trainer, train, train_ensemble,
};
use ndarray::{Array2, ArrayViewMut2};

const D: usize = 20;

const SPACES: Spaces = Spaces { input: monosem_sae::Space { d: D, scale: 1.5 }, target: None };

fn fill(data: &Planted, step: u64, mut out: ArrayViewMut2<'_, f32>) {
    let rows = out.nrows();
    out.assign(&data.sample(step, rows));
}

fn options(folder: Option<&Path>, every: u64) -> RunOptions<'_> {
    RunOptions { checkpoint_folder: folder, checkpoint_every: every, ..RunOptions::default() }
}

fn run(
    config: &TrainConfig,
    folder: Option<&Path>,
    every: u64,
    stop_after: Option<u64>,
) -> Result<TrainOutcome, SaeError<Infallible>> {
    let data = data(D);
    let mut batches = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        fill(&data, step, out);
        Ok(())
    };
    train(config, SPACES, &mut batches, options(folder, every), &mut |done, _, sae| {
        assert_eq!(done, sae.steps_done());
        if Some(done) == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

fn finished(outcome: TrainOutcome) -> TrainState {
    match outcome {
        TrainOutcome::Finished(sae) => sae.state().unwrap(),
        TrainOutcome::Interrupted { steps_done } => panic!("stopped after {steps_done}"),
    }
}

/// More features than dimensions, and the latents that every family finds them with.
fn planted() -> Planted {
    Planted::new(PlantedConfig {
        d_in: 32,
        n_features: 64,
        mean_active: 2.0,
        decay: 1.0,
        correlated: false,
        second_strength: false,
        noise: 0.0,
        seed: 2,
    })
}

#[test]
fn planted_features_are_found() {
    let data = planted();
    let scale = 1.0 / mean_square(&data.sample(u64::MAX, 2000)).sqrt();
    for (family, _) in families(128, 3) {
        let alpha = match &family {
            Family::Tied(_) | Family::Relu(_) => 3e-2,
            Family::Gated(_) => 1e-1,
            Family::JumpRelu(_) => 1e-2,
            _ => 0.0,
        };
        // A first group smaller than the number of features would have to share them.
        let family = match family {
            Family::Matryoshka(of) => Family::Matryoshka(Matryoshka { prefixes: vec![64, 128], ..of }),
            other => other,
        };
        let config = TrainConfig {
            family,
            n_latents: 128,
            alpha,
            lr: 1e-2,
            batch: 256,
            steps: 1500,
            lr_decay_steps: 500,
            dead_after_steps: 100,
            seed: 1,
            ..TrainConfig::default()
        };
        let mut batches = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
            fill(&data, step, out);
            Ok::<(), Infallible>(())
        };
        let mut last = None;
        let spaces = Spaces::autoencoder(32, scale);
        let outcome = train(&config, spaces, &mut batches, RunOptions::default(), &mut |_, stats, _| {
            last = Some(*stats);
            ControlFlow::Continue(())
        });
        let TrainOutcome::Finished(sae) = outcome.unwrap() else { panic!("nothing stops it") };
        let found = mmcs(data.features.view(), sae.dictionary().w_dec.view()).value;
        println!("{:?}: mmcs {found:.3} {last:?}", config.family);
        assert!(found > 0.9, "{:?}: {found} {last:?}", config.family);
    }
}

/// L0 at the end of training, from `steps` steps at `lr` 3e-3.
fn final_l0(config: &TrainConfig) -> f32 {
    let data = planted();
    let scale = 1.0 / mean_square(&data.sample(u64::MAX, 2000)).sqrt();
    let mut sae = Sae::new(config.clone(), Spaces::autoencoder(32, scale)).unwrap();
    let mut l0 = 0.0;
    for step in 0..config.steps {
        l0 = step_on(&mut sae, &data.sample(step, config.batch), step).l0;
    }
    l0
}

#[test]
fn the_coefficient_of_jump_relu_moves_l0() {
    let family = Family::JumpRelu(JumpRelu { bandwidth: 0.3, initial_threshold: 0.2 });
    let l0 = [1e-4, 1e-3, 1e-2, 5e-2].map(|alpha| {
        final_l0(&TrainConfig { family: family.clone(), alpha, n_latents: 128, steps: 600, ..config(128, 600) })
    });
    println!("{l0:?}");
    assert!(l0.is_sorted_by(|a, b| a > b) && l0[0] > 4.0 * l0[3], "{l0:?}");
}

#[test]
fn an_ensemble_trains_each_member_as_if_alone() {
    let data = data(D);
    let mut configs: Vec<TrainConfig> =
        families(40, 4).into_iter().map(|(family, alpha)| TrainConfig { family, alpha, ..config(40, 24) }).collect();
    // Other sizes, seeds and lengths.
    configs[1].n_latents = 64;
    configs[2].seed = 77;
    configs[3].steps = 11;
    let alone: Vec<TrainState> = configs.iter().map(|config| finished(run(config, None, 0, None).unwrap())).collect();
    let mut asked = Vec::new();
    let folder = tempfile::tempdir().unwrap();
    let mut together = |stop: Option<u64>| {
        let mut batches = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
            asked.push(step);
            fill(&data, step, out);
            Ok::<(), Infallible>(())
        };
        train_ensemble(&configs, SPACES, &mut batches, options(Some(folder.path()), 5), &mut |_, done, _, _| {
            if Some(done) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap()
    };
    assert!(matches!(together(Some(7)), TrainOutcome::Interrupted { steps_done: 7 }));
    let TrainOutcome::Finished(members) = together(None) else { panic!("nothing stops it") };
    for (member, alone) in members.iter().zip(&alone) {
        assert!(member.state().unwrap() == *alone, "{:?}", member.config().family);
    }
    assert_eq!(asked, (0..24).collect::<Vec<_>>(), "every batch is asked for once");
}

#[test]
fn an_ensemble_of_different_batches_is_refused() {
    let configs = [config(40, 3), TrainConfig { batch: 7, ..config(40, 3) }];
    let mut batches = |_: u64, _: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| Ok::<(), Infallible>(());
    let error = train_ensemble(&configs, SPACES, &mut batches, RunOptions::default(), &mut |_, _, _, _| {
        ControlFlow::Continue(())
    });
    assert!(error.err().unwrap().to_string().contains("batch is 7 for member 1"));
}

#[test]
fn a_transcoder_learns_its_target() {
    let data = data(D);
    for (family, alpha) in families(64, 8).into_iter().skip(1) {
        let config = TrainConfig { family, alpha: alpha / 5.0, lr: 1e-2, ..config(64, 400) };
        let mut sae = Sae::new(config.clone(), transcoder(D)).unwrap();
        for step in 0..400 {
            step_on(&mut sae, &data.sample(step, config.batch), step);
        }
        let x = data.sample(1 << 40, 1000);
        let target = target_of(&x, sae.spaces()).unwrap();
        let fvu = sae.fvu(x.view(), Some(target.view()));
        println!("{:?}: {fvu:.3}", config.family);
        assert_eq!((sae.dictionary().d_in(), sae.dictionary().d_out()), (D, D / 2));
        assert!(fvu < 0.2, "{:?}: {fvu}", config.family);
    }
}

#[test]
fn early_stopping_ends_a_run_whose_fvu_no_longer_falls() {
    let data = data(D);
    let held_out = data.sample(1 << 40, 500);
    let early = EarlyStopping { every: 10, patience: 3, min_improvement: 0.2 };
    let config = TrainConfig { early_stopping: Some(early), ..config(40, 2000) };
    let train_once = |folder: Option<&Path>, stop: Option<u64>| {
        let mut batches = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
            fill(&data, step, out);
            Ok::<(), Infallible>(())
        };
        let options = RunOptions { held_out: Some((held_out.view(), None)), ..options(folder, 0) };
        train(&config, SPACES, &mut batches, options, &mut |done, _, _| {
            if Some(done) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap()
    };
    let whole = finished(train_once(None, None));
    assert!(whole.step > 40 && whole.step < 1000 && whole.step.is_multiple_of(10), "{}", whole.step);
    let folder = tempfile::tempdir().unwrap();
    for stop in [25, whole.step - 3] {
        assert!(matches!(train_once(Some(folder.path()), Some(stop)), TrainOutcome::Interrupted { .. }));
    }
    assert!(finished(train_once(Some(folder.path()), None)) == whole);
    let error = run(&config, None, 0, None).err().unwrap().to_string();
    assert!(error.contains("early_stopping needs held-out rows"), "{error}");
}

/// Steps until few latents are dead, of a start at which nearly all are.
fn revived(config: TrainConfig) -> (usize, usize) {
    let data = data(D);
    let mut state = Sae::new(config.clone(), SPACES).unwrap().state().unwrap();
    state.step = 1;
    let alive = |j: usize| j.is_multiple_of(8);
    let chooses = config.aux_k.is_some() || !has_dense_path(&config.family);
    for (j, b) in state.tensors.get_mut("b_enc").unwrap().iter_mut().enumerate() {
        // Where the largest are chosen, those of the others are positive now and then, but never among the largest.
        *b = match (alive(j), chooses) {
            (true, true) => 3.0,
            (false, false) => -3.0,
            _ => 0.0,
        };
    }
    if chooses {
        let rows = state.tensors.get_mut("w_enc").unwrap().outer_iter_mut().enumerate();
        rows.filter(|(j, _)| !alive(*j)).for_each(|(_, mut row)| row *= 0.1);
    }
    let mut sae = Sae::from_state(state).unwrap();
    let dead: Vec<usize> =
        (1..config.steps).map(|step| step_on(&mut sae, &data.sample(step, 300), step).dead).collect();
    (*dead.iter().max().unwrap(), *dead.last().unwrap())
}

#[test]
fn resampling_and_the_auxiliary_loss_bring_dead_latents_back() {
    for (family, alpha) in families(64, 4) {
        let plain = TrainConfig { family: family.clone(), alpha, dead_after_steps: 20, ..config(64, 300) };
        let (most, left) = revived(plain.clone());
        if has_dense_path(&family) {
            let (_, after) = revived(TrainConfig { resample_every: 30, ..plain });
            println!("{family:?}: {most} dead, {left} left, {after} with resampling");
            assert!(left > 30 && after < 8, "{family:?} {most} {left} {after}");
        } else {
            let (_, after) = revived(TrainConfig { aux_k: Some(AuxK { k: 10, coefficient: 1.0 }), ..plain });
            println!("{family:?}: {most} dead, {left} left, {after} with the auxiliary loss");
            assert!(left > 30 && after < left / 2, "{family:?} {most} {left} {after}");
        }
    }
}

#[test]
fn all_dead_says_what_to_lower() {
    let config = TrainConfig { dead_after_steps: 10, ..config(40, 400) };
    let mut state = Sae::new(config, SPACES).unwrap().state().unwrap();
    state.tensors.get_mut("b_enc").unwrap().fill(-1e3);
    let mut sae = Sae::from_state(state).unwrap();
    let x = data(D).sample(0, 300);
    for step in 0..9 {
        let stats = step_on(&mut sae, &x, step);
        assert_eq!((stats.l0, stats.dead), (0.0, 0));
        assert!(stats.fvu_batch.is_finite() && sae.fvu(x.view(), None) >= 1.0);
    }
    let error = sae.step(x.view(), None, sae.config().schedule(9)).unwrap_err();
    assert_eq!(error, StepError::AllDead { step: 9, after: 10 });
    assert!(error.to_string().contains("lower alpha"), "{error}");
}

#[test]
fn batches_of_one_row_do_not_diverge() {
    for (family, alpha) in families(40, 4) {
        let config = TrainConfig { family, alpha, batch: 1, ..config(40, 60) };
        let outcome = run(&config, None, 0, None);
        assert!(matches!(outcome, Ok(TrainOutcome::Finished(_))), "{:?}: {}", config.family, outcome.err().unwrap());
    }
}

#[test]
fn a_member_that_fails_is_named_and_the_others_are_saved() {
    let configs = [config(40, 30), TrainConfig { lr: 1e18, ..config(40, 30) }];
    let data = data(D);
    let folder = tempfile::tempdir().unwrap();
    let mut batches = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        fill(&data, step, out);
        Ok::<(), Infallible>(())
    };
    let error = train_ensemble(&configs, SPACES, &mut batches, options(Some(folder.path()), 0), &mut |_, _, _, _| {
        ControlFlow::Continue(())
    });
    let error = error.err().unwrap();
    assert!(matches!(error, SaeError::Member { member: 1, .. }), "{error}");
    assert!(TrainState::load(&folder.path().join("member-0")).unwrap().step > 0);
}

#[test]
fn an_interrupted_run_ends_in_the_same_bytes() {
    let config = TrainConfig { lr_warmup_steps: 3, lr_decay_steps: 5, ..config(40, 24) };
    let whole = finished(run(&config, None, 0, None).unwrap());
    for stops in [vec![1], vec![2, 3, 17], vec![23], vec![24]] {
        let folder = tempfile::tempdir().unwrap();
        for stop in stops {
            match run(&config, Some(folder.path()), 0, Some(stop)).unwrap() {
                TrainOutcome::Interrupted { steps_done } => assert_eq!(steps_done, stop),
                TrainOutcome::Finished(_) => assert_eq!(stop, 24),
            }
        }
        assert_eq!(finished(run(&config, Some(folder.path()), 0, None).unwrap()), whole);
    }
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let config = config(40, 20);
    let whole = finished(run(&config, None, 0, None).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let data = data(D);
    // A batch that cannot be made stands for a kill: nothing is saved on that way out.
    let mut batches = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        fill(&data, step, out);
        if step == 13 { Err("the disk is gone") } else { Ok(()) }
    };
    let mut on_step = |_: u64, _: &_, _: &dyn Trainer| ControlFlow::Continue(());
    let error = train(&config, SPACES, &mut batches, options(Some(folder.path()), 4), &mut on_step);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("step 13") && error.contains("the disk is gone"), "{error}");
    assert_eq!(TrainState::load(folder.path()).unwrap().step, 12);
    // What a kill in the middle of a write leaves behind is swept away.
    fs::write(folder.path().join("state-0123.tmp"), b"half").unwrap();
    assert_eq!(finished(run(&config, Some(folder.path()), 4, None).unwrap()), whole);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_checkpoint_of_another_run_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(40, 20);
    assert!(matches!(run(&config, Some(folder.path()), 0, Some(5)).unwrap(), TrainOutcome::Interrupted { .. }));
    let other = TrainConfig { alpha: 1e-3, ..config };
    let error = run(&other, Some(folder.path()), 0, None).err().unwrap();
    assert!(matches!(&error, SaeError::OtherRun { key, .. } if key == "alpha"), "{error}");
    assert!(error.to_string().contains("alpha is 0.00"), "{error}");
}

#[test]
fn a_damaged_checkpoint_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(40, 20);
    run(&config, Some(folder.path()), 0, Some(5)).unwrap();
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 2);
    for file in files {
        let whole = fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        // A flipped bit in a number of the settings is another run; anything else is damage. Neither goes unnoticed.
        for damaged in [&whole[..whole.len() / 2], &[], &flipped] {
            fs::write(&file, damaged).unwrap();
            let error = run(&config, Some(folder.path()), 0, None).err().unwrap().to_string();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            assert!(error.contains(&name) || error.contains("another run") || error.contains("state-"), "{error}");
        }
        fs::remove_file(&file).unwrap();
        if name_is_state(&file) {
            assert!(!TrainState::is_in(folder.path()));
        } else {
            assert!(run(&config, Some(folder.path()), 0, None).err().unwrap().to_string().contains("cannot read"));
        }
        fs::write(&file, &whole).unwrap();
    }
    assert!(run(&config, Some(folder.path()), 0, None).is_ok());
}

fn name_is_state(path: &Path) -> bool {
    path.ends_with("state.json")
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let state = Sae::new(config(40, 20), SPACES).unwrap().state().unwrap();
    let check = |change: &dyn Fn(&mut TrainState), what: &str| {
        let mut state = state.clone();
        change(&mut state);
        let error = Sae::from_state(state).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    };
    check(&|s| s.config.family = Family::TopK(TopK { k: 4 }), "alpha");
    check(&|s| (s.config.family, s.config.alpha) = (Family::TopK(TopK { k: 4 }), 0.0), "\"w_dec\" is missing");
    check(&|s| s.config.n_latents = 41, "\"w_enc\" is [40, 20], expected [41, 20]");
    check(&|s| drop(s.tensors.remove("b_enc_v")), "\"b_enc_v\" is missing");
    check(&|s| s.counters.clear(), "\"last_rows\" is missing");
    check(&|s| s.tensors.get_mut("w_enc").unwrap()[[0, 0]] = f32::NAN, "\"w_enc\" holds");
    check(&|s| s.spaces.input.scale = 0.0, "scale 0");
}

#[test]
fn bad_values_in_a_batch_name_their_row_and_change_nothing() {
    for (family, alpha) in families(40, 4) {
        bad_values(TrainConfig { family, alpha, ..config(40, 20) });
    }
}

fn bad_values(config: TrainConfig) {
    let mut sae = Sae::new(config, SPACES).unwrap();
    let before = sae.state().unwrap();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        let mut batch: Array2<f32> = data(D).sample(0, 700);
        batch[[650, 3]] = value;
        let error = sae.step(batch.view(), None, sae.config().schedule(0)).unwrap_err();
        assert_eq!(error, StepError::NotFinite { step: 0, row: 650 });
        assert_eq!(sae.state().unwrap(), before);
    }
}

#[test]
fn diverging_training_says_what_to_lower_and_keeps_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    // The first steps still fit into the finite numbers.
    let config = TrainConfig { lr: 1e18, ..config(40, 20) };
    let error = run(&config, Some(folder.path()), 1, None).err().unwrap();
    let SaeError::Step(StepError::Diverged { step, .. }) = error else { panic!("{error}") };
    assert!(step > 0);
    assert!(error.to_string().contains("lower the learning rate"), "{error}");
    let kept = TrainState::load(folder.path()).unwrap();
    assert_eq!(kept.step, step);
    Sae::from_state(kept).unwrap();
}
