//! `monosem capture` and `monosem import`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use monosem_activations::{CaptureConfig, Manifest, SourceInfo};
use monosem_assets::Assets;
use monosem_corpus::{Contexts, CorpusConfig, FileOrder, SplitFractions};
use monosem_hooks::HookedModel as _;
use monosem_lm::{LanguageModel, LoadOptions, Tokenizer};

use super::Bar;
use crate::cli;
use crate::output::{note, say};
use crate::text::{Text, Texts};
use crate::{exit, interrupt};

/// Rows in one file of the store.
const ROWS_PER_SHARD: usize = 65_536;

/// Keeps the activations of a model on a text.
pub(crate) fn capture(args: cli::Capture) -> Result<u8> {
    interrupt::listen()?;
    let assets = Assets::from_env()?;
    let files = args.model.obtain(&assets, &mut |progress| Bar::new("model").fetch(&progress))?;
    let model =
        LanguageModel::load(&files, &LoadOptions { center_writing_weights: args.centered, precision: args.precision })?;
    if !args.precision.is_native() {
        note!("this processor has no AVX512-BF16: bf16 is slower than f32 here");
    }
    // Token ids need no tokenizer, and a model folder need not have one.
    let tokenizer = match args.tokens_from.ids {
        Some(_) => Tokenizer::load(&files).ok(),
        None => Some(Tokenizer::load(&files)?),
    };
    let config = CorpusConfig {
        file_order: FileOrder::Seeded,
        context: args.context,
        max_tokens: args.tokens,
        field: args.text_field,
        seed: args.seed,
        splits: SplitFractions { held_out: 0.0, interpretation: 0.0 },
    };
    let (contexts, text) = contexts(&assets, &args.tokens_from, &config, tokenizer.as_ref(), model.d_vocab())?;
    let config = CaptureConfig {
        hooks: args.hooks,
        dtype: args.dtype,
        drop_positions: args.drop_positions.0,
        batch_contexts: args.batch,
        rows_per_shard: ROWS_PER_SHARD,
    };
    let source = SourceInfo {
        model: args.model.to_string(),
        weights_hash: model.weights_hash().into(),
        tokenizer_hash: tokenizer.map(|t| t.hash().to_owned()).unwrap_or_default(),
        text,
    };
    let mut bar = Bar::new("capture");
    let mut progress = |done, total| bar.show(done, total, "tokens");
    let (tokens, documents) = (contexts.tokens.view(), contexts.documents.view());
    let manifest = monosem_activations::capture(&model, tokens, documents, &config, &source, &args.out, &mut progress)?;
    drop(bar);
    print_manifest(&manifest, &args.out)?;
    Ok(exit::OK)
}

/// All of a text, or of a file of token ids, as contexts, and the name of where they come from.
pub(crate) fn contexts(
    assets: &Assets,
    from: &cli::TokenSource,
    config: &CorpusConfig,
    tokenizer: Option<&Tokenizer>,
    d_vocab: usize,
) -> Result<(Contexts, String)> {
    if let Some(ids) = &from.ids {
        let corpus = monosem_corpus::from_token_ids(ids, config, Some(d_vocab))?;
        return Ok((corpus.train, ids.display().to_string()));
    }
    let tokenizer = tokenizer.context("text needs a tokenizer")?;
    ensure!(!from.text.is_empty(), "neither --text nor --ids was given");
    let texts = Texts(from.text.clone());
    let obtain = |text: &Text| text.obtain(assets, &mut |progress| Bar::new("text").fetch(&progress));
    let paths = texts.0.iter().map(obtain).collect::<Result<Vec<_>>>()?;
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let eos = tokenizer.eos().context("the tokenizer names no end-of-text token, which separates documents")?;
    let corpus = monosem_corpus::build(&paths, config, eos, &|text| Ok(tokenizer.encode(text)?))?;
    Ok((corpus.train, texts.to_string()))
}

/// Takes activations made elsewhere into a store.
pub(crate) fn import(args: &cli::Import) -> Result<u8> {
    interrupt::listen()?;
    let source = SourceInfo {
        model: args.model.clone(),
        weights_hash: String::new(),
        tokenizer_hash: String::new(),
        text: String::new(),
    };
    let manifest = monosem_activations::import(&args.files, args.hook, &source, args.dtype, &args.out)?;
    print_manifest(&manifest, &args.out)?;
    Ok(exit::OK)
}

fn print_manifest(manifest: &Manifest, out: &Path) -> Result<()> {
    for hook in manifest.hook_points() {
        say!("{} {} rows of {hook}", out.display(), manifest.rows);
    }
    Ok(())
}
