//! `monosem interp`.

use std::ops::ControlFlow;

use anyhow::{Result, bail, ensure};
use monosem_corpus::{Contexts, CorpusConfig, FileOrder, SplitFractions};
use monosem_dictionary::{Activation, Dictionary as _, LinearDictionary};
use monosem_hooks::HookedModel as _;
use ndarray::{Array2, s};

use super::capture::contexts;
use super::patch::Site;
use super::scoring::{About, Asks};
use super::{Bar, check_context};
use crate::interpretation::{Cut, Part, vocabulary};
use crate::output::note;
use crate::{cli, exit, interrupt};

/// Contexts in one forward pass.
const BATCH: usize = 8;

/// Contexts behind the median norm.
const NORM_CONTEXTS: usize = 32;

/// Explains features of a dictionary and scores the explanations on other documents.
pub(crate) fn interp(args: &cli::Interp) -> Result<u8> {
    interrupt::listen()?;
    let asks = Asks::new(&args.scoring)?;
    let site = Site::open(&args.at, monosem_lm::Precision::F32)?;
    let n_latents = site.dictionary.n_latents();
    let features =
        if args.features.is_empty() { (0..args.first.min(n_latents)).collect() } else { args.features.clone() };
    if let Some((i, feature)) = features.iter().enumerate().find(|(i, feature)| features[..*i].contains(feature)) {
        bail!("feature {feature} is named twice, the second time as number {} of --features", i + 1);
    }
    check_context(args.context, &site.model)?;
    if let Some(feature) = features.iter().find(|feature| **feature >= n_latents) {
        bail!("feature {feature}: the dictionary in {} has {n_latents}, from 0", args.at.dictionary.display());
    }
    let config = CorpusConfig {
        file_order: FileOrder::Seeded,
        context: args.context,
        max_tokens: Some(args.tokens),
        field: args.text_field.clone(),
        seed: args.scoring.seed,
        splits: SplitFractions { held_out: 0.0, interpretation: 0.0 },
    };
    let from = cli::TokenSource { text: args.text.clone(), ids: None };
    let (contexts, text) = contexts(&site.assets, &from, &config, Some(&site.tokenizer), site.model.d_vocab())?;
    let mut cut = Cut::new(&contexts, args.fragment, usize::MAX, &args.at.drop_positions.0)?;
    if let Some(documents) = cut.divide_few_documents() {
        note!(
            "only {documents} documents: parts of the text are told apart instead, to explain from some and score on others"
        );
    }
    let n_fragments = cut.fragments.documents.len();
    let limit = norm_limit(&site, &contexts, args)?;
    let mut read = |first: usize, n: usize| read(&site, &contexts, &args.at.drop_positions.0, first, n);
    let mut bar = Bar::new("interp");
    let mut step = |done: usize| {
        let flow = bar.show(done as u64, n_fragments as u64, "fragments");
        ensure!(flow.is_continue(), "stopped: nothing is written until every fragment was read");
        Ok(())
    };
    // The control in which there is nothing to find: random directions on the same activations.
    let random =
        LinearDictionary::random(args.scoring.controls, site.dictionary.d_in(), Activation::Relu, args.scoring.seed);
    let parts = [Part { dictionary: &site.dictionary, latents: features }, Part::first(&random, args.scoring.controls)];
    let gathered = cut.gather(&mut read, limit, &parts, &asks.gather(), &mut step);
    drop(bar);
    if gathered.is_err() && interrupt::requested() {
        return Ok(exit::INTERRUPTED);
    }
    let about = About {
        dictionary: args.at.dictionary.display().to_string(),
        hook: site.hook.to_string(),
        model: args.at.model.to_string(),
        text,
        json: args.at.json,
    };
    let mut gathered = gathered?.into_iter();
    let (features, random) = (gathered.next().unwrap_or_default(), gathered.next().unwrap_or_default());
    let vocabulary = vocabulary(site.model.d_vocab(), &site.tokenizer);
    asks.explain_and_score(&site.assets, &about, &vocabulary, &cut.fragments, [features, random])
}

/// Activations `[n * kept positions, width]` of contexts `first..first + n`.
fn read(site: &Site, contexts: &Contexts, dropped: &[usize], first: usize, n: usize) -> Result<Array2<f32>> {
    let context = contexts.tokens.ncols();
    let kept: Vec<usize> = (0..context).filter(|position| !dropped.contains(position)).collect();
    let mut rows = Array2::zeros((n * kept.len(), site.dictionary.d_in()));
    for start in (0..n).step_by(BATCH) {
        let batch = BATCH.min(n - start);
        let tokens = contexts.tokens.slice(s![first + start..first + start + batch, ..]);
        let _ = site.model.forward(tokens, &mut |point, activations| {
            if point != site.hook {
                return ControlFlow::Continue(());
            }
            for (i, one) in activations.outer_iter().enumerate() {
                for (j, position) in kept.iter().enumerate() {
                    rows.row_mut((start + i) * kept.len() + j).assign(&one.row(*position));
                }
            }
            ControlFlow::Break(())
        });
    }
    Ok(rows)
}

/// `max_norm` times the median norm over the first contexts.
fn norm_limit(site: &Site, contexts: &Contexts, args: &cli::Interp) -> Result<f32> {
    let n = NORM_CONTEXTS.min(contexts.tokens.nrows());
    let rows = read(site, contexts, &args.at.drop_positions.0, 0, n)?;
    let mut norms: Vec<f32> = rows.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect();
    ensure!(!norms.is_empty(), "the text has no whole context of {} tokens", args.context);
    ensure!(args.max_norm >= 1.0, "--max-norm {}: a multiple of the median norm, at least 1, or inf", args.max_norm);
    let middle = norms.len() / 2;
    Ok((args.max_norm * f64::from(*norms.select_nth_unstable_by(middle, f32::total_cmp).1)) as f32)
}
