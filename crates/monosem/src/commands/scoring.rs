//! What `interp` and `interp-cache` share: features explained and scored as the options say, beside controls, and what came of it told and written.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Error, Result, bail, ensure};
use monosem_assets::Assets;
use monosem_autointerp::{
    Budget, ExplainerKind, FeatureExamples, FeatureRecord, Fragments, GatherConfig, Interpreter, LlmConfig,
    PatternConfig, Prompts, ScorerKind, SplitRule, Verdict, Vocabulary, read_explanations, write_records,
};
use monosem_llm::LlmError;
use monosem_report::{Extras, FeatureExample, Provenance, ResultRow, render, write_features, write_results};

use super::Bar;
use crate::asking::{self, Asker, Explains, Subject, with_record};
use crate::cli::{ExplainerName, Scoring};
use crate::endpoint::Llm;
use crate::exit;
use crate::interpretation::{Explained, Settings};
use crate::nodes::{FEATURES, Label};
use crate::output::{note, say};

/// The file of explanations in the folder of results.
const EXPLANATIONS: &str = "explanations.jsonl";

/// What the options say of explanations, scores and who is asked, checked before any work.
pub(super) struct Asks<'a> {
    options: &'a Scoring,
    prompts: Prompts,
    imported: Option<BTreeMap<usize, String>>,
    llm: Option<(Llm, LlmConfig)>,
}

/// Whose features they are.
pub(super) struct About {
    /// A path.
    pub(super) dictionary: String,
    pub(super) hook: String,
    pub(super) model: String,
    pub(super) text: String,
    /// Print results as JSON.
    pub(super) json: bool,
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

impl<'a> Asks<'a> {
    pub(super) fn new(options: &'a Scoring) -> Result<Self> {
        let Scoring { scorers, quiet_below, explainer, .. } = options;
        ensure!((0.0..1.0).contains(quiet_below), "--quiet-below {quiet_below}: expected 0 to below 1");
        if let Some((i, scorer)) = scorers.iter().enumerate().find(|(i, kind)| scorers[..*i].contains(kind)) {
            bail!("--scorers names {scorer} twice, the second time as number {}", i + 1);
        }
        let asking = scorers.iter().find(|scorer| **scorer != ScorerKind::Patterns).map(|scorer| scorer.name());
        let explaining = (*explainer != ExplainerName::Patterns).then_some("the explainer");
        if let (Some(what), None) = (asking.or(explaining), &options.llm) {
            bail!("{what} asks a language model: name one with --llm (local:MODEL, an address, or a .toml file)");
        }
        if asking.or(explaining).is_none() && options.llm.is_some() {
            bail!("--llm names a model, but nothing asks it: add --scorers or --explainer");
        }
        let llm = options.llm.as_ref().map(|llm| llm.resolve(options.llm_model.as_deref())).transpose()?;
        let llm = llm.map(|(llm, asking)| (llm, LlmConfig { seed: options.seed, ..asking }));
        let imported = options.explanations.as_deref().map(read_explanations).transpose()?;
        let prompts = Prompts::load(options.prompts.as_deref())?;
        if let Some(folder) = &options.out {
            // Before the work: what cannot be written is better known now.
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        }
        Ok(Self { options, prompts, imported, llm })
    }

    /// Which fragments are kept of each feature.
    pub(super) fn gather(&self) -> GatherConfig {
        let Scoring { score: n, scorers, quiet_below, seed, .. } = self.options;
        let quiet = if scorers.iter().any(|scorer| scorer.needs_quiet()) { 2 * n } else { 0 };
        let split = SplitRule::Documents { explain_top: 100, explain_random: 100, score_top: *n, score_random: *n };
        GatherConfig { split, quiet, quiet_below: *quiet_below, seed: *seed, ..GatherConfig::default() }
    }

    /// Explains and scores features and controls, prints what came of them and writes it where the options say.
    ///
    /// `random` are random directions on the same activations: the control in which there is nothing to find. None where there are no activations.
    pub(super) fn explain_and_score(
        &self,
        assets: &Assets,
        about: &About,
        vocabulary: &Vocabulary,
        fragments: &Fragments,
        [features, random]: [Vec<FeatureExamples>; 2],
    ) -> Result<u8> {
        let options = self.options;
        let settings = Settings {
            vocabulary,
            patterns: PatternConfig { max_patterns: options.patterns, ..PatternConfig::default() },
            budgets: vec![Budget::Patterns(options.patterns)],
            headline: options.patterns,
            seed: options.seed,
        };
        settings.patterns.validate()?;
        let features = settings.explain(fragments, features);
        let random = settings.explain(fragments, random);
        let found = self.ask_who(assets, about, &settings, fragments, &features, &random)?;

        let label = Label::new("autointerp", "sae", &about.hook, "");
        let scored = |feature: &Explained| {
            let shown = settings.example(&label, fragments, feature);
            let record = found.records.iter().find(|record| record.feature == shown.feature);
            record.map(|record| with_record(shown, record))
        };
        let shown: Vec<FeatureExample> = features.iter().filter_map(scored).collect();
        let rows = found.rows(about, options);
        if about.json {
            say!("{}", serde_json::to_string_pretty(&shown)?);
        } else {
            print(&options.scorers, &found.records, &rows)?;
        }
        if let Some(folder) = &options.out {
            write_records(&folder.join(EXPLANATIONS), &found.all())?;
            write(folder, &rows, &shown, about)?;
        }
        if let Some(spent) = &found.spent {
            note!("{spent}");
        }
        let done = format!("{} of {} features are done", found.records.len(), features.len());
        match found.ended {
            None => Ok(exit::OK),
            Some(LlmError::Stopped) => {
                note!("stopped: {done}; the same command goes on from there");
                Ok(exit::INTERRUPTED)
            }
            Some(error) => Err(Error::new(error)
                .context(format!("{done}; every reply is kept, and the same command goes on from there"))),
        }
    }

    /// Opens the model that is asked, if one is.
    fn ask_who(
        &self,
        assets: &Assets,
        about: &About,
        settings: &Settings<'_>,
        fragments: &Fragments,
        features: &[Explained],
        random: &[Explained],
    ) -> Result<Found> {
        let Some((llm, config)) = &self.llm else {
            let asker = self.asker(settings, None, 1);
            return Ok(self.ask(&asker, about, fragments, features, random));
        };
        let cache = self.options.llm_cache.clone().unwrap_or_else(|| assets.cache().join("llm"));
        let opened = llm.open(assets, &cache, &mut |progress| Bar::new("model").fetch(&progress))?;
        let mut found = opened.ask(&cache, |endpoint| {
            let vocabulary = settings.vocabulary;
            let interpreter = Interpreter { endpoint, prompts: &self.prompts, vocabulary, config };
            let asker = self.asker(settings, Some(interpreter), llm.workers());
            Ok(self.ask(&asker, about, fragments, features, random))
        })?;
        found.spent = opened.spent();
        Ok(found)
    }

    fn asker<'s>(
        &'s self,
        settings: &'s Settings<'s>,
        interpreter: Option<Interpreter<'s>>,
        workers: usize,
    ) -> Asker<'s> {
        let explains = match (&self.imported, self.options.explainer) {
            (Some(imported), _) => Explains::Imported(imported),
            (None, ExplainerName::Patterns) => Explains::Patterns,
            (None, ExplainerName::Integers) => Explains::Model(ExplainerKind::Integers),
            (None, ExplainerName::Windows) => Explains::Model(ExplainerKind::Windows),
        };
        Asker { interpreter, settings, explains, scorers: &self.options.scorers, workers }
    }

    /// The features, then as many of each control as asked for.
    fn ask(
        &self,
        asker: &Asker<'_>,
        about: &About,
        fragments: &Fragments,
        features: &[Explained],
        random: &[Explained],
    ) -> Found {
        let subject = |dictionary: &str, control| {
            let (dictionary, hook) = (dictionary.to_owned(), about.hook.clone());
            Subject { dictionary, hook, control }
        };
        let done = |what: &'static str, total: usize| {
            let mut bar = Bar::new(what);
            move |done: usize| bar.show(done as u64, total as u64, "features")
        };
        let own = subject(&about.dictionary, None);
        let main = asker.run(&own, fragments, features, &mut done("features", features.len()));
        let resamples = self.llm.as_ref().map_or(LlmConfig::default().resamples, |(_, config)| config.resamples);
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
        let some = &features[..features.len().min(self.options.controls)];
        let of_some = |record: &&FeatureRecord| some.iter().any(|f| f.examples.feature == record.feature);
        let of_some: Vec<FeatureRecord> = found.records.iter().filter(of_some).cloned().collect();
        let shuffled = asker.shuffled(&own, fragments, some, &of_some, &mut done("control: shuffled", some.len()));
        found.shuffled = shuffled.records;
        found.ended = shuffled.ended;
        // Nobody made explanations of random directions elsewhere.
        if found.ended.is_none() && !matches!(asker.explains, Explains::Imported(_)) {
            let directions = subject("random directions", Some("random-directions"));
            let asked = asker.run(&directions, fragments, random, &mut done("control: random", random.len()));
            found.random = asked.records;
            found.ended = asked.ended;
        }
        found
    }
}

impl Found {
    fn all(&self) -> Vec<FeatureRecord> {
        self.records.iter().chain(&self.shuffled).chain(&self.random).cloned().collect()
    }

    fn rows(&self, about: &About, options: &Scoring) -> Vec<ResultRow> {
        let explainer = self.records.first().map_or("patterns", |record| &record.explainer);
        let label = Label::new("autointerp", "sae", &about.hook, format!("explainer={explainer}"));
        let rows = |label: &Label, records: &[FeatureRecord]| {
            asking::rows(label, &options.scorers, records, self.resamples, options.seed)
        };
        let mut all = rows(&label, &self.records);
        all.extend(rows(&label.with_setting("control=shuffled"), &self.shuffled));
        let random = Label { method: "random-relu".into(), ..label.with_setting("control=random-directions") };
        all.extend(rows(&random, &self.random));
        all
    }
}

fn print(scorers: &[ScorerKind], records: &[FeatureRecord], rows: &[ResultRow]) -> Result<()> {
    let names: Vec<String> = scorers.iter().map(|scorer| format!("{:>9}", short(*scorer))).collect();
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

fn write(folder: &Path, rows: &[ResultRow], shown: &[FeatureExample], about: &About) -> Result<()> {
    write_results(&folder.join("results.json"), rows)?;
    write_features(&folder.join(FEATURES), shown)?;
    let provenance = Provenance {
        title: format!("monosem: features of {}", about.dictionary),
        profile: "interp".into(),
        profile_toml: String::new(),
        model: about.model.clone(),
        text: about.text.clone(),
        nodes: Vec::new(),
        version: env!("CARGO_PKG_VERSION").into(),
        notes: Vec::new(),
    };
    render(rows, Extras { features: shown, ..Extras::default() }, &provenance)?.write(folder)?;
    let page = folder.join("report.html");
    if about.json {
        note!("{}", page.display());
    } else {
        say!("{}", page.display());
    }
    Ok(())
}
