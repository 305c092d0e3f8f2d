//! The trainer on the device against the one on this processor: every family, in batches of uneven shape. On hardware (`MONOSEM_TEST_GPU=1`) the same tests run
//! against the driver.

mod common;

use std::convert::Infallible;
use std::ops::ControlFlow;

use common::{gpu, is_real};
use monosem_sae::{
    AuxK, BatchTopK, Family, Gated, JumpRelu, Matryoshka, Planted, PlantedConfig, Precision, Relu, RunOptions, Sae,
    SaeError, Space, Spaces, StepError, StepStats, Tied, TopK, TrainConfig, TrainOutcome, TrainState, TrainStep,
    Trainer, train_ensemble, train_on,
};
use monosem_sae_cuda::Gpu;
use ndarray::{Array2, ArrayD, ArrayViewMut2, s};

const STEPS: u64 = 100;

/// Of most batches. Kernels take rows 32, 64 or 128 at a time: some have more.
const ROWS: usize = 37;

fn planted(d_in: usize) -> Planted {
    Planted::new(PlantedConfig {
        d_in,
        n_features: 2 * d_in,
        mean_active: 3.0,
        decay: 0.99,
        correlated: false,
        second_strength: false,
        noise: 0.0,
        seed: 5,
    })
}

fn config(family: Family, n_latents: usize, alpha: f32) -> TrainConfig {
    TrainConfig {
        family,
        n_latents,
        alpha,
        lr: 3e-3,
        batch: ROWS,
        steps: STEPS,
        seed: 3,
        dead_after_steps: 20,
        ..TrainConfig::default()
    }
}

/// The largest difference of a tensor of weights, as a share of its size, and which it is.
fn apart(a: &TrainState, b: &TrainState) -> (f64, String) {
    assert!(a.tensors.keys().eq(b.tensors.keys()));
    let of = |(name, a): (&String, &ArrayD<f32>)| {
        let b = &b.tensors[name];
        assert_eq!(a.shape(), b.shape());
        let size = (b.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / b.len() as f64).sqrt();
        let far = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>() / b.len() as f64;
        (far.sqrt() / size.max(1e-30), name.clone())
    };
    a.tensors
        .iter()
        .filter(|(name, _)| !name.ends_with("_m") && !name.ends_with("_v"))
        .map(of)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap()
}

#[derive(Clone)]
struct Case {
    name: &'static str,
    config: TrainConfig,
    spaces: Spaces,
    rows: usize,
    steps: u64,
}

/// Neither rows nor widths nor numbers of latents are multiples of what a block works on.
fn cases() -> Vec<Case> {
    let spaces = Spaces::autoencoder(20, 1.3);
    let case = |name, config, rows| Case { name, config, spaces, rows, steps: STEPS };
    // Only their first step differs from those of fewer rows.
    let probed = |name, config, rows| Case { name, config, spaces, rows, steps: 20 };
    let top_k = |n| config(Family::TopK(TopK { k: 5 }), n, 0.0);
    let relu =
        |subtract_decoder_bias, n| config(Family::Relu(Relu { subtract_decoder_bias, ..Relu::default() }), n, 1e-2);
    let batch_top_k = || config(Family::BatchTopK(BatchTopK { k: 4 }), 130, 0.0);
    let aux_k = Some(AuxK { k: 3, coefficient: 0.1 });
    let transcoder = Spaces::transcoder(Space { d: 20, scale: 1.3 }, Space { d: 7, scale: 0.9 });
    vec![
        case("tied", config(Family::Tied(Tied {}), 37, 1e-2), ROWS),
        case("tied, most active", config(Family::Tied(Tied {}), 200, 0.0), 40),
        case("tied, one row", config(Family::Tied(Tied {}), 5, 1e-3), 1),
        case("relu", relu(true, 150), 70),
        case("relu, clipped", TrainConfig { clip_norm: Some(0.05), ..relu(false, 60) }, ROWS),
        case("relu, resampled", TrainConfig { resample_every: 25, alpha: 0.2, ..relu(true, 60) }, ROWS),
        case(
            "relu, no decoder bias",
            config(Family::Relu(Relu { subtract_decoder_bias: false, decoder_bias: false }), 60, 1e-2),
            ROWS,
        ),
        case("relu, not projected", TrainConfig { project_decoder_gradient: false, ..relu(true, 60) }, ROWS),
        case("top-k", top_k(150), 131),
        probed("top-k with a probe", top_k(90), 300),
        case("top-k, k of all", config(Family::TopK(TopK { k: 30 }), 30, 0.0), 33),
        case("top-k, dead latents", TrainConfig { aux_k, dead_after_steps: 3, ..top_k(190) }, 40),
        case("batch-top-k", batch_top_k(), ROWS),
        probed("batch-top-k with a probe", batch_top_k(), 290),
        case("batch-top-k, dead latents", TrainConfig { aux_k, dead_after_steps: 3, ..batch_top_k() }, 40),
        case(
            "jump-relu",
            config(Family::JumpRelu(JumpRelu { bandwidth: 0.1, initial_threshold: 0.05 }), 140, 1e-2),
            65,
        ),
        case("gated", config(Family::Gated(Gated {}), 129, 1e-2), 64),
        case(
            "matryoshka",
            config(Family::Matryoshka(Matryoshka { k: 4, prefixes: vec![10, 40, 128] }), 128, 0.0),
            ROWS,
        ),
        Case { name: "transcoder", config: relu(true, ROWS), spaces: transcoder, rows: ROWS, steps: STEPS },
        Case { name: "top-k transcoder", config: top_k(70), spaces: transcoder, rows: ROWS, steps: STEPS },
    ]
}

/// Something that a transcoder can learn of `x`.
fn target_of(x: &Array2<f32>, spaces: Spaces) -> Option<Array2<f32>> {
    spaces.target.map(|target| x.slice(s![.., ..target.d]).mapv(f32::abs))
}

fn step_on(trainer: &mut dyn TrainStep, case: &Case, step: u64) -> Result<StepStats, StepError> {
    let batch = planted(case.spaces.input.d).sample(step, case.rows);
    let target = target_of(&batch, case.spaces);
    trainer.step(batch.view(), target.as_ref().map(|target| target.view()), case.config.schedule(step))
}

/// How far the device's weights are from the CPU's, always in f32, after so many steps.
fn weights_after(gpu: &Gpu, case: &Case, steps: u64) -> (f64, String) {
    let mut there = gpu.train(Sae::new(case.config.clone(), case.spaces).unwrap()).unwrap();
    let in_f32 = TrainConfig { precision: Precision::F32, ..case.config.clone() };
    let mut here = Sae::new(in_f32, case.spaces).unwrap();
    for step in 0..steps {
        step_on(&mut here, case, step).unwrap();
        step_on(&mut there, case, step).unwrap();
    }
    apart(&there.state().unwrap(), &here.state().unwrap())
}

/// Both trainers side by side; how far they are apart.
fn side_by_side(case: &Case) -> (f64, String) {
    let lent = gpu(&[]);
    let new = || Sae::new(case.config.clone(), case.spaces).unwrap();
    let (mut here, mut there) = (new(), lent.gpu.train(new()).unwrap());
    for step in 0..case.steps {
        let (a, b) = (step_on(&mut here, case, step).unwrap(), step_on(&mut there, case, step).unwrap());
        let close = |a: f32, b: f32, by: f32| (a - b).abs() <= by * a.abs().max(1e-3);
        let figures =
            [(a.loss, b.loss), (a.mse, b.mse), (a.l1, b.l1), (a.l0, b.l0), (a.fvu_batch, b.fvu_batch), (a.aux, b.aux)];
        let same = figures.iter().all(|(a, b)| close(*a, *b, 5e-3));
        assert!(same && a.dead.abs_diff(b.dead) <= 1, "{}, step {step}: {a:?} {b:?}", case.name);
    }
    apart(&there.state().unwrap(), &here.state().unwrap())
}

#[test]
fn families_train_as_on_the_cpu() {
    for case in cases() {
        let (far, tensor) = side_by_side(&case);
        println!("{}: {tensor} is off by {far:.1e}", case.name);
        assert!(far < 1e-4, "{}: {tensor} is off by {far}", case.name);
    }
}

/// All latents active in all rows, for which the first steps find no room; and rows in which none is.
#[test]
fn full_and_empty_rows_train_as_on_the_cpu() {
    let lent = gpu(&[]);
    let k_of_one =
        Case { name: "top-k, k of 1", config: config(Family::TopK(TopK { k: 1 }), 300, 0.0), ..cases().remove(0) };
    let cases = cases().into_iter().filter(|case| case.spaces.target.is_none() && case.rows > 1).chain([k_of_one]);
    for (case, bias) in cases.flat_map(|case| [(case.clone(), 3.0), (case, -0.2)]) {
        let mut state = Sae::new(case.config.clone(), case.spaces).unwrap().state().unwrap();
        state.tensors.get_mut("b_enc").unwrap().fill(bias);
        let new = || Sae::from_state(state.clone()).unwrap();
        let (mut here, mut there) = (new(), lent.gpu.train(new()).unwrap());
        for step in 0..4 {
            let mut batch = planted(20).sample(step, case.rows);
            batch.slice_mut(s![..;3, ..]).fill(0.0);
            let schedule = case.config.schedule(step);
            let a = here.step(batch.view(), None, schedule).unwrap();
            let b = there.step(batch.view(), None, schedule).unwrap();
            assert_eq!(a.l0, b.l0, "{} with a bias of {bias}, step {step}", case.name);
        }
        let (far, tensor) = apart(&there.state().unwrap(), &here.state().unwrap());
        assert!(far < 1e-4, "{} with a bias of {bias}: {tensor} is off by {far}", case.name);
    }
}

/// The search for the largest codes of the next batch begins with those of this one relative to its size, which is 0.
#[test]
fn after_a_batch_of_zeros_training_goes_on() {
    let lent = gpu(&[]);
    for case in cases().into_iter().filter(|case| case.name == "top-k" || case.name == "batch-top-k") {
        let mut state = Sae::new(case.config.clone(), case.spaces).unwrap().state().unwrap();
        state.tensors.get_mut("b_enc").unwrap().fill(0.01);
        let new = || Sae::from_state(state.clone()).unwrap();
        let (mut here, mut there) = (new(), lent.gpu.train(new()).unwrap());
        let zeros = Array2::zeros((case.rows, case.spaces.input.d));
        here.step(zeros.view(), None, case.config.schedule(0)).unwrap();
        there.step(zeros.view(), None, case.config.schedule(0)).unwrap();
        for step in 1..4 {
            step_on(&mut here, &case, step).unwrap();
            step_on(&mut there, &case, step).unwrap();
        }
        let (far, tensor) = apart(&there.state().unwrap(), &here.state().unwrap());
        assert!(far < 1e-3, "{}: {tensor} is off by {far}", case.name);
    }
}

#[test]
fn candidates_found_in_bf16_give_the_codes_of_f32() {
    for case in cases().into_iter().filter(|case| !case.name.contains("dead") && case.config.resample_every == 0) {
        let case = Case { config: TrainConfig { precision: Precision::Bf16, ..case.config }, ..case };
        let (far, tensor) = weights_after(&gpu(&[]).gpu, &case, 20);
        println!("{}: {tensor} is off by {far:.1e}", case.name);
        assert!(far < 1e-3, "{}: {tensor} is off by {far}", case.name);
    }
}

#[test]
fn products_of_cublas_give_the_same_autoencoders() {
    let lent = gpu(&[]);
    if let Err(problem) = lent.gpu.use_cublas() {
        // Only hardware may be without it.
        assert!(is_real(), "{problem}");
        return;
    }
    let in_f32_and_bf16 = |case: Case| {
        let in_bf16 =
            Case { config: TrainConfig { precision: Precision::Bf16, ..case.config.clone() }, ..case.clone() };
        [case, in_bf16]
    };
    for case in cases().into_iter().filter(|case| case.config.resample_every == 0).flat_map(in_f32_and_bf16) {
        let (far, tensor) = weights_after(&lent.gpu, &case, 10);
        // Adam's first step goes a whole way where a gradient is next to nothing, whichever way its rounding points, and few steps forget little of it.
        assert!(far < 2e-3, "{} in {:?}: {tensor} is off by {far}", case.name, case.config.precision);
    }
}

/// The state after some steps on an emulator whose threads and blocks come in another order, or on the real device.
fn state_in_order(case: &Case, order: &str) -> TrainState {
    let lent = gpu(&[("ORDER", order)]);
    let mut trainer = lent.gpu.train(Sae::new(case.config.clone(), case.spaces).unwrap()).unwrap();
    (0..6).for_each(|step| _ = step_on(&mut trainer, case, step).unwrap());
    trainer.state().unwrap()
}

#[test]
fn the_bits_do_not_depend_on_who_comes_first() {
    for case in cases() {
        let expected = state_in_order(&case, "0");
        for order in ["1", "5"] {
            let found = state_in_order(&case, order);
            let other = found.tensors.iter().find(|(name, tensor)| expected.tensors[*name] != **tensor);
            let apart = other.map(|(name, tensor)| (name, tensor - &expected.tensors[name]));
            assert!(found == expected, "{}, order {order}: {apart:?}", case.name);
        }
    }
}

#[test]
fn a_run_goes_on_on_another_device() {
    for case in cases() {
        let lent = gpu(&[]);
        let mut here = Sae::new(case.config.clone(), case.spaces).unwrap();
        (0..20).for_each(|step| _ = step_on(&mut here, &case, step).unwrap());
        let folder = tempfile::tempdir().unwrap();
        here.state().unwrap().save(folder.path()).unwrap();
        let resumed = Sae::from_state(TrainState::load(folder.path()).unwrap()).unwrap();
        let mut there = lent.gpu.train(resumed).unwrap();
        // What was brought over comes back to the bit.
        assert!(there.state().unwrap() == here.state().unwrap(), "{}", case.name);
        for step in 20..30 {
            step_on(&mut there, &case, step).unwrap();
            step_on(&mut here, &case, step).unwrap();
        }
        there.state().unwrap().save(folder.path()).unwrap();
        let mut back = Sae::from_state(TrainState::load(folder.path()).unwrap()).unwrap();
        for step in 30..40 {
            step_on(&mut back, &case, step).unwrap();
            step_on(&mut here, &case, step).unwrap();
        }
        let (far, tensor) = apart(&back.state().unwrap(), &here.state().unwrap());
        assert!(far < 1e-4, "{}: {tensor} is off by {far}", case.name);
    }
}

#[test]
fn an_ensemble_trains_as_its_members_alone() {
    let mut lent = gpu(&[]);
    let configs: Vec<TrainConfig> = cases()
        .into_iter()
        .filter(|case| case.spaces.target.is_none() && case.rows == ROWS)
        .map(|case| TrainConfig { steps: 8 + case.config.n_latents as u64 % 3, ..case.config })
        .collect();
    let spaces = Spaces::autoencoder(20, 1.3);
    let data = planted(20);
    let mut batches = |step: u64, mut input: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        input.assign(&data.sample(step, ROWS));
        Ok::<(), Infallible>(())
    };
    // Interrupted, and gone on with.
    let folder = tempfile::tempdir().unwrap();
    let options = RunOptions { checkpoint_folder: Some(folder.path()), ..RunOptions::default() };
    let mut stop = |_: usize, done: u64, _: &StepStats, _: &dyn Trainer| {
        if done == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let outcome = train_on(&mut lent.gpu, &configs, spaces, &mut batches, options, &mut stop).unwrap();
    assert!(matches!(outcome, TrainOutcome::Interrupted { steps_done: 4 }));
    let mut on_step = |_: usize, _: u64, _: &StepStats, _: &dyn Trainer| ControlFlow::Continue(());
    let outcome = train_on(&mut lent.gpu, &configs, spaces, &mut batches, options, &mut on_step).unwrap();
    let TrainOutcome::Finished(together) = outcome else { panic!("nothing interrupts it") };
    for (config, together) in configs.iter().zip(together) {
        let configs = std::slice::from_ref(config);
        let alone = train_on(&mut lent.gpu, configs, spaces, &mut batches, RunOptions::default(), &mut on_step);
        let TrainOutcome::Finished(alone) = alone.unwrap() else { panic!("nothing interrupts it") };
        assert!(alone[0].state().unwrap() == together.state().unwrap(), "{:?}", config.family);
        let here = train_ensemble(configs, spaces, &mut batches, RunOptions::default(), &mut on_step).unwrap();
        let TrainOutcome::Finished(here) = here else { panic!("nothing interrupts it") };
        let (far, tensor) = apart(&together.state().unwrap(), &here[0].state().unwrap());
        assert!(far < 1e-4, "{:?}: {tensor} is off by {far}", config.family);
    }
}

#[test]
fn what_other_members_did_is_kept_when_one_diverges() {
    let mut lent = gpu(&[]);
    let case = cases().remove(3);
    let member = |lr: f32, seed: u64| TrainConfig { lr, seed, batch: ROWS, ..case.config.clone() };
    let configs = [member(1e-3, 1), member(1e19, 2), member(1e-3, 3)];
    let data = planted(20);
    let mut batches = |step: u64, mut input: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        input.assign(&data.sample(step, ROWS));
        Ok::<(), Infallible>(())
    };
    let folder = tempfile::tempdir().unwrap();
    let options = RunOptions { checkpoint_folder: Some(folder.path()), ..RunOptions::default() };
    let mut on_step = |_: usize, _: u64, _: &StepStats, _: &dyn Trainer| ControlFlow::Continue(());
    let error = train_on(&mut lent.gpu, &configs, case.spaces, &mut batches, options, &mut on_step).err().unwrap();
    let SaeError::Member { member: 1, source: StepError::Diverged { step, .. } } = error else { panic!("{error}") };
    for i in [0, 2] {
        let kept = TrainState::load(&folder.path().join(format!("member-{i}"))).unwrap();
        assert_eq!(kept.step, step + 1, "the step that the other one could not take");
        let mut alone = lent.gpu.train(Sae::new(configs[i].clone(), case.spaces).unwrap()).unwrap();
        for step in 0..=step {
            alone.step(data.sample(step, ROWS).view(), None, configs[i].schedule(step)).unwrap();
        }
        assert!(alone.state().unwrap() == kept, "member {i}");
    }
}

#[test]
fn an_autoencoder_after_a_transcoder_reconstructs_its_own_rows() {
    let lent = gpu(&[]);
    let all = cases();
    for case in [&all[18], &all[0]] {
        // As many steps as there are places for batches.
        let (far, tensor) = weights_after(&lent.gpu, case, 2);
        assert!(far < 1e-4, "{}: {tensor} is off by {far}", case.name);
    }
}

/// A block of 48 KiB of shared memory besides what the kernel has itself.
#[test]
fn rows_as_wide_as_shared_memory_train() {
    let lent = gpu(&[]);
    let relu = Family::Relu(Relu::default());
    for d in [6144, 8192] {
        let (config, spaces) = (config(relu.clone(), 3, 1e-3), Spaces::autoencoder(d, 1.0));
        let rows = Array2::from_shape_fn((2, d), |(row, column)| ((row * 31 + column * 7) % 13) as f32 - 6.0);
        let mut there = lent.gpu.train(Sae::new(config.clone(), spaces).unwrap()).unwrap();
        let mut here = Sae::new(config.clone(), spaces).unwrap();
        there.step(rows.view(), None, config.schedule(0)).unwrap();
        here.step(rows.view(), None, config.schedule(0)).unwrap();
        let (far, tensor) = apart(&there.state().unwrap(), &here.state().unwrap());
        assert!(far < 1e-4, "{d}: {tensor} is off by {far}");
    }
}

#[test]
fn two_devices_train_by_turns() {
    if is_real() {
        return;
    }
    let lent = gpu(&[("DEVICES", "2")]);
    let other = Gpu::open(1).unwrap();
    let case = cases().remove(3);
    let new = |gpu: &Gpu| gpu.train(Sae::new(case.config.clone(), case.spaces).unwrap()).unwrap();
    let (mut a, mut b) = (new(&lent.gpu), new(&other));
    for step in 0..3 {
        step_on(&mut a, &case, step).unwrap();
        step_on(&mut b, &case, step).unwrap();
    }
    let of_b = b.state().unwrap();
    drop(b);
    drop(other);
    assert!(a.state().unwrap() == of_b);
    step_on(&mut a, &case, 3).unwrap();
}

#[test]
fn bad_rows_and_divergence_are_told_as_on_the_cpu() {
    let lent = gpu(&[]);
    for case in cases().into_iter().filter(|case| case.spaces.target.is_none() && case.rows > 9) {
        let new = || Sae::new(case.config.clone(), case.spaces).unwrap();
        let (mut here, mut there) = (new(), lent.gpu.train(new()).unwrap());
        let mut bad = planted(20).sample(0, case.rows);
        bad[[7, 3]] = f32::NAN;
        bad[[9, 3]] = f32::INFINITY;
        for step in [0, 1] {
            let schedule = case.config.schedule(step);
            let before = there.state().unwrap();
            let error = there.step(bad.view(), None, schedule).unwrap_err();
            assert_eq!(error, here.step(bad.view(), None, schedule).unwrap_err());
            assert_eq!(error, StepError::NotFinite { step, row: 7 });
            assert!(there.state().unwrap() == before, "{}: nothing moves", case.name);
            step_on(&mut here, &case, step).unwrap();
            step_on(&mut there, &case, step).unwrap();
        }
    }
    // At a learning rate of 1e20 weights leave the finite numbers.
    let config = TrainConfig { lr: 1e20, ..config(Family::Relu(Relu::default()), 40, 1e-3) };
    let case = Case { name: "", config, spaces: Spaces::autoencoder(20, 1.0), rows: 70, steps: STEPS };
    let mut there = lent.gpu.train(Sae::new(case.config.clone(), case.spaces).unwrap()).unwrap();
    let error = (0..9).find_map(|step| step_on(&mut there, &case, step).err());
    assert!(matches!(error, Some(StepError::Diverged { .. })), "{error:?}");
}

#[test]
fn latents_that_are_never_active_die() {
    let lent = gpu(&[]);
    let config = TrainConfig { lr: 0.05, dead_after_steps: 9, ..config(Family::Tied(Tied {}), 40, 50.0) };
    let case = Case { name: "", config, spaces: Spaces::autoencoder(20, 1.0), rows: 70, steps: STEPS };
    let mut there = lent.gpu.train(Sae::new(case.config.clone(), case.spaces).unwrap()).unwrap();
    let error = (0..STEPS).find_map(|step| step_on(&mut there, &case, step).err());
    assert!(matches!(error, Some(StepError::AllDead { .. })), "{error:?}");
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    if is_real() {
        return;
    }
    let lent = gpu(&[("BYTES", "100000")]);
    let config = config(Family::Tied(Tied {}), 4096, 1e-3);
    let sae = Sae::new(config, Spaces::autoencoder(64, 1.0)).unwrap();
    let error = lent.gpu.train(sae).err().expect("there is no room").to_string();
    assert!(error.contains("out of memory") && error.contains("smaller batch"), "{error}");
}
