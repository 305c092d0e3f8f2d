//! A process that is killed at random moments, again and again, ends in the same bytes as one that is left alone.

mod common;

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{config, data, families};
use monosem_sae::{
    AuxK, RunOptions, Spaces, TrainConfig, TrainOutcome, TrainState, TrainStep, Trainer, train_ensemble,
};
use ndarray::ArrayViewMut2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FOLDER: &str = "MONOSEM_TEST_KILLED_FOLDER";
const STEPS: u64 = 60;

/// One of every family.
fn configs() -> Vec<TrainConfig> {
    let families = families(48, 4).into_iter();
    let config = |(family, alpha): (_, f32)| {
        let revival = TrainConfig { family, alpha, dead_after_steps: 5, ..config(48, STEPS) };
        match alpha > 0.0 {
            true => TrainConfig { resample_every: 7, ..revival },
            false => TrainConfig { aux_k: Some(AuxK { k: 3, coefficient: 0.1 }), ..revival },
        }
    };
    families.map(config).collect()
}

fn train_in(folder: &Path, pause: Duration) -> Vec<TrainState> {
    let data = data(20);
    let mut batches = |step: u64, mut out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        let rows = out.nrows();
        out.assign(&data.sample(step, rows));
        std::thread::sleep(pause);
        Ok::<(), Infallible>(())
    };
    let options = RunOptions { checkpoint_folder: Some(folder), checkpoint_every: 1, ..RunOptions::default() };
    let mut on_step = |_, _, _: &_, _: &dyn Trainer| ControlFlow::Continue(());
    let outcome = train_ensemble(&configs(), Spaces::autoencoder(20, 1.5), &mut batches, options, &mut on_step);
    let TrainOutcome::Finished(members) = outcome.unwrap() else { panic!("nothing interrupts it") };
    members.iter().map(|member| member.state().unwrap()).collect()
}

/// What is killed: only does anything when started by the test below.
#[test]
#[ignore = "the child of the other test"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let states = train_in(folder, Duration::from_millis(2));
    for (i, state) in states.iter().enumerate() {
        state.save(&folder.join(format!("finished-{i}"))).unwrap();
    }
    std::fs::write(folder.join("done"), "").unwrap();
}

#[test]
fn kills_at_random_moments_change_nothing() {
    let undisturbed = tempfile::tempdir().unwrap();
    let expected = train_in(undisturbed.path(), Duration::ZERO);
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(std::process::id().into());
    let mut kills = 0;
    while !folder.path().join("done").is_file() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // After twenty kills it may finish.
        if kills < 20 {
            std::thread::sleep(Duration::from_micros(rng.random_range(20_000..120_000)));
            child.kill().unwrap();
            kills += 1;
            child.wait().unwrap();
        } else {
            assert!(child.wait().unwrap().success());
        }
    }
    println!("killed {kills} times");
    assert!(kills >= 5, "finished after {kills} kills: the test does not interrupt it enough");
    for (i, expected) in expected.iter().enumerate() {
        let state = TrainState::load(&folder.path().join(format!("finished-{i}"))).unwrap();
        assert!(state == *expected, "{:?}", expected.config.family);
    }
}
