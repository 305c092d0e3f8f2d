//! `monosem interp`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, Error, Result, bail, ensure};
use monosem_autointerp::{
    Budget, ExplainerKind, FeatureRecord, Fragments, GatherConfig, Interpreter, LlmConfig, PatternConfig, Prompts,
    ScorerKind, SplitRule, Verdict, read_explanations, write_records,
};
use monosem_corpus::{Contexts, CorpusConfig, FileOrder, SplitFractions};
use monosem_dictionary::{Activation, Dictionary as _, LinearDictionary};
use monosem_hooks::HookedModel as _;
use monosem_llm::LlmError;
use monosem_report::{FeatureExample, Provenance, ResultRow, render, write_features, write_results};
use ndarray::{Array2, s};

use super::capture::contexts;
use super::patch::Site;
use super::{Bar, check_context};
use crate::asking::{self, Asker, Explains, Subject, with_record};
use crate::cli::{self, ExplainerName};
use crate::endpoint::Llm;
use crate::interpretation::{Cut, Explained, Part, Settings, vocabulary};
use crate::nodes::{FEATURES, Label};
use crate::output::{note, say};
use crate::{exit, interrupt};

/// The file of explanations in the folder of results.
const EXPLANATIONS: &str = "explanations.jsonl";

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
    let asks = Asks::new(args)?;
    // The control in which there is nothing to find: random directions on the same activations.
    let random = LinearDictionary::random(args.controls, site.dictionary.d_in(), Activation::Relu, args.seed);
    let parts = [Part { dictionary: &site.dictionary, latents: features }, Part::first(&random, args.controls)];
    let gathered = cut.gather(&mut read, limit, &parts, &gather(args), &mut step);
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
    let mut explained = gathered?.into_iter().map(|examples| settings.explain(&cut.fragments, examples));
    let (features, random) = (explained.next().unwrap_or_default(), explained.next().unwrap_or_default());
    let found = asks.run(args, &site, &settings, &cut.fragments, &features, &random)?;

    let label = Label::new("autointerp", "sae", site.hook, "");
    let scored = |feature: &Explained| {
        let shown = settings.example(&label, &cut.fragments, feature);
        let record = found.records.iter().find(|record| record.feature == shown.feature);
        record.map(|record| with_record(shown, record))
    };
    let shown: Vec<FeatureExample> = features.iter().filter_map(scored).collect();
    let rows = found.rows(&site, args);
    if args.at.json {
        say!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        print(args, &found.records, &rows)?;
    }
    if let Some(folder) = &args.out {
        write_records(&folder.join(EXPLANATIONS), &found.all())?;
        write(folder, &rows, &shown, args, &text)?;
    }
    if let Some(spent) = &found.spent {
        note!("{spent}");
    }
    match found.ended {
        None => Ok(exit::OK),
        Some(LlmError::Stopped) => {
            note!(
                "stopped after {} of {} features; the same command goes on from there",
                found.records.len(),
                features.len()
            );
            Ok(exit::INTERRUPTED)
        }
        Some(error) => {
            let done = format!("{} of {} features are done", found.records.len(), features.len());
            Err(Error::new(error)
                .context(format!("{done}; every reply is kept, and the same command goes on from there")))
        }
    }
}

/// Which fragments are kept of each feature.
fn gather(args: &cli::Interp) -> GatherConfig {
    let n = args.score;
    let quiet = if args.scorers.iter().any(|scorer| scorer.needs_quiet()) { 2 * n } else { 0 };
    let split = SplitRule::Documents { explain_top: 100, explain_random: 100, score_top: n, score_random: n };
    GatherConfig { split, quiet, quiet_below: args.quiet_below, seed: args.seed, ..GatherConfig::default() }
}

/// What the options say of explanations, scores and who is asked, checked before any work.
struct Asks {
    prompts: Prompts,
    imported: Option<BTreeMap<usize, String>>,
    llm: Option<(Llm, LlmConfig)>,
}

/// What came of the features and of the controls.
struct Found {
    records: Vec<FeatureRecord>,
    shuffled: Vec<FeatureRecord>,
    random: Vec<FeatureRecord>,
    ended: Option<LlmError>,
    spent: Option<String>,
    resamples: usize,
}

impl Asks {
    fn new(args: &cli::Interp) -> Result<Self> {
        ensure!((0.0..1.0).contains(&args.quiet_below), "--quiet-below {}: expected 0 to below 1", args.quiet_below);
        if let Some((i, scorer)) = args.scorers.iter().enumerate().find(|(i, kind)| args.scorers[..*i].contains(kind)) {
            bail!("--scorers names {scorer} twice, the second time as number {}", i + 1);
        }
        let asking = args.scorers.iter().find(|scorer| **scorer != ScorerKind::Patterns).map(|scorer| scorer.name());
        let explaining = (args.explainer != ExplainerName::Patterns).then_some("the explainer");
        if let (Some(what), None) = (asking.or(explaining), &args.llm) {
            bail!("{what} asks a language model: name one with --llm (local:MODEL, an address, or a .toml file)");
        }
        if asking.or(explaining).is_none() && args.llm.is_some() {
            bail!("--llm names a model, but nothing asks it: add --scorers or --explainer");
        }
        let llm = args.llm.as_ref().map(|llm| llm.resolve(args.llm_model.as_deref())).transpose()?;
        let llm = llm.map(|(llm, asking)| (llm, LlmConfig { seed: args.seed, ..asking }));
        let imported = args.explanations.as_deref().map(read_explanations).transpose()?;
        Ok(Self { prompts: Prompts::load(args.prompts.as_deref())?, imported, llm })
    }

    /// Explains and scores the features, then as many of each control as asked for.
    fn run(
        &self,
        args: &cli::Interp,
        site: &Site,
        settings: &Settings<'_>,
        fragments: &Fragments,
        features: &[Explained],
        random: &[Explained],
    ) -> Result<Found> {
        let Some((llm, config)) = &self.llm else {
            let asker = self.asker(args, settings, None, 1);
            return Ok(ask(&asker, args, site, fragments, features, random, LlmConfig::default().resamples));
        };
        let cache = args.llm_cache.clone().unwrap_or_else(|| site.assets.cache().join("llm"));
        let opened = llm.open(&site.assets, &cache, &mut |progress| Bar::new("model").fetch(&progress))?;
        let mut found = opened.ask(&cache, |endpoint| {
            let vocabulary = settings.vocabulary;
            let interpreter = Interpreter { endpoint, prompts: &self.prompts, vocabulary, config };
            let asker = self.asker(args, settings, Some(interpreter), llm.workers());
            Ok(ask(&asker, args, site, fragments, features, random, config.resamples))
        })?;
        found.spent = opened.spent();
        Ok(found)
    }

    fn asker<'a>(
        &'a self,
        args: &'a cli::Interp,
        settings: &'a Settings<'a>,
        interpreter: Option<Interpreter<'a>>,
        workers: usize,
    ) -> Asker<'a> {
        let explains = match (&self.imported, args.explainer) {
            (Some(imported), _) => Explains::Imported(imported),
            (None, ExplainerName::Patterns) => Explains::Patterns,
            (None, ExplainerName::Integers) => Explains::Model(ExplainerKind::Integers),
            (None, ExplainerName::Windows) => Explains::Model(ExplainerKind::Windows),
        };
        Asker { interpreter, settings, explains, scorers: &args.scorers, workers }
    }
}

fn ask(
    asker: &Asker<'_>,
    args: &cli::Interp,
    site: &Site,
    fragments: &Fragments,
    features: &[Explained],
    random: &[Explained],
    resamples: usize,
) -> Found {
    let subject = |dictionary: String, control| Subject { dictionary, hook: site.hook.to_string(), control };
    let dictionary = || args.at.dictionary.display().to_string();
    let done = |what: &'static str, total: usize| {
        let mut bar = Bar::new(what);
        move |done: usize| bar.show(done as u64, total as u64, "features")
    };
    let main = asker.run(&subject(dictionary(), None), fragments, features, &mut done("features", features.len()));
    let mut found = Found {
        records: main.records,
        shuffled: Vec::new(),
        random: Vec::new(),
        ended: main.ended,
        spent: None,
        resamples,
    };
    if found.ended.is_some() {
        return found;
    }
    let some = &features[..features.len().min(args.controls)];
    let of_some: Vec<FeatureRecord> =
        found.records.iter().filter(|r| some.iter().any(|f| f.examples.feature == r.feature)).cloned().collect();
    let mut step = done("control: shuffled", some.len());
    let shuffled = asker.shuffled(&subject(dictionary(), Some("shuffled")), fragments, some, &of_some, &mut step);
    found.shuffled = shuffled.records;
    found.ended = shuffled.ended;
    // Nobody made explanations of random directions elsewhere.
    if found.ended.is_none() && !matches!(asker.explains, Explains::Imported(_)) {
        let directions = subject("random directions".into(), Some("random-directions"));
        let asked = asker.run(&directions, fragments, random, &mut done("control: random", random.len()));
        found.random = asked.records;
        found.ended = asked.ended;
    }
    found
}

impl Found {
    fn all(&self) -> Vec<FeatureRecord> {
        self.records.iter().chain(&self.shuffled).chain(&self.random).cloned().collect()
    }

    fn rows(&self, site: &Site, args: &cli::Interp) -> Vec<ResultRow> {
        let label = Label::new("autointerp", "sae", site.hook, format!("explainer={}", explainer_of(&self.records)));
        let rows = |label: &Label, records: &[FeatureRecord]| {
            asking::rows(label, &args.scorers, records, self.resamples, args.seed)
        };
        let mut all = rows(&label, &self.records);
        all.extend(rows(&label.with_setting("control=shuffled"), &self.shuffled));
        let random = Label { method: "random-relu".into(), ..label.with_setting("control=random-directions") };
        all.extend(rows(&random, &self.random));
        all
    }
}

fn explainer_of(records: &[FeatureRecord]) -> &str {
    records.first().map_or("patterns", |record| &record.explainer)
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

fn print(args: &cli::Interp, records: &[FeatureRecord], rows: &[ResultRow]) -> Result<()> {
    let names: Vec<String> = args.scorers.iter().map(|scorer| format!("{:>9}", short(*scorer))).collect();
    say!("{:>7} {}  explanation", "feature", names.join(" "));
    for record in records {
        let score = |verdict: &Verdict| verdict.value.map_or_else(|| format!("{:>9}", "-"), |v| format!("{v:>9.2}"));
        let scores: Vec<String> = record.verdicts.iter().map(score).collect();
        let why = record.verdicts.iter().find_map(|verdict| verdict.unscored.as_ref());
        let text = match (&record.explanation, why) {
            (Some(text), _) => text.clone(),
            (None, Some(why)) => why.to_string(),
            (None, None) => String::new(),
        };
        say!("{:>7} {}  {text}", record.feature, scores.join(" "));
    }
    for row in rows {
        let interval =
            row.ci_low.zip(row.ci_high).map_or_else(String::new, |(low, high)| format!(" [{low:.3}, {high:.3}]"));
        let of = if row.unit == "features" || row.unit == "replies" { format!(" of {}", row.n) } else { String::new() };
        say!("{} ({}): {:.3}{interval}{of}", row.metric, row.setting, row.value);
    }
    Ok(())
}

/// A scorer's name in a column.
fn short(scorer: ScorerKind) -> &'static str {
    match scorer {
        ScorerKind::ChatSimulation => "chat-sim",
        ScorerKind::Simulation => "simulate",
        other => other.name(),
    }
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
