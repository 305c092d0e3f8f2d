//! From a model to dictionaries through every crate's public interface, on a tiny checkpoint.

use std::ops::ControlFlow;
use std::path::Path;

use monosem_activations::{Batches, CaptureConfig, Dtype, HookStore, SourceInfo, Store, capture};
use monosem_decompose::{Moments, Pca};
use monosem_dictionary::{Dictionary, Evaluation, Evaluator, LinearDictionary, column_mean};
use monosem_hooks::{HookPoint, HookedModel as _, Site};
use monosem_lm::{LanguageModel, LoadOptions};
use monosem_sae::{RunOptions, Spaces, TrainConfig, TrainOutcome, Trainer, train};
use ndarray::{Array2, ArrayViewMut2};
use rand::{RngExt as _, SeedableRng as _};

const CONTEXTS: usize = 160;
const CONTEXT: usize = 24;

fn model(name: &str) -> LanguageModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/golden").join(name);
    LanguageModel::load(&folder, &LoadOptions::default()).expect("a golden model loads")
}

fn captured(model: &LanguageModel, hooks: &[HookPoint], folder: &Path) -> Store {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let vocabulary = u32::try_from(model.d_vocab()).expect("a small vocabulary");
    let tokens = Array2::from_shape_simple_fn((CONTEXTS, CONTEXT), || rng.random_range(0..vocabulary));
    let documents = Array2::from_shape_fn((CONTEXTS, CONTEXT), |(i, _)| u32::try_from(i).expect("few contexts"));
    let config = CaptureConfig {
        hooks: hooks.to_vec(),
        dtype: Dtype::F32,
        drop_positions: vec![0],
        batch_contexts: 16,
        rows_per_shard: 1000,
    };
    let source = SourceInfo {
        model: "tiny".into(),
        weights_hash: model.weights_hash().into(),
        tokenizer_hash: String::new(),
        text: "random tokens".into(),
    };
    let (tokens, documents) = (tokens.view(), documents.view());
    capture(model, tokens, documents, &config, &source, folder, &mut |_, _| ControlFlow::Continue(()))
        .expect("a capture");
    Store::open(folder).expect("a store")
}

fn all_rows(store: &HookStore) -> Array2<f32> {
    let mut rows = Array2::zeros((store.len(), store.width()));
    store.rows(0, rows.view_mut()).expect("rows");
    rows
}

fn evaluate(dictionary: &LinearDictionary, x: &Array2<f32>) -> Evaluation {
    let mut evaluator = Evaluator::new(column_mean(x.view()), dictionary.n_latents());
    let codes = dictionary.encode(x.view());
    let groups: Vec<u32> = (0..u32::try_from(x.nrows()).expect("few rows")).map(|i| i / 23).collect();
    evaluator.add(x.view(), &codes, dictionary.decode(&codes).view(), &groups);
    evaluator.finish()
}

#[test]
fn every_site_of_every_family_becomes_a_dictionary_that_explains_more_with_more_codes() {
    for name in ["neox-tiny", "gpt2-tiny", "llama-tiny"] {
        let model = model(name);
        let sites = Site::ALL.into_iter().filter(|site| model.width(*site).is_some());
        let hooks: Vec<HookPoint> = sites.map(|site| HookPoint::new(1, site)).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let store = captured(&model, &hooks, folder.path());
        for hook in hooks {
            let rows = store.hook(hook).expect("a captured hook");
            assert_eq!(rows.len(), CONTEXTS * (CONTEXT - 1));
            let x = all_rows(&rows);
            let mut moments = Moments::new(rows.width());
            moments.add(x.view());
            let pca = Pca::from_moments(&moments).expect("principal components");
            assert!(evaluate(&pca.rotation(), &x).fvu.value < 1e-6, "{name} {hook}");
            assert!(evaluate(&pca.non_negative(), &x).fvu.value < 1e-6, "{name} {hook}");
            let fvus: Vec<f64> = [1, 4, 16].map(|k| evaluate(&pca.top_k(k), &x).fvu.value).into();
            assert!(fvus.is_sorted_by(|a, b| a > b), "{name} {hook}: {fvus:?}");
        }
    }
}

#[test]
fn an_autoencoder_of_captured_rows_beats_pca_at_its_own_sparsity() {
    let model = model("llama-tiny");
    // The stream that enters a Llama is one of 97 embeddings: points that directions of their own describe better than shared axes.
    let hook = HookPoint::new(0, Site::ResidPre);
    let folder = tempfile::tempdir().expect("a folder");
    let store = captured(&model, &[hook], folder.path());
    let rows = store.hook(hook).expect("a captured hook");
    let x = all_rows(&rows);
    let scale = 1.0 / x.mapv(|v| v * v).mean().expect("some rows").sqrt();
    let config = TrainConfig {
        n_latents: 4 * rows.width(),
        alpha: 3e-2,
        lr: 3e-3,
        batch: 256,
        steps: 600,
        lr_decay_steps: 200,
        ..TrainConfig::default()
    };
    let order = Batches::new(rows.len(), config.batch, 1);
    let mut batches = |step: u64, out: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
        rows.gather(&order.batch(step), out)
    };
    let spaces = Spaces::autoencoder(rows.width(), scale);
    let mut on_step = |_: u64, _: &_, _: &dyn Trainer| ControlFlow::Continue(());
    let outcome = train(&config, spaces, &mut batches, RunOptions::default(), &mut on_step);
    let Ok(TrainOutcome::Finished(sae)) = outcome else { panic!("nothing stops it") };
    let trained = evaluate(&sae.dictionary(), &x);
    let mut moments = Moments::new(rows.width());
    moments.add(x.view());
    let k = trained.l0.value.round() as usize;
    let pca = evaluate(&Pca::from_moments(&moments).expect("principal components").top_k(k), &x);
    assert!(trained.l0.value < rows.width() as f64 / 2.0, "L0 {}", trained.l0.value);
    assert!(trained.fvu.value < pca.fvu.value, "autoencoder {:?}, PCA top {k} {:?}", trained.fvu, pca.fvu);
}
