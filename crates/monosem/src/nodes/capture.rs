//! `capture-train` and its like: activations at every hook point of the profile, in one pass over each split of the text.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, Result};
use monosem_activations::{CaptureConfig, SourceInfo, capture};
use monosem_assets::Assets;
use monosem_corpus::Contexts;
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_lm::Tokenizer;
use ndarray::s;
use serde_json::json;

use super::{corpus, model_inputs, model_params, node};
use crate::fetch;
use crate::profile::Language;

pub(super) const TRAIN: &str = "capture-train";
pub(super) const HELD_OUT: &str = "capture-held-out";
pub(super) const INTERPRETATION: &str = "capture-interpretation";
pub(super) const RANDOM_TRAIN: &str = "capture-random-train";
pub(super) const RANDOM_INTERPRETATION: &str = "capture-random-interpretation";

/// The store inside the node's folder.
pub(super) const STORE: &str = "store";

/// One capture: a split of the text read by the model, or by the same model with weights drawn anew.
struct Job {
    name: &'static str,
    split: &'static str,
    /// Share of the text's tokens, for the estimate of time.
    tokens: f64,
    hooks: Vec<HookPoint>,
    random: Option<Random>,
}

/// Seed of the weights, and how many tokens to read at most.
#[derive(Clone, Copy)]
struct Random {
    seed: u64,
    tokens: usize,
}

pub(super) fn nodes<'a>(language: &'a Language, assets: &'a Assets) -> Vec<Node<'a>> {
    let tokens = language.corpus.max_tokens as f64;
    let (held_out, interpretation) = (language.corpus.held_out, language.corpus.interpretation);
    let job = |name, split, share: f64, hooks| Job { name, split, tokens: tokens * share, hooks, random: None };
    let train = job(TRAIN, "train", 1.0 - held_out - interpretation, language.trained_hooks());
    let mut jobs = vec![train, job(HELD_OUT, "held_out", held_out, language.trained_hooks())];
    if language.interp.is_some() || language.case_studies.is_some() {
        jobs.push(job(INTERPRETATION, "interpretation", interpretation, language.interpreted_hooks()));
    }
    if let Some(random) = language.interp.as_ref().and_then(|interp| interp.random_model.as_ref()) {
        let limits = [(RANDOM_TRAIN, "train", random.tokens), (RANDOM_INTERPRETATION, "interpretation", usize::MAX)];
        jobs.extend(limits.map(|(name, split, limit)| Job {
            name,
            split,
            tokens: (tokens * interpretation).min(limit as f64),
            hooks: language.capture.hooks.clone(),
            random: Some(Random { seed: random.seed, tokens: limit }),
        }));
    }
    jobs.into_iter().map(|job| of_job(language, assets, job)).collect()
}

fn of_job<'a>(language: &'a Language, assets: &'a Assets, job: Job) -> Node<'a> {
    let mut params = json!({
        "model": model_params(&language.model, language.center_writing_weights),
        "capture": language.capture,
        "split": job.split,
    });
    if job.hooks != language.capture.hooks {
        params["hooks"] = json!(job.hooks);
    }
    if let Some(random) = job.random {
        params["random_weights"] = json!({ "seed": random.seed, "tokens": random.tokens });
    }
    let code = ["activations", "lm", "assets", "monosem/nodes/capture"];
    let weight = job.tokens / 1500.0;
    let inputs = model_inputs(&language.model);
    let deps = vec![corpus::NAME.into()];
    let mut node = node(job.name.into(), deps, params, &code, weight, move |ctx| run(language, assets, &job, ctx));
    node.inputs = inputs;
    node
}

fn run(language: &Language, assets: &Assets, job: &Job, ctx: &Ctx<'_>) -> Result<()> {
    let files = fetch::model(assets, &language.model, ctx)?;
    let precision = language.capture.precision;
    let mut model = fetch::load_in(precision, assets, &language.model, language.center_writing_weights, ctx)?;
    let tokenizer = Tokenizer::load(&files)?;
    let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join(format!("{}.safetensors", job.split)))?;
    let mut n = contexts.tokens.nrows();
    if let Some(random) = job.random {
        model = model.randomized(random.seed);
        n = n.min(random.tokens.div_ceil(contexts.tokens.ncols()));
    }
    let (tokens, documents) = (contexts.tokens.slice(s![..n, ..]), contexts.documents.slice(s![..n, ..]));
    let settings = &language.capture;
    let config = CaptureConfig {
        hooks: job.hooks.clone(),
        dtype: settings.dtype,
        drop_positions: settings.drop_positions.clone(),
        batch_contexts: settings.batch_contexts,
        rows_per_shard: settings.rows_per_shard,
    };
    let source = SourceInfo {
        model: language.model.to_string(),
        weights_hash: model.weights_hash().to_owned(),
        tokenizer_hash: tokenizer.hash().to_owned(),
        text: language.text.to_string(),
    };
    let partial = ctx.partial().join(STORE);
    let mut progress = |done, total| {
        ctx.progress(done, total, "tokens");
        if ctx.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let captured = capture(&model, tokens, documents, &config, &source, &partial, &mut progress);
    if captured.is_err() {
        ctx.check()?;
    }
    captured?;
    link_tree(&partial, &ctx.out().join(STORE))
}

/// Gives every file below `from` a second name below `to`. Not a move: until the node is recorded, a kill must not lose the capture.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            link_tree(&from, &to)?;
        } else if fs::hard_link(&from, &to).is_err() {
            // Some file systems have no hard links.
            fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
    }
    Ok(())
}
