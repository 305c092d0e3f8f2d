//! `monosem interp-cache`.

use anyhow::{Result, bail, ensure};
use monosem_assets::Assets;
use monosem_autointerp::{DelphiCache, DelphiError};
use monosem_lm::Tokenizer;

use super::Bar;
use super::scoring::{About, Asks};
use crate::interpretation::vocabulary;
use crate::output::note;
use crate::{cli, exit, interrupt};

/// Explains and scores latents whose activations delphi cached: neither the dictionary nor the model's weights are needed.
pub(crate) fn interp_cache(args: &cli::InterpCache) -> Result<u8> {
    interrupt::listen()?;
    let asks = Asks::new(&args.scoring)?;
    let cache = DelphiCache::open(&args.cache)?;
    let features = if args.features.is_empty() {
        cache.latents().flatten().take(args.first).collect()
    } else {
        args.features.clone()
    };
    if let Some((i, feature)) = features.iter().enumerate().find(|(i, feature)| features[..*i].contains(feature)) {
        bail!("feature {feature} is named twice, the second time as number {} of --features", i + 1);
    }
    let assets = Assets::from_env()?;
    let files = args.model.obtain(&assets, &mut |progress| Bar::new("model").fetch(&progress))?;
    let tokenizer = Tokenizer::load(&files)?;
    let d_vocab = tokenizer.vocab_size();
    let tokens = cache.tokens()?;
    let most = tokens.iter().max().map_or(0, |token| *token as usize);
    ensure!(
        most < d_vocab,
        "{} holds token {most}, but {} has {d_vocab}: the cache is of another model",
        args.cache.display(),
        args.model
    );
    let total = tokens.nrows() * (tokens.ncols() / args.fragment.max(1));
    let mut bar = Bar::new("interp");
    let mut step = |done: usize| bar.show(done as u64, total as u64, "fragments");
    let gathered = cache.gather(&features, args.fragment, None, &asks.gather(), &mut step);
    drop(bar);
    let (fragments, features) = match gathered {
        Err(DelphiError::Stopped { .. }) => return Ok(exit::INTERRUPTED),
        other => other?,
    };
    note!(
        "rows of the cache stand for documents, which delphi does not keep; random directions are no control without activations"
    );
    let folder = args.cache.file_name().unwrap_or(args.cache.as_os_str()).to_string_lossy().into_owned();
    let about = About {
        dictionary: args.cache.display().to_string(),
        hook: folder,
        model: args.model.to_string(),
        text: cache.config().dataset_repo.clone().unwrap_or_default(),
        json: args.json,
    };
    asks.explain_and_score(&assets, &about, &vocabulary(d_vocab, &tokenizer), &fragments, [features, Vec::new()])
}
