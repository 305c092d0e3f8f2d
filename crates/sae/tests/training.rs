//! Whole runs: what is planted is found; interrupted runs end as if they had not been; bad input is named.

mod common;

use std::convert::Infallible;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{config, data, mean_square};
use monosem_dictionary::mmcs;
use monosem_sae::{
    AdamMode, Planted, PlantedConfig, Precision, SaeError, StepError, TiedSae, TrainConfig, TrainOutcome, TrainState,
    TrainStep, train,
};
use ndarray::{Array2, ArrayViewMut2};

const D: usize = 20;

fn run(
    config: &TrainConfig,
    folder: Option<&Path>,
    every: u64,
    stop_after: Option<u64>,
) -> Result<TrainOutcome, SaeError<Infallible>> {
    let data = data(D);
    let mut batches = |step: u64, mut out: ArrayViewMut2<'_, f32>| {
        let rows = out.nrows();
        out.assign(&data.sample(step, rows));
        Ok(())
    };
    train(config, D, 1.5, &mut batches, folder, every, &mut |done, _, sae| {
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

#[test]
fn planted_features_are_found() {
    let data = Planted::new(PlantedConfig {
        d_in: 32,
        n_features: 64,
        mean_active: 2.0,
        decay: 1.0,
        correlated: false,
        second_strength: false,
        noise: 0.0,
        seed: 2,
    });
    let config = TrainConfig {
        n_latents: 128,
        alpha: 3e-2,
        lr: 1e-2,
        batch: 256,
        steps: 1500,
        adam: AdamMode::Standard,
        precision: Precision::F32,
        lr_warmup_steps: 0,
        lr_decay_steps: 500,
        seed: 1,
    };
    let scale = 1.0 / mean_square(&data.sample(u64::MAX, 2000)).sqrt();
    let mut batches = |step: u64, mut out: ArrayViewMut2<'_, f32>| -> Result<(), Infallible> {
        out.assign(&data.sample(step, 256));
        Ok(())
    };
    let mut last = None;
    let outcome = train(&config, 32, scale, &mut batches, None, 0, &mut |_, stats, _| {
        last = Some(*stats);
        ControlFlow::Continue(())
    });
    let TrainOutcome::Finished(sae) = outcome.unwrap() else { panic!("nothing stops it") };
    let found = mmcs(data.features.view(), sae.dictionary().w_dec.view());
    println!("mmcs {found} {last:?}");
    assert!(found > 0.9, "{found} {last:?}");
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
    let mut batches = |step: u64, mut out: ArrayViewMut2<'_, f32>| {
        let rows = out.nrows();
        out.assign(&data.sample(step, rows));
        if step == 13 { Err("the disk is gone") } else { Ok(()) }
    };
    let error = train(&config, D, 1.5, &mut batches, Some(folder.path()), 4, &mut |_, _, _| ControlFlow::Continue(()));
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
    let state = TiedSae::new(config(40, 20), D, 1.0).unwrap().state().unwrap();
    let check = |change: &dyn Fn(&mut TrainState), key: &str| {
        let mut state = state.clone();
        change(&mut state);
        assert_eq!(TiedSae::from_state(state).err().unwrap().key, key);
    };
    check(&|s| s.family = "gated".into(), "family");
    check(&|s| s.config.n_latents = 41, "w");
    check(&|s| drop(s.tensors.remove("b_v")), "b_v");
    check(&|s| s.counters.clear(), "last_rows");
    check(&|s| s.tensors.get_mut("w").unwrap()[[0, 0]] = f32::NAN, "w");
    check(&|s| s.input_scale = 0.0, "input_scale");
}

#[test]
fn bad_values_in_a_batch_name_their_row_and_change_nothing() {
    let mut sae = TiedSae::new(config(40, 20), D, 1.0).unwrap();
    let before = sae.state().unwrap();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        let mut batch: Array2<f32> = data(D).sample(0, 700);
        batch[[650, 3]] = value;
        let error = sae.step(batch.view(), sae.config().schedule(0)).unwrap_err();
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
    TiedSae::from_state(kept).unwrap();
}

#[test]
#[should_panic(expected = "a batch 19 wide for an autoencoder that reads 20")]
fn a_batch_of_another_width_is_a_bug() {
    let mut sae = TiedSae::new(config(40, 20), D, 1.0).unwrap();
    let _ = sae.step(Array2::zeros((4, 19)).view(), sae.config().schedule(0));
}
