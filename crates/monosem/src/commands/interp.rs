//! `monosem interp`.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use monosem_autointerp::{Budget, GatherConfig, PatternConfig, mean};
use monosem_corpus::{Contexts, CorpusConfig, FileOrder, SplitFractions};
use monosem_dictionary::{Dictionary as _, Estimate};
use monosem_hooks::HookedModel as _;
use monosem_report::{FeatureExample, Provenance, ResultRow, render, write_features, write_results};
use ndarray::{Array2, s};

use super::capture::contexts;
use super::patch::Site;
use super::{Bar, check_context};
use crate::cli;
use crate::interpretation::{Cut, Explained, Part, Settings, vocabulary};
use crate::nodes::{FEATURES, Label};
use crate::output::{note, say};
use crate::{exit, interrupt};

/// Contexts in one forward pass.
const BATCH: usize = 8;

/// Contexts behind the median norm.
const NORM_CONTEXTS: usize = 32;

/// Explains features of a dictionary and scores the explanations on other documents.
pub(crate) fn interp(args: &cli::Interp) -> Result<u8> {
    interrupt::listen()?;
    let site = Site::open(&args.at)?;
    let n_latents = site.dictionary.n_latents();
    let features =
        if args.features.is_empty() { (0..args.first.min(n_latents)).collect() } else { args.features.clone() };
    if let Some((i, feature)) = features.iter().enumerate().find(|(i, feature)| features[..*i].contains(feature)) {
        bail!("feature {feature} is named twice, the second time as number {} of --features", i + 1);
    }
    check_context(args.context, &site.model)?;
    if let Some(folder) = &args.out {
        // Before the work: what cannot be written is better known now.
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    if let Some(feature) = features.iter().find(|feature| **feature >= n_latents) {
        bail!("feature {feature}: the dictionary in {} has {n_latents}, from 0", args.at.dictionary.display());
    }
    let config = CorpusConfig {
        file_order: FileOrder::Seeded,
        context: args.context,
        max_tokens: Some(args.tokens),
        field: args.text_field.clone(),
        seed: args.seed,
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
    let gather = GatherConfig { seed: args.seed, ..GatherConfig::default() };
    let part = Part { dictionary: &site.dictionary, latents: features };
    let gathered = cut.gather(&mut read, limit, &[part], &gather, &mut step);
    drop(bar);
    if gathered.is_err() && interrupt::requested() {
        return Ok(exit::INTERRUPTED);
    }
    let vocabulary = vocabulary(&site.model, &site.tokenizer);
    let settings = Settings {
        vocabulary: &vocabulary,
        patterns: PatternConfig { max_patterns: args.patterns, ..PatternConfig::default() },
        budgets: vec![Budget::Patterns(args.patterns)],
        headline: args.patterns,
        seed: args.seed,
    };
    settings.patterns.validate()?;
    let explained: Vec<Explained> =
        gathered?.into_iter().flat_map(|examples| settings.explain(&cut.fragments, examples)).collect();
    let label = Label::new("interp", "sae", site.hook, "");
    let shown: Vec<FeatureExample> =
        explained.iter().map(|feature| settings.example(&label, &cut.fragments, feature)).collect();
    let rows = summary(&site, args, &shown);
    if args.at.json {
        say!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        print(&shown, &rows)?;
    }
    if let Some(folder) = &args.out {
        write(folder, &rows, &shown, args, &text)?;
    }
    Ok(exit::OK)
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

fn summary(site: &Site, args: &cli::Interp, shown: &[FeatureExample]) -> Vec<ResultRow> {
    let label = Label::new("interp", "sae", site.hook, format!("patterns={}", args.patterns));
    let scores: Vec<f64> = shown.iter().filter_map(|feature| feature.score).collect();
    let n = scores.len() as u64;
    let unscored = (shown.len() - scores.len()) as f64;
    let mean = mean(&scores).map(|s| Estimate { value: s.value, interval: s.interval });
    let mut rows: Vec<ResultRow> =
        mean.map(|mean| label.estimate("interp_score", mean, n, "correlation")).into_iter().collect();
    rows.push(label.row("scored_features", n as f64, shown.len() as u64, "features"));
    rows.push(label.row("unscored_features", unscored, shown.len() as u64, "features"));
    rows
}

fn print(shown: &[FeatureExample], rows: &[ResultRow]) -> Result<()> {
    say!("{:>7} {:>6}  explanation", "feature", "score");
    for feature in shown {
        match feature.score {
            Some(score) => say!("{:>7} {score:>6.2}  {}", feature.feature, feature.explanation),
            None => say!("{:>7} {:>6}  too few fragments on which it is active", feature.feature, "-"),
        }
    }
    for row in rows {
        let interval =
            row.ci_low.zip(row.ci_high).map_or_else(String::new, |(low, high)| format!(" [{low:.3}, {high:.3}]"));
        say!("{}: {:.3}{interval}", row.metric, row.value);
    }
    Ok(())
}

fn write(folder: &Path, rows: &[ResultRow], shown: &[FeatureExample], args: &cli::Interp, text: &str) -> Result<()> {
    write_results(&folder.join("results.json"), rows)?;
    write_features(&folder.join(FEATURES), shown)?;
    let provenance = Provenance {
        title: format!("monosem: features of {}", args.at.dictionary.display()),
        profile: "interp".into(),
        profile_toml: String::new(),
        model: args.at.model.to_string(),
        text: text.to_owned(),
        nodes: Vec::new(),
        version: env!("CARGO_PKG_VERSION").into(),
        notes: Vec::new(),
    };
    render(rows, shown, &provenance)?.write(folder)?;
    let page = folder.join("report.html");
    if args.at.json {
        note!("{}", page.display());
    } else {
        say!("{}", page.display());
    }
    Ok(())
}
