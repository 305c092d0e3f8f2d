//! `capture-train` and `capture-held-out`: activations at every hook point of the profile, in one pass each.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, Result};
use monosem_activations::{CaptureConfig, SourceInfo, capture};
use monosem_assets::Assets;
use monosem_corpus::Contexts;
use monosem_graph::{Ctx, Node};
use monosem_lm::Tokenizer;
use serde_json::json;

use super::{corpus, model_inputs, model_params, node};
use crate::fetch;
use crate::profile::Language;

pub(super) const TRAIN: &str = "capture-train";
pub(super) const HELD_OUT: &str = "capture-held-out";

/// The store inside the node's folder.
pub(super) const STORE: &str = "store";

pub(super) fn nodes<'a>(language: &'a Language, assets: &'a Assets) -> Vec<Node<'a>> {
    let tokens = language.corpus.max_tokens as f64;
    let held_out = language.corpus.held_out;
    let splits = [(TRAIN, "train", 1.0 - held_out - language.corpus.interpretation), (HELD_OUT, "held_out", held_out)];
    let of_split = |(name, split, share): (&str, &'static str, f64)| {
        let params = json!({
            "model": model_params(&language.model, language.center_writing_weights),
            "capture": language.capture,
            "split": split,
        });
        let code = ["activations", "lm", "assets", "monosem/nodes/capture"];
        let mut node =
            node(name.into(), vec![corpus::NAME.into()], params, &code, tokens * share / 1500.0, move |ctx| {
                run(language, assets, split, ctx)
            });
        node.inputs = model_inputs(&language.model);
        node
    };
    splits.map(of_split).into()
}

fn run(language: &Language, assets: &Assets, split: &str, ctx: &Ctx<'_>) -> Result<()> {
    let files = fetch::model(assets, &language.model, ctx)?;
    let model = fetch::load(assets, &language.model, language.center_writing_weights, ctx)?;
    let tokenizer = Tokenizer::load(&files)?;
    let contexts = Contexts::load(&ctx.dep(corpus::NAME)?.join(format!("{split}.safetensors")))?;
    let settings = &language.capture;
    let config = CaptureConfig {
        hooks: settings.hooks.clone(),
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
    let captured =
        capture(&model, contexts.tokens.view(), contexts.documents.view(), &config, &source, &partial, &mut progress);
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
