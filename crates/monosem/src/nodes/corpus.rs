//! `corpus`: the text as token contexts, split by document.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use monosem_assets::Assets;
use monosem_corpus::{CorpusConfig, FileOrder, SplitFractions};
use monosem_graph::{Ctx, Node};
use monosem_lm::Tokenizer;
use serde_json::json;

use super::{fetch as fetch_node, model_inputs, node, text_inputs};
use crate::fetch;
use crate::profile::Language;

pub(super) const NAME: &str = "corpus";

pub(super) fn nodes<'a>(language: &'a Language, assets: &'a Assets) -> Vec<Node<'a>> {
    let params = json!({
        "tokenizer": language.model.identity(),
        "text": language.text.to_string(),
        "field": language.text_field,
        "corpus": language.corpus,
    });
    let code = ["corpus", "assets", "lm", "monosem/nodes/corpus"];
    let deps = vec![fetch_node::MODEL.into(), fetch_node::TEXT.into()];
    let mut corpus = node(NAME.into(), deps, params, &code, 20.0, |ctx| run(language, assets, ctx));
    corpus.inputs = [model_inputs(&language.model), text_inputs(&language.text)].concat();
    vec![corpus]
}

fn run(language: &Language, assets: &Assets, ctx: &Ctx<'_>) -> Result<()> {
    let model = fetch::model(assets, &language.model, ctx)?;
    let texts = fetch::texts(assets, &language.text, ctx)?;
    let tokenizer = Tokenizer::load(&model)?;
    let eos = tokenizer.eos().context("the tokenizer names no end-of-text token, which separates documents")?;
    let settings = &language.corpus;
    let config = CorpusConfig {
        file_order: FileOrder::Seeded,
        context: settings.context,
        max_tokens: Some(settings.max_tokens),
        field: language.text_field.clone(),
        seed: settings.seed,
        splits: SplitFractions { held_out: settings.held_out, interpretation: settings.interpretation },
    };
    let encode = |text: &str| {
        ctx.check()?;
        Ok(tokenizer.encode(text)?)
    };
    let paths: Vec<&Path> = texts.iter().map(PathBuf::as_path).collect();
    let corpus = monosem_corpus::build(&paths, &config, eos, &encode)?;
    for (name, contexts) in
        [("train", &corpus.train), ("held_out", &corpus.held_out), ("interpretation", &corpus.interpretation)]
    {
        ctx.message(&format!("{name}: {} contexts of {} tokens", contexts.tokens.nrows(), contexts.tokens.ncols()));
        contexts.save(&ctx.out().join(format!("{name}.safetensors")))?;
    }
    Ok(())
}
