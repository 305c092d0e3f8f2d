//! Capture into a store and back.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::formula::{Formula, WIDTH, go_on, point, source, tokens, value};
use monosem_activations::{ActivationError, CaptureConfig, Dtype, Manifest, Store, capture};
use ndarray::{Array2, s};
use proptest::prelude::*;

fn config(hooks: &[&str]) -> CaptureConfig {
    CaptureConfig {
        hooks: hooks.iter().map(|h| point(h)).collect(),
        dtype: Dtype::F32,
        batch_contexts: 3,
        rows_per_shard: 20,
        ..CaptureConfig::default()
    }
}

fn run(model: &Formula, contexts: usize, config: &CaptureConfig, out: &Path) -> Result<Manifest, ActivationError> {
    let (ids, documents) = tokens(contexts, 8);
    capture(model, ids.view(), documents.view(), config, &source(), out, &mut go_on)
}

/// Every file below a folder with its bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let inner = contents(&path).into_iter();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.extend(inner.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            found.insert(path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap());
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_store_gives_back_what_the_model_had(
        contexts in 1usize..9,
        length in 2usize..9,
        dropped in proptest::collection::btree_set(0usize..8, 0..3),
        batch_contexts in 1usize..5,
        rows_per_shard in 1usize..40,
        dtype in 0usize..3,
    ) {
        let drop_positions: Vec<usize> = dropped.iter().copied().filter(|p| *p < length - 1).rev().collect();
        let kept: Vec<usize> = (0..length).filter(|p| !drop_positions.contains(p)).collect();
        let dtype = Dtype::ALL[dtype];
        let hooks = vec![point("blocks.1.hook_resid_post"), point("blocks.0.mlp.hook_post")];
        let config = CaptureConfig { hooks: hooks.clone(), dtype, drop_positions, batch_contexts, rows_per_shard };
        let (ids, documents) = tokens(contexts, length);
        let out = tempfile::tempdir().unwrap();
        let model = Formula::default();
        let manifest =
            capture(&model, ids.view(), documents.view(), &config, &source(), out.path(), &mut go_on).unwrap();
        prop_assert_eq!(manifest.rows_per_context(), Some(kept.len()));

        let store = Store::open(out.path()).unwrap();
        store.verify().unwrap();
        prop_assert_eq!(store.manifest(), &manifest);
        let at = |row: usize| (row / kept.len(), kept[row % kept.len()]);
        let bound = match dtype { Dtype::F32 => 0.0, Dtype::F16 => 3.0 / 2048.0, Dtype::Bf16 => 3.0 / 256.0 };
        // Mapped, partly mapped, and read by position.
        for (hook, mapped) in hooks.into_iter().flat_map(|h| [(h, usize::MAX), (h, 1000), (h, 0)]) {
            let acts = store.hook_within(hook, mapped).unwrap();
            prop_assert_eq!(acts.len(), contexts * kept.len());
            let mut rows = Array2::zeros((acts.len(), acts.width()));
            acts.rows(0, rows.view_mut()).unwrap();
            for ((row, dimension), found) in rows.indexed_iter() {
                let (context, position) = at(row);
                let expected = value(hook, ids[[context, position]], position, dimension);
                prop_assert!((found - expected).abs() <= bound, "{} for {}", found, expected);
            }
            // Gathered in any order, repeated, and into a buffer with gaps between the rows.
            let order: Vec<usize> = (0..acts.len() + 3).map(|i| (i * 7 + 1) % acts.len()).collect();
            let mut wide = Array2::zeros((order.len(), acts.width() + 1));
            acts.gather(&order, wide.slice_mut(s![.., 1..])).unwrap();
            let mut columns = Array2::zeros((acts.width(), order.len()));
            acts.gather(&order, columns.view_mut().reversed_axes()).unwrap();
            for (i, &row) in order.iter().enumerate() {
                prop_assert_eq!(wide.slice(s![i, 1..]), rows.row(row));
                prop_assert_eq!(columns.column(i), rows.row(row));
            }
            let each = |of: &dyn Fn((usize, usize)) -> u32| Some((0..acts.len()).map(|r| of(at(r))).collect::<Vec<_>>());
            prop_assert_eq!(acts.token_ids().unwrap(), each(&|place| ids[place]));
            prop_assert_eq!(acts.documents().unwrap(), each(&|place| documents[place]));
            prop_assert_eq!(acts.positions().unwrap(), each(&|place| place.1 as u32));
        }
    }
}

#[test]
fn a_pass_ends_at_the_deepest_hook() {
    let model = Formula::default();
    let out = tempfile::tempdir().unwrap();
    run(&model, 2, &config(&["blocks.1.mlp.hook_post", "blocks.0.hook_resid_pre"]), out.path()).unwrap();
    assert_eq!((model.passes.load(Ordering::Relaxed), model.visits.load(Ordering::Relaxed)), (1, 5));
}

#[test]
fn interrupted_anywhere_it_goes_on_and_ends_the_same() {
    let config = config(&["blocks.0.hook_resid_post", "blocks.2.mlp.hook_post"]);
    let (ids, documents) = tokens(20, 8);
    let whole = tempfile::tempdir().unwrap();
    run(&Formula::default(), 20, &config, whole.path()).unwrap();
    let expected = contents(whole.path());
    assert_eq!(expected.len(), 2 * 7 + 1, "{:?}", expected.keys());

    for patience in 1..5 {
        let out = tempfile::tempdir().unwrap();
        let mut runs = 0;
        loop {
            runs += 1;
            assert!(runs < 30, "no progress with {patience} batches a run");
            let (model, mut calls, mut last) = (Formula::default(), 0, 0);
            let result =
                capture(&model, ids.view(), documents.view(), &config, &source(), out.path(), &mut |done, total| {
                    assert!(total == 160 && done >= last && done <= total);
                    (calls, last) = (calls + 1, done);
                    // The batches hold 21 rows, the shards 20: one batch alone is not always a whole shard.
                    if calls > patience + 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
            match result {
                Ok(_) => break,
                Err(ActivationError::Interrupted { kept, rows }) => {
                    assert!(rows == 140 && kept % 20 == 0 && kept < rows);
                    let unfinished = Store::open(out.path()).unwrap_err();
                    assert!(matches!(unfinished, ActivationError::Unfinished { rows: 140, .. }), "{unfinished}");
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(runs > 1);
        assert!(contents(out.path()) == expected, "{patience}: {:?}", contents(out.path()).keys());
    }
}

#[test]
fn a_finished_capture_is_not_run_again() {
    let (out, model) = (tempfile::tempdir().unwrap(), Formula::default());
    let config = config(&["blocks.0.hook_resid_post"]);
    let first = run(&model, 5, &config, out.path()).unwrap();
    let passes = model.passes.load(Ordering::Relaxed);
    assert_eq!(run(&model, 5, &config, out.path()).unwrap(), first);
    assert_eq!(model.passes.load(Ordering::Relaxed), passes);
    assert!(!out.path().join(".lock").exists());
}

#[test]
fn other_arguments_are_told_apart() {
    let (ids, documents) = tokens(20, 8);
    let begun = config(&["blocks.0.hook_resid_post"]);
    for whole in [false, true] {
        let out = tempfile::tempdir().unwrap();
        let mut left = if whole { 100 } else { 4 };
        let _ =
            capture(&Formula::default(), ids.view(), documents.view(), &begun, &source(), out.path(), &mut |_, _| {
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        let mut other_source = source();
        other_source.weights_hash = "other".to_owned();
        let mut other_ids = ids.clone();
        other_ids[[19, 7]] += 1;
        let bf16 = CaptureConfig { dtype: Dtype::Bf16, ..begun.clone() };
        let hooks = config(&["blocks.1.hook_resid_post"]);
        for (ids, config, source, key) in [
            (&ids, &bf16, &source(), "`dtype` is \"f32\" there and \"bf16\" here"),
            (&ids, &hooks, &source(), "`hooks`"),
            (&ids, &begun, &other_source, "`source`"),
            (&other_ids, &begun, &source(), "`tokens_hash`"),
        ] {
            let found =
                capture(&Formula::default(), ids.view(), documents.view(), config, source, out.path(), &mut go_on);
            let found = found.unwrap_err().to_string();
            assert!(found.contains(key) && found.contains("manifest."), "{found}");
        }
    }
}

#[test]
fn damage_to_finished_shards_is_repaired_by_going_on() {
    let config = config(&["blocks.0.hook_resid_post"]);
    let (ids, documents) = tokens(20, 8);
    let whole = tempfile::tempdir().unwrap();
    run(&Formula::default(), 20, &config, whole.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut left = 6;
    let _ = capture(&Formula::default(), ids.view(), documents.view(), &config, &source(), out.path(), &mut |_, _| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let shard = out.path().join("blocks.0.hook_resid_post/activations-00002.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    run(&Formula::default(), 20, &config, out.path()).unwrap();
    assert!(contents(out.path()) == contents(whole.path()));
}

#[test]
fn a_bad_value_stops_the_capture_and_says_where() {
    let config = config(&["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]);
    let (ids, _) = tokens(10, 8);
    for (poison, expected) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let out = tempfile::tempdir().unwrap();
        let model = Formula { poison: Some((1, ids[[4, 5]], poison)), ..Formula::default() };
        let error = run(&model, 10, &config, out.path()).unwrap_err();
        // Context 4 begins with row 28 of all, position 5 is its fifth row: row 32, the 12th of shard 1.
        let ActivationError::NonFinite { row: 12, dimension: 2, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        for part in
            [expected, "blocks.1.hook_resid_post/activations-00001.safetensors", "context 4, position 5", "row 12"]
        {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(matches!(Store::open(out.path()), Err(ActivationError::Unfinished { kept: 20, .. })));
        // At a position that has no rows it does not matter.
        let harmless = CaptureConfig { drop_positions: vec![5], ..config.clone() };
        run(&model, 10, &harmless, tempfile::tempdir().unwrap().path()).unwrap();
    }
}

#[test]
fn f16_refuses_what_it_cannot_hold() {
    let (ids, _) = tokens(10, 8);
    let model = Formula { poison: Some((0, ids[[1, 1]], -7e4)), ..Formula::default() };
    let mut config = config(&["blocks.0.hook_resid_post"]);
    config.dtype = Dtype::F16;
    let error = run(&model, 10, &config, tempfile::tempdir().unwrap().path()).unwrap_err();
    assert!(matches!(error, ActivationError::Overflow { row: 7, dimension: 2, .. }), "{error}");
    assert!(error.to_string().contains("use bf16 or f32"), "{error}");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        config.dtype = dtype;
        run(&model, 10, &config, tempfile::tempdir().unwrap().path()).unwrap();
    }
}

#[test]
fn settings_and_tokens_that_cannot_be_met_are_refused() {
    let fails = |config: &CaptureConfig, ids: Array2<u32>, part: &str| {
        let out = tempfile::tempdir().unwrap();
        let documents = Array2::zeros(ids.dim());
        let model = Formula::default();
        let error = capture(&model, ids.view(), documents.view(), config, &source(), out.path(), &mut go_on);
        let text = error.unwrap_err().to_string();
        assert!(text.contains(part), "{part:?} in {text}");
    };
    let (ids, good) = (tokens(2, 8).0, config(&["blocks.0.hook_resid_post"]));
    fails(&config(&[]), ids.clone(), "`hooks`");
    fails(&config(&["blocks.0.hook_resid_post"; 2]), ids.clone(), "twice");
    fails(&config(&["blocks.3.hook_resid_post"]), ids.clone(), "it has 3 blocks");
    fails(&config(&["blocks.0.hook_resid_mid"]), ids.clone(), "no such site");
    fails(&config(&["blocks.0.hook_mlp_out"]), ids.clone(), "never came there");
    fails(&CaptureConfig { batch_contexts: 0, ..good.clone() }, ids.clone(), "`batch_contexts`");
    fails(&CaptureConfig { rows_per_shard: 0, ..good.clone() }, ids.clone(), "`rows_per_shard`");
    fails(&CaptureConfig { drop_positions: vec![8], ..good.clone() }, ids.clone(), "`drop_positions`: has 8");
    fails(&CaptureConfig { drop_positions: (0..8).collect(), ..good.clone() }, ids.clone(), "no rows");
    fails(&good, Array2::zeros((0, 8)), "no rows");
    fails(&good, Array2::zeros((1, 65)), "the model takes 64");
    let mut ids = ids;
    ids[[1, 3]] = 1000;
    fails(&good, ids, "id 1000 at context 1, position 3");
}

#[test]
fn two_captures_do_not_share_a_folder() {
    let (ids, documents) = tokens(20, 8);
    let out = tempfile::tempdir().unwrap();
    let config = config(&["blocks.0.hook_resid_post"]);
    let mut inner = None;
    capture(&Formula::default(), ids.view(), documents.view(), &config, &source(), out.path(), &mut |_, _| {
        inner.get_or_insert_with(|| run(&Formula::default(), 20, &config, out.path()));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(matches!(inner, Some(Err(ActivationError::Locked { .. }))));
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let out = tempfile::tempdir().unwrap();
    run(&Formula::default(), 2, &config(&["blocks.0.hook_resid_post"]), out.path()).unwrap();
    let bytes = std::fs::read(out.path().join("blocks.0.hook_resid_post/activations-00000.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let acts = tensors.tensor("activations").unwrap();
    assert_eq!((acts.dtype(), acts.shape()), (safetensors::Dtype::F32, &[14, WIDTH][..]));
    let mut names = tensors.names();
    names.sort_unstable();
    assert_eq!(names, ["activations", "document", "position", "token_ids"]);
}
